//! What the target positions are asked for, as a loss of their logits.

use crate::setting::{Choice, Key, Slot, choice, key, real};

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
    /// −ℓ_y, of which a prompt has ln(mean over the positions of e^−ℓ_y), a soft maximum: mellowmax (Asadi and Littman 2017) as nanoGCG has
    /// it, with its α of 1.
    Mellowmax,
}

/// What an [`Objective`] makes of one row of logits: what the fused operations compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowLoss {
    /// −log softmax(ℓ)_y.
    Nll,
    /// max(0, κ − (ℓ_y − max_{v≠y} ℓ_v)), of this κ.
    Hinge(f32),
    /// −ℓ_y, for which no other logit is needed.
    Logit,
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
    /// [`Objective::Mellowmax`].
    Mellowmax,
}

impl Choice for ObjectiveKind {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::CrossEntropy, "cross-entropy", "Minus the log-probability of the target's tokens, averaged: the paper's"),
        (Self::Hinge, "hinge", "What a target token lacks to be ahead of all others by the margin, summed"),
        (Self::LogProbDifference, "log-prob-difference", "How far a target token is behind the most likely one, averaged: SODA's"),
        (
            Self::Mellowmax,
            "mellowmax",
            "Minus the logit of the target's tokens, the lowest logits counting most: nanoGCG's `use_mellowmax`",
        ),
    ];
}

/// The settings that an objective is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// What is minimised.
    pub kind: ObjectiveKind,
    /// κ of a hinge, in logits. The other objectives have none: it waits for somebody who chooses a hinge.
    pub margin: f64,
}

impl Goal {
    /// [`Objective::CrossEntropy`].
    pub const CROSS_ENTROPY: Self = Self::of(ObjectiveKind::CrossEntropy);
    /// [`Objective::Hinge`].
    pub const HINGE: Self = Self::of(ObjectiveKind::Hinge);
    /// [`Objective::LogProbDifference`].
    pub const LOG_PROB_DIFFERENCE: Self = Self::of(ObjectiveKind::LogProbDifference);

    /// With the κ that all methods have where nobody says otherwise.
    pub const fn of(kind: ObjectiveKind) -> Self {
        Self { kind, margin: 0.3 }
    }

    /// The objective.
    pub fn objective(self) -> Objective {
        match self.kind {
            ObjectiveKind::CrossEntropy => Objective::CrossEntropy,
            ObjectiveKind::Hinge => Objective::Hinge { margin: self.margin as f32 },
            ObjectiveKind::LogProbDifference => Objective::LogProbDifference,
            ObjectiveKind::Mellowmax => Objective::Mellowmax,
        }
    }

    /// Its kind as a setting.
    pub fn kind_slot(&mut self) -> Option<Slot<'_>> {
        Some(choice(&mut self.kind))
    }

    /// κ as a setting, of a hinge.
    pub fn margin_slot(&mut self) -> Option<Slot<'_>> {
        (self.kind == ObjectiveKind::Hinge).then(|| real(&mut self.margin, 0.0..=1e3))
    }
}

/// The key of [`Goal::kind_slot`].
pub const fn objective_key<S>(slot: fn(&mut S) -> Option<Slot<'_>>) -> Key<S> {
    key("objective", "What is minimised at the target's positions", slot)
}

/// The key of [`Goal::margin_slot`].
pub const fn margin_key<S>(slot: fn(&mut S) -> Option<Slot<'_>>) -> Key<S> {
    key("margin", "Logit gap at which a target position counts as solved", slot)
}

impl Objective {
    /// Weight of one of `positions` target positions in the loss of one sample; of mellowmax that of its mean position.
    pub fn weight(self, positions: usize) -> f64 {
        match self {
            Self::CrossEntropy | Self::LogProbDifference | Self::Mellowmax => 1.0 / positions as f64,
            Self::Hinge { .. } => 1.0,
        }
    }

    /// Whether a prompt's loss is the weighted sum of those at the target positions, none of which is negative.
    pub fn adds_up(self) -> bool {
        self != Self::Mellowmax
    }

    /// The loss of one row.
    pub fn of_row(self) -> RowLoss {
        match self {
            Self::CrossEntropy => RowLoss::Nll,
            Self::Hinge { margin } => RowLoss::Hinge(margin),
            Self::LogProbDifference => RowLoss::Hinge(0.0),
            Self::Mellowmax => RowLoss::Logit,
        }
    }

    /// κ of the hinge that a position's loss is; nothing where it is none.
    pub fn margin(self) -> Option<f32> {
        match self.of_row() {
            RowLoss::Hinge(margin) => Some(margin),
            RowLoss::Nll | RowLoss::Logit => None,
        }
    }

    /// The hinge loss of a prompt from its logit margins.
    pub fn hinge(margin: f32, margins: &[f32]) -> f32 {
        margins.iter().map(|&m| hinge_at(margin, m)).sum()
    }

    /// The loss of one sample on one example from the losses at all target positions, `[M]`.
    pub fn of_target(self, losses: &[f64]) -> f64 {
        if self.adds_up() { losses.iter().sum::<f64>() * self.weight(losses.len()) } else { mellowmax(losses.iter().copied()) }
    }

    /// The loss of a prompt, its mean over the examples, from the losses at its target positions: those of one example after another, of
    /// `targets` positions each. From the first of them alone it is a lower bound: no position's loss is negative where they add up, and
    /// elsewhere it is −∞.
    pub fn of_prompt(self, losses: &[f32], targets: impl ExactSizeIterator<Item = usize>) -> f32 {
        let (mut rest, examples) = (losses, targets.len() as f32);
        let of_example = |positions: usize| {
            let (own, others) = rest.split_at(positions.min(rest.len()));
            rest = others;
            match self.adds_up() {
                true => own.iter().sum::<f32>() * self.weight(positions) as f32,
                false if own.len() < positions => f32::NEG_INFINITY,
                false => mellowmax(own.iter().map(|&loss| f64::from(loss))) as f32,
            }
        };
        targets.map(of_example).sum::<f32>() / examples
    }
}

/// ln of the mean of e^loss.
fn mellowmax(losses: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let (count, largest) = (losses.len() as f64, losses.clone().fold(f64::NEG_INFINITY, f64::max));
    largest + (losses.map(|loss| (loss - largest).exp()).sum::<f64>() / count).ln()
}

/// The hinge at one position whose target token is ahead by `m`.
pub fn hinge_at(margin: f32, m: f32) -> f32 {
    // A NaN stays one, where `max` would take it for 0.
    if m >= margin { 0.0 } else { margin - m }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompts_loss_is_the_mean_of_its_examples() {
        let losses = [1.0, 0.25, 0.5, 2.0, 4.0];
        let of = |objective: Objective, count: usize| objective.of_prompt(&losses[..count], [2, 3].into_iter());
        assert_eq!(of(Objective::Hinge { margin: 0.3 }, 5), (1.25 + 6.5) / 2.0);
        assert!((of(Objective::CrossEntropy, 5) - (1.25 / 2.0 + 6.5 / 3.0) / 2.0).abs() < 1e-6);
        for objective in [Objective::CrossEntropy, Objective::LogProbDifference, Objective::Hinge { margin: 0.3 }] {
            assert!((0..5).all(|count| of(objective, count) < of(objective, count + 1)), "the first positions bound the whole from below");
        }
        let soft = |losses: &[f32]| (losses.iter().map(|loss| loss.exp()).sum::<f32>() / losses.len() as f32).ln();
        assert!((of(Objective::Mellowmax, 5) - (soft(&losses[..2]) + soft(&losses[2..])) / 2.0).abs() < 1e-6);
        assert!((0..5).all(|count| of(Objective::Mellowmax, count) == f32::NEG_INFINITY), "nothing is known before the end");
    }

    #[test]
    fn mellowmax_keeps_its_ends() {
        assert!((Objective::Mellowmax.of_target(&[-1e4, 2.0]) - (2.0 - 2f64.ln())).abs() < 1e-12);
        assert!((Objective::Mellowmax.of_target(&[1e4; 3]) - 1e4).abs() < 1e-9);
        assert!(
            Objective::Mellowmax.of_target(&[f64::NAN, 1.0]).is_nan() && Objective::Mellowmax.of_target(&[f64::INFINITY, 1.0]).is_nan()
        );
    }

    #[test]
    fn one_example_has_its_own_hinge_to_the_bit() {
        let margins: Vec<f32> = (0..20).map(|i| (i as f32 * 0.7).sin()).collect();
        let losses: Vec<f32> = margins.iter().map(|&m| hinge_at(0.3, m)).collect();
        let objective = Objective::Hinge { margin: 0.3 };
        assert_eq!(objective.of_prompt(&losses, [20].into_iter()).to_bits(), Objective::hinge(0.3, &margins).to_bits());
        assert!(Objective::hinge(0.3, &[f32::NAN]).is_nan());
    }
}
