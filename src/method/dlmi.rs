//! DLMI: *Language Model Inversion through End-to-End Differentiation*, Algorithm 1.
//!
//! Z ~ N(0,1)^{N×V}, Φ ~ N(0,1)^N, τ_i = ε + τ0(1 + tanh Φ_i), Gumbel noise, soft embeddings, the target's own tokens fed,
//! cross-entropy at the M target positions, Adam over Z and Φ.

use super::relaxed::{Relaxed, Temperature};
use crate::objective::Objective;
use crate::optimiser::Adam;

/// DLMI's row of Table 1 (Table 5: lr 0.1, τ0 100, one Φ per position, 8 samples).
pub fn dlmi(learning_rate: f64, tau0: f64, per_position: bool, samples: usize) -> Relaxed {
    Relaxed {
        temperature: Temperature::Learned { tau0, per_position },
        objective: Objective::CrossEntropy,
        optimiser: Adam::new(learning_rate),
        samples,
    }
}
