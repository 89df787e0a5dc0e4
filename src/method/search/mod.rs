//! The one loop of the searches on hard tokens: propose single-token swaps, score them exactly, move.
//!
//! The prompt held is always one that can be typed: a swap that does not survive decode → encode as a whole prompt is dropped
//! before it costs anything.

pub mod random;
pub mod snap;

use std::collections::HashSet;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Clock, Held, Method, Progress, State};
use crate::model::cache::retain;
use crate::noise::{Draws, Purpose, Stream};
use crate::objective::Objective;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::{Subject, Swap};
use crate::{Error, Result};

/// Where swaps come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Proposal {
    /// Any allowed token.
    Uniform,
    /// Biased to the head of a ranking by predicted change over squared distance.
    Gradient {
        /// Tokens of the ranking that may be drawn, for each position.
        top: usize,
        /// Share of the earlier rankings in the current one.
        momentum: f32,
    },
}

/// What tells one search from another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    /// Where swaps come from.
    pub proposal: Proposal,
    /// κ of the hinge that is minimised.
    pub margin: f32,
    /// Candidates of a step while progress is easy.
    pub batch: usize,
    /// Candidates of a step after long without progress.
    pub batch_max: usize,
    /// A best candidate that is worse by Δ is taken with probability exp(−Δ/T); 0: never.
    pub temperature: f32,
    /// Steps without a new best before the batch doubles.
    pub patience: u64,
    /// A stalled search begins with a new random prompt, not with its best. Worth it where a search takes seconds.
    pub begin_anew: bool,
}

/// A search at work.
pub struct SearchMethod {
    search: Search,
    at: Position,
    /// Swap scores `[N, V]`, lowest first.
    order: Vec<f32>,
}

/// Everything but the ranking.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Position {
    current: Candidate,
    best: Candidate,
    batch: usize,
    /// Steps since the last new best, or since the batch was last changed.
    waited: u64,
    stalled: bool,
    /// Random prompts that the search began with, before this one.
    begun: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Candidate {
    free: Vec<u32>,
    margins: Vec<f32>,
    hinge: f32,
}

impl SearchMethod {
    /// A search that is to be started.
    pub fn new(search: Search) -> Self {
        Self { search, at: Position::default(), order: Vec::new() }
    }

    /// The best of `swaps`, scored exactly, if its hinge is below `bound`; one that leads to the target before all others, however
    /// narrowly it does, unless the current prompt does so too.
    ///
    /// A hinge only grows along the target, so whatever reaches the bound on a first part of the target is dropped there.
    fn best_below<B: TrackedBackend>(
        &self,
        bound: f32,
        mut swaps: Vec<Swap>,
        parts: &[usize],
        subject: &Subject<B>,
        problem: &Problem,
    ) -> Option<Candidate> {
        let hinge = |margins: &[f32]| Objective::hinge(self.search.margin, margins);
        let ahead = |margins: &[f32]| margins.iter().all(|&margin| margin > 0.0);
        let leads = |margins: &[f32]| !ahead(&self.at.current.margins) && ahead(margins);
        let prompt = problem.first().search_ids(&self.at.current.free);
        let mut neighbours = subject.neighbours(&prompt, problem.first().head().len(), &swaps, &problem.first().target.ids);
        let mut margins = vec![Vec::new(); swaps.len()];
        for &part in parts {
            let mut next = neighbours.margins(part).into_iter();
            margins.iter_mut().for_each(|margins| margins.extend(next.next().expect("one for each swap")));
            let keep: Vec<bool> = margins.iter().map(|margins| leads(margins) || hinge(margins) < bound).collect();
            neighbours.retain(&keep);
            retain(&mut swaps, &keep);
            retain(&mut margins, &keep);
            if swaps.is_empty() {
                return None;
            }
        }
        let rank = |margins: &[f32]| (!leads(margins), hinge(margins));
        let by_rank = |(_, a): &(_, Vec<f32>), (_, b): &(_, Vec<f32>)| {
            let (a, b) = (rank(a), rank(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        };
        let (swap, margins) = swaps.into_iter().zip(margins).min_by(by_rank)?;
        let mut free = self.at.current.free.clone();
        free[swap.position - problem.first().head().len()] = swap.token;
        Some(Candidate { free, hinge: hinge(&margins), margins })
    }

    /// The head of the ranking of every position, with this step's gradient mixed in.
    fn ranking<B: TrackedBackend>(&mut self, subject: &Subject<B>, problem: &Problem) -> (Vec<Vec<u32>>, Option<f32>) {
        let Proposal::Gradient { top, momentum } = self.search.proposal else {
            return (Vec::new(), None);
        };
        let objective = Objective::Hinge { margin: self.search.margin };
        let (_, gradient) = subject.gradient(&self.at.current.free, problem, objective);
        let norm = crate::tensor::host(gradient.clone()).iter().map(|x| x * x).sum::<f32>().sqrt();
        let now = subject.swap_order(&self.at.current.free, gradient);
        if self.order.is_empty() {
            self.order = now;
        } else {
            let mix = |(old, new): (&mut f32, &f32)| *old = momentum * *old + (1.0 - momentum) * new;
            self.order.par_iter_mut().zip(&now).for_each(mix);
        }
        let allowed = problem.prompt.allowed();
        let rows = self.order.par_chunks_exact(allowed.len()).zip(&self.at.current.free);
        (rows.map(|(row, &own)| head_of(row, allowed, own, top)).collect(), Some(norm))
    }

    /// Up to `size` distinct swaps that survive decode → encode.
    fn propose(&self, size: usize, ranking: &[Vec<u32>], problem: &Problem, draws: &mut Draws) -> Vec<Swap> {
        let (prompt, head) = (&problem.prompt, problem.first().head().len());
        let mut seen = HashSet::new();
        let mut batch = Vec::with_capacity(size);
        for _ in 0..size * 6 {
            if batch.len() == size {
                break;
            }
            let position = draws.below(prompt.tokens());
            let token = match ranking.get(position).map(Vec::as_slice) {
                Some([]) => continue,
                Some(row) => row[(row.len() as f32 * draws.uniform().powi(2)) as usize],
                None => draws.below(prompt.allowed().len()) as u32,
            };
            let own = self.at.current.free[position];
            if token == own || !prompt.allowed()[token as usize] || !seen.insert((position, token)) {
                continue;
            }
            let mut free = self.at.current.free.clone();
            free[position] = token;
            if problem.round_trips(&free) {
                batch.push(Swap { position: head + position, token });
            }
        }
        batch
    }

    /// The target in parts, at the end of each of which candidates are dropped: it is cut where the current prompt has nearly all of
    /// its hinge behind it, because what does worse there does not catch up; a late cut saves less than another pass costs.
    fn parts(&self) -> Vec<usize> {
        let (mut sum, len) = (0.0, self.at.current.margins.len());
        let sums = self.at.current.margins.iter().map(|&margin| {
            sum += Objective::hinge(self.search.margin, &[margin]);
            sum
        });
        match sums.take(len * 7 / 10).position(|sum| sum >= 0.9 * self.at.current.hinge) {
            Some(last) => vec![last + 1, len - last - 1],
            None => vec![len],
        }
    }

    /// What a candidate's hinge must stay below to be taken: better than the current prompt, or worse by Δ with probability
    /// exp(−Δ/T), drawn before anything is scored.
    fn bound(&self, luck: f32) -> f32 {
        self.at.current.hinge - self.search.temperature * luck.ln()
    }

    fn take(&mut self, candidate: Candidate) {
        if candidate.hinge < self.at.best.hinge {
            self.at.best = candidate.clone();
            (self.at.batch, self.at.waited, self.at.stalled) = (self.search.batch, 0, false);
        }
        self.at.current = candidate;
    }

    /// Holds a random prompt and nothing else.
    fn begin<B: TrackedBackend>(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock, begun: u32) -> Result<()> {
        let free = initial(problem, clock, begun)?;
        let margins = subject.all_margins(std::slice::from_ref(&free), problem).remove(0);
        let current = Candidate { hinge: Objective::hinge(self.search.margin, &margins), free, margins };
        self.at = Position { best: current.clone(), current, batch: self.search.batch, waited: 0, stalled: false, begun };
        self.order = Vec::new();
        Ok(())
    }

    /// After long without a new best: larger batches, and at last back to the best.
    fn widen(&mut self) {
        self.at.waited += 1;
        if self.at.waited <= self.search.patience {
            return;
        }
        self.at.waited = 0;
        if self.at.batch < self.search.batch_max {
            self.at.batch = (self.at.batch * 2).min(self.search.batch_max);
        } else {
            self.at.current = self.at.best.clone();
            self.at.stalled = true;
        }
    }
}

/// The `top` allowed tokens with the lowest scores, best first, without the one that stands there already.
fn head_of(row: &[f32], allowed: &[bool], own: u32, top: usize) -> Vec<u32> {
    let by_score = |a: &u32, b: &u32| row[*a as usize].total_cmp(&row[*b as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..row.len() as u32).filter(|&id| allowed[id as usize] && id != own).collect();
    let top = top.min(ids.len());
    if top < ids.len() {
        ids.select_nth_unstable_by(top, by_score);
        ids.truncate(top);
    }
    ids.sort_unstable_by(by_score);
    ids
}

/// A random readable prompt that survives decode → encode; tokens that cannot stand beside their neighbours are drawn again.
fn initial(problem: &Problem, clock: Clock, begun: u32) -> Result<Vec<u32>> {
    let mut draws = Draws::new(Stream::new(clock.seed, clock.restart, 0, Purpose::InitialPrompt, begun));
    let readable = problem.prompt.readable();
    for _ in 0..1000 {
        let free: Vec<u32> = (0..problem.prompt.tokens()).map(|_| readable[draws.below(readable.len())]).collect();
        if problem.round_trips(&free) {
            return Ok(free);
        }
    }
    Err(Error::input("no random prompt survives decoding and encoding with this prefix and suffix; end the prefix with a whole word"))
}

impl<B: TrackedBackend> Method<B> for SearchMethod {
    fn start(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        self.begin(subject, problem, clock, 0)
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        if self.at.stalled && self.search.begin_anew {
            self.begin(subject, problem, clock, self.at.begun + 1)?;
        }
        let mut draws = Draws::new(Stream::new(clock.seed, clock.restart, clock.step, Purpose::SearchDraws, 0));
        let luck = draws.uniform();
        let (ranking, gradient_norm) = self.ranking(subject, problem);
        let batch = self.propose(self.at.batch, &ranking, problem, &mut draws);
        if !batch.is_empty() {
            let best = self.best_below(self.bound(luck), batch, &self.parts(), subject, problem);
            best.into_iter().for_each(|candidate| self.take(candidate));
        }
        self.widen();
        Ok(Progress {
            objective: self.at.current.hinge,
            gradient_norm,
            temperature: None,
            entropy: None,
            stalled: self.at.stalled && !self.search.begin_anew,
        })
    }

    fn held(&self, _: &Subject<B>, _: &Problem) -> Held {
        Held { free: self.at.current.free.clone(), margins: Some(self.at.current.margins.clone()) }
    }

    fn state(&self) -> State {
        let mut state = State::new(&self.at);
        if !self.order.is_empty() {
            let shape = vec![self.at.current.free.len(), self.order.len() / self.at.current.free.len()];
            state.tensors.insert("order".into(), (shape, self.order.clone()));
        }
        state
    }

    fn restore(&mut self, mut state: State, _: &Subject<B>, _: &Problem) -> Result<()> {
        self.at = state.fields()?;
        self.order = state.tensors.remove("order").map(|(_, values)| values).unwrap_or_default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! The search on a tiny random model: what it holds, and that it finds what can be found.

    use burn::tensor::DType;
    use proptest::prelude::*;

    use super::random::random;
    use super::snap::Snap;
    use super::*;
    use crate::invert::judge::Judge;
    use crate::invert::{Budget, Quiet, Stopped, Trial};
    use crate::model::Llama;
    use crate::problem::Target;
    use crate::problem::prompt::PromptOptions;
    use crate::testing::{each_tracked_cpu_backend, tiny};

    fn snap() -> Search {
        Snap { batch: (8, 16), top: 64, momentum: 0.6, margin: 0.3, temperature: 0.2, patience: 5, begin_anew: false }.search()
    }

    fn subject<B: TrackedBackend>() -> Subject<B> {
        let mut checkpoint = tiny();
        let config = checkpoint.config.clone();
        let model = Llama::load(&config, &mut checkpoint, &B::Device::default(), DType::F32).unwrap();
        Subject::new(model, checkpoint.tokenizer)
    }

    /// A target that some prompt of two tokens leads to.
    fn problem<B: TrackedBackend>(subject: &Subject<B>, judge: &Judge, m: usize) -> Problem {
        let source = subject.tokenizer().encode("he to");
        let ids = judge.complete(&source, m, &[]).ids.remove(0);
        let target = Target { text: subject.tokenizer().decode(&ids), ids };
        let options = PromptOptions { tokens: 4, prefix: "a ".into(), ..PromptOptions::default() };
        Problem::new(options, target, subject.tokenizer(), subject.vocab_size()).unwrap()
    }

    fn judge() -> Judge<'static> {
        let mut checkpoint = tiny();
        let config = checkpoint.config.clone();
        Judge::new(Llama::load(&config, &mut checkpoint, &Default::default(), DType::F32).unwrap())
    }

    /// After every step: the prompt can be typed, keeps the ban, and its margins are those of the model.
    fn what_is_held_can_be_typed<B: TrackedBackend>() {
        let (subject, judge) = (subject::<B>(), judge());
        let problem = problem(&subject, &judge, 3);
        let mut method = SearchMethod::new(snap());
        let clock = |step| Clock { seed: 3, restart: 0, step };
        Method::<B>::start(&mut method, &subject, &problem, clock(0)).unwrap();
        for step in 0..12 {
            let progress = method.step(&subject, &problem, clock(step)).unwrap();
            let held = Method::<B>::held(&method, &subject, &problem);
            assert!(problem.round_trips(&held.free), "{:?}", held.free);
            assert!(problem.is_valid(&held.free, &problem.typed_ids(&held.free)));
            let margins = subject.margins(&[problem.first().search_ids(&held.free)], &problem.first().target.ids).remove(0);
            let difference = crate::testing::largest_difference(&margins, held.margins.as_ref().unwrap());
            assert!(difference < 1e-4, "{difference}");
            assert!((progress.objective - Objective::hinge(0.3, &margins)).abs() < 1e-3);
        }
    }

    /// Scores behind a shared trunk, and dropped half-way, are those of whole prompts.
    fn sharing_and_dropping_change_nothing<B: TrackedBackend>() {
        let (subject, judge) = (subject::<B>(), judge());
        let problem = problem(&subject, &judge, 5);
        let mut method = SearchMethod::new(snap());
        let clock = Clock { seed: 4, restart: 0, step: 0 };
        Method::<B>::start(&mut method, &subject, &problem, clock).unwrap();
        let mut draws = Draws::new(Stream::new(4, 0, 0, Purpose::SearchDraws, 0));
        let swaps = method.propose(12, &[], &problem, &mut draws);
        let prompt = problem.first().search_ids(&method.at.current.free);
        let whole: Vec<Vec<u32>> = swaps
            .iter()
            .map(|swap| {
                let mut prompt = prompt.clone();
                prompt[swap.position] = swap.token;
                prompt
            })
            .collect();
        let expected = subject.margins(&whole, &problem.first().target.ids);
        let before = subject.cost();
        let mut neighbours = subject.neighbours(&prompt, problem.first().head().len(), &swaps, &problem.first().target.ids);
        let found = neighbours.margins(5);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(crate::testing::largest_difference(found, expected) < 1e-4);
        }
        assert!(subject.cost().forward_tokens - before.forward_tokens < before.forward_tokens);

        let hinges: Vec<f32> = expected.iter().map(|margins| Objective::hinge(0.3, margins)).collect();
        let lowest = hinges.iter().copied().fold(f32::INFINITY, f32::min);
        let best = method.best_below(lowest + 0.01, swaps.clone(), &[2, 1, 2], &subject, &problem).unwrap();
        assert!((best.hinge - lowest).abs() < 1e-3);
        assert_eq!(problem.first().search_ids(&best.free), whole[hinges.iter().position(|hinge| *hinge == lowest).unwrap()]);
        assert!(method.best_below(lowest - 0.01, swaps, &[3, 2], &subject, &problem).is_none());
    }

    fn finds_and_confirms<B: TrackedBackend>() {
        let (subject, judge) = (subject::<B>(), judge());
        let problem = problem(&subject, &judge, 1);
        let mut method = SearchMethod::new(snap());
        let budget = Budget { steps: Some(300), seconds: None, restarts: 0, eval_every: 10, early_stop: true };
        let trial = Trial { subject: &subject, judge: &judge, problem: &problem, budget, seed: 1 };
        let outcome = trial.run(&mut method, None, &mut Quiet).unwrap();
        assert_eq!(outcome.stopped, Stopped::Exact);
        assert!(outcome.verdict.exact && outcome.best.valid);
        assert_eq!(outcome.verdict.confirmations[0].completion, problem.first().target.ids);
        assert!(outcome.run.cost.forward_tokens > 0 && outcome.run.cost.backward_tokens > 0);
    }

    /// Where it is told to, a stalled search begins with another random prompt, and is not called stalled.
    fn a_stalled_search_begins_anew<B: TrackedBackend>() {
        let (subject, judge) = (subject::<B>(), judge());
        let problem = problem(&subject, &judge, 3);
        let search = Search { begin_anew: true, batch: 2, batch_max: 2, patience: 2, ..snap() };
        let mut method = SearchMethod::new(search);
        let clock = |step| Clock { seed: 2, restart: 0, step };
        Method::<B>::start(&mut method, &subject, &problem, clock(0)).unwrap();
        let first = method.at.current.free.clone();
        let anew = (0..200).find(|&step| {
            let progress = method.step(&subject, &problem, clock(step)).unwrap();
            assert!(!progress.stalled);
            method.at.begun == 1
        });
        assert!(anew.is_some());
        let again = initial(&problem, clock(0), 1).unwrap();
        assert_ne!(first, again);
        let changed = again.iter().zip(&method.at.current.free).filter(|(a, b)| a != b).count();
        assert!(changed <= 1, "one step from the new prompt");
        assert!(problem.round_trips(&again));
    }

    /// Random swaps never make the prompt worse.
    fn the_control_only_improves<B: TrackedBackend>() {
        let (subject, judge) = (subject::<B>(), judge());
        let problem = problem(&subject, &judge, 3);
        let mut method = SearchMethod::new(random(8, 0.3));
        let clock = |step| Clock { seed: 9, restart: 0, step };
        Method::<B>::start(&mut method, &subject, &problem, clock(0)).unwrap();
        let mut last = f32::INFINITY;
        for step in 0..10 {
            let progress = method.step(&subject, &problem, clock(step)).unwrap();
            assert!(progress.objective <= last && progress.gradient_norm.is_none());
            last = progress.objective;
        }
    }

    each_tracked_cpu_backend!(
        what_is_held_can_be_typed,
        sharing_and_dropping_change_nothing,
        finds_and_confirms,
        a_stalled_search_begins_anew,
        the_control_only_improves
    );

    proptest! {
        #[test]
        fn the_head_of_a_ranking_is_its_best(
            row in proptest::collection::vec(-10f32..10.0, 1..60),
            banned in proptest::collection::vec(any::<bool>(), 60),
            own in 0u32..60,
            top in 1usize..70,
        ) {
            let allowed: Vec<bool> = banned[..row.len()].iter().map(|banned| !banned).collect();
            let head = head_of(&row, &allowed, own, top);
            let mut all: Vec<u32> = (0..row.len() as u32).filter(|&id| allowed[id as usize] && id != own).collect();
            all.sort_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize]).then(a.cmp(b)));
            all.truncate(top);
            prop_assert_eq!(head, all);
        }
    }
}
