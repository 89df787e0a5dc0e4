//! Between tensors and plain vectors.

use burn::tensor::{BasicOps, Int, Tensor, TensorData, backend::Backend};
use rayon::prelude::*;

use crate::gpu_memory;

/// Token ids as a tensor `[S, T]`; all rows must have the same length.
pub fn ids_tensor<B: Backend>(rows: &[impl AsRef<[u32]>], device: &B::Device) -> Tensor<B, 2, Int> {
    let shape = [rows.len(), rows.first().map_or(0, |row| row.as_ref().len())];
    let ids: Vec<i64> = rows.iter().flat_map(|row| row.as_ref().iter().map(|&id| i64::from(id))).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// The position of the largest value, the first of equals, and how far it is ahead of the second: 0 for a tie, and not a number where a
/// value is none or infinite.
pub fn argmax(row: &[f32]) -> (u32, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (id, &value) in row.iter().enumerate() {
        if value > first {
            (best, second, first) = (id as u32, first, value);
        } else if value > second {
            second = value;
        }
    }
    // A sum passes NaN and infinity on, and is computed in vectors; finite values of a row of logits do not overflow it in f64.
    let wild = row.iter().map(|&value| f64::from(value)).sum::<f64>();
    (best, if wild.is_finite() { first - second } else { f32::NAN })
}

/// The [`argmax`] of every row of `x` `[R, V]`, `[R]`, on the CPU; see [`crate::ops::Kernels::argmax_rows`].
pub fn argmax_rows<B: Backend>(x: Tensor<B, 2>) -> Vec<u32> {
    let v = x.dims()[1];
    host(x).par_chunks_exact(v).map(|row| argmax(row).0).collect()
}

/// The values of a tensor, row-major.
pub fn host<B: Backend, const R: usize>(tensor: Tensor<B, R>) -> Vec<f32> {
    data(tensor).convert::<f32>().into_vec().expect("converted to f32")
}

/// What a tensor holds. All that is read from a device is read here.
pub fn data<B: Backend, const R: usize, K: BasicOps<B>>(tensor: Tensor<B, R, K>) -> TensorData {
    let data = tensor.into_data();
    gpu_memory::check();
    data
}

/// Euclidean length of all values of a matrix, the squares of its rows being added in f64.
pub fn norm<B: Backend>(matrix: Tensor<B, 2>) -> f32 {
    host(matrix.powi_scalar(2).sum_dim(1)).iter().map(|x| f64::from(*x)).sum::<f64>().sqrt() as f32
}
