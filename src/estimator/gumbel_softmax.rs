//! The Gumbel-softmax estimator (Jang et al. 2017; Maddison et al. 2017): e = softmax((Z + g)/τ)·W_E with Gumbel noise g stands for a
//! sampled token, and the objective is differentiated through it. Biased, of low variance; the paper's §2.3.

use burn::tensor::Tensor;

use super::{Estimate, Estimator, Noise, Relaxation};
use crate::ops::{Gumbel, Kernels, Matrix, Plain, TrackedBackend};

/// The estimator, which has nothing to learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GumbelSoftmax {
    /// Uniform draws are rescaled to end here before they become noise, see [`crate::noise::Rescale::to`].
    pub largest_uniform: Option<f64>,
}

impl<B: TrackedBackend> Estimator<B> for GumbelSoftmax {
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        differentiate(at, noise.prompt(self.largest_uniform), noise.feedback(self.largest_uniform))
    }

    fn soft_prompts(&self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Option<Matrix<B>> {
        Some(Plain::<B>::soft_embedding(&at.soft_prompt(noise.prompt(self.largest_uniform))).embeddings)
    }
}

/// The objective of soft prompts under this noise, differentiated with respect to Z and Φ.
pub(super) fn differentiate<B: TrackedBackend>(
    at: &Relaxation<B>,
    prompt: Gumbel<Plain<B>>,
    feedback: Gumbel<Plain<B>>,
) -> Estimate<Plain<B>> {
    backward(at, prompt, |soft| at.subject.value_and_gradient(soft, at.problem, at.objective, &at.feeding.fed(feedback)))
}

/// Z and Φ → soft prompts under this noise → a value and its gradient there, `[S·N, D]`, taken back to Z and Φ.
pub(super) fn backward<B: TrackedBackend>(
    at: &Relaxation<B>,
    prompt: Gumbel<Plain<B>>,
    value_and_gradient: impl FnOnce(Matrix<B>) -> (f64, Matrix<B>),
) -> Estimate<Plain<B>> {
    let leaf = |x: &Matrix<B>| Tensor::<B, 2>::from_inner(x.clone()).require_grad();
    let (z, phi) = (leaf(&at.z), at.phi.as_ref().map(leaf));
    let tau = at.temperature.tau(phi.clone(), &z);
    let soft = B::soft_embedding(&at.soft_prompt(prompt).tracked(z.clone(), tau)).embeddings;
    let (loss, slope) = value_and_gradient(soft.clone().inner());
    let mut gradients = B::track_loss(soft, loss, slope).backward();
    let mut gradient = |x: Tensor<B, 2>| x.grad_remove(&mut gradients);
    Estimate { loss, dz: gradient(z).expect("Z is tracked"), dphi: phi.and_then(gradient) }
}
