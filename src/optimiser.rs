//! Adam (Kingma & Ba 2015) with the deviations of SODA: its settings, and the rule that turns them into steps.

use burn::tensor::Tensor;

use crate::ops::{AdamStep, Kernels};

pub use crate::ops::Moments;

/// Options of Adam, and of what SODA makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// α, step size.
    pub learning_rate: f64,
    /// β₁, decay of the mean gradient.
    pub beta1: f64,
    /// β₂, decay of the mean squared gradient.
    pub beta2: f64,
    /// ε, added to the root.
    pub epsilon: f64,
    /// Whether the moments, which start at 0, are divided by 1 − βᵗ.
    pub bias_correction: bool,
    /// What the value is multiplied by after every step; 1 for no decay.
    pub decay: f64,
    /// Steps after which the moments are set to 0 and bias correction begins again.
    pub reset_every: Option<u64>,
}

impl Adam {
    /// (0.9, 0.999, 1e-8), as PyTorch has them.
    pub const fn new(learning_rate: f64) -> Self {
        Self { learning_rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, bias_correction: true, decay: 1.0, reset_every: None }
    }

    /// The value `[R, C]` after step `t` (from 1); moves the moments on.
    pub fn step<B: Kernels>(&self, t: u64, value: Tensor<B, 2>, gradient: Tensor<B, 2>, moments: &mut Moments<B>) -> Tensor<B, 2> {
        let value = B::adam(self.numbers(t), value, gradient, moments);
        if self.reset_every.is_some_and(|every| t.is_multiple_of(every)) {
            *moments = Moments::zeros(&value);
        }
        if self.decay == 1.0 { value } else { value * self.decay }
    }

    /// The numbers of step `t`.
    fn numbers(&self, t: u64) -> AdamStep {
        let Self { learning_rate, beta1, beta2, epsilon, .. } = *self;
        AdamStep { learning_rate, beta1, beta2, epsilon, bias_correction: self.correction(t) }
    }

    /// (1 − β₁ᵗ, 1 − β₂ᵗ), t counted from the last reset.
    fn correction(&self, t: u64) -> (f64, f64) {
        if !self.bias_correction {
            return (1.0, 1.0);
        }
        let since_reset = self.reset_every.map_or(t, |every| (t - 1) % every + 1).min(i32::MAX as u64) as i32;
        (1.0 - self.beta1.powi(since_reset), 1.0 - self.beta2.powi(since_reset))
    }
}
