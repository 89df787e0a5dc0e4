//! random, a control: swaps of random tokens at random positions, the best of a batch kept when it is better.

use super::{Acceptance, Moves, Proposal, Schedule, Search, Start};
use crate::objective::ObjectiveKind;

/// The control with its defaults.
pub const RANDOM: Search = Search {
    start: Start::Readable,
    proposal: Proposal::Uniform,
    moves: Moves::Swap(1),
    objective: ObjectiveKind::Hinge,
    margin: 0.3,
    fluency: None,
    acceptance: Acceptance::Better,
    schedule: Schedule { batch: 24, growth: None },
    sets: None,
    rough: false,
};
