//! x·W for many rows x and a large W.
//!
//! `gemm`, which Burn multiplies with, copies a transposed W value by value, each from another line of the cache: a quarter of a DLMI step.
//! Several threads of it wait for each other at every turn. Here every thread takes panels of W's columns by itself, turned in registers,
//! and they meet once, at the end.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use pulp::Simd;
use rayon::prelude::*;

use super::few_rows::few_rows;
use super::panel::{DEPTH, Line, WIDTH, fill_rows, fill_turned};
use super::{Dense, tensor};

/// Multiplications below which one thread is faster.
const SMALL: usize = 1 << 18;

/// Rows for which making panels takes longer than it saves.
const FEW: usize = 17;

/// Rows of x that are multiplied at a time.
const STRIP: usize = 6;

/// The right side of a product, `[K, N]`.
pub struct Weight {
    tensor: FlexTensor,
    /// Whether columns lie together in memory, and not rows.
    pub transposed: bool,
}

impl Weight {
    fn of(w: Tensor<Flex, 2>) -> Self {
        let [k, n] = w.dims();
        let tensor = w.into_primitive().tensor();
        let transposed = tensor.layout().strides() == [1, k as isize];
        let dense = transposed || tensor.layout().strides() == [n as isize, 1];
        Self { tensor: if dense { tensor } else { tensor.to_contiguous() }, transposed }
    }

    /// From the first on.
    pub fn values(&self) -> &[f32] {
        &self.tensor.storage()[self.tensor.layout().start_offset()..]
    }
}

/// `[R, K]`·`[K, N]` → `[R, N]`; the right side may be a view of any strides. Every sum is formed in the order of K, whatever the number of
/// rows, columns or threads.
pub fn matmul(x: Tensor<Flex, 2>, w: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let ([r, k], [rows, n]) = (x.dims(), w.dims());
    assert_eq!(k, rows, "a product of [{r}, {k}] and [{rows}, {n}]");
    let (x, w) = (Dense::of(&x), Weight::of(w));
    if r < FEW {
        return few_rows(&x, &w, [r, k, n]);
    }
    let panels = n.div_ceil(WIDTH);
    let tiles = if r * k * n < SMALL { 1 } else { rayon::current_num_threads().min(panels) };
    let edge = |tile: usize| (tile * panels / tiles * WIDTH).min(n);
    let mut out = Vec::<f32>::with_capacity(r * n);
    let target = Out(out.as_mut_ptr());
    (0..tiles).into_par_iter().for_each(|tile| multiply(&x, &w, [r, k, n], edge(tile)..edge(tile + 1), &target));
    // SAFETY: the tiles cover all r·n elements.
    unsafe { out.set_len(r * n) };
    tensor(out, [r, n])
}

/// Where the result goes: each task writes its own columns.
struct Out(*mut f32);

// SAFETY: no two tasks write the same element, and nobody reads before all have ended.
unsafe impl Sync for Out {}

/// Some columns of the product, panel by panel, on this thread.
fn multiply(x: &[f32], w: &Weight, [r, k, n]: [usize; 3], columns: Range<usize>, out: &Out) {
    let mut panel = vec![[0.0; WIDTH]; DEPTH.min(k)];
    for first in columns.clone().step_by(WIDTH) {
        let width = WIDTH.min(columns.end - first);
        let mut ragged = vec![0.0f32; if width < WIDTH { r * WIDTH } else { 0 }];
        // SAFETY: `out` has room for r·n elements, and nobody else writes these.
        let mut sums = match width {
            WIDTH => Sums { first: unsafe { out.0.add(first) }, stride: n },
            _ => Sums { first: ragged.as_mut_ptr(), stride: WIDTH },
        };
        for depth in (0..k).step_by(DEPTH) {
            let panel = &mut panel[..DEPTH.min(k - depth)];
            match w.transposed {
                true => fill_turned(panel, &w.values()[first * k + depth..], k, width),
                false => fill_rows(panel, &w.values()[depth * n + first..], n, width),
            }
            // SAFETY: there are r rows of sums.
            unsafe { add_products(&x[depth..], [r, k], panel, depth == 0, &mut sums) };
        }
        for (row, sums) in ragged.chunks_exact(WIDTH).enumerate() {
            // SAFETY: as above.
            unsafe { out.0.add(row * n + first).copy_from_nonoverlapping(sums.as_ptr(), width) };
        }
    }
}

/// Rows of sums, a panel wide, some of whose columns others may be writing; they begin `stride` apart.
struct Sums {
    first: *mut f32,
    stride: usize,
}

impl Sums {
    /// # Safety
    /// There must be such a row.
    #[inline(always)]
    unsafe fn row(&mut self, row: usize) -> &mut Line {
        // SAFETY: as demanded.
        unsafe { &mut *self.first.add(row * self.stride).cast() }
    }
}

/// Adds to R rows of sums the products of rows of x, which begin K apart, with the columns of a panel; nothing is there yet if they are
/// `fresh`.
///
/// # Safety
/// There must be R rows of sums.
#[pulp::with_simd(add_products = pulp::Arch::new())]
#[inline(always)]
unsafe fn add_products_on<S: Simd>(simd: S, x: &[f32], [r, k]: [usize; 2], panel: &[Line], fresh: bool, sums: &mut Sums) {
    let strip = |first| Strip { x: &x[first * k..], stride: k, first, panel, fresh };
    let whole = r / STRIP * STRIP;
    // SAFETY: as demanded.
    unsafe {
        for first in (0..whole).step_by(STRIP) {
            strip(first).add::<S, STRIP>(simd, sums);
        }
        match r - whole {
            1 => strip(whole).add::<S, 1>(simd, sums),
            2 => strip(whole).add::<S, 2>(simd, sums),
            3 => strip(whole).add::<S, 3>(simd, sums),
            4 => strip(whole).add::<S, 4>(simd, sums),
            5 => strip(whole).add::<S, 5>(simd, sums),
            _ => (),
        }
    }
}

/// A few rows of a product.
struct Strip<'a> {
    /// From the first row's first value on.
    x: &'a [f32],
    /// Between rows of x.
    stride: usize,
    /// Row of the sums.
    first: usize,
    panel: &'a [Line],
    fresh: bool,
}

impl Strip<'_> {
    /// Adds R rows.
    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(self, simd: S, sums: &mut Sums) {
        // With so many vectors of columns, the sums stay in registers.
        // SAFETY: see `add_products`.
        match S::REGISTER_COUNT {
            32.. => unsafe { self.add_vectors::<S, R, 4>(simd, sums) },
            _ => unsafe { self.add_vectors::<S, R, 2>(simd, sums) },
        }
    }

    /// C vectors of columns at a time.
    #[inline(always)]
    unsafe fn add_vectors<S: Simd, const R: usize, const C: usize>(self, simd: S, sums: &mut Sums) {
        let rows: [&[f32]; R] = std::array::from_fn(|row| &self.x[row * self.stride..][..self.panel.len()]);
        for first in (0..WIDTH).step_by(C * S::F32_LANES) {
            let columns = first..first + C * S::F32_LANES;
            let mut tile = [[simd.splat_f32s(0.0); C]; R];
            for (row, tile) in tile.iter_mut().enumerate().skip(if self.fresh { R } else { 0 }) {
                // SAFETY: see `add_products`.
                let sums = S::as_simd_f32s(unsafe { &sums.row(self.first + row)[columns.clone()] }).0;
                // In vectors: `copy_from_slice` is a call.
                for (tile, sum) in tile.iter_mut().zip(sums) {
                    *tile = *sum;
                }
            }
            for (k, line) in self.panel.iter().enumerate() {
                let line = S::as_simd_f32s(&line[columns.clone()]).0;
                for row in 0..R {
                    // SAFETY: every row is as long as the panel.
                    let x = simd.splat_f32s(unsafe { *rows[row].get_unchecked(k) });
                    for column in 0..C {
                        tile[row][column] = simd.mul_add_e_f32s(x, line[column], tile[row][column]);
                    }
                }
            }
            for (row, tile) in tile.iter().enumerate() {
                // SAFETY: see `add_products`.
                let sums = S::as_mut_simd_f32s(unsafe { &mut sums.row(self.first + row)[columns.clone()] }).0;
                for (sum, tile) in sums.iter_mut().zip(tile) {
                    *sum = *tile;
                }
            }
        }
    }
}
