//! What a report is made of: cells of studies, and measurements of gradients.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::gradients::Line;
use crate::metrics::Spread;
use crate::subject::Cost;

/// All records, each once.
#[derive(Debug, Default)]
pub struct Data {
    /// Cells in the order in which they were read: files as named, folders by id.
    pub cells: Vec<Cell>,
    /// Measurements of gradients.
    pub gradients: Vec<Line>,
    /// Runs that were to be measured, and failed.
    pub unmeasured: usize,
    /// What the studies call the models whose gradients were measured, by digest. `dlmi gradients` does not say.
    pub measured_models: HashMap<String, String>,
}

/// A cell of a study: where it stands on the axes, and what it came to.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its place.
    pub place: Place,
    /// What was found, or why nothing can be had.
    pub outcome: Result<Inversion, String>,
    /// The steps that have scores, and those at which the best prompt matched more; of older records the former alone.
    pub trace: Vec<Step>,
    /// τ after each step, mean over the positions. Older records do not have it, nor methods without.
    pub temperature: Vec<Option<f64>>,
}

/// Where a cell stands.
#[derive(Debug, Clone, Deserialize)]
pub struct Place {
    /// The hash of all that decides the result.
    pub id: String,
    /// SHA-256 of the weights.
    pub model_digest: String,
    /// As it was given; not in the records of `merge --science`.
    pub model: Option<String>,
    /// Name of the target.
    pub target: String,
    /// y.
    pub target_ids: Vec<u32>,
    /// The k that the target was drawn with.
    pub k: Option<u32>,
    /// What tables call the method.
    pub method: String,
    /// N.
    pub prompt_tokens: u64,
    /// The budget.
    #[serde(flatten)]
    pub budget: Budget,
    /// Seed.
    pub seed: u64,
}

/// What a run was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(from = "Limits")]
pub struct Budget {
    work: Option<Work>,
    /// Of a list; a study has no such limit.
    milliseconds: Option<u64>,
}

/// A budget that is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Work {
    /// So many steps of each start.
    Steps(u64),
    /// So many positions pushed through the model, however many steps a start has.
    Positions(u64),
}

/// A budget as it is written.
#[derive(Deserialize)]
struct Limits {
    steps: Option<u64>,
    max_positions: Option<u64>,
    max_seconds: Option<f64>,
}

impl From<Limits> for Budget {
    fn from(limits: Limits) -> Self {
        Self {
            work: limits.max_positions.map(Work::Positions).or(limits.steps.map(Work::Steps)),
            milliseconds: limits.max_seconds.map(|seconds| (seconds * 1e3).round() as u64),
        }
    }
}

/// `256 steps`, `60000 positions`, `256 steps in 0.5 s`.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let work = self.work.map(|work| match work {
            Work::Steps(steps) => format!("{steps} steps"),
            Work::Positions(positions) => format!("{positions} positions"),
        });
        let seconds = self.milliseconds.map(|ms| format!("{} s", ms as f64 / 1e3));
        match (work, seconds) {
            (Some(work), Some(seconds)) => write!(f, "{work} in {seconds}"),
            (work, seconds) => f.write_str(&work.or(seconds).unwrap_or_else(|| "no budget".to_owned())),
        }
    }
}

/// What a report reads of a result.
#[derive(Debug, Clone, Deserialize)]
pub struct Inversion {
    /// The method's own name.
    pub method: String,
    /// All settings, resolved.
    pub settings: Value,
    /// y as text.
    pub target_text: String,
    /// What is typed.
    pub prompt_text: String,
    /// What the model wrote after it.
    pub completion_text: String,
    /// See docs/design.md.
    pub exact: bool,
    /// The scores of the last step, as the paper plots them.
    pub lcs: Last,
    /// Those of the reported prompt.
    pub best: Best,
    /// Share of prompt positions with a token of y.
    pub overlap: f64,
    /// Share of distinct tokens of y that the prompt has.
    pub target_hit_ratio: f64,
    /// Longest common run of letters and digits.
    pub overlap_text: f64,
    /// Of the prompt from its second token on.
    pub prompt_perplexity: Option<f64>,
    /// Steps made.
    pub steps: u64,
    /// Not in the records of `merge --science`.
    pub seconds: Option<f64>,
    /// Work.
    pub cost: Cost,
    /// Why it ended.
    pub stopped: String,
}

/// Scores of the last step.
#[derive(Debug, Clone, Deserialize)]
pub struct Last {
    /// None without a relaxed prompt.
    pub relaxed_forced: Option<f64>,
    /// None without a relaxed prompt.
    pub relaxed_free: Option<f64>,
    /// The hard prompt, the target fed; none where a signal left no time for it.
    pub hard_forced: Option<f64>,
    /// The hard prompt, free-running; likewise.
    pub hard_free: Option<f64>,
    /// The hard prompt as searched.
    pub prompt_ids: Vec<u32>,
}

/// Scores of the reported prompt.
#[derive(Debug, Clone, Deserialize)]
pub struct Best {
    /// Target tokens before the first wrong one.
    pub matched_prefix: usize,
    /// The prompt, free-running.
    pub hard_free: f64,
    /// The step that found it.
    pub step: u64,
}

/// A step that has scores.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    /// Steps so far.
    pub step: u64,
    /// τ over the positions.
    pub temperature: Option<Spread>,
    /// Of the best prompt so far.
    pub best: Option<Prefix>,
    /// Of the hard prompt at hand.
    pub scores: Option<Hard>,
    /// Work so far.
    pub cost: Cost,
}

/// What a step says of the hard prompt at hand.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Hard {
    /// The target fed.
    pub hard_forced: f64,
    /// Free-running.
    pub hard_free: f64,
}

/// What a step says of the best prompt so far.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Prefix {
    /// Target tokens before the first wrong one.
    pub matched_prefix: usize,
}

impl Cell {
    /// M, the stop token included where one was asked for.
    pub fn target_tokens(&self) -> usize {
        let ends = self.found().is_some_and(|found| found.settings["end"] == true);
        self.place.target_ids.len() + usize::from(ends)
    }

    /// Its result, where it has one.
    pub fn found(&self) -> Option<&Inversion> {
        self.outcome.as_ref().ok()
    }

    /// τ after so many steps, mean over the positions; of a run that has stopped before, its last one. By the scored steps where the record has no
    /// others.
    pub fn temperature_at(&self, step: u64) -> Option<f64> {
        match self.temperature.len() {
            0 => last_at(&self.trace, |it| it.step <= step)?.temperature.map(|spread| spread.mean),
            steps => self.temperature[(step as usize).clamp(1, steps) - 1],
        }
    }

    /// Whether the seed decides anything. SODA begins at zeros and draws nothing before it draws Z again; `echo` draws nothing at all.
    pub fn draws_anything(&self) -> bool {
        let Some(found) = self.found() else { return true };
        match found.method.as_str() {
            "echo" => false,
            "soda" => {
                let settings = &found.settings["soda"];
                let starts_at_zeros = settings["initial_deviation"].as_f64().unwrap_or(0.0) == 0.0;
                let redrawn = settings["redraw_every"].as_u64().is_some_and(|every| found.steps > every);
                let restarts = found.settings["restarts"].as_u64().unwrap_or(0) > 0;
                !starts_at_zeros || redrawn || restarts
            }
            _ => true,
        }
    }
}

/// The last step of a run up to which `reached` holds: its last one where it has stopped before that ends.
pub fn last_at(trace: &[Step], reached: impl Fn(&Step) -> bool) -> Option<&Step> {
    trace[..trace.partition_point(reached)].last()
}
