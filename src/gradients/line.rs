//! A measurement as it is written: one line of JSON Lines.

use serde::{Deserialize, Serialize};

use super::Measurement;

/// Of a line; fields are added, never renamed.
pub const SCHEMA: &str = "dlmi.gradients/1";

/// A measurement, and what it is of: docs/record.md says what each field means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// `dlmi.gradients/1`.
    pub schema: String,
    /// Id of the run that was measured, see [`super::Unit`].
    pub unit: String,
    /// Label of the estimator.
    pub estimator: String,
    /// Name of the target.
    pub target: String,
    /// The k that it was drawn with.
    pub k: Option<u32>,
    /// Seed of the run.
    pub seed: u32,
    /// Steps of the optimiser before.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// SHA-256 of the weights.
    pub model: String,
    /// N.
    pub prompt_tokens: usize,
    /// V.
    pub vocab_size: usize,
    /// M.
    pub target_tokens: usize,
    /// S.
    pub samples: usize,
    /// n.
    pub draws: u32,
    /// Prompts of the unbiased reference.
    pub reference_samples: u32,
    /// What was found.
    #[serde(flatten)]
    pub measurement: Measurement,
    /// What it took.
    pub seconds: f64,
}

impl Line {
    /// As it is written, without a newline.
    pub fn to_json(&self) -> String {
        crate::terminal::json(self)
    }
}
