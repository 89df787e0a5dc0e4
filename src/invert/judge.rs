//! The four scores, and the only place where anything is called `exact`.

use burn::backend::Flex;
use burn::tensor::{Tensor, activation::log_softmax};
use serde::{Deserialize, Serialize};

use crate::method::{Clock, Held, Method};
use crate::metrics::{Spread, lcs_ratio, matched_prefix, perplexity, token_accuracy};
use crate::model::{Generation, Llama, greedy};
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::problem::Prompt;
use crate::subject::Subject;
use crate::tensor::{argmax_rows, host, ids_tensor};

/// LCS(ŷ, y) / |y| for either kind of prompt under either kind of decoding, and how many tokens of the hard prompt's ŷ stand
/// where the target has them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Noisy soft prompts, the target's own tokens fed: what the paper plots for DLMI. Over the noise samples of the step, which has
    /// moved Z under this very noise.
    pub relaxed_forced: Option<Spread>,
    /// Noisy soft prompts, the model's own argmax fed.
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

/// Takes the four scores of what a method holds after the step of `clock`.
pub fn scores<B: TrackedBackend>(method: &dyn Method<B>, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Scores {
    let target = &problem.target.ids;
    let both = |prompts: Tensor<_, 3>| (subject.forced(prompts.clone(), target), subject.free(prompts, target.len()));
    let relaxed = method.relaxed(subject, problem, clock).map(|free| both(subject.relaxed_prompts(free, &problem.prompt)));
    let (forced, free) = both(subject.embed(&[problem.prompt.search_ids(&method.held(subject, problem).free)]));
    let spread = |rows: &Vec<Vec<u32>>| Spread::of(&rows.iter().map(|row| lcs_ratio(row, target)).collect::<Vec<_>>());
    Scores {
        relaxed_forced: relaxed.as_ref().map(|(forced, _)| spread(forced)),
        relaxed_free: relaxed.as_ref().map(|(_, free)| spread(free)),
        hard_forced: lcs_ratio(&forced[0], target),
        hard_free: lcs_ratio(&free[0], target),
        hard_forced_accuracy: token_accuracy(&forced[0], target),
        hard_free_accuracy: token_accuracy(&free[0], target),
    }
}

/// A hard prompt judged as a user would type it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// N free tokens as searched.
    pub free: Vec<u32>,
    /// The ids of the typed prompt.
    pub typed: Vec<u32>,
    /// Length and vocabulary rules are kept.
    pub valid: bool,
    /// Target tokens that the model writes before its first wrong one.
    pub matched_prefix: usize,
    /// Sum of max(0, −margin): how far the target is from being the argmax everywhere, in logits.
    pub shortfall: f32,
    /// Total steps of the run when it was held.
    pub step: u64,
}

impl Judged {
    /// Whether the model, fed the target, has the target as its argmax everywhere: then it writes it by itself too.
    pub fn solves(&self, target: &[u32]) -> bool {
        self.valid && self.matched_prefix == target.len()
    }

    /// Valid first, then the longest matched prefix, then the least shortfall.
    pub fn beats(&self, other: &Self) -> bool {
        let rank = |judged: &Self| (judged.valid, judged.matched_prefix);
        rank(self) > rank(other) || (rank(self) == rank(other) && self.shortfall < other.shortfall)
    }
}

/// Judges a held prompt on its re-tokenised ids. Costs one forward pass where the method does not know the margins.
pub fn judge<B: TrackedBackend>(held: Held, subject: &Subject<B>, problem: &Problem, step: u64) -> Judged {
    let prompt: &Prompt = &problem.prompt;
    let typed = prompt.typed_ids(&held.free);
    let margins = match held.margins {
        Some(margins) if typed == prompt.search_ids(&held.free) => margins,
        _ if typed.is_empty() => vec![f32::NEG_INFINITY; problem.target.ids.len()],
        _ => subject.margins(&[&typed], &problem.target.ids).remove(0),
    };
    Judged {
        valid: !typed.is_empty() && prompt.is_valid(&typed),
        matched_prefix: margins.iter().take_while(|&&margin| margin > 0.0).count(),
        shortfall: margins.iter().map(|margin| (-margin).max(0.0)).sum(),
        free: held.free,
        typed,
        step,
    }
}

/// The plain inference path: CPU, f32, own cache, batch of one. What it writes is what a user gets.
#[derive(Debug)]
pub struct Judge {
    model: Llama<Flex>,
}

/// What the plain path wrote after a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Confirmation {
    /// Exactly M tokens.
    pub completion: Vec<u32>,
    /// They are the target's.
    pub exact: bool,
    /// Smallest lead of a written token over the second best, in logits.
    pub min_margin: f32,
}

impl Judge {
    /// Judges with this model.
    pub fn new(model: Llama<Flex>) -> Self {
        Self { model }
    }

    /// The model.
    pub fn model(&self) -> &Llama<Flex> {
        &self.model
    }

    /// Greedy continuation of `prompt` by `tokens` tokens; shorter only after one of `stop`.
    pub fn complete(&self, prompt: &[u32], tokens: usize, stop: &[u32]) -> Generation {
        let input = self.model.embed(ids_tensor(&[prompt], &self.model.device()));
        greedy(&self.model, input, tokens, stop)
    }

    /// Whether the model writes exactly `target` after `prompt`.
    pub fn confirm(&self, prompt: &[u32], target: &[u32]) -> Confirmation {
        let Generation { mut ids, mut margins } = self.complete(prompt, target.len(), &[]);
        let (completion, margins) = (ids.remove(0), margins.remove(0));
        Confirmation { exact: completion == target, min_margin: margins.into_iter().fold(f32::INFINITY, f32::min), completion }
    }

    /// −ln p of every token but the first, given those before it.
    pub fn nll(&self, ids: &[u32]) -> Vec<f64> {
        if ids.len() < 2 {
            return Vec::new();
        }
        let input = self.model.embed(ids_tensor(&[&ids[..ids.len() - 1]], &self.model.device()));
        let log_p = log_softmax(self.model.logits(self.model.hidden(input, ids.len() - 1)), 1);
        let next = ids_tensor::<Flex>(&[&ids[1..]], &self.model.device()).reshape([ids.len() - 1, 1]);
        host(log_p.gather(1, next)).into_iter().map(|x| -f64::from(x)).collect()
    }

    /// Perplexities of a prompt (from its second token), of the target after it, and of the target after `bos`.
    pub fn perplexities(&self, prompt: &[u32], target: &[u32], bos: Option<u32>) -> Perplexities {
        let nll = self.nll(&[prompt, target].concat());
        let (own, after) = nll.split_at(prompt.len().max(1) - 1);
        let bos = bos.map(|bos| self.nll(&[&[bos], target].concat()));
        Perplexities { prompt: perplexity(own), target: perplexity(after), target_bos: bos.and_then(|nll| perplexity(&nll)) }
    }

    /// The hard scores of a typed prompt, of which [`Self::confirm`] has already said what the model writes.
    pub fn hard_scores(&self, prompt: &[u32], target: &[u32], confirmation: Confirmation) -> HardScores {
        let input = self.model.embed(ids_tensor(&[[prompt, &target[..target.len() - 1]].concat()], &self.model.device()));
        let hidden = self.model.hidden(input, target.len());
        let forced = argmax_rows(self.model.logits(hidden));
        HardScores {
            hard_forced: lcs_ratio(&forced, target),
            hard_free: lcs_ratio(&confirmation.completion, target),
            matched_prefix: matched_prefix(&confirmation.completion, target),
            confirmation,
        }
    }
}

/// exp of mean negative log-likelihoods; none where nothing is predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexities {
    /// Of x₂ … x_N given the tokens before.
    pub prompt: Option<f64>,
    /// Of y given the prompt.
    pub target: Option<f64>,
    /// Of y after BoS.
    pub target_bos: Option<f64>,
}

/// The scores of one typed prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct HardScores {
    /// LCS ratio with the target's own tokens fed.
    pub hard_forced: f64,
    /// LCS ratio of what the model writes by itself.
    pub hard_free: f64,
    /// Target tokens before the first wrong one.
    pub matched_prefix: usize,
    /// What the model writes.
    pub confirmation: Confirmation,
}
