//! Differentiable building blocks with hand-written backward passes.
//!
//! Burn's pattern for own kernels: [`Kernels`] has a plain-Burn default for every block, each backend may replace it, and
//! [`TrackedBackend`] is the autodiff twin through which the methods use them. No tensor with V columns but Z
//! itself, and the logits of tokens that are fed back as distributions, enters the autodiff graph: the vocabulary is only touched inside
//! a block, whose backward recomputes what it needs.

mod adam;
mod autodiff;
mod flex;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod parallel;
mod precision;
pub mod reference;
mod soft_prompt;

pub use adam::{AdamStep, Moments, adam};
pub use parallel::Parallel;
pub use precision::{Products, wide};
pub(crate) use precision::{blocks, concat, product};
pub(crate) use soft_prompt::stack;
pub use soft_prompt::{Gumbel, SoftEmbeddings, SoftPrompt};

use std::ops::Range;

use burn::backend::autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};

use crate::noise::Stream;
use crate::objective::Objective;
use crate::tensor::argmax_rows;
use reference::{layer, soft_embedding, target_loss};

/// Largest buffer with V columns, in elements (64 MiB of f32).
const CHUNK: usize = 16 << 20;

/// A tracked backend without its gradients.
pub(crate) type Plain<B> = <B as AutodiffBackend>::InnerBackend;
/// A matrix there.
pub(crate) type Matrix<B> = Tensor<Plain<B>, 2>;

/// Losses of R rows and what the backward pass needs of them.
#[derive(Debug, Clone)]
pub struct TargetLoss<B: Backend> {
    /// `[R]`.
    pub losses: Tensor<B, 1>,
    /// Gradient of each row's loss with respect to its hidden state, `[R, D]`, in the [`wide`] type too.
    pub hidden: Tensor<B, 2>,
}

/// The blocks, on a backend without gradients. The defaults are plain Burn ([`mod@reference`]).
pub trait Kernels: Backend + Parallel {
    /// Gumbel noise g of some samples as [`Gumbel::Drawn`] has it, `[count·N, V]`: a matrix `[N, V]` of each, whose draws are addressed by
    /// row and column. The uniform draws behind it are the same everywhere, to the bit, and g to about 1e-6.
    fn gumbel(
        stream: Stream,
        largest: Option<f64>,
        samples: Range<usize>,
        shape: [usize; 2],
        options: (&Self::Device, DType),
    ) -> Tensor<Self, 2> {
        soft_prompt::gumbel(stream, largest, samples, shape, options)
    }

    /// Soft embeddings of all samples, in the type of Z whatever that of W_E; see [`SoftPrompt`].
    fn soft_embedding(prompt: &SoftPrompt<Self>) -> SoftEmbeddings<Self> {
        soft_embedding::forward(prompt)
    }

    /// Gradients with respect to (Z `[N, V]`, τ `[N, 1]`) from the result of [`Kernels::soft_embedding`] and the gradient of its
    /// embeddings, `[S·N, D]`.
    fn soft_embedding_backward(
        prompt: &SoftPrompt<Self>,
        result: SoftEmbeddings<Self>,
        output: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        soft_embedding::backward(prompt, result, output)
    }

    /// The tokens argmax (Z + g) of every sample, `[S][N]`, the first of equals: by the Gumbel-max trick, draws
    /// from softmax(Z).
    fn draw(prompt: &SoftPrompt<Self>) -> Vec<Vec<u32>> {
        soft_embedding::draw(prompt)
    }

    /// The position of the largest value of every row of `x` `[R, V]`, the first of equals, `[R]`. In a row that holds what is no number it
    /// is some position.
    fn argmax_rows(x: Tensor<Self, 2>) -> Vec<u32> {
        argmax_rows(x)
    }

    /// H of softmax((Z + g)/τ) in nats for every row of one sample, `[N]`.
    fn entropy(prompt: &SoftPrompt<Self>) -> Vec<f32> {
        soft_embedding::entropy(prompt)
    }

    /// ℓ_y − max_{v≠y} ℓ_v of every row, `[R]`, from hidden states `[R, D]`, head `[V, D]` and targets `[R]`; in the [`wide`] type, as the losses are.
    fn margins(hidden: Tensor<Self, 2>, head: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
        target_loss::margins(hidden, head, targets)
    }

    /// [`Kernels::margins`] and −log softmax(ℓ)_y of every row, `[R]` both.
    fn margins_and_cross_entropies(
        hidden: Tensor<Self, 2>,
        head: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 1>) {
        target_loss::margins_and_cross_entropies(hidden, head, targets)
    }

    /// Losses at the target positions and their gradient with respect to the hidden states; see [`TargetLoss`].
    fn target_loss(
        hidden: Tensor<Self, 2>,
        head: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        objective: Objective,
    ) -> TargetLoss<Self> {
        target_loss::forward(hidden, head, targets, objective)
    }

    /// x·W, `[R, K]`·`[K, N]`.
    fn matmul(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        x.matmul(weight)
    }

    /// Whether [`Products::Rough`] are faster here than full ones.
    fn has_rough_products() -> bool {
        false
    }

    /// x·W as [`Products::Rough`].
    fn rough_matmul(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        Self::matmul(x, weight)
    }

    /// [`Kernels::margins`] by [`Products::Rough`].
    fn rough_margins(hidden: Tensor<Self, 2>, head: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
        Self::margins(hidden, head, targets)
    }

    /// x / √(mean(x²) + ε) · weight for every row of `x` `[R, D]`; `weight` is `[D]`.
    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        layer::rms_norm(x, weight, epsilon)
    }

    /// Gradient of [`Kernels::rms_norm`] with respect to x from that of the result.
    fn rms_norm_backward(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64, output: Tensor<Self, 2>) -> Tensor<Self, 2> {
        layer::rms_norm_backward(x, weight, epsilon, output)
    }

    /// silu(gate) · up, all `[R, F]`.
    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        layer::swiglu(gate, up)
    }

    /// Gradients of [`Kernels::swiglu`] with respect to (gate, up) from that of the result.
    fn swiglu_backward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>, output: Tensor<Self, 2>) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        layer::swiglu_backward(gate, up, output)
    }

    /// Rotates the heads of `x` `[S·T, heads·head_dim]`: x·cos + swap(x)·sin, where swap exchanges the halves of every head and the
    /// sign of the rotation is folded into `sin`. The tables are `[T, head_dim]`, one row for all heads and samples.
    fn rotate(x: Tensor<Self, 2>, cos: Tensor<Self, 2>, sin: Tensor<Self, 2>) -> Tensor<Self, 2> {
        layer::rotate(x, cos, sin)
    }

    /// Causal grouped-query attention: queries `[S, H, T, d]` to keys and values `[S, KV, past + T, d]`, the result `[S·T, H·d]`.
    /// `mask` `[1, T·(past + T)]` is the causal one (0 or −1e30), in the [`wide`] type and ready to be added.
    fn causal_attention(q: Tensor<Self, 4>, k: Tensor<Self, 4>, v: Tensor<Self, 4>, mask: Tensor<Self, 2>) -> Tensor<Self, 2> {
        layer::attention(q, k, v, mask)
    }

    /// Gradients of [`Kernels::causal_attention`] with respect to (q, k, v) from that of the result, `[S·T, H·d]`.
    fn causal_attention_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Tensor<Self, 2>,
        output: Tensor<Self, 2>,
    ) -> [Tensor<Self, 4>; 3] {
        layer::attention_backward(q, k, v, mask, output)
    }

    /// `value` after one step of Adam, which moves its moments on; all are `[R, C]`.
    fn adam(step: AdamStep, value: Tensor<Self, 2>, gradient: Tensor<Self, 2>, moments: &mut Moments<Self>) -> Tensor<Self, 2> {
        adam::adam(step, value, gradient, moments)
    }
}

#[cfg(feature = "ndarray")]
impl Kernels for burn::backend::NdArray {}
#[cfg(feature = "ndarray")]
impl Parallel for burn::backend::NdArray {}

/// The blocks with gradients: what the methods are generic over.
pub trait TrackedBackend: AutodiffBackend<InnerBackend: Kernels> + Kernels {
    /// `value` as a tensor `[1]` whose backward pass hands `gradient` `[R, D]` to `input` `[R, D]`: for a loss whose gradient was computed by
    /// hand.
    fn track_loss(input: Tensor<Self, 2>, value: f64, gradient: Tensor<Self::InnerBackend, 2>) -> Tensor<Self, 1>;
}

impl<B: Kernels, C: CheckpointStrategy> TrackedBackend for Autodiff<B, C> {
    fn track_loss(input: Tensor<Self, 2>, value: f64, gradient: Tensor<B, 2>) -> Tensor<Self, 1> {
        autodiff::loss::<B, C>(input, value, gradient)
    }
}

#[cfg(test)]
mod tests;
