//! Weights and activations may have half precision (f16, bf16). What is summed, exponentiated or optimised has f32.

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::{CHUNK, Kernels};

/// How exact the products of a pass are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// In the type of the weights.
    Full,
    /// With factors rounded to bf16 and sums in f32, where the device is faster so.
    Rough,
}

impl Products {
    /// x·W, `[R, K]`·`[K, N]`.
    pub fn matmul<B: Kernels>(self, x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Full => B::matmul(x, weight),
            Self::Rough => B::rough_matmul(x, weight),
        }
    }

    /// See [`Kernels::margins`].
    pub fn margins<B: Kernels>(self, hidden: Tensor<B, 2>, head: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
        match self {
            Self::Full => B::margins(hidden, head, targets),
            Self::Rough => B::rough_margins(hidden, head, targets),
        }
    }
}

/// The type of softmax, losses and optimised variables for a model of type `dtype`: f32 where that has half precision, else the same.
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
pub fn product<B: Backend>(x: Tensor<B, 2>, matrix: &Tensor<B, 2>) -> Tensor<B, 2> {
    let parts = blocks(matrix, x.dtype()).map(|(first, rows)| part(&x, 1, first, rows.dims()[0]).matmul(rows));
    parts.reduce(|sum, part| sum + part).expect("a matrix has rows")
}

/// x·Wᵀ in the type of `x` `[R, D]`, whatever type `matrix` `[V, D]` is stored in.
pub(super) fn product_transposed<B: Backend>(x: Tensor<B, 2>, matrix: &Tensor<B, 2>) -> Tensor<B, 2> {
    concat(blocks(matrix, x.dtype()).map(|(_, rows)| x.clone().matmul(rows.transpose())).collect(), 1)
}

/// Concatenates tensors along an axis; a single one is not copied.
pub fn concat<B: Backend, const R: usize>(mut parts: Vec<Tensor<B, R>>, axis: usize) -> Tensor<B, R> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, axis) }
}

/// A part of an axis; the whole of it is not copied.
fn part<B: Backend>(x: &Tensor<B, 2>, axis: usize, first: usize, count: usize) -> Tensor<B, 2> {
    if count == x.dims()[axis] { x.clone() } else { x.clone().narrow(axis, first, count) }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;
    use crate::tensor::host;
    use crate::testing::{largest_difference, values};

    fn matrix(name: &str, shape: [usize; 2], dtype: DType) -> Tensor<Flex, 2> {
        Tensor::from_data(TensorData::new(values(name, shape[0] * shape[1]), shape), (&Default::default(), dtype))
    }

    /// A matrix of two blocks, the second of one row.
    #[test]
    fn products_in_blocks_are_those_with_the_whole() {
        let (v, d) = (65, CHUNK / 64);
        let stored = matrix("w", [v, d], DType::F16);
        assert_eq!(blocks(&stored, DType::F32).map(|(first, rows)| (first, rows.dims()[0])).collect::<Vec<_>>(), [(0, 64), (64, 1)]);
        assert_eq!(blocks(&stored, DType::F16).count(), 1);
        let (whole, x, y) = (stored.clone().cast(DType::F32), matrix("x", [2, v], DType::F32), matrix("y", [2, d], DType::F32));
        let near = |a: Tensor<Flex, 2>, b: Tensor<Flex, 2>, tolerance| {
            assert_eq!(a.dtype(), DType::F32);
            let difference = largest_difference(&host(a), &host(b));
            assert!(difference < tolerance, "{difference}");
        };
        near(product(x.clone(), &stored), x.matmul(whole.clone()), 1e-5);
        // Sums of 262,144 terms, about 170 large.
        near(product_transposed(y.clone(), &stored), y.matmul(whole.transpose()), 1e-2);
    }

    /// 300² is more than f16 can hold.
    #[test]
    fn squares_of_f16_do_not_overflow() {
        use crate::ops::reference::layer::{rms_norm, rms_norm_backward};
        let (x, weight) = (Tensor::<Flex, 2>::full([1, 4], 300.0, (&Default::default(), DType::F16)), matrix("g", [1, 4], DType::F16));
        let norm = rms_norm(x.clone(), weight.clone().squeeze_dim(0), 1e-5);
        assert_eq!((norm.dtype(), host(norm)), (DType::F16, host(weight.clone())));
        assert!(host(rms_norm_backward(x.clone(), weight.squeeze_dim(0), 1e-5, x)).iter().all(|x| x.is_finite()));
    }
}
