//! Adam (Kingma & Ba 2015), on tensors without gradients.

use burn::tensor::{Tensor, backend::Backend};

use crate::ops::Kernels;

/// Settings of Adam, and of what SODA makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root.
    pub epsilon: f64,
    /// Divides the young moments by what they lack.
    pub bias_correction: bool,
    /// What the value is multiplied by after every step.
    pub decay: f64,
    /// Steps after which the moments are forgotten.
    pub reset_every: Option<u64>,
}

impl Adam {
    /// (0.9, 0.999, 1e-8), as PyTorch has them.
    pub const fn new(learning_rate: f64) -> Self {
        Self { learning_rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, bias_correction: true, decay: 1.0, reset_every: None }
    }

    /// The value after step `t` (from 1), and the moments moved on.
    pub fn step<B: Kernels>(&self, t: u64, value: Tensor<B, 2>, gradient: Tensor<B, 2>, moments: &mut Moments<B>) -> Tensor<B, 2> {
        let value = B::adam(AdamStep { rule: *self, unbias: self.unbias(t) }, value, gradient, moments);
        if self.reset_every.is_some_and(|every| t.is_multiple_of(every)) {
            *moments = Moments::zeros(&value);
        }
        if self.decay == 1.0 { value } else { value * self.decay }
    }

    fn unbias(&self, t: u64) -> (f64, f64) {
        if !self.bias_correction {
            return (1.0, 1.0);
        }
        let since_reset = self.reset_every.map_or(t, |every| (t - 1) % every + 1).min(i32::MAX as u64) as i32;
        (1.0 - self.beta1.powi(since_reset), 1.0 - self.beta2.powi(since_reset))
    }
}

/// One step of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Its settings.
    pub rule: Adam,
    /// 1 − β₁ᵗ and 1 − β₂ᵗ, by which the moments are divided.
    pub unbias: (f64, f64),
}

/// θ − α·m̂/(√v̂ + ε) in plain Burn.
pub fn adam<B: Backend>(step: AdamStep, value: Tensor<B, 2>, gradient: Tensor<B, 2>, moments: &mut Moments<B>) -> Tensor<B, 2> {
    let AdamStep { rule, unbias } = step;
    let first = moments.first.clone() * rule.beta1 + gradient.clone() * (1.0 - rule.beta1);
    let second = moments.second.clone() * rule.beta2 + gradient.powi_scalar(2) * (1.0 - rule.beta2);
    *moments = Moments { first: first.clone(), second: second.clone() };
    let root = (second / unbias.1).sqrt() + rule.epsilon;
    value - first * (rule.learning_rate / unbias.0) / root
}

/// Running means of a gradient and of its square.
#[derive(Debug, Clone)]
pub struct Moments<B: Backend> {
    /// m.
    pub first: Tensor<B, 2>,
    /// v.
    pub second: Tensor<B, 2>,
}

impl<B: Backend> Moments<B> {
    /// Zeros of the shape of `value`.
    pub fn zeros(value: &Tensor<B, 2>) -> Self {
        Self { first: value.zeros_like(), second: value.zeros_like() }
    }
}
