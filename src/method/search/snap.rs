//! snap, the default: gradient-guided search on hard tokens from a word by word paraphrase of the target.
//!
//! Of some prompts made of tokens near those of the target, and some random ones, the best is where it begins.
//! The gradient of a hinge on the logit margins orders the swaps of every position by predicted change over squared distance,
//! averaged over steps with momentum; ranks are drawn as top·u² and scored exactly. So are sets of swaps whose measured changes add up to
//! the lowest objective. A target position counts for more, the more of the last prompts missed it. The best of all is taken, a slightly worse one now
//! and then. Batches grow while nothing better turns up; after long the search returns to its best prompt, or restarts.

use super::{Acceptance, Growth, Proposal, Schedule, Search, Sets, Start};
use crate::objective::Goal;

/// snap with its defaults.
pub const SNAP: Search = Search {
    start: Start::Paraphrase(64),
    proposal: Proposal::Gradient { top: 32, momentum: 0.6 },
    goal: Goal::HINGE,
    fluency: None,
    emphasis: Some(2.0),
    acceptance: Acceptance::Annealed { acceptance_temperature: 0.2 },
    schedule: Schedule { batch: 24, growth: Some(Growth { patience: 60, batch_max: 96, restart_when_stalled: false }) },
    sets: Some(Sets { share: 0.5, largest: 4, kept: 6 }),
    rough: true,
};
