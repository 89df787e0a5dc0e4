//! Targets by difficulty, the paper's Algorithm 2, and how difficult any target is.
//!
//! Both walk along the target token by token through the same cached path: the ranks that are measured on a target are therefore the
//! very ones that it was drawn with.

use std::cmp::Ordering;

use crate::metrics::perplexity;
use crate::model::{Cache, Llama};
use crate::noise::{Purpose, Stream};
use crate::ops::Kernels;
use crate::tensor::{host, ids_tensor};

/// One target of Algorithm 2. It depends on these values and on the model, not on what else is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// The rank around which tokens are drawn; 1 is the likeliest token.
    pub k: u32,
    /// Standard deviation of the rank.
    pub sigma: f64,
    /// M.
    pub tokens: usize,
    /// Seed of the ranks.
    pub seed: u32,
    /// Its number among the targets of the same k, below 2²⁴.
    pub sample: u32,
}

impl Recipe {
    /// k′ at every position: N(k, σ²), rounded and clipped to 1..=V.
    fn ranks(&self, vocabulary: usize) -> Vec<usize> {
        let draws = Stream::new(self.seed, 0, self.k, Purpose::Targets, self.sample).normal(1, self.tokens);
        let rank = |z: f32| (f64::from(self.k) + self.sigma * f64::from(z)).round().clamp(1.0, vocabulary as f64);
        draws.into_iter().map(|z| rank(z) as usize).collect()
    }
}

/// How likely a model finds M tokens, each after the start token and those before it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Likelihood {
    /// The M tokens.
    pub ids: Vec<u32>,
    /// Rank of each among all tokens, from 1; of equal logits the lowest id comes first.
    pub ranks: Vec<u32>,
    /// −ln p of each.
    pub nll: Vec<f64>,
}

impl Likelihood {
    /// p of each token.
    pub fn probabilities(&self) -> Vec<f32> {
        self.nll.iter().map(|nll| (-nll).exp() as f32).collect()
    }

    /// exp of the mean of −ln p.
    pub fn perplexity(&self) -> Option<f64> {
        perplexity(&self.nll)
    }

    /// −log₂ p of the whole.
    pub fn bits(&self) -> f64 {
        self.nll.iter().sum::<f64>() / std::f64::consts::LN_2
    }

    fn push(&mut self, id: u32, logits: &[f32]) {
        let before = (0..logits.len() as u32).filter(|&other| likelier_first(logits, other, id).is_lt());
        self.ranks.push(before.count() as u32 + 1);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
        self.nll.push(sum.ln() - f64::from(logits[id as usize] - largest));
        self.ids.push(id);
    }
}

/// Algorithm 2: after the token `start`, at each position the token of a rank near k. After one of `eos` it repeats to the end. `next`
/// is fed a token and gives the logits `[V]` of the one after it.
pub fn draw(recipe: &Recipe, vocabulary: usize, eos: &[u32], start: u32, next: impl FnMut(u32) -> Vec<f32>) -> Likelihood {
    let ranks = recipe.ranks(vocabulary);
    let mut ended = None;
    walk(start, ranks.len(), next, |position, logits| {
        let id = ended.unwrap_or_else(|| at_rank(logits, ranks[position]));
        ended = Some(id).filter(|id| eos.contains(id));
        id
    })
}

/// How likely `ids` are after the token `start`.
pub fn measure(ids: &[u32], start: u32, next: impl FnMut(u32) -> Vec<f32>) -> Likelihood {
    walk(start, ids.len(), next, |position, _| ids[position])
}

/// Feeds `start` and then what `choose` takes from the logits at each position.
fn walk(start: u32, tokens: usize, mut next: impl FnMut(u32) -> Vec<f32>, mut choose: impl FnMut(usize, &[f32]) -> u32) -> Likelihood {
    let (mut path, mut fed) = (Likelihood::default(), start);
    for position in 0..tokens {
        let logits = next(fed);
        fed = choose(position, &logits);
        path.push(fed, &logits);
    }
    path
}

/// The plain path token by token: fed one, it gives the logits `[V]` of the next.
pub(super) fn reader<B: Kernels>(model: &Llama<B>) -> impl FnMut(u32) -> Vec<f32> {
    let mut cache = Cache::new(model.config().num_hidden_layers, 1);
    move |id| {
        cache.grow(cache.len() + 1);
        let row = model.embed(ids_tensor(&[[id]], &model.device())).reshape([1, model.config().hidden_size]);
        host(model.logits(model.hidden_cached(row, &mut cache, 1)))
    }
}

/// The token of this rank, from 1.
fn at_rank(logits: &[f32], rank: usize) -> u32 {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    *ids.select_nth_unstable_by(rank - 1, |&a, &b| likelier_first(logits, a, b)).1
}

fn likelier_first(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::DType;
    use proptest::prelude::*;

    use super::*;
    use crate::model::greedy;
    use crate::testing::{loaded, tiny, values};

    const V: usize = 50;

    /// A model that looks at the last token alone; without ties.
    fn stub(id: u32) -> Vec<f32> {
        values(&format!("after {id}"), V)
    }

    fn drawn(recipe: Recipe) -> Likelihood {
        draw(&recipe, V, &[], 0, stub)
    }

    const RECIPE: Recipe = Recipe { k: 6, sigma: 1.0, tokens: 20, seed: 5, sample: 2 };

    #[test]
    fn every_token_has_the_rank_that_was_drawn_for_it() {
        for (k, sigma) in [(1, 1.0), (6, 1.0), (21, 3.0), (50, 9.0)] {
            let recipe = Recipe { k, sigma, tokens: 200, ..RECIPE };
            let found = drawn(recipe);
            let wanted: Vec<u32> = recipe.ranks(V).iter().map(|&rank| rank as u32).collect();
            assert_eq!(found.ranks, wanted);
            assert_eq!(measure(&found.ids, 0, stub), found);
        }
    }

    #[test]
    fn ranks_are_normal_around_k_and_clipped_at_both_ends() {
        let ranks = |k, sigma| Recipe { k, sigma, tokens: 10_000, ..RECIPE }.ranks(V);
        let values: Vec<f64> = ranks(25, 2.0).iter().map(|&rank| rank as f64 - 25.0).collect();
        let mean = values.iter().sum::<f64>() / 1e4;
        let variance = values.iter().map(|x| x * x).sum::<f64>() / 1e4;
        // Rounding adds a twelfth.
        assert!(mean.abs() < 0.08 && (variance - 4.083).abs() < 0.25, "{mean} {variance}");
        for (k, side) in [(1, 1), (V as u32, V)] {
            let ranks = ranks(k, 2.0);
            assert!(ranks.iter().all(|rank| (1..=V).contains(rank)));
            // What is drawn within half a rank or beyond the end: P(z < 0.25) = 0.599.
            let at_end = ranks.iter().filter(|&&rank| rank == side).count();
            assert!((5_700..6_300).contains(&at_end), "{at_end}");
        }
        assert!(ranks(1_000_000, 0.0).iter().all(|&rank| rank == V));
    }

    #[test]
    fn a_target_depends_on_seed_k_and_number_alone() {
        let one = drawn(RECIPE);
        assert_eq!(drawn(RECIPE), one);
        assert_eq!(drawn(Recipe { tokens: 8, ..RECIPE }).ids, one.ids[..8], "a shorter one is its beginning");
        for other in [Recipe { seed: 6, ..RECIPE }, Recipe { k: 7, ..RECIPE }, Recipe { sample: 3, ..RECIPE }] {
            assert_ne!(drawn(other).ids, one.ids);
        }
    }

    #[test]
    fn after_the_end_of_sequence_it_repeats() {
        // Token 9 is likeliest after 4, token 4 after all others.
        let next = |id: u32| (0..V as u32).map(|other| f32::from(other == if id == 4 { 9 } else { 4 })).collect::<Vec<_>>();
        let ends = |eos: &[u32]| draw(&Recipe { k: 1, sigma: 0.0, tokens: 6, ..RECIPE }, V, eos, 0, next);
        assert_eq!(ends(&[]).ids, [4, 9, 4, 9, 4, 9]);
        assert_eq!(ends(&[9]).ids, [4, 9, 9, 9, 9, 9]);
        assert_eq!(ends(&[30, 4]).ids, [4; 6]);
        // The padding is judged like any token.
        assert_eq!(ends(&[9]).ranks, [1, 1, 10, 10, 10, 10]);
    }

    #[test]
    fn of_equal_logits_the_lowest_id_comes_first() {
        let logits = [1.0, 3.0, 3.0, 0.0, 3.0];
        assert_eq!([1, 2, 3, 4, 5].map(|rank| at_rank(&logits, rank)), [1, 2, 4, 0, 3]);
        let ranks = measure(&[0, 1, 2, 3, 4], 0, |_| logits.to_vec()).ranks;
        assert_eq!(ranks, [4, 1, 2, 5, 3]);
    }

    #[test]
    fn likelihoods_are_those_of_the_softmax() {
        // Shifted far, where exp of a logit would overflow.
        let found = measure(&[0, 2], 0, |_| [1f32, 2.0, 5.0].map(|p| p.ln() + 900.0).to_vec());
        for (found, wanted) in found.probabilities().into_iter().zip([0.125, 0.625]) {
            assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
        }
        assert!((found.perplexity().unwrap() - (0.125f64 * 0.625).powf(-0.5)).abs() < 1e-3);
        assert!((found.bits() + (0.125f64 * 0.625).log2()).abs() < 1e-3);
    }

    proptest! {
        #[test]
        fn rank_and_token_of_a_rank_agree(logits in proptest::collection::vec((-3i8..3).prop_map(f32::from), 1..40)) {
            let ids: Vec<u32> = (1..=logits.len()).map(|rank| at_rank(&logits, rank)).collect();
            let ranks = measure(&ids, 0, |_| logits.clone()).ranks;
            prop_assert_eq!(ranks, (1..=logits.len() as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rank_one_without_noise_is_the_greedy_path() {
        let model = loaded::<Flex>(&mut tiny(), DType::F32);
        let written = greedy(&model, model.embed(ids_tensor(&[[7]], &model.device())), 100, &[]).ids.remove(0);
        let recipe = Recipe { k: 1, sigma: 1e-3, tokens: 100, ..RECIPE };
        let found = draw(&recipe, model.config().vocab_size, &[], 7, reader(&model));
        assert_eq!(found.ids, written);
        assert_eq!(found.ranks, [1; 100]);
        // The whole at once, without a cache, gives the same likelihoods.
        let nll = crate::invert::judge::nll(&model, &[&[7], &written[..]].concat());
        for (found, wanted) in found.nll.iter().zip(nll) {
            assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
        }
    }
}
