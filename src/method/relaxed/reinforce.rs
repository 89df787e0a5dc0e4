//! REINFORCE as the paper runs it: whole tokens drawn from softmax(Z), the model fed its own output, the loss less a moving average
//! as what a draw is worth (eq. 5).

use super::TableRow;
use super::dlmi::DLMI;
use crate::estimator::{EstimatorKind, Reinforce, Temperature, reinforce};
use crate::subject::feeding::{Feedback, Feeding};

/// REINFORCE's row of Table 1 and column of Table 5.
pub const REINFORCE: TableRow = TableRow {
    estimator: EstimatorKind::Reinforce(Reinforce { baseline: reinforce::Baseline::Ema, beta: reinforce::BETA, reward_scale: 1.0 }),
    temperature: Temperature::None,
    // No soft embedding anywhere: what is fed back is a token too.
    feeding: Feeding::Free(Feedback::Hard),
    ..DLMI
};
