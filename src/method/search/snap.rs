//! snap, the default: gradient-guided search on hard tokens from a random readable prompt.
//!
//! The gradient of a hinge on the logit margins orders the swaps of every position by predicted change over squared distance,
//! averaged over steps with momentum; ranks are drawn as top·u², scored exactly, and the best is taken, a slightly worse one
//! now and then. Batches grow while nothing better turns up; after long the search returns to its best prompt, or begins anew.

use super::{Proposal, Search};

/// The settings that the presets may change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Snap {
    /// Smallest and largest batch.
    pub batch: (usize, usize),
    /// Tokens of the ranking, for each position.
    pub top: usize,
    /// Share of the earlier rankings.
    pub momentum: f32,
    /// κ, in logits.
    pub margin: f32,
    /// T of the acceptance.
    pub temperature: f32,
    /// Steps without a new best before the batch doubles.
    pub patience: u64,
    /// A stalled search begins with a new random prompt, not with its best.
    pub begin_anew: bool,
}

impl Default for Snap {
    fn default() -> Self {
        Self { batch: (24, 96), top: 128, momentum: 0.6, margin: 0.3, temperature: 0.2, patience: 60, begin_anew: false }
    }
}

impl Snap {
    /// snap as a search.
    pub fn search(self) -> Search {
        Search {
            proposal: Proposal::Gradient { top: self.top, momentum: self.momentum },
            margin: self.margin,
            batch: self.batch.0,
            batch_max: self.batch.1,
            temperature: self.temperature,
            patience: self.patience,
            begin_anew: self.begin_anew,
        }
    }
}
