//! softmax(Z/τ)·W_E: no noise, and so nothing to estimate. The gradient is that of the objective at one soft prompt (SODA).

use super::gumbel_softmax::differentiate;
use super::{Estimate, Estimator, Noise, Relaxation};
use crate::ops::{Gumbel, Kernels, Matrix, Plain, TrackedBackend};

/// The estimator, which has no settings and nothing to learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Softmax;

impl<B: TrackedBackend> Estimator<B> for Softmax {
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        differentiate(at, Gumbel::Silent, noise.feedback(None))
    }

    fn soft_prompts(&self, at: &Relaxation<B>, _: &Noise<Plain<B>>) -> Option<Matrix<B>> {
        Some(Plain::<B>::soft_embedding(&at.soft_prompt(Gumbel::Silent)).embeddings)
    }
}
