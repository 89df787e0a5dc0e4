//! Weights and activations may be half as wide as f32. What is summed, exponentiated or moved by an optimiser is not.

use burn::tensor::{DType, Tensor, backend::Backend};

use super::CHUNK;

/// The type of softmax, losses and variables beside a model of type `dtype`: f32 for the half-wide types, else the same.
pub fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// The rows of a frozen matrix `[V, D]` as `dtype`, with the number of the first: all at once where they are stored so, else as many
/// as keep the copy within [`CHUNK`].
pub fn blocks<B: Backend>(matrix: &Tensor<B, 2>, dtype: DType) -> impl Iterator<Item = (usize, Tensor<B, 2>)> + use<B> {
    let (matrix, [v, d]) = (matrix.clone(), matrix.dims());
    // CubeCL's matrix kernels want multiples of 64.
    let size = if matrix.dtype() == dtype { v } else { (CHUNK / d / 64 * 64).max(64).min(v) };
    (0..v).step_by(size).map(move |first| (first, part(&matrix, 0, first, size.min(v - first)).cast(dtype)))
}

/// x·W in the type of `x` `[R, V]`, whatever type `matrix` `[V, D]` is stored in.
pub(super) fn product<B: Backend>(x: Tensor<B, 2>, matrix: &Tensor<B, 2>) -> Tensor<B, 2> {
    let parts = blocks(matrix, x.dtype()).map(|(first, rows)| part(&x, 1, first, rows.dims()[0]).matmul(rows));
    parts.reduce(|sum, part| sum + part).expect("a matrix has rows")
}

/// x·Wᵀ in the type of `x` `[R, D]`, whatever type `matrix` `[V, D]` is stored in.
pub(super) fn product_transposed<B: Backend>(x: Tensor<B, 2>, matrix: &Tensor<B, 2>) -> Tensor<B, 2> {
    beside(blocks(matrix, x.dtype()).map(|(_, rows)| x.clone().matmul(rows.transpose())).collect())
}

/// Matrices of R rows as one; a single one is not copied.
pub fn beside<B: Backend>(mut parts: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

/// A part of an axis; the whole of it is not copied.
fn part<B: Backend>(x: &Tensor<B, 2>, axis: usize, first: usize, count: usize) -> Tensor<B, 2> {
    if count == x.dims()[axis] { x.clone() } else { x.clone().narrow(axis, first, count) }
}
