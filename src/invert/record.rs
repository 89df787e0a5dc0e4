//! The result of `invert`: schema `dlmi.inversion/1`. Fields are added, never renamed; numbers are finite or null.

use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::Value;

use super::judge::{Judge, Judged, Verdict};
use super::notes::{no_shorter, notes};
use super::robust::Robust;
use super::run::{Outcome, Stopped};
use super::scores::Scores;
use crate::metrics::{Spread, overlap, overlap_text, target_hit_ratio};
use crate::problem::Problem;
use crate::source::Tokenizer;
use crate::subject::Cost;

/// The schema of the record.
pub const SCHEMA: &str = "dlmi.inversion/1";

/// Which model was inverted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelIdentity {
    /// As given.
    pub spec: String,
    /// SHA-256 of the weights.
    pub digest: String,
    /// Architecture by its Hugging Face name.
    pub architecture: String,
    /// V.
    pub vocab_size: usize,
}

/// What was run, and on what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Circumstances {
    /// The model.
    pub model: ModelIdentity,
    /// Backend that searched.
    pub backend: String,
    /// Its device, by name.
    pub device: String,
    /// Element type of weights and activations.
    pub dtype: String,
    /// Name of the method.
    pub method: String,
    /// Presets in force.
    pub preset: Vec<String>,
    /// Seed.
    pub seed: u32,
    /// BoS was put before the prompt.
    pub bos: bool,
    /// All settings, resolved.
    pub settings: Value,
    /// Seconds to load the model.
    pub load_seconds: f64,
    /// Start token of `target_perplexity_bos`.
    #[serde(skip)]
    pub bos_token: Option<u32>,
}

/// Scores of one prompt at one step.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPrompt {
    /// Steps of the run when it was at hand.
    pub step: u64,
    /// The hard prompt's ids: as searched for the last prompt, as typed for the best.
    pub prompt_ids: Vec<u32>,
    /// LCS ratios and accuracies; none where a signal left no time for them.
    pub scores: Option<Scores>,
    /// The best prompt as it was judged.
    pub judged: Option<Judged>,
}

impl Serialize for ScoredPrompt {
    /// Flat, the relaxed scores as means with their ranges beside them.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let relaxed = |of: fn(&Scores) -> Option<Spread>| self.scores.as_ref().and_then(of);
        let hard = |of: fn(&Scores) -> f64| self.scores.as_ref().map(of);
        let mean = |of| relaxed(of).map(|spread| spread.mean);
        let range = |of| relaxed(of).map(|spread| [spread.min, spread.max]);
        let mut map = serializer.serialize_map(None)?;
        match &self.judged {
            Some(judged) => {
                map.serialize_entry("matched_prefix", &judged.matched_prefix)?;
                map.serialize_entry("valid", &judged.valid)?;
                map.serialize_entry("shortfall", &judged.shortfall.is_finite().then_some(judged.shortfall))?;
            }
            None => {
                map.serialize_entry("relaxed_forced", &mean(|scores| scores.relaxed_forced))?;
                map.serialize_entry("relaxed_free", &mean(|scores| scores.relaxed_free))?;
                map.serialize_entry("relaxed_forced_range", &range(|scores| scores.relaxed_forced))?;
                map.serialize_entry("relaxed_free_range", &range(|scores| scores.relaxed_free))?;
            }
        }
        map.serialize_entry("hard_forced", &hard(|scores| scores.hard_forced))?;
        map.serialize_entry("hard_free", &hard(|scores| scores.hard_free))?;
        map.serialize_entry("hard_forced_accuracy", &hard(|scores| scores.hard_forced_accuracy))?;
        map.serialize_entry("hard_free_accuracy", &hard(|scores| scores.hard_free_accuracy))?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("prompt_ids", &self.prompt_ids)?;
        map.end()
    }
}

/// One example of a problem that has several.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExampleResult {
    /// y as text.
    pub target_text: String,
    /// y.
    pub target_ids: Vec<u32>,
    /// What is typed, the example's own context included.
    pub prompt_text: String,
    /// The ids that the model sees.
    pub prompt_ids: Vec<u32>,
    /// What the model wrote.
    pub completion_text: String,
    /// Its ids.
    pub completion_ids: Vec<u32>,
    /// It is the target, each token the only best one.
    pub exact: bool,
}

/// The result of an inversion, one JSON object. Where a problem has several examples, the fields about targets, prompts and completions
/// are of the first, and `exact`, `min_margin`, the scores and `matched_prefix` of all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inversion {
    /// `dlmi.inversion/1`.
    pub schema: &'static str,
    /// Of this program.
    pub version: &'static str,
    /// What was run, and on what.
    #[serde(flatten)]
    pub circumstances: Circumstances,
    /// y as text.
    pub target_text: String,
    /// y.
    pub target_ids: Vec<u32>,
    /// What a user types.
    pub prompt_text: String,
    /// The ids that the model sees when it is typed.
    pub prompt_ids: Vec<u32>,
    /// The ids as searched.
    pub search_ids: Vec<u32>,
    /// Free tokens among them.
    pub prompt_tokens: usize,
    /// The text of the free part alone.
    pub free_text: String,
    /// What the plain path wrote, without the token at which it stopped where the target ends with one.
    pub completion_text: String,
    /// Its ids, M of them.
    pub completion_ids: Vec<u32>,
    /// The model writes exactly the target, see [`super::judge`].
    pub exact: bool,
    /// It is exact, and every target token leads by what was asked for.
    pub solved: bool,
    /// `prompt_ids` are `search_ids`.
    pub round_trips: bool,
    /// Smallest lead of a written token, in logits; none where a logit was no number.
    pub min_margin: Option<f32>,
    /// Scores of the step that was the last, as the paper plots them.
    pub lcs: ScoredPrompt,
    /// Scores of the prompt that is reported.
    pub best: ScoredPrompt,
    /// What a reader of the result must also know, in sentences.
    pub notes: Vec<String>,
    /// Share of the prompt's positions that hold a token of the target.
    pub overlap: f64,
    /// Share of the target's distinct tokens that occur in the prompt.
    pub target_hit_ratio: f64,
    /// Longest common run of letters and digits over those of the target.
    pub overlap_text: f64,
    /// Of the prompt, from its second token on.
    pub prompt_perplexity: Option<f64>,
    /// Of the target behind the prompt.
    pub target_perplexity: Option<f64>,
    /// Of the target behind the start token.
    pub target_perplexity_bos: Option<f64>,
    /// Steps in all.
    pub steps: u64,
    /// Restarts in all.
    pub restarts: u32,
    /// Seconds of search.
    pub seconds: f64,
    /// Seconds of search when the exact prompt was found.
    pub seconds_to_exact: Option<f64>,
    /// Work done.
    pub cost: Cost,
    /// Why the run ended.
    pub stopped: Stopped,
    /// Whether it is exact in other circumstances too, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub robust: Option<Robust>,
    /// Every example, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<ExampleResult>,
}

impl Inversion {
    /// Puts the record together. The last measurements (overlaps, perplexities) are made here, on the plain path.
    ///
    /// # Errors
    /// Those of loading the plain copy.
    pub fn new(
        outcome: Outcome,
        problem: &Problem,
        judge: &Judge,
        circumstances: Circumstances,
        tokenizer: &Tokenizer,
    ) -> crate::Result<Self> {
        let Outcome { stopped, run, best, verdict, scores, seconds_to_exact } = outcome;
        let example = problem.first();
        let (target, search_ids, prompt_ids) = (&example.target, example.search_ids(&best.free), best.typed[0].clone());
        let perplexities = judge.perplexities(&prompt_ids, &target.ids, circumstances.bos_token)?;
        let completion_ids = verdict.confirmations[0].completion.clone();
        let free_text = problem.free_text(&best.free);
        let prompt_text = example.text(&free_text);
        let overlaps = Overlaps::of(&prompt_ids, &target.ids, &prompt_text, &target.text);
        Ok(Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            exact: verdict.exact,
            solved: verdict.solves(problem),
            round_trips: prompt_ids == search_ids,
            min_margin: verdict.min_margin.is_finite().then_some(verdict.min_margin),
            lcs: ScoredPrompt { step: run.step, prompt_ids: example.search_ids(&run.judged), scores, judged: None },
            notes: notes(problem, &best, &verdict, scores.is_some(), tokenizer).into_iter().chain(no_shorter(&run, stopped)).collect(),
            prompt_tokens: best.free.len(),
            examples: example_results(problem, &best, &verdict, tokenizer),
            best: ScoredPrompt {
                step: best.step,
                prompt_ids: prompt_ids.clone(),
                scores: Some(judge.scores(&best.examples(problem), &verdict)?),
                judged: Some(Judged { matched_prefix: verdict.matched_prefix(problem), ..best }),
            },
            overlap: overlaps.overlap,
            target_hit_ratio: overlaps.target_hit_ratio,
            overlap_text: overlaps.overlap_text,
            prompt_perplexity: perplexities.prompt,
            target_perplexity: perplexities.target,
            target_perplexity_bos: perplexities.target_bos,
            target_text: target.text.clone(),
            target_ids: target.ids.clone(),
            free_text,
            completion_text: tokenizer.decode_behind(&prompt_ids, target.text_of(&completion_ids)),
            prompt_ids,
            completion_ids,
            prompt_text,
            search_ids,
            steps: run.step,
            restarts: run.restart,
            seconds: run.seconds,
            seconds_to_exact,
            cost: run.cost,
            stopped,
            robust: None,
            circumstances: Circumstances { load_seconds: circumstances.load_seconds + judge.load_seconds(), ..circumstances },
        })
    }
}

/// What became of each example, where there are several.
fn example_results(problem: &Problem, best: &Judged, verdict: &Verdict, tokenizer: &Tokenizer) -> Vec<ExampleResult> {
    if problem.examples.len() < 2 {
        return Vec::new();
    }
    let free_text = problem.free_text(&best.free);
    let each = problem.examples.iter().zip(&best.typed).zip(&verdict.confirmations);
    each.map(|((example, typed), found)| ExampleResult {
        target_text: example.target.text.clone(),
        target_ids: example.target.ids.clone(),
        prompt_text: example.text(&free_text),
        prompt_ids: typed.clone(),
        completion_text: tokenizer.decode_behind(typed, example.target.text_of(&found.completion)),
        completion_ids: found.completion.clone(),
        exact: best.valid && found.exact,
    })
    .collect()
}

/// What prompt and target have in common.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Overlaps {
    /// Share of the prompt's positions that hold a token of the target.
    pub overlap: f64,
    /// Share of the target's distinct tokens that occur in the prompt.
    pub target_hit_ratio: f64,
    /// Longest common run of letters and digits over those of the target.
    pub overlap_text: f64,
}

impl Overlaps {
    /// Of a prompt and a target, by ids and by text.
    pub fn of(prompt: &[u32], target: &[u32], prompt_text: &str, target_text: &str) -> Self {
        Self {
            overlap: overlap(prompt, target),
            target_hit_ratio: target_hit_ratio(prompt, target),
            overlap_text: overlap_text(prompt_text, target_text),
        }
    }
}
