//! What the target positions are asked for, as a loss of their logits.

use crate::setting::Choice;

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

/// An objective by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectiveKind {
    /// [`Objective::CrossEntropy`].
    CrossEntropy,
    /// [`Objective::Hinge`].
    Hinge,
    /// [`Objective::LogProbDifference`].
    LogProbDifference,
}

impl Choice for ObjectiveKind {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::CrossEntropy, "cross-entropy", "Minus the log-probability of the target's tokens, averaged: the paper's"),
        (Self::Hinge, "hinge", "What a target token lacks to be ahead of all others by the margin, summed"),
        (Self::LogProbDifference, "log-prob-difference", "How far a target token is behind the most likely one, averaged: SODA's"),
    ];
}

impl ObjectiveKind {
    /// The objective; `margin` is κ of a hinge.
    pub fn with(self, margin: f64) -> Objective {
        match self {
            Self::CrossEntropy => Objective::CrossEntropy,
            Self::Hinge => Objective::Hinge { margin: margin as f32 },
            Self::LogProbDifference => Objective::LogProbDifference,
        }
    }
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
