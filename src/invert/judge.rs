//! The only place where anything is called `exact`, and what a hard prompt is worth along the way.

use std::cell::OnceCell;
use std::ops::Range;
use std::time::Instant;

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use serde::{Deserialize, Serialize};

use super::scores::{Scores, Written};
use crate::Result;
use crate::method::HardPrompt;
use crate::metrics::{matched_prefix, perplexity};
use crate::model::{Generation, Llama, greedy};
use crate::ops::{Kernels, TrackedBackend};
use crate::problem::{Problem, Target};
use crate::source::Tokenizer;
use crate::subject::Subject;
use crate::tensor::{argmax_rows, host, ids_tensor};

/// A hard prompt judged as a user would type it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// N free tokens as searched.
    pub free: Vec<u32>,
    /// The ids of the typed prompt, for each example.
    pub typed: Vec<Vec<u32>>,
    /// Length and vocabulary rules are kept.
    pub valid: bool,
    /// Target tokens that the model writes before its first wrong one, of all examples together.
    pub matched_prefix: usize,
    /// Sum of max(0, κ − margin), κ the lead that is asked for: how far the targets are from being so far ahead everywhere, in logits.
    pub shortfall: f32,
    /// Steps of the run when it was the prompt at hand.
    pub step: u64,
}

impl Judged {
    /// `(typed prompt, target)` of each example.
    pub fn examples<'a>(&'a self, problem: &'a Problem) -> Vec<(&'a [u32], &'a [u32])> {
        self.typed.iter().zip(&problem.examples).map(|(typed, example)| (&**typed, &*example.target.ids)).collect()
    }

    /// Whether the model, fed the targets, has them as its argmax everywhere, and as far ahead as is asked: then it writes them by itself
    /// too.
    pub fn solves(&self, problem: &Problem) -> bool {
        self.valid && self.matched_prefix == problem.target_tokens() && self.shortfall == 0.0
    }

    /// Valid first, then the longest matched prefix, then the least shortfall.
    pub fn beats(&self, other: &Self) -> bool {
        let rank = |judged: &Self| (judged.valid, judged.matched_prefix);
        rank(self) > rank(other) || (rank(self) == rank(other) && self.shortfall < other.shortfall)
    }
}

/// Judges a hard prompt on its re-tokenised ids. Costs one forward pass where the method does not know the margins.
pub fn judge<B: TrackedBackend>(prompt: HardPrompt, subject: &Subject<B>, problem: &Problem, step: u64) -> Judged {
    let typed = problem.typed_ids(&prompt.free);
    let as_searched = problem.examples.iter().zip(&typed).all(|(example, typed)| *typed == example.search_ids(&prompt.free));
    let margins = match prompt.margins {
        Some(margins) if as_searched => margins,
        _ => typed_margins(&typed, subject, problem),
    };
    let mut rest = margins.as_slice();
    let matched = problem.examples.iter().map(|example| {
        let (own, others) = rest.split_at(example.target.ids.len());
        rest = others;
        own.iter().take_while(|&&margin| margin > 0.0).count()
    });
    Judged {
        matched_prefix: matched.sum(),
        valid: problem.is_valid(&prompt.free, &typed),
        shortfall: margins.iter().map(|&margin| lack(margin, problem.min_margin)).sum::<f32>().min(f32::MAX),
        free: prompt.free,
        typed,
        step,
    }
}

/// What a target token lacks to lead by `wanted`, in logits. Where its lead is no number, as much as there can be.
fn lack(margin: f32, wanted: f32) -> f32 {
    if margin.is_nan() { f32::MAX } else { (wanted - margin).max(0.0) }
}

/// How far each target token is ahead behind the typed prompts, the examples' one after another; −∞ behind a prompt that cannot be fed.
fn typed_margins<B: TrackedBackend>(typed: &[Vec<u32>], subject: &Subject<B>, problem: &Problem) -> Vec<f32> {
    let of = |(typed, target): (&Vec<u32>, &[u32])| match can_be_fed(typed, subject.vocab_size()) {
        false => vec![f32::NEG_INFINITY; target.len()],
        true => subject.margins(&[typed], target).remove(0),
    };
    typed.iter().zip(problem.examples.iter().map(|example| &*example.target.ids)).flat_map(of).collect()
}

/// Whether a model with so many embeddings can go on from a prompt: one without tokens, or with an added token that has no embedding, leads
/// nowhere.
fn can_be_fed(prompt: &[u32], vocab_size: usize) -> bool {
    !prompt.is_empty() && prompt.iter().all(|&id| (id as usize) < vocab_size)
}

/// The plain inference path: CPU, f32, weights as in the file, own cache, batch of one. What it writes is what a user gets.
pub struct Judge<'a> {
    /// With the seconds that loading it took, where that was put off.
    model: OnceCell<(Llama<Flex>, f64)>,
    load: Option<Load<'a>>,
}

/// Loads the plain copy of a model.
type Load<'a> = Box<dyn Fn() -> Result<Llama<Flex>> + 'a>;

/// What the plain path wrote after a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Confirmation {
    /// Exactly M tokens; none behind a prompt that cannot be fed.
    pub completion: Vec<u32>,
    /// They are the target's, each the only best one, and every logit on the way is a number.
    pub exact: bool,
    /// Smallest lead of a written token over the second best, in logits: 0 for a tie; not a number where a logit was none.
    pub min_margin: f32,
}

/// What the plain path says of a free part in all examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The rules are kept and every example is exact. Nothing else is ever called so.
    pub exact: bool,
    /// The smallest of the examples' smallest leads.
    pub min_margin: f32,
    /// One for each example.
    pub confirmations: Vec<Confirmation>,
}

impl Verdict {
    /// Whether it is exact and every target token as far ahead as is asked.
    pub fn solves(&self, problem: &Problem) -> bool {
        self.exact && problem.is_led(self.min_margin)
    }

    /// A sentence where a prompt fails for its numbers, not for its tokens.
    pub fn note(&self) -> Option<String> {
        if self.min_margin.is_nan() {
            return Some(
                "the model's numbers overflow behind this prompt: a logit is no finite number, so nothing it writes counts".into(),
            );
        }
        (self.min_margin == 0.0).then(|| "two tokens tie for the best on the way, so what is written depends on who breaks the tie".into())
    }

    /// Target tokens that were written before the first wrong one, of all examples together.
    pub fn matched_prefix(&self, problem: &Problem) -> usize {
        let each = self.confirmations.iter().zip(&problem.examples);
        each.map(|(found, example)| matched_prefix(&found.completion, &example.target.ids)).sum()
    }
}

impl<'a> Judge<'a> {
    /// Judges with this model.
    pub fn new(model: Llama<Flex>) -> Self {
        Self { model: OnceCell::from((model, 0.0)), load: None }
    }

    /// Judges with what `load` loads when it is first needed.
    pub fn lazy(load: impl Fn() -> Result<Llama<Flex>> + 'a) -> Self {
        Self { model: OnceCell::new(), load: Some(Box::new(load)) }
    }

    fn model(&self) -> Result<&Llama<Flex>> {
        if let (None, Some(load)) = (self.model.get(), &self.load) {
            let began = Instant::now();
            let loaded = load()?;
            return Ok(&self.model.get_or_init(|| (loaded, began.elapsed().as_secs_f64())).0);
        }
        Ok(&self.model.get().expect("a judge has a model or knows where to load it").0)
    }

    /// Seconds that loading took, where that was put off: no search, though it falls into one.
    pub fn load_seconds(&self) -> f64 {
        self.model.get().map_or(0.0, |(_, seconds)| *seconds)
    }

    /// Whether typed prompts that are `valid` lead to their targets, `(prompt, target)` for each example: the one definition of exact.
    pub fn verdict(&self, valid: bool, examples: &[(&[u32], &[u32])]) -> Result<Verdict> {
        let model = self.model()?;
        let confirmations: Vec<Confirmation> = examples.iter().map(|(prompt, target)| confirm(model, prompt, target)).collect();
        let margins = confirmations.iter().map(|confirmation| confirmation.min_margin);
        Ok(Verdict {
            exact: valid && !confirmations.is_empty() && confirmations.iter().all(|confirmation| confirmation.exact),
            min_margin: smallest(margins),
            confirmations,
        })
    }

    /// The ids of a target's text behind a prompt: the tokenizer's, unless the model writes the same text in other tokens.
    ///
    /// # Errors
    /// Those of [`Target::from_text`].
    pub fn target_behind(&self, prompt: &[u32], text: &str, tokenizer: &Tokenizer) -> Result<Target> {
        let (model, target) = (self.model()?, Target::from_text(text, tokenizer)?);
        let room = model.config().context().saturating_sub(prompt.len());
        let written = |tokens: usize| {
            let input = model.embed(ids_tensor(&[prompt], &model.device()));
            greedy(model, input, tokens.min(room), &[]).ids.remove(0)
        };
        // What is no whole character reads like the sign that stands for it.
        if prompt.is_empty() || text.contains('\u{fffd}') {
            return Ok(target);
        }
        let reads = |ids: &[u32]| tokenizer.decode_behind(prompt, ids);
        let mut ids = written(target.ids.len());
        let begun = reads(&ids);
        // Its last character may be written in part.
        let begun = begun.trim_end_matches('\u{fffd}');
        if begun.len() < text.len() && text.starts_with(begun) {
            // No token is less than a byte.
            ids = written(ids.len() + text.len() - begun.len());
        }
        for end in 1..=ids.len() {
            let read = reads(&ids[..end]);
            if read == text {
                return Ok(Target::new(read, ids[..end].to_vec()));
            }
            if !text.starts_with(read.trim_end_matches('\u{fffd}')) {
                break;
            }
        }
        Ok(target)
    }

    /// Perplexities of a prompt (from its second token), of the target after it, and of the target after `bos`.
    pub fn perplexities(&self, prompt: &[u32], target: &[u32], bos: Option<u32>) -> Result<Perplexities> {
        let model = self.model()?;
        let likelihoods = nll(model, &[prompt, target].concat());
        let (own, after) = likelihoods.split_at((prompt.len().max(1) - 1).min(likelihoods.len()));
        let bos = bos.map(|bos| nll(model, &[&[bos], target].concat()));
        Ok(Perplexities { prompt: perplexity(own), target: perplexity(after), target_bos: bos.and_then(|nll| perplexity(&nll)) })
    }

    /// The hard scores of typed prompts, of which a verdict has already said what the model writes.
    pub fn scores(&self, examples: &[(&[u32], &[u32])], verdict: &Verdict) -> Result<Scores> {
        let model = self.model()?;
        let forced: Vec<Vec<u32>> = examples.iter().map(|(prompt, target)| forced(model, prompt, target)).collect();
        let written = forced.iter().zip(&verdict.confirmations).zip(examples);
        let written: Vec<Written> =
            written.map(|((forced, found), (_, target))| Written { forced, free: &found.completion, target }).collect();
        Ok(Scores::hard(&written))
    }
}

/// Whether the model writes exactly `target` after `prompt`, without a tie and without a logit that is no number.
pub(super) fn confirm<B: Kernels>(model: &Llama<B>, prompt: &[u32], target: &[u32]) -> Confirmation {
    if !can_be_fed(prompt, model.config().vocab_size) {
        return Confirmation { completion: Vec::new(), exact: false, min_margin: f32::NEG_INFINITY };
    }
    let input = model.embed(ids_tensor(&[prompt], &model.device()));
    let Generation { mut ids, mut margins } = greedy(model, input, target.len(), &[]);
    let (completion, min_margin) = (ids.remove(0), smallest(margins.remove(0).into_iter()));
    Confirmation { exact: completion == target && min_margin.is_finite() && min_margin > 0.0, min_margin, completion }
}

/// The argmax at every target position, the target's own tokens fed; none behind a prompt that cannot be fed.
fn forced(model: &Llama<Flex>, prompt: &[u32], target: &[u32]) -> Vec<u32> {
    if !can_be_fed(prompt, model.config().vocab_size) {
        return Vec::new();
    }
    let input = model.embed(ids_tensor(&[[prompt, &target[..target.len() - 1]].concat()], &model.device()));
    by_rows(model, model.hidden(input, target.len()), |logits, _| argmax_rows(logits))
}

/// Rows of logits at once: of a long text all of them would take gigabytes.
const ROWS: usize = 64;

/// What `of` makes of the logits of each row of `hidden`, [`ROWS`] at a time; it is told which rows they are.
fn by_rows<T>(model: &Llama<Flex>, hidden: Tensor<Flex, 2>, of: impl Fn(Tensor<Flex, 2>, Range<usize>) -> Vec<T>) -> Vec<T> {
    let rows = hidden.dims()[0];
    let parts = (0..rows).step_by(ROWS).map(|start| start..(start + ROWS).min(rows));
    parts.flat_map(|part| of(model.logits(hidden.clone().slice([part.clone()])), part)).collect()
}

/// −ln p of every token but the first, given those before it; nothing of what cannot be fed.
pub(crate) fn nll(model: &Llama<Flex>, ids: &[u32]) -> Vec<f64> {
    if ids.len() < 2 || !can_be_fed(ids, model.config().vocab_size) {
        return Vec::new();
    }
    let input = model.embed(ids_tensor(&[&ids[..ids.len() - 1]], &model.device()));
    by_rows(model, model.hidden(input, ids.len() - 1), |logits, rows| {
        let next = ids_tensor::<Flex>(&[&ids[1..][rows.clone()]], &model.device()).reshape([rows.len(), 1]);
        host(log_softmax(logits, 1).gather(1, next)).into_iter().map(|x| -f64::from(x)).collect()
    })
}

/// The smallest, which is not a number where one of them is none.
fn smallest(margins: impl Iterator<Item = f32>) -> f32 {
    margins.fold(f32::INFINITY, |least, margin| if margin.is_nan() || margin < least { margin } else { least })
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
