//! The blocks of a decoder layer and their backward passes. Where x has half precision, squares and softmax are computed in f32.

use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{Tensor, backend::Backend};

use crate::ops::precision::wide;

/// x / √(mean(x²) + ε) · weight for every row.
pub fn rms_norm<B: Backend>(x: Tensor<B, 2>, weight: Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (x, weight) = (x.cast(wide(dtype)), weight.cast(wide(dtype)));
    let mean_square = x.clone().powi_scalar(2).mean_dim(1);
    (x / (mean_square + epsilon).sqrt() * weight.unsqueeze::<2>()).cast(dtype)
}

/// With r = 1/√(mean(x²) + ε) and g = dy·weight: dx = r·(g − x·mean(g·x)·r²).
pub fn rms_norm_backward<B: Backend>(x: Tensor<B, 2>, weight: Tensor<B, 1>, epsilon: f64, output: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (x, weight, output) = (x.cast(wide(dtype)), weight.cast(wide(dtype)), output.cast(wide(dtype)));
    let root = (x.clone().powi_scalar(2).mean_dim(1) + epsilon).sqrt().recip();
    let g = output * weight.unsqueeze::<2>();
    let mean = (g.clone() * x.clone()).mean_dim(1) * root.clone().powi_scalar(2);
    ((g - x * mean) * root).cast(dtype)
}

/// Gradient of the weight, Σ over the rows of dy·x·r.
pub(in crate::ops) fn rms_norm_weight<B: Backend>(x: Tensor<B, 2>, epsilon: f64, output: Tensor<B, 2>) -> Tensor<B, 1> {
    let root = (x.clone().powi_scalar(2).mean_dim(1) + epsilon).sqrt();
    (output * x / root).sum_dim(0).squeeze_dim(0)
}

/// silu(gate) · up.
pub fn swiglu<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    silu(gate) * up
}

/// Gradients with respect to (gate, up). With σ = sigmoid(gate): silu' = σ·(1 + gate·(1 − σ)).
pub fn swiglu_backward<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>, output: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let sigma = sigmoid(gate.clone());
    let slope = sigma.clone() * (gate.clone() * (sigma.clone().neg() + 1.0) + 1.0);
    (output.clone() * up * slope, output * gate * sigma)
}

/// x·cos + swap(x)·sin, where swap exchanges the halves of every head.
pub fn rotate<B: Backend>(x: Tensor<B, 2>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([rows, width], [line, head_dim]) = (x.dims(), cos.dims());
    let half = head_dim / 2;
    let heads: Tensor<B, 4> = x.reshape([rows / line, line, width / head_dim, head_dim]);
    let swapped = Tensor::cat(vec![heads.clone().narrow(3, half, half), heads.clone().narrow(3, 0, half)], 3);
    let table = |values: Tensor<B, 2>| values.reshape([1, line, 1, head_dim]);
    (heads * table(cos) + swapped * table(sin)).reshape([rows, width])
}

/// softmax(q·kᵀ/√d + mask)·v without repeating keys or values: the query heads that share a key head are stacked into one matrix.
pub fn attention<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, mask: Tensor<B, 2>) -> Tensor<B, 2> {
    let [s, h, t, d] = q.dims();
    let weights = attention_weights(q, k, mask).cast(v.dtype());
    let mixed = matmul_rows(weights, v).reshape([s, h, t, d]);
    mixed.swap_dims(1, 2).reshape([s * t, h * d])
}

/// softmax(q·kᵀ/√d + mask) in the type of the mask, `[S, KV, H/KV·T, past + T]`.
fn attention_weights<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, mask: Tensor<B, 2>) -> Tensor<B, 4> {
    let ([s, h, t, d], [_, kv, all, _]) = (q.dims(), k.dims());
    let rows = h / kv * t;
    // Before the product, which f16 may not hold otherwise.
    let q = q * (d as f64).powf(-0.5);
    let scores = matmul_rows(q.reshape([s, kv, rows, d]), k.swap_dims(2, 3)).cast(mask.dtype());
    let scores = scores.reshape([s * h, t * all]) + mask;
    softmax(scores.reshape([s * h, t, all]), 2).reshape([s, kv, rows, all])
}

/// Gradients with respect to (q, k, v) from that of the result `[S·T, H·d]`. With P the weights: dv = Pᵀ·do, dP = do·vᵀ,
/// dS = P ⊙ (dP − Σ dP ⊙ P)/√d, dq = dS·k, dk = dSᵀ·q.
pub fn attention_backward<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    mask: Tensor<B, 2>,
    output: Tensor<B, 2>,
) -> [Tensor<B, 4>; 3] {
    let ([s, h, t, d], [_, kv, _, _]) = (q.dims(), k.dims());
    let dtype = q.dtype();
    let weights = attention_weights(q.clone(), k.clone(), mask);
    let output = output.reshape([s, t, h, d]).swap_dims(1, 2).reshape([s, kv, h / kv * t, d]);
    let dv = matmul_rows(weights.clone().cast(dtype).swap_dims(2, 3), output.clone());
    let dp = matmul_rows(output, v.swap_dims(2, 3)).cast(weights.dtype());
    let mean = (dp.clone() * weights.clone()).sum_dim(3);
    let ds = (weights * (dp - mean) * (d as f64).powf(-0.5)).cast(dtype);
    let dq = matmul_rows(ds.clone(), k).reshape([s, h, t, d]);
    let dk = matmul_rows(ds.swap_dims(2, 3), q.reshape([s, kv, h / kv * t, d]));
    [dq, dk, dv]
}

/// `a·b`; a single row is doubled first, because CubeCL's vector-matrix kernels reject inner axes that
/// are no multiple of the plane size.
fn matmul_rows<B: Backend>(a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 4> {
    if a.dims()[2] > 1 {
        return a.matmul(b);
    }
    Tensor::cat(vec![a.clone(), a], 2).matmul(b).narrow(2, 0, 1)
}
