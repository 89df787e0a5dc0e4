//! RELAX (Grathwohl et al. 2018; the paper's appendix A): REBAR with more to the control variate than the objective,
//! c(z) = η·f(σ(z)) + r(σ(z)), r a small network that learns to make ‖ĝ‖² small. As E ĝ does not depend on it, that is the variance.
//!
//! Burn's autodiff is of first order, and ĝ holds a gradient of r already. With v = ĝ, ∇‖ĝ‖² = 2·∇⟨v, ĝ⟩, and ⟨v, ∇_Z r⟩ is the change
//! of r as Z moves along v: the derivative of that by the weights is written by hand, in `surrogate.rs`.

use burn::tensor::Tensor;

use super::control::{Draw, Side, Soft, embeddings};
use super::rebar::Rebar;
use super::reinforce::mean;
use super::surrogate::{Learner, Network};
use super::tuning::Tuning;
use super::{Estimate, Estimator, Noise, Relaxation};
use crate::Result;
use crate::ops::{Matrix, Plain, TrackedBackend, blocks};
use crate::state::State;
use crate::tensor::{data, host, ids_tensor};

/// The estimator's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relax {
    /// η and λ.
    pub rebar: Rebar,
    /// Hidden units of r.
    pub hidden: usize,
    /// Adam's learning rate for r.
    pub rate: f64,
}

/// The estimator at work.
#[derive(Debug, Clone)]
pub struct RelaxEstimator {
    settings: Relax,
    tuning: Tuning,
    /// r, from the first estimate on.
    learner: Option<Learner>,
}

impl RelaxEstimator {
    /// One that has learned nothing yet.
    pub fn new(settings: Relax) -> Self {
        Self { settings, tuning: Tuning::new(), learner: None }
    }
}

impl<B: TrackedBackend> Estimator<B> for RelaxEstimator {
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        let choice = self.tuning.choose(self.settings.rebar);
        let draw = Draw::new(at, noise, choice.lambda);
        let losses = draw.losses();
        let soft = [Side::Free, Side::Conditioned].map(|side| draw.soft(side));
        let [(_, slope), (values, conditioned_slope)] = soft.each_ref().map(|soft| draw.objective(soft));
        let of_objective = draw.control(soft.each_ref(), &values, [slope, conditioned_slope]);

        let learner = self.learner.get_or_insert_with(|| first(at, noise, self.settings.hidden));
        let r = Surrogate { draw: &draw, network: learner.network((&at.z.device(), at.z.dtype())), scale: learner.scale };
        let plain = draw.score(&losses) + r.control(&soft);
        self.tuning.learn(self.settings.rebar, choice, &plain, &of_objective);
        let dz = plain + of_objective * choice.eta;
        if !self.tuning.is_settled() {
            let gradient = r.gradient(&soft, dz.clone());
            learner.learn(self.settings.rate, gradient);
        }
        Estimate { loss: mean(&losses), dz, dphi: None }
    }

    fn reset(&mut self) {
        *self = Self::new(self.settings);
    }

    fn settle(&mut self) {
        self.tuning.settle();
    }

    fn save(&self, state: &mut State) {
        state.put_field("tuning", &self.tuning);
        if let Some(learner) = &self.learner {
            learner.save(state);
        }
    }

    fn restore(&mut self, state: &mut State) -> Result<()> {
        self.tuning = state.field("tuning")?;
        let learned: Option<_> = state.field("surrogate")?;
        self.learner = learned.map(|fields| Learner::restore(fields, self.settings.hidden, state)).transpose()?;
        Ok(())
    }
}

/// A network for soft prompts made of embeddings of this model.
fn first<B: TrackedBackend>(at: &Relaxation<B>, noise: &Noise<Plain<B>>, hidden: usize) -> Learner {
    let embedding = at.subject.model().embed_tokens.val();
    let [v, d] = embedding.dims();
    let squares = blocks(&embedding, at.z.dtype()).flat_map(|(_, rows)| host(rows.powi_scalar(2).sum_dim(1)));
    let size = (squares.map(f64::from).sum::<f64>() / (v * d) as f64).sqrt();
    Learner::new([at.z.dims()[0] * d, hidden], size, noise.weights())
}

/// r at the soft prompts of a draw, of which a row of K = N·D numbers is a sample.
struct Surrogate<'a, B: TrackedBackend> {
    draw: &'a Draw<'a, B>,
    network: Network<Plain<B>>,
    scale: f64,
}

impl<B: TrackedBackend> Surrogate<'_, B> {
    /// Its control variate, `[N, V]`.
    fn control(&self, soft: &[Soft<B>; 2]) -> Matrix<B> {
        let [(_, free), (values, conditioned)] = soft.each_ref().map(|soft| self.network.value_and_slope(self.rows(embeddings::<B>(soft))));
        let samples = self.draw.tokens.len() as f64;
        let d = soft[0][0].embeddings.dims()[1];
        let of_prompts = |slope: Matrix<B>| {
            let [s, k] = slope.dims();
            slope.reshape([s * k / d, d]) * (self.scale / samples)
        };
        let values: Vec<f64> = data(values).iter().collect();
        self.draw.control(soft.each_ref(), &values, [of_prompts(free), of_prompts(conditioned)])
    }

    /// Half the gradient of ‖ĝ‖² with respect to the weights, at ĝ = `v` `[N, V]`.
    fn gradient(&self, soft: &[Soft<B>; 2], v: Matrix<B>) -> [Matrix<B>; 4] {
        let (samples, along) = (self.draw.tokens.len() as f64, self.along(v.clone()));
        let of_side = |side: Side, soft: &Soft<B>, alpha: Matrix<B>, beta: f64| {
            let moved = self.rows(self.draw.forward(side, v.clone()));
            self.network.gradient(self.rows(embeddings::<B>(soft)), moved, alpha, beta)
        };
        let free = of_side(Side::Free, &soft[0], Tensor::zeros_like(&along), samples.recip());
        let conditioned = of_side(Side::Conditioned, &soft[1], along / -samples, -samples.recip());
        let mut conditioned = conditioned.into_iter();
        free.map(|gradient| gradient + conditioned.next().expect("as many"))
    }

    /// ⟨v, ∇_Z log p(b)⟩ of each sample, `[S, 1]`, for v `[N, V]`; less the mean of the others', as [`Draw::score`] has the values it weighs.
    fn along(&self, v: Matrix<B>) -> Matrix<B> {
        let tokens = &self.draw.tokens;
        let ids = ids_tensor::<Plain<B>>(tokens, &v.device()).transpose();
        let mean = self.draw.mean(v.clone());
        let along = (v.gather(1, ids) - mean).sum_dim(0).transpose();
        match tokens.len() as f64 {
            1.0 => along,
            s => (along.clone() - along.mean_dim(0)) * (s / (s - 1.0)),
        }
    }

    /// Soft prompts `[S·N, D]`, or how they move, as rows that the network takes.
    fn rows(&self, prompts: Matrix<B>) -> Matrix<B> {
        let ([rows, d], samples) = (prompts.dims(), self.draw.tokens.len());
        prompts.reshape([samples, rows * d / samples]) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::DType;

    use super::super::Temperature;
    use super::super::enumeration_tests::{N, at, clock, problem, subject};
    use super::*;
    use crate::subject::feeding::Feeding;
    use crate::testing::{matrix, one_at_a_time, values};

    type B = Autodiff<Flex>;

    /// ‖ĝ‖² as the weights move, the draw being the same: with samples that are compared with each other, and with one alone.
    #[test]
    fn the_network_learns_by_the_gradient_of_the_squared_length() {
        const STEP: f64 = 1e-5;
        const HIDDEN: usize = 3;
        let _guard = one_at_a_time();
        let (subject, problem, noise) = (subject(1.0, 1e-5), problem(), clock(2));
        for samples in [1, 4] {
            let at = Relaxation { samples, ..at(&subject, &problem, Feeding::Forced, Temperature::None) };
            let draw = Draw::<B>::new(&at, &noise, 0.5);
            let (plain, soft) = (draw.score(&draw.losses()), [Side::Free, Side::Conditioned].map(|side| draw.soft(side)));
            let k = N * soft[0][0].embeddings.dims()[1];
            let shapes = [[k, HIDDEN], [1, HIDDEN], [HIDDEN, 1], [1, 1]];
            let random = |[rows, columns]: [usize; 2]| matrix::<Flex>(&values("w", rows * columns), columns, DType::F64);
            let of = |weights: [Matrix<B>; 4]| Surrogate { draw: &draw, network: Network { weights }, scale: 0.3 };
            let estimate = |weights: [Matrix<B>; 4]| plain.clone() + of(weights).control(&soft);
            let length = |weights| estimate(weights).into_data().iter::<f64>().map(|x| x * x).sum::<f64>();
            let weights = shapes.map(random);
            let gradient = of(weights.clone()).gradient(&soft, estimate(weights.clone()));
            for (part, gradient) in gradient.into_iter().enumerate() {
                let found: Vec<f64> = gradient.into_data().iter().collect();
                for i in (0..found.len()).step_by(7) {
                    let mut one = vec![0.0f32; found.len()];
                    one[i] = 1.0;
                    let one = matrix::<Flex>(&one, shapes[part][1], DType::F64) * STEP;
                    let (mut up, mut down) = (weights.clone(), weights.clone());
                    (up[part], down[part]) = (weights[part].clone() + one.clone(), weights[part].clone() - one);
                    let expected = (length(up) - length(down)) / (4.0 * STEP);
                    assert!((found[i] - expected).abs() < 1e-7, "{samples} {part} {i}: {} {expected}", found[i]);
                }
            }
        }
    }
}
