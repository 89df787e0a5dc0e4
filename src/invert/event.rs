//! A step as `events.jsonl` tells it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::judge::Judged;
use super::log::EVENTS;
use super::observer::Report;
use super::scores::Scores;
use crate::metrics::Spread;
use crate::subject::Cost;

/// One line of `events.jsonl`: a step. Numbers are finite or null, a spread is `{mean, min, max}`; keys are added, never renamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Steps of the run, this one included: 1, 2, 3, … without a gap, across restarts and interruptions.
    pub step: u64,
    /// Fresh starts before this step.
    pub restart: u32,
    /// Seconds since the run began, interruptions and the loading of the model left out.
    pub seconds: f64,
    /// N at work, where it becomes smaller. Absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<usize>,
    /// What the step left to minimise, by the method's objective: cross-entropy or difference in nats per token, hinge in logits, summed over
    /// the target; a mean over the samples drawn; of echo and floor wrong tokens. Null where it is not a number any more.
    pub objective: Option<f32>,
    /// Euclidean length of the gradient used. Null where the method uses none.
    pub gradient_norm: Option<f32>,
    /// Effective temperature τ, over the N positions. Null without a relaxed prompt.
    pub temperature: Option<Spread>,
    /// Entropy of a position's distribution over the vocabulary in nats, over the N positions. Null without a relaxed prompt.
    pub entropy: Option<Spread>,
    /// The best hard prompt so far. Null before the first one was judged.
    pub best: Option<BestSoFar>,
    /// LCS ratios and accuracies, shares from 0 to 1. Null but every `eval_every` steps and at the last step.
    pub scores: Option<Scores>,
    /// Work of the run so far, in positions. The scores that only the end of a run asks for are not in it.
    pub cost: Cost,
}

impl Event {
    /// The steps of a run, from its folder; what is no event is passed over.
    pub fn read(folder: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(folder.join(EVENTS)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// What an event says of the best prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BestSoFar {
    /// Target tokens that the model writes before its first wrong one.
    pub matched_prefix: usize,
    /// The rules for prompts are kept.
    pub valid: bool,
    /// The step that found it.
    pub step: u64,
}

impl From<&Judged> for BestSoFar {
    fn from(judged: &Judged) -> Self {
        Self { matched_prefix: judged.matched_prefix, valid: judged.valid, step: judged.step }
    }
}

impl From<&Report<'_>> for Event {
    fn from(report: &Report) -> Self {
        let finite = |x: &f32| x.is_finite();
        let progress = report.progress;
        Self {
            step: report.step,
            restart: report.restart,
            seconds: report.seconds,
            prompt_tokens: report.prompt_tokens,
            objective: Some(progress.objective).filter(finite),
            gradient_norm: progress.gradient_norm.filter(finite),
            temperature: progress.temperature.and_then(Spread::finite),
            entropy: progress.entropy.and_then(Spread::finite),
            best: report.best.map(BestSoFar::from),
            scores: report.scores,
            cost: report.cost,
        }
    }
}
