//! random, a control: swaps of random tokens at random positions, the best of a batch kept when it is better.

use super::{Proposal, Search};

/// The control with batches of this size and the hinge of margin κ.
pub fn random(batch: usize, margin: f32) -> Search {
    Search { proposal: Proposal::Uniform, margin, batch, batch_max: batch, temperature: 0.0, patience: u64::MAX, begin_anew: false }
}
