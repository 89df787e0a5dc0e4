//! REINFORCE with REBAR's control variate. λ takes the place of a temperature. What is fed back is soft, as the control variate must be
//! differentiable through it.

use super::TableRow;
use super::reinforce::REINFORCE;
use crate::estimator::{EstimatorKind, Rebar, rebar};
use crate::subject::feeding::{Feedback, Feeding};

/// The row.
pub const REBAR: TableRow = TableRow {
    estimator: EstimatorKind::Rebar(Rebar { lambda: None, beta: rebar::BETA }),
    feeding: Feeding::Free(Feedback::Soft),
    ..REINFORCE
};
