//! DLMI: *Language Model Inversion through End-to-End Differentiation*, Algorithm 1, and its ablation without teacher forcing.
//!
//! Z ~ N(0,1)^{N×V}, Φ ~ N(0,1)^N, τ_i = ε + τ0(1 + tanh Φ_i), Gumbel noise, soft embeddings, the target's own tokens fed,
//! cross-entropy at the M target positions, Adam over Z and Φ.

use super::{Initial, TableRow};
use crate::estimator::{EstimatorKind, GumbelSoftmax, Temperature};
use crate::objective::Goal;
use crate::optimiser::Adam;
use crate::subject::feeding::{Feedback, Feeding};

/// τ0 (Table 5; the paper also tries 1).
pub const TAU0: f64 = 100.0;

/// DLMI(τ0)'s row of Table 1.
pub const DLMI: TableRow = TableRow {
    estimator: EstimatorKind::GumbelSoftmax(GumbelSoftmax { largest_uniform: None }),
    temperature: Temperature::Learned { tau0: TAU0, per_position: true },
    feeding: Feeding::Forced,
    goal: Goal::CROSS_ENTROPY,
    optimiser: Adam::new(0.1),
    initial: Initial::GAUSSIAN,
    samples: 8,
};

/// DLMI(τ0)-TF's: the model is fed its own output.
pub const DLMI_TF: TableRow = TableRow { feeding: Feeding::Free(Feedback::Soft), ..DLMI };
