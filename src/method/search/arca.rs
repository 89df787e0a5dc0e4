//! arca: *Automatically Auditing Large Language Models via Discrete Optimization* (Jones et al. 2023), reversing a fixed output, as its
//! authors' code has it (github.com/ejones313/auditing-llms).
//!
//! One position a step, in turn: the gradient of the cross-entropy there, averaged over 32 prompts with random tokens at it; the 32 tokens
//! of lowest g·E_v are scored exactly, and the best is taken, be it worse than what stood there.
//!
//! Where it differs: it starts from random words, not from random tokens; tokens that do not survive decode → encode are passed over; the
//! search vocabulary is the problem's. Their perplexity term is `fluency`, which is off; its gradient here knows what a token is worth by
//! itself too, where theirs holds the labels fixed, and the first token counts where something stands before it.

use super::{Acceptance, Proposal, Schedule, Search, Start, Visit};
use crate::objective::Goal;

/// ARCA; a batch is the authors' `arca_batch_size`, of the gradients and of the candidates alike.
pub const ARCA: Search = Search {
    start: Start::Readable,
    proposal: Proposal::Best { visit: Visit::InTurn, averaged: true },
    goal: Goal::CROSS_ENTROPY,
    fluency: None,
    emphasis: None,
    acceptance: Acceptance::Any,
    schedule: Schedule { batch: 32, growth: None },
    sets: None,
    rough: false,
};
