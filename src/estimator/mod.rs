//! How the gradient of the objective with respect to Z and Φ is had from S prompts: Table 1's column Grad. Est. A file for each
//! estimator, and nothing outside this folder knows how one works.
//!
//! An estimate moves nothing: an optimiser may use it, or a study may look at many of them at one place.

mod control;
mod exact;
pub mod gumbel_softmax;
pub mod rebar;
pub mod reinforce;
pub mod relax;
pub mod relaxation;
pub mod softmax;
pub mod straight_through;
mod surrogate;
pub mod tuning;

pub use exact::exact_gradient;
pub use gumbel_softmax::GumbelSoftmax;
pub use rebar::Rebar;
pub use reinforce::Reinforce;
pub use relax::Relax;
pub use relaxation::{Noise, Relaxation, Temperature};
pub use softmax::Softmax;
pub use straight_through::StraightThrough;

use burn::tensor::{Tensor, backend::Backend};

use crate::Result;
use crate::ops::{Matrix, Plain, TrackedBackend};
use crate::state::State;

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

    /// From here on the parameters of a control variate stay what they are. For those who measure estimates.
    fn settle(&mut self) {}

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
    /// Sampled tokens, differentiated as if they were soft embeddings.
    StraightThrough(StraightThrough),
    /// Sampled tokens, soft embeddings as a control variate.
    Rebar(Rebar),
    /// The same with a network that learns.
    Relax(Relax),
}

impl EstimatorKind {
    /// The estimator itself, which has learned nothing yet.
    pub fn build<B: TrackedBackend>(self) -> Box<dyn Estimator<B>> {
        match self {
            Self::GumbelSoftmax(estimator) => Box::new(estimator),
            Self::Softmax => Box::new(Softmax),
            Self::Reinforce(settings) => Box::new(reinforce::ReinforceEstimator::new(settings)),
            Self::StraightThrough(estimator) => Box::new(estimator),
            Self::Rebar(settings) => Box::new(rebar::RebarEstimator::new(settings)),
            Self::Relax(settings) => Box::new(relax::RelaxEstimator::new(settings)),
        }
    }

    /// Whether the model is shown soft embeddings in place of tokens: Table 1's column Soft Emb.
    pub fn is_soft(self) -> bool {
        matches!(self, Self::GumbelSoftmax(_) | Self::Softmax)
    }

    /// Whether tokens have soft embeddings beside them as a control variate, each of which is a pass of its own.
    pub fn has_control(self) -> bool {
        matches!(self, Self::Rebar(_) | Self::Relax(_))
    }

    /// Soft embeddings of a position of a sample, made and differentiated: what they cost in products with W_E, there and back.
    pub fn soft_embeddings(self) -> usize {
        match self {
            Self::Reinforce(_) => 0,
            Self::GumbelSoftmax(_) | Self::Softmax | Self::StraightThrough(_) => 1,
            Self::Rebar(_) => 2,
            // Of each of the two: made, taken back for the objective and for the network, and moved.
            Self::Relax(_) => 4,
        }
    }

    /// Whether samples differ from each other.
    pub fn is_random(self) -> bool {
        self != Self::Softmax
    }
}

#[cfg(test)]
pub(crate) mod enumeration_tests;
#[cfg(test)]
mod tests;
