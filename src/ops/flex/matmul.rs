//! x·W for many rows x and a large W.
//!
//! `gemm` called with several threads packs and multiplies in turns, and all of them wait for each other at every turn. Here every
//! thread takes columns of W by itself, and they meet once, at the end.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{Dense, tensor};

/// Multiplications below which one thread is faster.
const SMALL: usize = 1 << 18;

/// `[R, K]`·`[K, N]` → `[R, N]`; the right side may be a view of any strides.
pub fn matmul(x: Tensor<Flex, 2>, w: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let ([r, k], [_, n]) = (x.dims(), w.dims());
    let (x, w) = (Dense::of(&x), w.into_primitive().tensor());
    let tiles = if r * k * n < SMALL { 1 } else { rayon::current_num_threads() };
    // Whole vectors of sixteen, four of which are the widest tile of gemm's kernels.
    let width = n.div_ceil(tiles).next_multiple_of(64);
    let mut out = Vec::<f32>::with_capacity(r * n);
    let target = Out(out.as_mut_ptr());
    (0..n).into_par_iter().step_by(width).for_each(|first| multiply(&x, &w, [r, k, n], first..(first + width).min(n), &target));
    // SAFETY: the tiles cover all r·n elements.
    unsafe { out.set_len(r * n) };
    tensor(out, [r, n])
}

/// Where the result goes: each task writes its own columns.
struct Out(*mut f32);

// SAFETY: no two tasks write the same element, and nobody reads before all have ended.
unsafe impl Sync for Out {}

fn multiply(x: &[f32], w: &FlexTensor, [r, k, n]: [usize; 3], columns: std::ops::Range<usize>, out: &Out) {
    let (rows, cols) = (w.layout().strides()[0], w.layout().strides()[1]);
    let w = &w.storage::<f32>()[w.layout().start_offset()..];
    // SAFETY: x holds r·k values, w what its layout says from its first element, and out has room for r·n.
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
            w.as_ptr().offset(columns.start as isize * cols),
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
