//! RELAX's network r: soft prompts → a number, of two layers, with the derivatives that it is trained by.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::Result;
use crate::noise::Stream;
use crate::ops::{Kernels, Moments};
use crate::optimiser::Adam;
use crate::state::State;

/// The weights: r(x) = tanh(x·W₁ + b₁)·w₂ + b₂ for rows x of K numbers.
#[derive(Debug, Clone)]
pub(super) struct Network<B: Backend> {
    /// W₁ `[K, H]`, b₁ `[1, H]`, w₂ `[H, 1]`, b₂ `[1, 1]`.
    pub(super) weights: [Tensor<B, 2>; 4],
}

impl<B: Kernels> Network<B> {
    /// r, `[S, 1]`, and its gradient with respect to x, `[S, K]`, at x `[S, K]`.
    pub(super) fn value_and_slope(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let [w1, b1, w2, b2] = self.weights.clone();
        let t = (B::matmul(x, w1.clone()) + b1).tanh();
        let slope = (t.clone().powi_scalar(2).neg() + 1.0) * w2.clone().transpose();
        (B::matmul(t, w2) + b2, B::matmul(slope, w1.transpose()))
    }

    /// The gradient with respect to the weights of Σ α·r(x) + β·ṙ(x) over rows x, `[S, K]`, ṙ being the change of r as x moves along
    /// ẋ, `[S, K]`; α is `[S, 1]`. With t = tanh a, a = x·W₁ + b₁, ȧ = ẋ·W₁: ṙ = (1 − t²)ȧ·w₂, whose derivative by a is −2t(1 − t²)ȧ·w₂.
    pub(super) fn gradient(&self, x: Tensor<B, 2>, dx: Tensor<B, 2>, alpha: Tensor<B, 2>, beta: f64) -> [Tensor<B, 2>; 4] {
        let [w1, b1, w2, _] = self.weights.clone();
        let (t, da) = ((B::matmul(x.clone(), w1.clone()) + b1).tanh(), B::matmul(dx.clone(), w1));
        let s = t.clone().powi_scalar(2).neg() + 1.0;
        let w2 = w2.transpose();
        let by_a = s.clone() * w2.clone() * (alpha.clone() - t.clone() * da.clone() * (2.0 * beta));
        let by_da = s.clone() * w2 * beta;
        [
            B::matmul(x.transpose(), by_a.clone()) + B::matmul(dx.transpose(), by_da),
            by_a.sum_dim(0),
            B::matmul(t.transpose(), alpha.clone()) + (s * da * beta).sum_dim(0).transpose(),
            alpha.sum_dim(0),
        ]
    }
}

/// A weight between two estimates, with Adam's moments, row-major.
#[derive(Debug, Clone, PartialEq)]
struct Weight {
    shape: [usize; 2],
    /// Value, first and second moment.
    values: [Vec<f32>; 3],
}

const NAMES: [&str; 4] = ["w1", "b1", "w2", "b2"];
const PARTS: [&str; 3] = ["", ".first", ".second"];

/// Shapes of the weights with K inputs and H hidden units.
const fn shapes([k, h]: [usize; 2]) -> [[usize; 2]; 4] {
    [[k, h], [1, h], [h, 1], [1, 1]]
}

/// The network as it learns: on the host between two estimates, in f32, so that a run state holds exactly it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Learner {
    weights: [Weight; 4],
    steps: u64,
    /// What soft prompts are multiplied by before they are shown to the network, see [`Learner::new`].
    pub(super) scale: f64,
}

impl Learner {
    /// A network of K inputs and H hidden units that is 0 everywhere. Inputs of size `size` are divided by it and by K, and W₁ is drawn
    /// from N(0, K): hidden units begin near 1, and a step of Adam moves them as much whatever K is.
    pub(super) fn new([k, h]: [usize; 2], size: f64, stream: Stream) -> Self {
        let zeros = |shape: [usize; 2]| Weight { shape, values: std::array::from_fn(|_| vec![0.0; shape[0] * shape[1]]) };
        let mut weights = shapes([k, h]).map(zeros);
        weights[0].values[0] = stream.normal(k, h).into_iter().map(|x| x * (k as f32).sqrt()).collect();
        Self { weights, steps: 0, scale: (size * k as f64).recip() }
    }

    /// The network on a device.
    pub(super) fn network<B: Backend>(&self, options: (&B::Device, DType)) -> Network<B> {
        Network { weights: std::array::from_fn(|i| self.weights[i].part(0, options)) }
    }

    /// A step of Adam by these gradients.
    pub(super) fn learn<B: Kernels>(&mut self, rate: f64, gradients: [Tensor<B, 2>; 4]) {
        self.steps += 1;
        for (weight, gradient) in self.weights.iter_mut().zip(gradients) {
            let (device, dtype) = (gradient.device(), gradient.dtype());
            let [value, first, second] = std::array::from_fn(|part| weight.part::<B>(part, (&device, dtype)));
            let mut moments = Moments { first, second };
            let value = Adam::new(rate).step(self.steps, value, gradient, &mut moments);
            weight.values = [value, moments.first, moments.second].map(crate::tensor::host);
        }
    }

    /// Adds it to a run state.
    pub(super) fn save(&self, state: &mut State) {
        state.put_field("surrogate", &(self.steps, self.scale));
        for (name, weight) in NAMES.iter().zip(&self.weights) {
            for (part, values) in PARTS.iter().zip(&weight.values) {
                state.put_values(&format!("surrogate.{name}{part}"), weight.shape[0], values.clone());
            }
        }
    }

    /// What [`Self::save`] added, with so many hidden units.
    ///
    /// # Errors
    /// Some of it is missing, or of another shape.
    pub(super) fn restore((steps, scale): (u64, f64), hidden: usize, state: &mut State) -> Result<Self> {
        let inputs = state.tensors.get("surrogate.w1").and_then(|(shape, _)| shape.first()).copied().unwrap_or_default();
        let shapes = shapes([inputs, hidden]);
        let mut weight = |i: usize| {
            let mut take = |part: &str| state.take_values(&format!("surrogate.{}{part}", NAMES[i]), shapes[i]);
            Ok(Weight { shape: shapes[i], values: [take(PARTS[0])?, take(PARTS[1])?, take(PARTS[2])?] })
        };
        Ok(Self { weights: [weight(0)?, weight(1)?, weight(2)?, weight(3)?], steps, scale })
    }
}

impl Weight {
    fn part<B: Backend>(&self, part: usize, options: (&B::Device, DType)) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(self.values[part].clone(), self.shape), options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Purpose;

    #[test]
    fn what_was_learned_is_restored_in_its_own_shape_alone() {
        let (learner, mut state) = (Learner::new([6, 3], 1.0, Stream::new(0, 0, 0, Purpose::Surrogate, 0)), State::default());
        learner.save(&mut state);
        let restored = |hidden| Learner::restore(state.field("surrogate").unwrap(), hidden, &mut state.clone());
        assert_eq!(restored(3).unwrap(), learner);
        let refused = restored(4).unwrap_err().to_string();
        assert!(refused.contains("`surrogate.w1` in the checkpoint has shape [6, 3], but this run needs [6, 4]"), "{refused}");
    }
}
