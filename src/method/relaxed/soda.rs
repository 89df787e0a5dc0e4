//! SODA: *Sparse One-hot Discrete Adam* (Skapars et al. 2025) with the constants of the paper's Table 5.
//!
//! z = 0, p = softmax(z/T) without noise, the target's own tokens fed, a loss that is silent where the target wins, Adam without
//! bias correction whose value decays and whose moments are forgotten now and then.

use super::{Initial, TableRow};
use crate::estimator::{EstimatorKind, Temperature};
use crate::objective::Goal;
use crate::optimiser::Adam;
use crate::subject::feeding::Feeding;

/// T.
pub const TAU: f64 = 0.05;

/// SODA(τ)'s row of Table 1 and column of Table 5.
pub const SODA: TableRow = TableRow {
    estimator: EstimatorKind::Softmax,
    temperature: Temperature::Fixed(TAU),
    feeding: Feeding::Forced,
    goal: Goal::LOG_PROB_DIFFERENCE,
    optimiser: Adam { beta1: 0.9, beta2: 0.995, bias_correction: false, decay: 0.98, reset_every: Some(50), ..Adam::new(0.03) },
    // Zeros; N(0, 0.1²) after every 1500 steps, as SODA's authors have it.
    initial: Initial { deviation: 0.0, redraw_every: Some(1500), redraw_deviation: 0.1, ..Initial::GAUSSIAN },
    samples: 1,
};
