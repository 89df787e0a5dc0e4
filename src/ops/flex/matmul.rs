//! x·W for many rows x and a large W.
//!
//! `gemm`, which Burn multiplies with, copies a transposed W value by value, each from another line of the cache: a quarter of a DLMI step.
//! Several threads of it wait for each other at every panel. Here every thread takes panels of W's columns by itself, transposed in registers
//! and fetched from memory while the one before is multiplied, and they meet once, at the end.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::few_rows::few_rows;
use super::panel::{Block, DEPTH, Line, WIDTH};
use super::rough::{self, PairLine, Pairs};
use super::strip::{Factors, Sums, add_products};
use super::{Dense, tensor};
use crate::ops::Products;

/// Multiplications below which one thread is faster.
const SMALL: usize = 1 << 18;

/// With fewer rows than this, making panels takes longer than it saves.
const FEW: usize = 4;

/// The right side of a product, `[K, N]`.
struct Weight {
    tensor: FlexTensor,
    /// Whether columns lie together in memory, and not rows.
    transposed: bool,
}

impl Weight {
    fn of(w: Tensor<Flex, 2>) -> Self {
        let [k, n] = w.dims();
        let tensor = w.into_primitive().tensor();
        let transposed = tensor.layout().strides() == [1, k as isize];
        let dense = transposed || tensor.layout().strides() == [n as isize, 1];
        Self { tensor: if dense { tensor } else { tensor.to_contiguous() }, transposed }
    }

    fn block(&self, [k, n]: [usize; 2]) -> Block<'_> {
        let values = &self.tensor.storage()[self.tensor.layout().start_offset()..];
        let stride = if self.transposed { k } else { n };
        Block { values, stride, transposed: self.transposed, depth: k, width: n }
    }
}

/// `[R, K]`·`[K, N]` → `[R, N]`; the right side may be a view of any strides. The same bytes with any number of threads. From [`FEW`]
/// rows on, every sum is formed in the order of K: a row's product does not depend on the others.
pub fn matmul(products: Products, x: Tensor<Flex, 2>, w: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let ([r, k], [rows, n]) = (x.dims(), w.dims());
    assert_eq!(k, rows, "a product of [{r}, {k}] and [{rows}, {n}]");
    let (x, w) = (Dense::of(&x), Weight::of(w));
    if r * k * n == 0 {
        return tensor(vec![0.0; r * n], [r, n]);
    }
    if r < FEW {
        return few_rows(&x, w.block([k, n]), r);
    }
    let left = match products {
        Products::Rough if rough::are_available() => Left::Rough(Pairs::of(&x, k)),
        _ => Left::Full(&x),
    };
    let panels = n.div_ceil(WIDTH);
    let tiles = if r * k * n < SMALL { 1 } else { rayon::current_num_threads().min(panels) };
    let edge = |tile: usize| (tile * panels / tiles * WIDTH).min(n);
    let mut out = Vec::with_capacity(r * n);
    let target = Out(out.as_mut_ptr());
    (0..tiles).into_par_iter().for_each(|tile| multiply(&left, r, w.block([k, n]), edge(tile)..edge(tile + 1), &target));
    // SAFETY: every column belongs to a task, which wrote it.
    unsafe { out.set_len(r * n) };
    tensor(out, [r, n])
}

/// The left side of a product, `[R, K]`.
enum Left<'a> {
    Full(&'a [f32]),
    Rough(Pairs),
}

/// Where the result goes: each task writes its own columns.
struct Out(*mut f32);

// SAFETY: no two tasks touch the same element, and nobody else does before all have ended.
unsafe impl Sync for Out {}

/// Some columns of the product, panel by panel, on this thread.
fn multiply(x: &Left, r: usize, w: Block, columns: Range<usize>, out: &Out) {
    let (k, n) = (w.depth, w.width);
    let mut panel = vec![Line::ZERO; DEPTH.min(k)];
    let mut pairs = vec![PairLine::ZERO; if matches!(x, Left::Rough(_)) { panel.len().div_ceil(2) } else { 0 }];
    let part = |row: usize, column: usize| w.part(row..(row + DEPTH).min(k), column..(column + WIDTH).min(columns.end));
    for first in columns.clone().step_by(WIDTH) {
        let width = WIDTH.min(columns.end - first);
        let mut ragged = vec![0.0f32; if width < WIDTH { r * WIDTH } else { 0 }];
        // SAFETY: `out` has room for r·n elements, and nobody else touches these columns.
        let mut sums = match width {
            WIDTH => unsafe { Sums::unwritten(out.0.add(first), n, r) },
            _ => Sums::of(&mut ragged, WIDTH, r),
        };
        for depth in (0..k).step_by(DEPTH) {
            let block = part(depth, first);
            let panel = &mut panel[..block.depth];
            block.fill(panel);
            let (row, column) = if depth + DEPTH < k { (depth + DEPTH, first) } else { (0, first + WIDTH) };
            let next = (column < columns.end).then(|| part(row, column));
            match x {
                Left::Full(x) => add_products(Factors { values: &x[depth..], row: k, step: 1 }, panel, width, &mut sums, next),
                Left::Rough(x) => rough::add_products(x, depth, panel, &mut pairs, &mut sums, next),
            }
        }
        for (row, sums) in ragged.chunks_exact(WIDTH).enumerate() {
            // SAFETY: as above.
            unsafe { out.0.add(row * n + first).copy_from_nonoverlapping(sums.as_ptr(), width) };
        }
    }
}
