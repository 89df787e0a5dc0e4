//! DLMI with the straight-through estimator: the model is shown whole tokens, as it will be in the end, and nothing else differs.

use super::TableRow;
use super::dlmi::DLMI;
use crate::estimator::{EstimatorKind, StraightThrough};

/// The row.
pub const STGS: TableRow =
    TableRow { estimator: EstimatorKind::StraightThrough(StraightThrough { largest_uniform: None, draw_again: false }), ..DLMI };
