//! The result of `invert`: schema `dlmi.inversion/1`. Fields are added, never renamed; numbers are finite or null.

use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::Value;

use super::judge::{Judge, Judged, Verdict};
use super::run::{Outcome, Stopped};
use super::scores::Scores;
use crate::metrics::{Spread, overlap, overlap_text, target_hit_ratio};
use crate::problem::ban::Ban;
use crate::problem::{Problem, Target};
use crate::source::Tokenizer;
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

/// Scores of one prompt at one step.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPrompt {
    /// Steps of the run when it was at hand.
    pub step: u64,
    /// The hard prompt's ids: as searched for the last prompt, as typed for the best.
    pub prompt_ids: Vec<u32>,
    /// LCS ratios and accuracies.
    pub scores: Scores,
    /// The best prompt as it was judged.
    pub judged: Option<Judged>,
}

impl Serialize for ScoredPrompt {
    /// Flat, the relaxed scores as means with their ranges beside them.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Scores { relaxed_forced, relaxed_free, hard_forced, hard_free, hard_forced_accuracy, hard_free_accuracy } = self.scores;
        let mean = |spread: Option<Spread>| spread.map(|spread| spread.mean);
        let range = |spread: Option<Spread>| spread.map(|spread| [spread.min, spread.max]);
        let mut map = serializer.serialize_map(None)?;
        match &self.judged {
            Some(judged) => {
                map.serialize_entry("matched_prefix", &judged.matched_prefix)?;
                map.serialize_entry("valid", &judged.valid)?;
                map.serialize_entry("shortfall", &judged.shortfall.is_finite().then_some(judged.shortfall))?;
            }
            None => {
                map.serialize_entry("relaxed_forced", &mean(relaxed_forced))?;
                map.serialize_entry("relaxed_free", &mean(relaxed_free))?;
                map.serialize_entry("relaxed_forced_range", &range(relaxed_forced))?;
                map.serialize_entry("relaxed_free_range", &range(relaxed_free))?;
            }
        }
        map.serialize_entry("hard_forced", &hard_forced)?;
        map.serialize_entry("hard_free", &hard_free)?;
        map.serialize_entry("hard_forced_accuracy", &hard_forced_accuracy)?;
        map.serialize_entry("hard_free_accuracy", &hard_free_accuracy)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("prompt_ids", &self.prompt_ids)?;
        map.end()
    }
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
    pub lcs: ScoredPrompt,
    pub best: ScoredPrompt,
    pub notes: Vec<String>,
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
    ///
    /// # Errors
    /// Those of loading the plain copy.
    pub fn new(outcome: Outcome, problem: &Problem, judge: &Judge, at: Circumstances, tokenizer: &Tokenizer) -> crate::Result<Self> {
        let Outcome { stopped, run, best, verdict, scores, seconds_to_exact } = outcome;
        let (prompt, example) = (&problem.prompt, problem.first());
        let (target, search_ids, prompt_ids) = (&example.target, example.search_ids(&best.free), best.typed[0].clone());
        let perplexities = judge.perplexities(&prompt_ids, &target.ids, at.bos_token)?;
        let completion_ids = verdict.confirmations[0].completion.clone();
        let (prompt_text, free_text) = (example.text(&best.free), prompt.free_text(&best.free));
        let examples: Vec<(&[u32], &[u32])> =
            problem.examples.iter().zip(&best.typed).map(|(example, typed)| (&**typed, &*example.target.ids)).collect();
        let overlaps = Overlaps::of(&prompt_ids, &target.ids, &prompt_text, &target.text);
        Ok(Self {
            schema: "dlmi.inversion/1",
            version: env!("CARGO_PKG_VERSION"),
            exact: verdict.exact,
            round_trips: prompt_ids == search_ids,
            min_margin: verdict.min_margin.is_finite().then_some(verdict.min_margin),
            lcs: ScoredPrompt { step: run.step, prompt_ids: example.search_ids(&run.judged), scores, judged: None },
            best: ScoredPrompt {
                step: best.step,
                prompt_ids: prompt_ids.clone(),
                scores: judge.scores(&examples, &verdict)?,
                judged: Some(Judged { matched_prefix: verdict.matched_prefix(problem), ..best }),
            },
            notes: notes(problem, &verdict, &overlaps),
            overlap: overlaps.overlap,
            target_hit_ratio: overlaps.target_hit_ratio,
            overlap_text: overlaps.overlap_text,
            prompt_perplexity: perplexities.prompt,
            target_perplexity: perplexities.target,
            target_perplexity_bos: perplexities.target_bos,
            target_text: target.text.clone(),
            target_ids: target.ids.clone(),
            free_text,
            prompt_ids,
            completion_text: tokenizer.decode(&completion_ids),
            completion_ids,
            prompt_text,
            search_ids,
            steps: run.step,
            restarts: run.restart,
            load_seconds: at.load_seconds,
            seconds: run.seconds,
            seconds_to_exact,
            cost: run.cost,
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
        })
    }
}

/// What prompt and target have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
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

    /// A sentence where they are high: repeating the target is a known trick.
    pub fn note(&self) -> Option<String> {
        (self.overlap >= HIGH_OVERLAP || self.overlap_text >= HIGH_OVERLAP).then(|| {
            format!(
                "the prompt repeats much of the target: {:.0} % of its tokens are the target's, {:.0} % of the target's letters stand in it in a row",
                100.0 * self.overlap,
                100.0 * self.overlap_text
            )
        })
    }
}

/// From here on an overlap is worth a word.
const HIGH_OVERLAP: f64 = 0.5;

/// What a printed prompt does not show.
pub(crate) const BOS_NOTE: &str = "a beginning-of-sequence token stands before the prompt, which the printed text does not show";

/// What a reader of the result must also know.
fn notes(problem: &Problem, verdict: &Verdict, overlaps: &Overlaps) -> Vec<String> {
    let options = problem.prompt.options();
    let targets: Vec<&Target> = problem.examples.iter().map(|example| &example.target).collect();
    let ban = Ban::new(&targets);
    let mut notes: Vec<String> = options.bos.map(|_| BOS_NOTE.to_owned()).into_iter().collect();
    let fixed = [("prefix", &options.prefix), ("suffix", &options.suffix)];
    let holding = fixed.into_iter().filter(|(_, text)| !ban.allows(text));
    notes.extend(holding.map(|(name, _)| format!("the {name} holds words of the target, which no rule forbids there")));
    notes.extend(overlaps.note());
    notes.extend(verdict.note());
    notes
}
