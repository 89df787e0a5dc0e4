//! e = softmax((Z + g) / τ)·W_E, the relaxed prompt of Algorithm 1, for S samples of the noise g at once.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::tensor::{Tensor, TensorData, TensorPrimitive, activation::softmax, backend::Backend, ops::FloatTensor};

use super::width::{product, product_transposed};
use super::{CHUNK, Kernels};
use crate::noise::Stream;

/// Gumbel noise g of the samples.
#[derive(Debug, Clone)]
pub enum Gumbel<B: Backend> {
    /// Drawn from the stream, sample by sample.
    Drawn(Stream),
    /// Given from outside, `[S·N, V]`.
    Given(Tensor<B, 2>),
    /// No noise: the plain softmax.
    Silent,
}

/// Everything that the soft embeddings are made of.
#[derive(Debug, Clone)]
pub struct SoftPrompt<B: Backend> {
    /// Z, `[N, V]`.
    pub logits: Tensor<B, 2>,
    /// τ, `[N, 1]`.
    pub temperature: Tensor<B, 2>,
    /// W_E, `[V, D]`, stored in the model's type; all else is in that of Z.
    pub embedding: Tensor<B, 2>,
    /// 0 for tokens of the search vocabulary and −1e30 for the others, `[1, V]`.
    pub mask: Option<Tensor<B, 2>>,
    /// g.
    pub noise: Gumbel<B>,
    /// S.
    pub samples: usize,
}

impl<B: Backend> SoftPrompt<B> {
    /// Groups of samples `(first, count)` whose V-wide buffers stay within [`CHUNK`].
    pub(super) fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<B> {
        let [n, v] = self.logits.dims();
        let (samples, size) = (self.samples, (CHUNK / (n * v)).clamp(1, self.samples));
        (0..samples).step_by(size).map(move |first| (first, size.min(samples - first)))
    }

    /// (Z + g) / τ of some samples, `[count·N, V]`.
    fn scaled(&self, first: usize, count: usize) -> Tensor<B, 2> {
        let [n, v] = self.logits.dims();
        let logits = match &self.mask {
            Some(mask) => self.logits.clone() + mask.clone(),
            None => self.logits.clone(),
        };
        let logits = stack(logits, count);
        let noisy = match &self.noise {
            Gumbel::Drawn(stream) => {
                let values: Vec<f32> = (first..first + count).flat_map(|s| stream.sample(s as u32).gumbel(n, v)).collect();
                let options = (&logits.device(), logits.dtype());
                logits + Tensor::from_data(TensorData::new(values, [count * n, v]), options)
            }
            Gumbel::Given(noise) => logits + noise.clone().narrow(0, first * n, count * n),
            Gumbel::Silent => logits,
        };
        noisy / stack(self.temperature.clone(), count)
    }
}

/// The rows of `x`, `count` times under each other.
fn stack<B: Backend>(x: Tensor<B, 2>, count: usize) -> Tensor<B, 2> {
    if count == 1 { x } else { Tensor::cat(vec![x; count], 0) }
}

/// e and what the backward pass needs to compute p again.
#[derive(Debug, Clone)]
pub struct SoftEmbeddings<B: Backend> {
    /// e, `[S·N, D]`.
    pub embeddings: Tensor<B, 2>,
    /// The largest y of each row, `[S·N, 1]`.
    pub largest: Tensor<B, 2>,
    /// Σ exp(y − largest) of each row, `[S·N, 1]`. Apart from `largest`, because a y of a tiny τ is too large for a logarithm beside it.
    pub sums: Tensor<B, 2>,
}

/// See [`super::Kernels::soft_embedding`]; a group of samples at a time.
pub fn forward<B: Backend>(prompt: &SoftPrompt<B>) -> SoftEmbeddings<B> {
    let [mut embeddings, mut largest, mut sums] = [const { Vec::new() }; 3];
    for (first, count) in prompt.chunks() {
        let y = prompt.scaled(first, count);
        let top = y.clone().max_dim(1);
        let p = (y - top.clone()).exp();
        let sum = p.clone().sum_dim(1);
        embeddings.push(product(p, &prompt.embedding) / sum.clone());
        largest.push(top);
        sums.push(sum);
    }
    let [embeddings, largest, sums] = [embeddings, largest, sums].map(|parts| Tensor::cat(parts, 0));
    SoftEmbeddings { embeddings, largest, sums }
}

/// With p = softmax(y), y = (Z + g)/τ: ds = p ⊙ (dp − Σ dp ⊙ p), dZ = Σ_samples ds/τ, dτ = −Σ ds ⊙ y / τ.
/// p is computed again from the same draws, so nothing V-wide outlives the forward pass.
pub fn backward<B: Backend>(prompt: &SoftPrompt<B>, result: SoftEmbeddings<B>, output: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let [n, _] = prompt.logits.dims();
    let (mut logits, mut temperature) = (Tensor::zeros_like(&prompt.logits), Tensor::zeros_like(&prompt.temperature));
    for (first, count) in prompt.chunks() {
        let rows = |x: &Tensor<B, 2>| x.clone().narrow(0, first * n, count * n);
        let y = prompt.scaled(first, count);
        let p = (y.clone() - rows(&result.largest)).exp() / rows(&result.sums);
        let dp = product_transposed(rows(&output), &prompt.embedding);
        let mean = (dp.clone() * p.clone()).sum_dim(1);
        let ds = p * (dp - mean);
        let dy = (ds.clone() * y).sum_dim(1);
        for sample in 0..count {
            logits = logits + ds.clone().narrow(0, sample * n, n);
            temperature = temperature - dy.clone().narrow(0, sample * n, n);
        }
    }
    (logits / prompt.temperature.clone(), temperature / prompt.temperature.clone())
}

/// The definition, for tests: Burn's own softmax and product over all samples at once. Works on any backend, autodiff included.
pub fn reference<B: Backend>(
    logits: Tensor<B, 2>,
    temperature: Tensor<B, 2>,
    noise: Tensor<B, 2>,
    embedding: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let samples = noise.dims()[0] / logits.dims()[0];
    softmax((stack(logits, samples) + noise) / stack(temperature, samples), 1).matmul(embedding)
}

#[derive(Debug)]
struct SoftEmbedding;

impl<B: Kernels> Backward<B, 2> for SoftEmbedding {
    type State = (SoftPrompt<B>, SoftEmbeddings<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output = Tensor::from_primitive(TensorPrimitive::Float(grads.consume::<B>(&ops.node)));
        let (prompt, result) = ops.state;
        let (logits, temperature) = B::soft_embedding_backward(&prompt, result, output);
        for (parent, gradient) in ops.parents.into_iter().zip([logits, temperature]) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, gradient.into_primitive().tensor());
            }
        }
    }
}

pub(super) fn tracked<B: Kernels, C: CheckpointStrategy>(
    logits: FloatTensor<burn::backend::Autodiff<B, C>>,
    temperature: FloatTensor<burn::backend::Autodiff<B, C>>,
    mut prompt: SoftPrompt<B>,
) -> FloatTensor<burn::backend::Autodiff<B, C>> {
    prompt.logits = Tensor::from_primitive(TensorPrimitive::Float(logits.primitive));
    prompt.temperature = Tensor::from_primitive(TensorPrimitive::Float(temperature.primitive));
    let result = B::soft_embedding(&prompt);
    let output = result.embeddings.clone().into_primitive().tensor();
    match SoftEmbedding.prepare::<C>([logits.node, temperature.node]).compute_bound().stateful() {
        OpsKind::Tracked(op) => op.finish((prompt, result), output),
        OpsKind::UnTracked(op) => op.finish(output),
    }
}
