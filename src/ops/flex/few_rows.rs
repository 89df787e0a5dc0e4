//! x·W for one to three rows x: reading W takes longest, so it is read once, in blocks of columns, and nothing is copied first.

use burn::backend::Flex;
use burn::tensor::Tensor;
use pulp::Simd;
use rayon::prelude::*;

use super::panel::Block;
use super::tensor;
use super::vector::{add_mixed, dot};

/// `[R, K]`·`[K, N]` → `[R, N]`.
pub fn few_rows(x: &[f32], w: Block, r: usize) -> Tensor<Flex, 2> {
    let (k, n) = (w.depth, w.width);
    // [N, R], so that each task writes values that lie together.
    let mut columns = vec![0.0f32; n * r];
    columns.par_chunks_mut(BLOCK * r).enumerate().for_each(|(block, out)| match w.transposed {
        true => dot_columns(x, &w.values[block * BLOCK * k..], k, out),
        false => mix_columns(x, &w.values[block * BLOCK..], [k, n], out),
    });
    let mut out = vec![0.0f32; r * n];
    for (column, values) in columns.chunks_exact(r).enumerate() {
        values.iter().enumerate().for_each(|(row, value)| out[row * n + column] = *value);
    }
    tensor(out, [r, n])
}

/// Columns of a block of [`few_rows`].
const BLOCK: usize = 256;

/// Values of W's columns that [`mix_columns`] takes at a time: a block of them stays in the cache for all rows.
const DEPTH: usize = 128;

/// Columns of W that lie in rows of k values.
#[pulp::with_simd(dot_columns = pulp::Arch::new())]
#[inline(always)]
fn dot_columns_on<S: Simd>(_: S, x: &[f32], columns: &[f32], k: usize, out: &mut [f32]) {
    let r = x.len() / k;
    for (out, column) in out.chunks_exact_mut(r).zip(columns.chunks_exact(k)) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
            *out = dot(x, column);
        }
    }
}

/// Columns of W whose values lie n apart.
#[pulp::with_simd(mix_columns = pulp::Arch::new())]
#[inline(always)]
fn mix_columns_on<S: Simd>(_: S, x: &[f32], columns: &[f32], [k, n]: [usize; 2], out: &mut [f32]) {
    let r = x.len() / k;
    let width = out.len() / r;
    let mut sums = vec![0.0f32; r * width];
    for first in (0..k).step_by(DEPTH) {
        for (x, sums) in x.chunks_exact(k).zip(sums.chunks_exact_mut(width)) {
            add_mixed(&x[first..(first + DEPTH).min(k)], &columns[first * n..], n, sums);
        }
    }
    for (column, out) in out.chunks_exact_mut(r).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            *out = sums[row * width + column];
        }
    }
}
