//! How the gradient of the objective with respect to Z and Φ is had from S prompts: Table 1's column Grad. Est. A file for each
//! estimator, and nothing outside this folder knows how one works.
//!
//! An estimate moves nothing: an optimiser may use it, or a study may look at many of them at one place.

pub mod gumbel_softmax;
pub mod reinforce;
pub mod relaxation;
pub mod softmax;

pub use gumbel_softmax::GumbelSoftmax;
pub use reinforce::Reinforce;
pub use relaxation::{Noise, Relaxation, Temperature};
pub use softmax::Softmax;

use burn::tensor::{Tensor, backend::Backend};

use crate::Result;
use crate::ops::TrackedBackend;
use crate::state::State;
use relaxation::{Matrix, Plain};

/// The objective at Z and Φ, and its gradient, both as estimated from S prompts.
#[derive(Debug, Clone)]
pub struct Estimate<B: Backend> {
    /// Mean of the objective over the samples.
    pub loss: f64,
    /// With respect to Z, `[N, V]`.
    pub dz: Tensor<B, 2>,
    /// With respect to Φ, `[N, 1]` or `[1, 1]`, where Φ is learned and the estimator reaches it.
    pub dphi: Option<Tensor<B, 2>>,
}

/// An estimator at work: it keeps what it learns from one estimate to the next, such as a baseline or the parameters of a control variate.
pub trait Estimator<B: TrackedBackend> {
    /// One estimate. It may ask the subject for as many losses and gradients as it needs.
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>>;

    /// The soft prompts that [`Self::estimate`] shows the model under this noise, `[S·N, D]`; nothing where it shows tokens.
    fn soft_prompts(&self, _at: &Relaxation<B>, _noise: &Noise<Plain<B>>) -> Option<Matrix<B>> {
        None
    }

    /// Forgets what it learned, at a start.
    fn reset(&mut self) {}

    /// Adds what it learned to a run state.
    fn save(&self, _state: &mut State) {}

    /// Goes on from what [`Self::save`] added.
    ///
    /// # Errors
    /// It is missing, or another estimator's.
    fn restore(&mut self, _state: &mut State) -> Result<()> {
        Ok(())
    }
}

/// An estimator as a value of a row of Table 1, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EstimatorKind {
    /// Soft embeddings under Gumbel noise, differentiated.
    GumbelSoftmax(GumbelSoftmax),
    /// Soft embeddings without noise, differentiated.
    Softmax,
    /// Sampled tokens, no gradient through the model.
    Reinforce(Reinforce),
}

impl EstimatorKind {
    /// The estimator itself, which has learned nothing yet.
    pub fn build<B: TrackedBackend>(self) -> Box<dyn Estimator<B>> {
        match self {
            Self::GumbelSoftmax(estimator) => Box::new(estimator),
            Self::Softmax => Box::new(Softmax),
            Self::Reinforce(settings) => Box::new(reinforce::ReinforceEstimator::new(settings)),
        }
    }

    /// Whether the model is shown soft embeddings: Table 1's column Soft Emb.
    pub fn is_soft(self) -> bool {
        !matches!(self, Self::Reinforce(_))
    }

    /// Whether samples differ from each other.
    pub fn is_random(self) -> bool {
        self != Self::Softmax
    }
}

#[cfg(test)]
mod tests;
