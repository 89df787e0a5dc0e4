//! The four scores of a prompt: relaxed or hard, fed the target's tokens or the model's own.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::method::{Clock, Method};
use crate::metrics::{Spread, lcs_ratio, token_accuracy};
use crate::ops::TrackedBackend;
use crate::problem::{Example, Problem};
use crate::subject::Subject;

/// LCS(ŷ, y) / |y| for either kind of prompt under either kind of decoding, and how many tokens of the hard prompt's ŷ stand
/// where the target has them. Means over the examples of the problem.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Noisy soft prompts, the target's own tokens fed: what the paper plots for DLMI. Over the noise samples of the step, which has
    /// moved Z under this very noise. `None` without a relaxed prompt.
    pub relaxed_forced: Option<Spread>,
    /// Noisy soft prompts, the model's own argmax fed. `None` without a relaxed prompt.
    pub relaxed_free: Option<Spread>,
    /// The hard prompt, the target's own tokens fed.
    pub hard_forced: f64,
    /// The hard prompt, the model's own argmax fed.
    pub hard_free: f64,
    /// The hard prompt, the target's own tokens fed: share of positions with ŷ_i = y_i.
    pub hard_forced_accuracy: f64,
    /// The hard prompt, the model's own argmax fed: share of positions with ŷ_i = y_i.
    pub hard_free_accuracy: f64,
}

/// What the model wrote behind a hard prompt in one example, fed the target's tokens or its own.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// The argmax at every target position, the target's own tokens fed.
    pub forced: &'a [u32],
    /// What it wrote by itself.
    pub free: &'a [u32],
    /// y.
    pub target: &'a [u32],
}

impl Scores {
    /// Those of a hard prompt by what the model wrote in each example.
    pub fn hard(written: &[Written]) -> Self {
        let mean = |score: fn(&Written) -> f64| written.iter().map(score).sum::<f64>() / written.len() as f64;
        Self {
            relaxed_forced: None,
            relaxed_free: None,
            hard_forced: mean(|it| lcs_ratio(it.forced, it.target)),
            hard_free: mean(|it| lcs_ratio(it.free, it.target)),
            hard_forced_accuracy: mean(|it| token_accuracy(it.forced, it.target)),
            hard_free_accuracy: mean(|it| token_accuracy(it.free, it.target)),
        }
    }
}

/// Takes the four scores of what a method holds after the step of `clock`.
pub fn scores<B: TrackedBackend>(method: &dyn Method<B>, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Scores {
    let both = |prompts: Tensor<_, 3>, target: &[u32]| (subject.forced(prompts.clone(), target), subject.free(prompts, target.len()));
    let relaxed = method.relaxed(subject, problem, clock);
    let of_relaxed = relaxed.map(|free| {
        let prompts = |example: &Example| subject.relaxed_prompts(free.clone(), problem.prompt.tokens(), example);
        problem.examples.iter().map(|example| both(prompts(example), &example.target.ids)).collect::<Vec<_>>()
    });
    let free = method.hard_prompt(subject, problem).free;
    let hard = |example: &Example| both(subject.embed(&[example.search_ids(&free)]), &example.target.ids);
    let hard: Vec<_> = problem.examples.iter().map(hard).collect();
    let pairs = hard.iter().zip(&problem.examples);
    let written: Vec<Written> =
        pairs.map(|((forced, free), example)| Written { forced: &forced[0], free: &free[0], target: &example.target.ids }).collect();
    let spread = |of: &dyn Fn(usize) -> Vec<f64>| {
        let each: Vec<Vec<f64>> = (0..problem.examples.len()).map(of).collect();
        let mean = |sample: usize| each.iter().map(|example| example[sample]).sum::<f64>() / each.len() as f64;
        Spread::of(&(0..each[0].len()).map(mean).collect::<Vec<_>>())
    };
    let ratios = |rows: &[Vec<u32>], example: usize| -> Vec<f64> {
        rows.iter().map(|row| lcs_ratio(row, &problem.examples[example].target.ids)).collect()
    };
    Scores {
        relaxed_forced: of_relaxed.as_ref().map(|all| spread(&|example| ratios(&all[example].0, example))),
        relaxed_free: of_relaxed.as_ref().map(|all| spread(&|example| ratios(&all[example].1, example))),
        ..Scores::hard(&written)
    }
}
