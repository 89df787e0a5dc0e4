//! The blocks of a decoder layer in plain Burn: the definition that every backend can use, differentiable on autodiff backends.

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Tensor, backend::Backend};

/// x / √(mean(x²) + ε) · weight for every row.
pub(super) fn rms_norm<B: Backend>(x: Tensor<B, 2>, weight: Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    let mean_square = x.clone().powi_scalar(2).mean_dim(1);
    x / (mean_square + epsilon).sqrt() * weight.unsqueeze::<2>()
}

/// silu(gate) · up.
pub(super) fn swiglu<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    silu(gate) * up
}

/// x·cos + swap(x)·sin, where swap exchanges the halves of every head.
pub(super) fn rotate<B: Backend>(x: Tensor<B, 2>, cos: Tensor<B, 2>, sin: Tensor<B, 2>, head_dim: usize) -> Tensor<B, 2> {
    let ([rows, width], half, line) = (x.dims(), head_dim / 2, cos.dims()[1]);
    let heads = x.clone().reshape([rows * width / head_dim, head_dim]);
    let swapped = Tensor::cat(vec![heads.clone().narrow(1, half, half), heads.narrow(1, 0, half)], 1);
    let samples = [rows * width / line, line];
    (x.reshape(samples) * cos + swapped.reshape(samples) * sin).reshape([rows, width])
}

/// softmax(q·kᵀ/√d + mask)·v without repeating keys or values: the query heads that share a key head stand under each other in one
/// matrix.
pub(super) fn attention<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, mask: Tensor<B, 2>) -> Tensor<B, 2> {
    let [s, h, t, d] = q.dims();
    let [_, kv, all, _] = k.dims();
    let rows = h / kv * t;
    let scale = (d as f64).powf(-0.5);
    let scores = matmul_rows(q.reshape([s, kv, rows, d]), k.swap_dims(2, 3)) * scale;
    let scores = scores.reshape([s * h, t * all]) + mask;
    let weights = softmax(scores.reshape([s * h, t, all]), 2).reshape([s, kv, rows, all]);
    let mixed = matmul_rows(weights, v).reshape([s, h, t, d]);
    mixed.swap_dims(1, 2).reshape([s * t, h * d])
}

/// `a·b`; a single row is doubled first, because CubeCL's vector-matrix kernels reject inner axes that
/// are no multiple of the plane size.
fn matmul_rows<B: Backend>(a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 4> {
    if a.dims()[2] > 1 {
        return a.matmul(b);
    }
    Tensor::cat(vec![a.clone(), a], 2).matmul(b).narrow(2, 0, 1)
}
