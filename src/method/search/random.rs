//! random, a control: swaps of random tokens at random positions, the best of a batch kept when it is better.

use super::{Acceptance, Proposal, Schedule, Search, Start};
use crate::objective::Goal;

/// The control with its defaults.
pub const RANDOM: Search = Search {
    start: Start::Readable,
    proposal: Proposal::Uniform,
    goal: Goal::HINGE,
    fluency: None,
    emphasis: None,
    acceptance: Acceptance::Better,
    schedule: Schedule { batch: 24, growth: None },
    sets: None,
    rough: false,
};
