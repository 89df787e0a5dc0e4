//! x·W for many rows x and a large W.
//!
//! `gemm` called with several threads packs and multiplies in turns, and all of them wait for each other at every turn. Here every
//! thread takes columns of W by itself, and they meet once, at the end.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use pulp::Simd;
use rayon::prelude::*;

use super::vector::{add_mixed, dot};
use super::{Dense, tensor};

/// Multiplications below which one thread is faster.
const SMALL: usize = 1 << 18;

/// `[R, K]`·`[K, N]` → `[R, N]`; the right side may be a view of any strides. The same bytes with any number of threads.
pub fn matmul(x: Tensor<Flex, 2>, w: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let ([r, k], [rows, n]) = (x.dims(), w.dims());
    assert_eq!(k, rows, "a product of [{r}, {k}] and [{rows}, {n}]");
    let (x, w) = (Dense::of(&x), w.into_primitive().tensor());
    if r < FEW {
        return few_rows(&x, &w, [r, k, n]);
    }
    // gemm adds in another order where a tile is at most 64 wide: none is, unless all of it is.
    let tiles = if r * k * n < SMALL { 1 } else { rayon::current_num_threads().min(n / 128).max(1) };
    // Sixty-four columns are the widest tile of gemm's kernels.
    let edge = |tile: usize| if tile == tiles { n } else { tile * n / tiles / 64 * 64 };
    let mut out = Vec::<f32>::with_capacity(r * n);
    let target = Out(out.as_mut_ptr());
    (0..tiles).into_par_iter().for_each(|tile| multiply(&x, &w, [r, k, n], edge(tile)..edge(tile + 1), &target));
    // SAFETY: the tiles cover all r·n elements.
    unsafe { out.set_len(r * n) };
    tensor(out, [r, n])
}

/// Rows for which gemm has kernels of its own, whose sums depend on where a tile begins.
const FEW: usize = 5;

/// The product of a few rows: W is read once, in blocks of columns, and there is little else to do.
fn few_rows(x: &[f32], w: &FlexTensor, [r, k, n]: [usize; 3]) -> Tensor<Flex, 2> {
    let transposed = w.layout().strides() == [1, k as isize];
    let dense = if transposed || w.layout().strides() == [n as isize, 1] { w.clone() } else { w.to_contiguous() };
    let w = &dense.storage::<f32>()[dense.layout().start_offset()..];
    // [N, R], so that each task writes values that lie together.
    let mut columns = vec![0.0f32; n * r];
    columns.par_chunks_mut(BLOCK * r).enumerate().for_each(|(block, out)| match transposed {
        true => dots(x, &w[block * BLOCK * k..], k, out),
        false => mixes(x, &w[block * BLOCK..], [k, n], out),
    });
    let mut out = vec![0.0f32; r * n];
    for (column, values) in columns.chunks_exact(r).enumerate() {
        values.iter().enumerate().for_each(|(row, value)| out[row * n + column] = *value);
    }
    tensor(out, [r, n])
}

/// Columns of a block of [`few_rows`].
const BLOCK: usize = 256;

/// Columns of W that lie in rows of k values.
#[pulp::with_simd(dots = pulp::Arch::new())]
#[inline(always)]
fn dots_on<S: Simd>(_: S, x: &[f32], columns: &[f32], k: usize, out: &mut [f32]) {
    let r = x.len() / k;
    for (out, column) in out.chunks_exact_mut(r).zip(columns.chunks_exact(k)) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
            *out = dot(x, column);
        }
    }
}

/// Columns of W whose values lie n apart.
#[pulp::with_simd(mixes = pulp::Arch::new())]
#[inline(always)]
fn mixes_on<S: Simd>(_: S, x: &[f32], columns: &[f32], [k, n]: [usize; 2], out: &mut [f32]) {
    let r = x.len() / k;
    for (row, x) in x.chunks_exact(k).enumerate() {
        let mut sums = [0.0f32; BLOCK];
        let sums = &mut sums[..out.len() / r];
        add_mixed(x.iter().copied(), columns, n, sums);
        sums.iter().enumerate().for_each(|(column, sum)| out[column * r + row] = *sum);
    }
}

/// Where the result goes: each task writes its own columns.
struct Out(*mut f32);

// SAFETY: no two tasks write the same element, and nobody reads before all have ended.
unsafe impl Sync for Out {}

fn multiply(x: &[f32], w: &FlexTensor, [r, k, n]: [usize; 3], columns: std::ops::Range<usize>, out: &Out) {
    let (rows, cols) = (w.layout().strides()[0], w.layout().strides()[1]);
    let first = w.layout().start_offset() as isize + columns.start as isize * cols;
    // SAFETY: x holds r·k values, the storage of w all k·n that its layout names, and out has room for r·n.
    unsafe {
        gemm::gemm(
            r,
            columns.len(),
            k,
            out.0.add(columns.start),
            1,
            n as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.storage::<f32>().as_ptr().wrapping_offset(first),
            cols,
            rows,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
