//! One step of Adam (Kingma & Ba 2015) on tensors without gradients.

use burn::tensor::{Tensor, backend::Backend};

/// The numbers of one step of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// α, step size.
    pub learning_rate: f64,
    /// β₁, decay of the mean gradient.
    pub beta1: f64,
    /// β₂, decay of the mean squared gradient.
    pub beta2: f64,
    /// ε, added to the root.
    pub epsilon: f64,
    /// Bias correction: what the two moments are divided by, 1 − β₁ᵗ and 1 − β₂ᵗ at step t; (1, 1) for none.
    pub bias_correction: (f64, f64),
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

/// θ − α·m̂/(√v̂ + ε) in plain Burn, of θ = `value`; moves the moments on.
pub fn adam<B: Backend>(step: AdamStep, value: Tensor<B, 2>, gradient: Tensor<B, 2>, moments: &mut Moments<B>) -> Tensor<B, 2> {
    let AdamStep { learning_rate, beta1, beta2, epsilon, bias_correction } = step;
    let first = moments.first.clone() * beta1 + gradient.clone() * (1.0 - beta1);
    let second = moments.second.clone() * beta2 + gradient.powi_scalar(2) * (1.0 - beta2);
    *moments = Moments { first: first.clone(), second: second.clone() };
    let root = (second / bias_correction.1).sqrt() + epsilon;
    value - first * (learning_rate / bias_correction.0) / root
}
