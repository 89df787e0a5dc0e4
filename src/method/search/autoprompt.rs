//! autoprompt: *AutoPrompt: Eliciting Knowledge from Language Models with Automatically Generated Prompts* (Shin et al. 2020), the trigger
//! search of its authors' code (github.com/ucinlp/autoprompt) with the target in place of labels.
//!
//! One position a step, at random: the ten tokens of lowest g·E_v (HotFlip, Ebrahimi et al. 2018), g the gradient of the cross-entropy at
//! the prompt, are scored exactly, and the best is taken if it is better.
//!
//! Where it differs: the gradient is averaged over the examples of the problem, of which there is one unless it says otherwise, not over
//! batches of a data set; it starts from random words, not from mask tokens; tokens that do not survive decode → encode are passed over;
//! the search vocabulary is the problem's.

use super::{Acceptance, Proposal, Schedule, Search, Start, Visit};
use crate::objective::Goal;

/// AutoPrompt; a batch is the authors' `num_cand`.
pub const AUTOPROMPT: Search = Search {
    start: Start::Readable,
    proposal: Proposal::Best { visit: Visit::AtRandom, averaged: false },
    goal: Goal::CROSS_ENTROPY,
    fluency: None,
    emphasis: None,
    acceptance: Acceptance::Better,
    schedule: Schedule { batch: 10, growth: None },
    sets: None,
    rough: false,
};
