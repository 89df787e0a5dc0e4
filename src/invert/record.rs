//! The result of `invert`: schema `dlmi.inversion/1`. Fields are added, never renamed; numbers are finite or null.

use serde::Serialize;
use serde_json::Value;

use super::judge::Judge;
use super::run::{Outcome, Stopped};
use crate::metrics::{Spread, overlap, overlap_text, target_hit_ratio};
use crate::problem::Problem;
use crate::subject::Cost;

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

/// What a record needs to know beside the outcome.
#[derive(Debug, Clone)]
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
    /// Start token of `target_perplexity_bos`.
    pub bos_token: Option<u32>,
    /// Seconds to load the model.
    pub load_seconds: f64,
}

/// LCS ratios at the last step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Lcs {
    pub relaxed_forced: Option<f64>,
    pub relaxed_free: Option<f64>,
    pub hard_forced: f64,
    pub hard_free: f64,
    pub relaxed_forced_range: Option<[f64; 2]>,
    pub relaxed_free_range: Option<[f64; 2]>,
}

/// The best prompt of the run, on its re-tokenised ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Best {
    pub hard_forced: f64,
    pub hard_free: f64,
    pub matched_prefix: usize,
    pub step: u64,
    pub valid: bool,
}

/// One JSON object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Inversion {
    pub schema: &'static str,
    pub version: &'static str,
    pub model: ModelIdentity,
    pub backend: String,
    pub device: String,
    pub dtype: String,
    pub method: String,
    pub preset: Vec<String>,
    pub seed: u32,
    pub bos: bool,
    pub settings: Value,
    pub target_text: String,
    pub target_ids: Vec<u32>,
    pub prompt_text: String,
    pub prompt_ids: Vec<u32>,
    pub search_ids: Vec<u32>,
    pub free_text: String,
    pub completion_text: String,
    pub completion_ids: Vec<u32>,
    pub exact: bool,
    pub round_trips: bool,
    pub min_margin: Option<f32>,
    pub lcs: Lcs,
    pub best: Best,
    pub overlap: f64,
    pub target_hit_ratio: f64,
    pub overlap_text: f64,
    pub prompt_perplexity: Option<f64>,
    pub target_perplexity: Option<f64>,
    pub target_perplexity_bos: Option<f64>,
    pub steps: u64,
    pub restarts: u32,
    pub load_seconds: f64,
    pub seconds: f64,
    pub seconds_to_exact: Option<f64>,
    pub cost: Cost,
    pub stopped: Stopped,
}

impl Inversion {
    /// Puts the record together. The last measurements (overlaps, perplexities) are made here, on the plain path.
    pub fn new(outcome: Outcome, problem: &Problem, judge: &Judge, at: Circumstances, decode: impl Fn(&[u32]) -> String) -> Self {
        let Outcome { stopped, standing, best, verdict, scores, seconds_to_exact } = outcome;
        let (prompt, example) = (&problem.prompt, problem.first());
        let (target, search_ids, typed) = (&example.target, example.search_ids(&best.free), &best.typed[0]);
        let perplexities = judge.perplexities(typed, &target.ids, at.bos_token);
        let hard = judge.scores(&[(typed, &target.ids)], &verdict);
        let matched_prefix = verdict.matched_prefix(&[&target.ids]);
        let completion_ids = verdict.confirmations[0].completion.clone();
        let prompt_text = prompt.text(&best.free);
        let range = |spread: Option<Spread>| spread.map(|spread| [spread.min, spread.max]);
        Self {
            schema: "dlmi.inversion/1",
            version: env!("CARGO_PKG_VERSION"),
            exact: verdict.exact,
            round_trips: *typed == search_ids,
            min_margin: finite(verdict.min_margin),
            lcs: Lcs {
                relaxed_forced: scores.relaxed_forced.map(|spread| spread.mean),
                relaxed_free: scores.relaxed_free.map(|spread| spread.mean),
                hard_forced: scores.hard_forced,
                hard_free: scores.hard_free,
                relaxed_forced_range: range(scores.relaxed_forced),
                relaxed_free_range: range(scores.relaxed_free),
            },
            best: Best { hard_forced: hard.hard_forced, hard_free: hard.hard_free, matched_prefix, step: best.step, valid: best.valid },
            overlap: overlap(typed, &target.ids),
            target_hit_ratio: target_hit_ratio(typed, &target.ids),
            overlap_text: overlap_text(&prompt_text, &target.text),
            prompt_perplexity: perplexities.prompt,
            target_perplexity: perplexities.target,
            target_perplexity_bos: perplexities.target_bos,
            target_text: target.text.clone(),
            target_ids: target.ids.clone(),
            free_text: prompt.free_text(&best.free),
            prompt_ids: typed.clone(),
            completion_text: decode(&completion_ids),
            completion_ids,
            prompt_text,
            search_ids,
            steps: standing.step,
            restarts: standing.restart,
            load_seconds: at.load_seconds,
            seconds: standing.seconds,
            seconds_to_exact,
            cost: standing.cost,
            stopped,
            model: at.model,
            backend: at.backend,
            device: at.device,
            dtype: at.dtype,
            method: at.method,
            preset: at.preset,
            seed: at.seed,
            bos: at.bos,
            settings: at.settings,
        }
    }
}

fn finite(x: f32) -> Option<f32> {
    x.is_finite().then_some(x)
}
