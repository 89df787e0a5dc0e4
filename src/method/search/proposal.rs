//! Where the tokens of candidates come from: any allowed one, or the head of a ranking by the gradient.

use rayon::prelude::*;

use super::linear::Visit;
use super::{Search, State};
use crate::Result;
use crate::noise::Draws;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;
use crate::tensor::host;

/// Which tokens a candidate is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Proposal {
    /// Any allowed token.
    Uniform,
    /// Biased to the head of a ranking by predicted change over squared distance: rank top·u² for a uniform u.
    Gradient {
        /// Tokens of the ranking that may be drawn, for each position; one more for every N candidates of the batches at an unchanged prompt.
        top: usize,
        /// Share of the earlier rankings in the current one.
        momentum: f64,
    },
    /// Evenly from the tokens for which the gradient at the prompt predicts the lowest objective, g·E_v: GCG's. The one that stands there
    /// may be among them, and what misses is not drawn again.
    Top {
        /// Tokens of each position that may be drawn.
        top: usize,
        /// Positions that a candidate is given one of them at.
        n_replace: usize,
    },
    /// The first ones of that order at one position, as many as a batch holds: ARCA's and AutoPrompt's.
    Best {
        /// Which position.
        visit: Visit,
        /// g is the mean over prompts with random tokens at the position, as many as a batch holds.
        averaged: bool,
    },
}

/// The tokens that each position may be given in a step.
pub(super) enum Tokens<'a> {
    /// Any of these, at every position.
    Any(&'a [u32]),
    /// Of each position, best first: the head of a ranking, from which better ones are drawn more often.
    Ranked(Vec<Vec<u32>>),
    /// Of each position, one as likely as the other, that which stands there among them.
    Even(Vec<Vec<u32>>),
}

impl Tokens<'_> {
    /// Whether a candidate may be the prompt itself.
    pub fn may_stay(&self) -> bool {
        matches!(self, Self::Even(_))
    }

    /// A token for a position, another one than `own` unless it may stay; nothing where the draw misses.
    pub fn draw(&self, position: usize, own: u32, draws: &mut Draws) -> Option<u32> {
        let tokens = match self {
            Self::Any(tokens) => *tokens,
            Self::Ranked(heads) | Self::Even(heads) => &heads[position],
        };
        if tokens.is_empty() {
            return None;
        }
        let token = match self {
            Self::Any(_) | Self::Even(_) => tokens[draws.below(tokens.len())],
            Self::Ranked(_) => tokens[(tokens.len() as f32 * draws.uniform().powi(2)) as usize],
        };
        (token != own || self.may_stay()).then_some(token)
    }
}

impl Proposal {
    /// A neighbour of the prompt `free`: as many tokens as a candidate replaces, each at another random position. Nothing where the draws
    /// miss.
    pub(super) fn neighbour(self, free: &[u32], tokens: &Tokens, draws: &mut Draws) -> Option<Vec<u32>> {
        let count = if let Self::Top { n_replace, .. } = self { n_replace } else { 1 };
        let (mut candidate, mut positions) = (free.to_vec(), (0..free.len()).collect::<Vec<_>>());
        for _ in 0..count.min(free.len()) {
            let position = positions.swap_remove(draws.below(positions.len()));
            candidate[position] = tokens.draw(position, free[position], draws)?;
        }
        Some(candidate)
    }
}

/// Swap scores `[N, V]`, lowest first.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// Averaged over the steps; empty before the first.
    average: Vec<f32>,
    /// Those of the current prompt alone, until it changes.
    current: Option<Current>,
}

/// Those of one prompt.
#[derive(Debug)]
pub(super) struct Current {
    scores: Vec<f32>,
    gradient_norm: f32,
}

impl Ranking {
    /// Mixes the scores of the current prompt into the average. They are computed once, however many steps it stays unchanged.
    pub fn mix(&mut self, momentum: f32, scores: impl FnOnce() -> Current) {
        let current = self.current.get_or_insert_with(scores);
        if self.average.is_empty() {
            self.average = current.scores.clone();
        } else {
            let mix = |(old, new): (&mut f32, &f32)| *old = momentum * *old + (1.0 - momentum) * new;
            self.average.par_iter_mut().zip(&current.scores).for_each(mix);
        }
    }

    /// The `top` best allowed tokens of every position of the prompt `free`.
    pub fn heads(&self, top: usize, free: &[u32], allowed: &[bool]) -> Tokens<'static> {
        let rows = self.average.par_chunks_exact(allowed.len()).zip(free);
        Tokens::Ranked(rows.map(|(row, &own)| head_of(row, allowed, Some(own), top)).collect())
    }

    /// Length of the gradient at the current prompt, where it was computed.
    pub fn gradient_norm(&self) -> Option<f32> {
        self.current.as_ref().map(|current| current.gradient_norm)
    }

    /// The prompt has changed.
    pub fn prompt_changed(&mut self) {
        self.current = None;
    }

    /// Puts everything but the gradient's length into `state`; rows are `n` positions.
    pub fn save(&self, n: usize, state: &mut State) {
        let scores = [("average", Some(&self.average)), ("current", self.current.as_ref().map(|current| &current.scores))];
        for (name, scores) in scores.into_iter().filter_map(|(name, scores)| Some((name, scores.filter(|scores| !scores.is_empty())?))) {
            state.put_values(name, n, scores.clone());
        }
    }

    /// From a saved state, where scores are `[N, V]`.
    ///
    /// # Errors
    /// They have another shape.
    pub fn restored(state: &mut State, shape: [usize; 2], gradient_norm: Option<f32>) -> Result<Self> {
        let mut take = |name| state.tensors.contains_key(name).then(|| state.take_values(name, shape)).transpose();
        let current = take("current")?.map(|scores| Current { scores, gradient_norm: gradient_norm.unwrap_or(f32::NAN) });
        Ok(Self { average: take("average")?.unwrap_or_default(), current })
    }
}

impl Search {
    /// The change that the gradient at a prompt predicts of every swap, over the squared distance: g·(E_v − E_x) / ‖E_v − E_x‖².
    pub(super) fn scores<B: TrackedBackend>(&self, free: &[u32], emphasis: &[f32], subject: &Subject<B>, problem: &Problem) -> Current {
        let slope = self.slope(free, Some(emphasis), subject, problem);
        let gradient_norm = slope.norm();
        let predicted = slope.predicted_change(free, subject);
        let distance = subject.squared_distance(free);
        Current { scores: host(predicted / distance.clamp_min(1e-3)), gradient_norm }
    }
}

/// The `top` allowed tokens with the lowest scores, best first, without `own`. What is no number comes last.
pub(super) fn head_of(row: &[f32], allowed: &[bool], own: Option<u32>, top: usize) -> Vec<u32> {
    let last_if_none = |score: f32| if score.is_nan() { f32::INFINITY } else { score };
    let score = |id: &u32| last_if_none(row[*id as usize]);
    let by_score = |a: &u32, b: &u32| score(a).total_cmp(&score(b)).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..row.len() as u32).filter(|&id| allowed[id as usize] && Some(id) != own).collect();
    let top = top.min(ids.len());
    if top < ids.len() {
        ids.select_nth_unstable_by(top, by_score);
        ids.truncate(top);
    }
    ids.sort_unstable_by(by_score);
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::{Purpose, Stream};

    #[test]
    fn the_few_allowed_of_many_tokens_are_found() {
        let tokens = Tokens::Any(&[7, 2507, 5007, 7507]);
        let mut draws = Draws::new(Stream::new(1, 0, 0, Purpose::SearchDraws, 0));
        let drawn: Vec<Option<u32>> = (0..200).map(|_| tokens.draw(0, 7, &mut draws)).collect();
        let count = |token| drawn.iter().filter(|drawn| **drawn == token).count();
        assert_eq!([None, Some(2507), Some(5007), Some(7507)].map(|token| count(token) > 30), [true; 4]);
        assert_eq!([None, Some(2507), Some(5007), Some(7507)].map(count).iter().sum::<usize>(), 200);
        assert_eq!(Tokens::Any(&[]).draw(0, 7, &mut draws), None);
    }

    #[test]
    fn a_neighbour_differs_in_what_it_says() {
        let free = [2, 4, 6, 8, 10];
        let mut draws = Draws::new(Stream::new(1, 0, 0, Purpose::SearchDraws, 0));
        let even: Vec<u32> = (0..40).step_by(2).collect();
        let tokens = Tokens::Any(&even);
        for (proposal, most) in [(Proposal::Uniform, 1), (Proposal::Top { top: 1, n_replace: 2 }, 2)] {
            let found: Vec<Vec<u32>> = (0..400).filter_map(|_| proposal.neighbour(&free, &tokens, &mut draws)).collect();
            assert!(found.len() > 200 && found.iter().flatten().all(|token| token % 2 == 0), "only allowed tokens");
            assert!(found.iter().all(|other| other.iter().zip(&free).filter(|(a, b)| a != b).count() == most));
        }
    }

    #[test]
    fn what_is_no_number_is_last_in_a_ranking() {
        assert_eq!(head_of(&[f32::NAN, 1.0, -f32::NAN, f32::NEG_INFINITY], &[true; 4], None, 4), [3, 1, 0, 2]);
    }

    proptest! {
        #[test]
        fn the_head_of_a_ranking_is_its_best(
            row in proptest::collection::vec(-10f32..10.0, 1..60),
            banned in proptest::collection::vec(any::<bool>(), 60),
            own in 0u32..60,
            top in 1usize..70,
        ) {
            let allowed: Vec<bool> = banned[..row.len()].iter().map(|banned| !banned).collect();
            let head = head_of(&row, &allowed, Some(own), top);
            let mut all: Vec<u32> = (0..row.len() as u32).filter(|&id| allowed[id as usize] && id != own).collect();
            all.sort_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize]).then(a.cmp(b)));
            all.truncate(top);
            prop_assert_eq!(head, all);
        }
    }
}
