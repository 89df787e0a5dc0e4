//! x·W for so few rows x that reading W takes longest: it is read once, in blocks of columns, and there is little else to do.

use burn::backend::Flex;
use burn::tensor::Tensor;
use pulp::Simd;
use rayon::prelude::*;

use super::matmul::Weight;
use super::tensor;
use super::vector::{add_mixed, dot, dots};

/// `[R, K]`·`[K, N]` → `[R, N]`.
pub fn few_rows(x: &[f32], w: &Weight, [r, k, n]: [usize; 3]) -> Tensor<Flex, 2> {
    // [N, R], so that each task writes values that lie together.
    let mut columns = vec![0.0f32; n * r];
    columns.par_chunks_mut(BLOCK * r).enumerate().for_each(|(block, out)| match w.transposed {
        true => dot_columns(x, &w.values()[block * BLOCK * k..], k, out),
        false => mix_columns(x, &w.values()[block * BLOCK..], [k, n], out),
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

/// Rows of x that share what is read of W.
const QUAD: usize = 4;

/// Columns of W that lie in rows of k values.
#[pulp::with_simd(dot_columns = pulp::Arch::new())]
#[inline(always)]
fn dot_columns_on<S: Simd>(simd: S, x: &[f32], columns: &[f32], k: usize, out: &mut [f32]) {
    let r = x.len() / k;
    let (quads, rest) = x.split_at(r / QUAD * QUAD * k);
    for (out, column) in out.chunks_exact_mut(r).zip(columns.chunks_exact(k)) {
        let (out, out_rest) = out.as_chunks_mut::<QUAD>();
        for (out, x) in out.iter_mut().zip(quads.chunks_exact(QUAD * k)) {
            *out = dots(simd, std::array::from_fn(|row| &x[row * k..][..k]), column);
        }
        for (out, x) in out_rest.iter_mut().zip(rest.chunks_exact(k)) {
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
    let mut sums = vec![0.0f32; r * BLOCK];
    for first in (0..k).step_by(DEPTH) {
        let (depth, columns) = (DEPTH.min(k - first), &columns[first * n..]);
        let weights = |row: usize| &x[row * k + first..][..depth];
        let (quads, rest) = sums.split_at_mut(r / QUAD * QUAD * BLOCK);
        for (quad, sums) in quads.chunks_exact_mut(QUAD * BLOCK).enumerate() {
            add_mixed_quad(std::array::from_fn(|row| weights(quad * QUAD + row)), columns, n, width, sums);
        }
        for (row, sums) in rest.chunks_exact_mut(BLOCK).enumerate() {
            add_mixed(weights(r / QUAD * QUAD + row).iter().copied(), columns, n, &mut sums[..width]);
        }
    }
    for (column, out) in out.chunks_exact_mut(r).enumerate() {
        out.iter_mut().enumerate().for_each(|(row, out)| *out = sums[row * BLOCK + column]);
    }
}

/// [`add_mixed`] for four rows of weights and their sums, `[4, BLOCK]`, of which `width` columns are meant.
#[inline(always)]
fn add_mixed_quad(weights: [&[f32]; QUAD], rows: &[f32], stride: usize, width: usize, sums: &mut [f32]) {
    let whole = width / 64 * 64;
    for first in (0..whole).step_by(64) {
        mix_quad::<64>(weights, rows, stride, first, sums);
    }
    for first in (whole..width / 16 * 16).step_by(16) {
        mix_quad::<16>(weights, rows, stride, first, sums);
    }
    for first in width / 16 * 16..width {
        mix_quad::<1>(weights, rows, stride, first, sums);
    }
}

/// W columns from `first`: the sums of four rows stay in registers.
#[inline(always)]
fn mix_quad<const W: usize>(weights: [&[f32]; QUAD], rows: &[f32], stride: usize, first: usize, sums: &mut [f32]) {
    let mut at: [[f32; W]; QUAD] = std::array::from_fn(|row| std::array::from_fn(|i| sums[row * BLOCK + first + i]));
    for j in 0..weights[0].len() {
        let row: &[f32; W] = rows[j * stride + first..][..W].try_into().expect("W values");
        for (at, weights) in at.iter_mut().zip(weights) {
            for i in 0..W {
                at[i] += weights[j] * row[i];
            }
        }
    }
    for (row, at) in at.iter().enumerate() {
        sums[row * BLOCK + first..][..W].copy_from_slice(at);
    }
}
