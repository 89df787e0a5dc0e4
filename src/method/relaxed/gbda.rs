//! GBDA: *Gradient-based Adversarial Attacks against Text Transformers* (Guo et al. 2021), as the paper adapts it to inversion: DLMI
//! without a learned temperature and without teacher forcing.

use super::TableRow;
use super::dlmi::DLMI;
use crate::estimator::Temperature;
use crate::subject::feeding::{Feedback, Feeding};

/// τ (the paper also tries 100).
pub const TAU: f64 = 1.0;

/// GBDA(τ)'s row of Table 1.
pub const GBDA: TableRow = TableRow { temperature: Temperature::Fixed(TAU), feeding: Feeding::Free(Feedback::Soft), ..DLMI };

/// What the authors of ARCA ran beside it (github.com/ejones313/auditing-llms): one prompt for each start, the target's own tokens fed.
/// Their eight starts side by side are a start and seven restarts here.
pub const GBDA_FORCED: TableRow = TableRow { feeding: Feeding::Forced, samples: 1, ..GBDA };
