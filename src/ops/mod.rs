//! Differentiable building blocks with hand-written backward passes.
//!
//! Burn's pattern for own kernels: [`Kernels`] has a plain-Burn default for every block, each backend may replace it, and
//! [`TrackedBackend`] is the autodiff twin through which the methods use them. No tensor with V columns enters the autodiff
//! graph: the vocabulary is only touched inside a block, whose backward recomputes what it needs.

mod soft_embedding;
mod target_loss;

pub use soft_embedding::{Gumbel, SoftPrompt, reference as soft_embedding_reference};
pub use target_loss::{TargetLoss, margins, reference as target_loss_reference};

use burn::backend::autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorPrimitive};

use crate::objective::Objective;

/// The blocks, on a backend without gradients. The defaults are plain Burn.
pub trait Kernels: Backend {
    /// Soft embeddings of all samples, `[S·N, D]`; see [`SoftPrompt`].
    fn soft_embedding(prompt: &SoftPrompt<Self>) -> Tensor<Self, 2> {
        soft_embedding::forward(prompt)
    }

    /// Gradients with respect to (Z `[N, V]`, τ `[N, 1]`) from that of the embeddings `[S·N, D]`.
    fn soft_embedding_backward(prompt: &SoftPrompt<Self>, output: Tensor<Self, 2>) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        soft_embedding::backward(prompt, output)
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
}

impl Kernels for burn::backend::Flex {}
#[cfg(feature = "ndarray")]
impl Kernels for burn::backend::NdArray {}
#[cfg(feature = "wgpu")]
impl Kernels for burn::backend::Vulkan {}
#[cfg(feature = "cuda")]
impl Kernels for burn::backend::Cuda {}

/// The blocks with gradients: what the methods are generic over.
pub trait TrackedBackend: AutodiffBackend<InnerBackend: Kernels> {
    /// Soft embeddings `[S·N, D]`, differentiable in `logits` `[N, V]` and `temperature` `[N, 1]`, which replace the
    /// values inside `prompt`.
    fn soft_embedding(logits: Tensor<Self, 2>, temperature: Tensor<Self, 2>, prompt: SoftPrompt<Self::InnerBackend>) -> Tensor<Self, 2>;

    /// The sum of the losses of all rows, `[1]`, differentiable in `hidden` `[R, D]`, and the losses themselves `[R]`.
    fn target_loss(
        hidden: Tensor<Self, 2>,
        head: Tensor<Self::InnerBackend, 2>,
        targets: Tensor<Self::InnerBackend, 1, Int>,
        objective: Objective,
    ) -> (Tensor<Self, 1>, Tensor<Self::InnerBackend, 1>);
}

impl<B: Kernels, C: CheckpointStrategy> TrackedBackend for Autodiff<B, C> {
    fn soft_embedding(logits: Tensor<Self, 2>, temperature: Tensor<Self, 2>, prompt: SoftPrompt<B>) -> Tensor<Self, 2> {
        let (logits, temperature) = (logits.into_primitive().tensor(), temperature.into_primitive().tensor());
        let out = soft_embedding::tracked::<B, C>(logits, temperature, prompt);
        Tensor::from_primitive(TensorPrimitive::Float(out))
    }

    fn target_loss(
        hidden: Tensor<Self, 2>,
        head: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        objective: Objective,
    ) -> (Tensor<Self, 1>, Tensor<B, 1>) {
        let (out, losses) = target_loss::tracked::<B, C>(hidden.into_primitive().tensor(), head, targets, objective);
        (Tensor::from_primitive(TensorPrimitive::Float(out)), losses)
    }
}
