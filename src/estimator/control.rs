//! The control variate that REBAR and RELAX have in common (Tucker et al. 2017, Grathwohl et al. 2018). With z = log θ + g, b = argmax z,
//! θ = softmax(Z), and z̃ drawn like z given b, any differentiable c gives −c(z̃)·∇ log p(b) + ∇c(z) − ∇c(z̃), whose mean is 0.

use std::ops::Range;

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor};

use super::reinforce::{leave_one_out, score};
use super::{Noise, Relaxation};
use crate::interrupt;
use crate::ops::{Gumbel, Kernels, Matrix, Plain, SoftEmbeddings, SoftPrompt, TrackedBackend, product, stack};
use crate::tensor::ids_tensor;

/// Entries of z that are computed at once, but for a single sample that has more.
const CHUNK: usize = 2 << 20;

/// Which relaxed sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// z, whose argmax is b.
    Free,
    /// z̃, drawn given b.
    Conditioned,
}

/// softmax(z/λ)·W_E of all samples, in chunks.
pub(super) type Soft<B> = Vec<SoftEmbeddings<Plain<B>>>;

/// S samples: tokens b with z and z̃. Nothing V-wide of them is kept: it is computed again from the same noise.
pub(super) struct Draw<'a, B: TrackedBackend> {
    at: &'a Relaxation<'a, B>,
    noise: &'a Noise<Plain<B>>,
    /// λ.
    lambda: f64,
    /// log θ, `[N, V]`.
    log_theta: Matrix<B>,
    /// b, `[S][N]`.
    pub(super) tokens: Vec<Vec<u32>>,
}

impl<'a, B: TrackedBackend> Draw<'a, B> {
    /// The samples of this noise.
    pub(super) fn new(at: &'a Relaxation<'a, B>, noise: &'a Noise<Plain<B>>, lambda: f64) -> Self {
        let prompt = at.soft_prompt(noise.prompt(None));
        Self { at, noise, lambda, log_theta: log_softmax(prompt.masked(), 1), tokens: Plain::<B>::draw(&prompt) }
    }

    /// The objective of b, `[S]`.
    pub(super) fn losses(&self) -> Vec<f64> {
        let at = self.at;
        at.subject.losses(&self.tokens, at.problem, at.objective, &at.feeding.fed(self.noise.feedback(None)))
    }

    /// The objective of soft prompts, `[S]`, and the gradient of its mean, `[S·N, D]`.
    pub(super) fn objective(&self, soft: &Soft<B>) -> (Vec<f64>, Matrix<B>) {
        let at = self.at;
        at.subject.values_and_gradient(embeddings::<B>(soft), at.problem, at.objective, &at.feeding.fed(self.noise.feedback(None)))
    }

    /// Mean over the samples of x·∇_Z log p(b), `[N, V]`, x being a number for each, less the mean of the others' where there are others:
    /// they do not know b, so that the mean over all draws stays what it is.
    pub(super) fn score(&self, values: &[f64]) -> Matrix<B> {
        let values = if values.len() > 1 { leave_one_out(values) } else { values.to_vec() };
        let weights = values.iter().map(|value| value / values.len() as f64).collect();
        score(self.log_theta.clone(), &self.tokens, weights)
    }

    /// The control variate `[N, V]` of a c: its values at z̃, `[S]`, and the gradients of its means over the samples with respect to the
    /// soft prompts of z and of z̃, `[S·N, D]`.
    pub(super) fn control(&self, soft: [&Soft<B>; 2], values: &[f64], [free, conditioned]: [Matrix<B>; 2]) -> Matrix<B> {
        let slopes = self.backward(Side::Free, soft[0], free) - self.backward(Side::Conditioned, soft[1], conditioned);
        slopes - self.score(values)
    }

    /// The soft prompts of one side.
    pub(super) fn soft(&self, side: Side) -> Soft<B> {
        self.chunks().map(|samples| Plain::<B>::soft_embedding(&self.relaxed(side, samples).0)).collect()
    }

    /// The gradient with respect to Z from that of the soft prompts `[S·N, D]`.
    pub(super) fn backward(&self, side: Side, soft: &Soft<B>, output: Matrix<B>) -> Matrix<B> {
        let [n, v] = self.log_theta.dims();
        let mut sum = Tensor::zeros_like(&self.log_theta);
        for (samples, soft) in self.chunks().zip(soft) {
            let (count, (prompt, slope)) = (samples.len(), self.relaxed(side, samples.clone()));
            let output = output.clone().narrow(0, samples.start * n, count * n);
            let (dz, _) = Plain::<B>::soft_embedding_backward(&prompt, soft.clone(), output);
            let of_samples = times(dz, slope).reshape([count, n, v]).sum_dim(0);
            sum = sum + of_samples.reshape([n, v]);
        }
        let total = sum.clone().sum_dim(1);
        sum - self.log_theta.clone().exp() * total
    }

    /// How the soft prompts `[S·N, D]` move when Z moves in this direction `[N, V]`.
    pub(super) fn forward(&self, side: Side, direction: Matrix<B>) -> Matrix<B> {
        let of_log_theta = direction.clone() - self.mean(direction);
        let moved = self.chunks().map(|samples| {
            let count = samples.len();
            let (prompt, slope) = self.relaxed(side, samples);
            let dy = times(stack(of_log_theta.clone(), count), slope) / self.lambda;
            let p = softmax(prompt.scaled(0, 1), 1);
            let mean = (p.clone() * dy.clone()).sum_dim(1);
            product(p * (dy - mean), &prompt.embedding)
        });
        Tensor::cat(moved.collect(), 0)
    }

    /// Σ θ·x of every position, `[N, 1]`, for x `[N, V]`.
    pub(super) fn mean(&self, x: Matrix<B>) -> Matrix<B> {
        (self.log_theta.clone().exp() * x).sum_dim(1)
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<B> {
        let ([n, v], samples) = (self.log_theta.dims(), self.at.samples);
        let size = (CHUNK / (n * v)).clamp(1, samples);
        (0..samples).step_by(size).map(move |first| first..(first + size).min(samples))
    }

    /// z or z̃ of some samples, `[count·N, V]`, as the logits of a soft prompt without noise, and its slope, see [`Self::conditioned`].
    fn relaxed(&self, side: Side, samples: Range<usize>) -> (SoftPrompt<Plain<B>>, Option<Matrix<B>>) {
        interrupt::check();
        let (logits, slope) = match side {
            Side::Free => (stack(self.log_theta.clone(), samples.len()) + self.gumbel(&self.noise.prompt(None), samples), None),
            Side::Conditioned => {
                let (logits, slope) = self.conditioned(samples);
                (logits, Some(slope))
            }
        };
        let temperature = Tensor::full([logits.dims()[0], 1], self.lambda, (&logits.device(), logits.dtype()));
        let embedding = self.at.subject.model().embed_tokens.val();
        (SoftPrompt { logits, temperature, embedding, mask: None, noise: Gumbel::Silent, samples: 1 }, slope)
    }

    /// z̃ of some samples and dz̃/d log θ, entry by entry, both `[count·N, V]`. The largest entry is that of the token, w, which has the
    /// distribution of the noise alone, as Σθ = 1; every other is u = log θ + g', cut off at w: −ln(e^−u + e^−w).
    pub(super) fn conditioned(&self, samples: Range<usize>) -> (Matrix<B>, Matrix<B>) {
        let ([n, v], count) = (self.log_theta.dims(), samples.len());
        let (noise, device) = (self.gumbel(&self.noise.second(), samples.clone()), self.log_theta.device());
        let tokens: Tensor<Plain<B>, 2, Int> = ids_tensor(&self.tokens[samples], &device).reshape([count * n, 1]);
        let top = noise.clone().gather(1, tokens.clone()).expand([count * n, v]);
        let others = stack(self.log_theta.clone(), count) + noise;
        let ahead = others.clone() - top.clone();
        let z = others.min_pair(top.clone()) - ahead.clone().abs().neg().exp().log1p();
        let own = Tensor::arange(0..v as i64, &device).reshape([1, v]).expand([count * n, v]).equal(tokens.expand([count * n, v]));
        (z.mask_where(own.clone(), top), (ahead.exp() + 1.0).recip().mask_fill(own, 0.0))
    }

    /// Noise of some samples, `[count·N, V]`.
    fn gumbel(&self, noise: &Gumbel<Plain<B>>, samples: Range<usize>) -> Matrix<B> {
        let ([n, v], options) = (self.log_theta.dims(), (&self.log_theta.device(), self.log_theta.dtype()));
        let rows = samples.len() * n;
        noise.of_samples(samples, [n, v], options).unwrap_or_else(|| Tensor::zeros([rows, v], options))
    }
}

/// The soft prompts of all samples, `[S·N, D]`.
pub(super) fn embeddings<B: TrackedBackend>(soft: &Soft<B>) -> Matrix<B> {
    Tensor::cat(soft.iter().map(|soft| soft.embeddings.clone()).collect(), 0)
}

fn times<B: Kernels>(x: Tensor<B, 2>, slope: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
    match slope {
        Some(slope) => x * slope,
        None => x,
    }
}
