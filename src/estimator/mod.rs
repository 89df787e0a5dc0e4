//! How the gradient of the objective with respect to Z and τ is had from S prompts of a step: Table 1's column Grad. Est.

pub mod reinforce;

pub use reinforce::Reinforce;

/// An estimator. The first two differentiate through soft embeddings ([`crate::ops::SoftPrompt`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// softmax((Z + g)/τ)·W_E with Gumbel noise g: biased, of low variance (§2.3).
    GumbelSoftmax {
        /// Uniform draws above this are cut to it before they become noise.
        noise_clip: Option<f64>,
    },
    /// softmax(Z/τ)·W_E: no noise, and so nothing to estimate.
    Softmax,
    /// Whole tokens drawn from softmax(Z), no gradient through the model: unbiased, of high variance (eq. 5).
    Reinforce(Reinforce),
}
