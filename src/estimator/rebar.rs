//! REBAR (Tucker et al. 2017; the paper's appendix A): REINFORCE with the control variate of the objective at soft prompts,
//! ĝ = [f(b) − η·f(σ(z̃))]·∇ log p(b) + η·∇f(σ(z)) − η·∇f(σ(z̃)), σ(z) = softmax(z/λ)·W_E. Unbiased. With more
//! samples than one, each f in the bracket is taken less the mean of the others'. A sample costs three passes, two of them with a backward pass.

use super::control::{Draw, Side};
use super::reinforce::mean;
use super::tuning::Tuning;
use super::{Estimate, Estimator, Noise, Relaxation};
use crate::Result;
use crate::ops::{Plain, TrackedBackend};
use crate::state::State;

/// Share of the earlier means in the new ones of the regression that gives η.
pub const BETA: f64 = 0.95;

/// The estimator's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rebar {
    /// λ; without it, the one of [`super::tuning::GRID`] that leaves the least variance.
    pub lambda: Option<f64>,
    /// Share of the earlier means in the new ones of the regression that gives η, and a measure of each λ.
    pub beta: f64,
}

/// The estimator at work.
#[derive(Debug, Clone)]
pub struct RebarEstimator {
    settings: Rebar,
    tuning: Tuning,
}

impl RebarEstimator {
    /// One that has not measured anything yet.
    pub fn new(settings: Rebar) -> Self {
        Self { settings, tuning: Tuning::new() }
    }
}

impl<B: TrackedBackend> Estimator<B> for RebarEstimator {
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        let choice = self.tuning.choose(self.settings);
        let draw = Draw::new(at, noise, choice.lambda);
        let losses = draw.losses();
        let [free, conditioned] = [Side::Free, Side::Conditioned].map(|side| draw.soft(side));
        let ((_, slope), (values, conditioned_slope)) = (draw.objective(&free), draw.objective(&conditioned));
        let plain = draw.score(&losses);
        let control = draw.control([&free, &conditioned], &values, [slope, conditioned_slope]);
        self.tuning.learn(self.settings, choice, &plain, &control);
        Estimate { loss: mean(&losses), dz: plain + control * choice.eta, dphi: None }
    }

    fn reset(&mut self) {
        self.tuning = Tuning::new();
    }

    fn settle(&mut self) {
        self.tuning.settle();
    }

    fn save(&self, state: &mut State) {
        state.put_field("tuning", &self.tuning);
    }

    fn restore(&mut self, state: &mut State) -> Result<()> {
        self.tuning = state.field("tuning")?;
        Ok(())
    }
}
