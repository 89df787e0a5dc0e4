//! What the target positions are asked for, as a loss of their logits.

/// A loss of one row of logits ℓ with target token y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// −log softmax(ℓ)_y, averaged over the M positions (the paper's Algorithm 1).
    CrossEntropy,
    /// max(0, κ − (ℓ_y − max_{v≠y} ℓ_v)), summed over the positions: silent where y wins by κ.
    Hinge {
        /// κ, in logits.
        margin: f32,
    },
    /// max_v log p_v − log p_y, averaged over the positions: 0 where y wins, and silent there (SODA). What p is divided by cancels, so
    /// it is the hinge of the logits with κ = 0.
    LogProbDifference,
}

impl Objective {
    /// Weight of one of `positions` target positions in the loss of one sample.
    pub fn weight(self, positions: usize) -> f64 {
        match self {
            Self::CrossEntropy | Self::LogProbDifference => 1.0 / positions as f64,
            Self::Hinge { .. } => 1.0,
        }
    }

    /// κ of the hinge that a position's loss is; nothing for a cross-entropy.
    pub fn margin(self) -> Option<f32> {
        match self {
            Self::CrossEntropy => None,
            Self::Hinge { margin } => Some(margin),
            Self::LogProbDifference => Some(0.0),
        }
    }

    /// The hinge loss of a prompt from its logit margins.
    pub fn hinge(margin: f32, margins: &[f32]) -> f32 {
        // A NaN stays one, where `max` would take it for 0.
        margins.iter().map(|&m| if m >= margin { 0.0 } else { margin - m }).sum()
    }
}
