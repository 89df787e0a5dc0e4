//! Differentiable building blocks with hand-written backward passes.
//!
//! Burn's pattern for own kernels: [`Kernels`] has a plain-Burn default for every block, each backend may replace it, and
//! [`TrackedBackend`] is the autodiff twin through which the methods use them. No tensor with V columns enters the autodiff
//! graph: the vocabulary is only touched inside a block, whose backward recomputes what it needs.

mod flex;
mod layer;
mod soft_embedding;
mod target_loss;

pub use soft_embedding::{Gumbel, SoftPrompt, reference as soft_embedding_reference};
pub use target_loss::{TargetLoss, margins, reference as target_loss_reference};

use burn::backend::autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorPrimitive};

use crate::objective::Objective;

/// Elements with V columns that may be alive at once in one buffer (64 MiB of f32).
const CHUNK: usize = 16 << 20;

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

    /// x / √(mean(x²) + ε) · weight for every row of `x` `[R, D]`; `weight` is `[D]`.
    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        layer::rms_norm(x, weight, epsilon)
    }

    /// silu(gate) · up, all `[R, F]`.
    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        layer::swiglu(gate, up)
    }

    /// Rotates the heads of `x` `[S·T, heads·head_dim]`: x·cos + swap(x)·sin, where swap exchanges the halves of every head and the
    /// sign of the rotation stands in `sin`. The tables are `[1, T·heads·head_dim]`.
    fn rotate(x: Tensor<Self, 2>, cos: Tensor<Self, 2>, sin: Tensor<Self, 2>, head_dim: usize) -> Tensor<Self, 2> {
        layer::rotate(x, cos, sin, head_dim)
    }

    /// Causal grouped-query attention: queries `[S, H, T, d]` to keys and values `[S, KV, past + T, d]`, the result `[S·T, H·d]`.
    /// `mask` `[1, T·(past + T)]` is the causal one (0 or −1e30), ready to be added.
    fn causal_attention(q: Tensor<Self, 4>, k: Tensor<Self, 4>, v: Tensor<Self, 4>, mask: Tensor<Self, 2>) -> Tensor<Self, 2> {
        layer::attention(q, k, v, mask)
    }
}

/// With gradients, a layer's blocks are Burn's own operations.
impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {}
#[cfg(feature = "ndarray")]
impl Kernels for burn::backend::NdArray {}
#[cfg(feature = "wgpu")]
impl Kernels for burn::backend::Vulkan {}
#[cfg(feature = "cuda")]
impl Kernels for burn::backend::Cuda {}

/// The blocks with gradients: what the methods are generic over.
pub trait TrackedBackend: AutodiffBackend<InnerBackend: Kernels> + Kernels {
    /// Soft embeddings `[S·N, D]`, differentiable in `logits` `[N, V]` and `temperature` `[N, 1]`, which replace the
    /// values inside `prompt`.
    fn track_soft_embedding(
        logits: Tensor<Self, 2>,
        temperature: Tensor<Self, 2>,
        prompt: SoftPrompt<Self::InnerBackend>,
    ) -> Tensor<Self, 2>;

    /// The sum of the losses of all rows, `[1]`, differentiable in `hidden` `[R, D]`, and the losses themselves `[R]`.
    fn track_target_loss(
        hidden: Tensor<Self, 2>,
        head: Tensor<Self::InnerBackend, 2>,
        targets: Tensor<Self::InnerBackend, 1, Int>,
        objective: Objective,
    ) -> (Tensor<Self, 1>, Tensor<Self::InnerBackend, 1>);
}

impl<B: Kernels, C: CheckpointStrategy> TrackedBackend for Autodiff<B, C> {
    fn track_soft_embedding(logits: Tensor<Self, 2>, temperature: Tensor<Self, 2>, prompt: SoftPrompt<B>) -> Tensor<Self, 2> {
        let (logits, temperature) = (logits.into_primitive().tensor(), temperature.into_primitive().tensor());
        let out = soft_embedding::tracked::<B, C>(logits, temperature, prompt);
        Tensor::from_primitive(TensorPrimitive::Float(out))
    }

    fn track_target_loss(
        hidden: Tensor<Self, 2>,
        head: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        objective: Objective,
    ) -> (Tensor<Self, 1>, Tensor<B, 1>) {
        let (out, losses) = target_loss::tracked::<B, C>(hidden.into_primitive().tensor(), head, targets, objective);
        (Tensor::from_primitive(TensorPrimitive::Float(out)), losses)
    }
}

#[cfg(test)]
mod tests {
    //! Every block against its definition in plain Burn, and against central differences in f64.

    use burn::backend::{Autodiff, Flex};
    use burn::tensor::{DType, TensorData};

    use super::*;
    use crate::noise::{Purpose, Stream};
    use crate::testing::{each_tracked_cpu_backend, one_at_a_time};

    const N: usize = 3;
    const V: usize = 17;
    const D: usize = 5;
    const S: usize = 2;

    fn matrix<B: Backend>(sample: u32, rows: usize, columns: usize, dtype: DType) -> Tensor<B, 2> {
        let values = Stream::new(11, 0, 0, Purpose::InitialLogits, sample).normal(rows, columns);
        Tensor::from_data(TensorData::new(values, [rows, columns]), (&B::Device::default(), dtype))
    }

    fn soft_prompt<B: Backend>(logits: Tensor<B, 2>, temperature: Tensor<B, 2>, dtype: DType) -> SoftPrompt<B> {
        SoftPrompt {
            logits,
            temperature,
            embedding: matrix(2, V, D, dtype),
            mask: None,
            noise: Gumbel::Given(matrix(3, S * N, V, dtype)),
            samples: S,
        }
    }

    fn temperature<B: Backend>(dtype: DType) -> Tensor<B, 2> {
        matrix::<B>(1, N, 1, dtype).exp() + 0.3
    }

    fn targets<B: Backend>() -> Tensor<B, 1, Int> {
        Tensor::from_data([3, 16, 0, 5, 5, 9], &B::Device::default())
    }

    /// Within 1e-5 of the larger one, element by element.
    fn close<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) {
        let (a, b) = (crate::model::generate::host(a), crate::model::generate::host(b));
        let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs() / (1.0 + a.abs().max(b.abs()))).fold(0.0, f32::max);
        assert!(difference < 1e-5, "{difference}: {a:?} {b:?}");
    }

    fn soft_embedding_agrees_with_its_definition<B: TrackedBackend>() {
        let leaf = |x: Tensor<B::InnerBackend, 2>| Tensor::<B, 2>::from_inner(x).require_grad();
        let (z, tau, weight) = (matrix(0, N, V, DType::F32), temperature(DType::F32), matrix::<B>(4, S * N, D, DType::F32));
        let prompt = soft_prompt(z.clone(), tau.clone(), DType::F32);
        let Gumbel::Given(noise) = prompt.noise.clone() else { unreachable!() };
        let (z1, tau1, z2, tau2) = (leaf(z.clone()), leaf(tau.clone()), leaf(z), leaf(tau));
        let embedding = Tensor::from_inner(prompt.embedding.clone());
        let ours = B::track_soft_embedding(z1.clone(), tau1.clone(), prompt);
        let theirs = soft_embedding_reference(z2.clone(), tau2.clone(), Tensor::from_inner(noise), embedding);
        close(ours.clone().inner(), theirs.clone().inner());
        let (g1, g2) = ((ours * weight.clone()).sum().backward(), (theirs * weight).sum().backward());
        close(z1.grad(&g1).unwrap(), z2.grad(&g2).unwrap());
        close(tau1.grad(&g1).unwrap(), tau2.grad(&g2).unwrap());
    }

    fn target_loss_agrees_with_its_definition<B: TrackedBackend>() {
        for objective in [Objective::CrossEntropy, Objective::Hinge { margin: 0.3 }] {
            let hidden = matrix::<B::InnerBackend>(5, S * N, D, DType::F32);
            let head = matrix::<B::InnerBackend>(2, V, D, DType::F32);
            let leaf = || Tensor::<B, 2>::from_inner(hidden.clone()).require_grad();
            let (h1, h2) = (leaf(), leaf());
            let (ours, losses) = B::track_target_loss(h1.clone(), head.clone(), targets(), objective);
            let theirs = target_loss_reference(h2.clone(), Tensor::from_inner(head), targets::<B>(), objective);
            close(losses.unsqueeze(), theirs.clone().inner().unsqueeze());
            let (g1, g2) = (ours.backward(), theirs.sum().backward());
            close(h1.grad(&g1).unwrap(), h2.grad(&g2).unwrap());
        }
    }

    each_tracked_cpu_backend!(soft_embedding_agrees_with_its_definition, target_loss_agrees_with_its_definition);

    type Tracked = Autodiff<Flex>;

    fn f64s(tensor: Tensor<Flex, 2>) -> Vec<f64> {
        tensor.into_data().into_vec().unwrap()
    }

    /// The gradient of `f` at `x`, against central differences of step 1e-6.
    fn check_gradient(x: Tensor<Flex, 2>, f: impl Fn(Tensor<Tracked, 2>) -> Tensor<Tracked, 1>) {
        let leaf = Tensor::<Tracked, 2>::from_inner(x.clone()).require_grad();
        let gradient = f64s(leaf.grad(&f(leaf.clone()).backward()).unwrap());
        let (values, shape) = (f64s(x), leaf.dims());
        let at = |i: usize, shift: f64| {
            let mut moved = values.clone();
            moved[i] += shift;
            let moved = Tensor::from_inner(Tensor::from_data(TensorData::new(moved, shape), (&Default::default(), DType::F64)));
            f64s(f(moved).inner().unsqueeze())[0]
        };
        for (i, found) in gradient.iter().enumerate() {
            let expected = (at(i, 1e-6) - at(i, -1e-6)) / 2e-6;
            assert!((found - expected).abs() < 1e-7 * (1.0 + expected.abs()), "element {i}: {found}, by differences {expected}");
        }
    }

    #[test]
    fn soft_embedding_agrees_with_central_differences() {
        let _guard = one_at_a_time();
        let (z, tau) = (matrix::<Flex>(0, N, V, DType::F64), temperature::<Flex>(DType::F64));
        let weight = || Tensor::from_inner(matrix::<Flex>(4, S * N, D, DType::F64));
        let f = |z: Tensor<Tracked, 2>, tau: Tensor<Tracked, 2>| {
            let prompt = soft_prompt(z.clone().inner(), tau.clone().inner(), DType::F64);
            (Tracked::track_soft_embedding(z, tau, prompt) * weight()).sum()
        };
        check_gradient(z.clone(), |z| f(z, Tensor::from_inner(tau.clone())));
        check_gradient(tau.clone(), |tau| f(Tensor::from_inner(z.clone()), tau));
    }

    #[test]
    fn target_loss_agrees_with_central_differences() {
        let _guard = one_at_a_time();
        for objective in [Objective::CrossEntropy, Objective::Hinge { margin: 0.3 }] {
            let head = matrix::<Flex>(2, V, D, DType::F64);
            check_gradient(matrix(5, S * N, D, DType::F64), |h| Tracked::track_target_loss(h, head.clone(), targets(), objective).0);
        }
    }

    #[test]
    fn drawn_noise_is_the_same_in_chunks() {
        let stream = Stream::new(3, 0, 5, Purpose::PromptNoise, 0);
        let given: Vec<f32> = (0..S as u32).flat_map(|sample| stream.sample(sample).gumbel(N, V)).collect();
        let mut prompt = soft_prompt::<Flex>(matrix(0, N, V, DType::F32), temperature(DType::F32), DType::F32);
        prompt.noise = Gumbel::Given(Tensor::from_data(TensorData::new(given, [S * N, V]), &Default::default()));
        let expected = Flex::soft_embedding(&prompt);
        prompt.noise = Gumbel::Drawn(stream);
        close(Flex::soft_embedding(&prompt), expected);
    }
}
