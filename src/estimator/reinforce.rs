//! REINFORCE (Williams 1992): `∇_Z E[L] = E[(L − b)·∇_Z log p_Z(x)]`, x of whole tokens; the paper's eq. 5. Unbiased, of high variance.

use burn::tensor::{IndexingUpdateOp, Tensor, TensorData, activation::softmax, backend::Backend};

use super::{Estimate, Estimator, Noise, Relaxation};
use crate::Result;
use crate::ops::{Kernels, Plain, TrackedBackend};
use crate::setting::Choice;
use crate::state::State;
use crate::tensor::ids_tensor;

/// β of the moving average (Table 5).
pub const BETA: f64 = 0.9;

/// The estimator's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reinforce {
    /// b.
    pub baseline: Baseline,
    /// β: the share of the earlier average in the new one.
    pub beta: f64,
    /// What the gradient is multiplied by.
    pub reward_scale: f64,
}

/// What is subtracted from a sample's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// b ← βb + (1 − β) mean L after each step, at first the first mean: the paper's
    Ema,
    /// The mean loss of the step's other samples
    LeaveOneOut,
    /// What the paper's authors ran: b ← (1 − β)b + β mean L before the step, one mean L − b for all samples
    Shared,
    /// Nothing
    None,
}

impl Baseline {
    /// Whether it is a moving average.
    pub fn averages(self) -> bool {
        matches!(self, Self::Ema | Self::Shared)
    }
}

impl Choice for Baseline {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Ema, "ema", "b ← βb + (1 − β) mean L after each step, at first the first mean: the paper's"),
        (Self::LeaveOneOut, "leave-one-out", "The mean loss of the step's other samples"),
        (Self::Shared, "shared", "What the paper's authors ran: b ← (1 − β)b + β mean L before the step, one mean L − b for all samples"),
        (Self::None, "none", "Nothing"),
    ];
}

impl Reinforce {
    /// L − b of every sample, of which [`Baseline::LeaveOneOut`] needs two. `average` is b between two steps.
    pub fn advantages(&self, losses: &[f64], average: &mut Option<f64>) -> Vec<f64> {
        let mean = mean(losses);
        match self.baseline {
            Baseline::Ema => {
                let b = average.unwrap_or(mean);
                *average = Some(self.beta * b + (1.0 - self.beta) * mean);
                losses.iter().map(|loss| loss - b).collect()
            }
            Baseline::LeaveOneOut => leave_one_out(losses),
            Baseline::Shared => {
                let b = average.map_or(mean, |b| (1.0 - self.beta) * b + self.beta * mean);
                *average = Some(b);
                vec![mean - b; losses.len()]
            }
            Baseline::None => losses.to_vec(),
        }
    }

    /// The estimate `[N, V]`: the mean over the samples of A·∇_Z log p_Z(x), where ∇_Z log p_Z(x)_i = onehot(x_i) − softmax(Z_i).
    pub fn gradient<B: Backend>(&self, logits: Tensor<B, 2>, prompts: &[Vec<u32>], advantages: &[f64]) -> Tensor<B, 2> {
        let scale = self.reward_scale / prompts.len() as f64;
        let weights: Vec<f64> = advantages.iter().map(|advantage| advantage * scale).collect();
        score(logits, prompts, weights)
    }
}

/// Σ w·∇_Z log p_Z(x) over the samples, `[N, V]`; a weight for each.
pub(super) fn score<B: Backend>(logits: Tensor<B, 2>, prompts: &[Vec<u32>], weights: Vec<f64>) -> Tensor<B, 2> {
    let ([n, _], s) = (logits.dims(), prompts.len());
    let options = (&logits.device(), logits.dtype());
    let tokens = ids_tensor::<B>(prompts, options.0).transpose();
    let all = weights.iter().sum::<f64>();
    let weights = Tensor::<B, 2>::from_data(TensorData::new(weights, [1, s]), options).expand([n, s]);
    (softmax(logits, 1) * -all).scatter(1, tokens, weights, IndexingUpdateOp::Add)
}

/// The estimator at work.
#[derive(Debug, Clone, Copy)]
pub struct ReinforceEstimator {
    settings: Reinforce,
    /// b between two estimates, where it is a moving average.
    average: Option<f64>,
}

impl ReinforceEstimator {
    /// One that has seen no loss yet.
    pub fn new(settings: Reinforce) -> Self {
        Self { settings, average: None }
    }
}

impl<B: TrackedBackend> Estimator<B> for ReinforceEstimator {
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        let soft = at.soft_prompt(noise.prompt(None));
        let prompts = Plain::<B>::draw(&soft);
        let losses = at.subject.losses(&prompts, at.problem, at.objective, &at.feeding.fed(noise.feedback(None)));
        let advantages = self.settings.advantages(&losses, &mut self.average);
        Estimate { loss: mean(&losses), dz: self.settings.gradient(soft.masked(), &prompts, &advantages), dphi: None }
    }

    fn reset(&mut self) {
        self.average = None;
    }

    fn save(&self, state: &mut State) {
        state.put_field("baseline", &self.average);
    }

    fn restore(&mut self, state: &mut State) -> Result<()> {
        self.average = state.field("baseline")?;
        Ok(())
    }
}

/// L less the mean of the others, of which there must be one: L − (ΣL − L)/(S − 1) = (L − mean L)·S/(S − 1).
pub(super) fn leave_one_out(losses: &[f64]) -> Vec<f64> {
    let (s, mean) = (losses.len() as f64, mean(losses));
    losses.iter().map(|loss| (loss - mean) * s / (s - 1.0)).collect()
}

pub(super) fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(baseline: Baseline) -> Reinforce {
        Reinforce { baseline, beta: 0.75, reward_scale: 1.0 }
    }

    #[test]
    fn the_papers_average_is_that_of_the_steps_before() {
        let (estimator, mut average) = (with(Baseline::Ema), None);
        assert_eq!(estimator.advantages(&[1.0, 3.0], &mut average), [-1.0, 1.0]);
        assert_eq!(average, Some(2.0));
        assert_eq!(estimator.advantages(&[6.0, 6.0], &mut average), [4.0, 4.0]);
        assert_eq!(average, Some(3.0));
    }

    #[test]
    fn without_a_baseline_the_advantage_is_the_loss() {
        let mut average = None;
        assert_eq!(with(Baseline::None).advantages(&[1.0, 2.0, 6.0], &mut average), [1.0, 2.0, 6.0]);
        assert_eq!(average, None);
    }

    #[test]
    fn left_out_is_the_sample_itself() {
        let found = with(Baseline::LeaveOneOut).advantages(&[1.0, 2.0, 6.0], &mut None);
        let expected = [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5];
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn the_authors_average_is_mostly_the_step_itself_and_one_for_all() {
        let (estimator, mut average) = (with(Baseline::Shared), None);
        assert_eq!(estimator.advantages(&[1.0, 3.0], &mut average), [0.0, 0.0]);
        assert_eq!(estimator.advantages(&[4.0, 8.0], &mut average), [1.0, 1.0]);
        assert_eq!(average, Some(5.0));
    }
}
