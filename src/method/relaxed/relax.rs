//! REINFORCE with RELAX's control variate, which is REBAR's and a small network.

use super::TableRow;
use super::rebar::REBAR;
use crate::estimator::{EstimatorKind, Rebar, Relax, rebar};

/// The row.
pub const RELAX: TableRow = TableRow {
    estimator: EstimatorKind::Relax(Relax { rebar: Rebar { lambda: None, beta: rebar::BETA }, hidden: 16, rate: 0.01 }),
    ..REBAR
};
