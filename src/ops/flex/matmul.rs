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

/// With fewer rows than this, making panels takes longer than it saves.
const FEW: usize = 4;

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

/// `[R, K]`·`[K, N]` → `[R, N]`; the right side may be a view of any strides. The same bytes with any number of threads. From [`FEW`]
/// rows on, every sum is formed in the order of K: a row's product does not depend on the others.
pub fn matmul(x: Tensor<Flex, 2>, w: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let ([r, k], [rows, n]) = (x.dims(), w.dims());
    assert_eq!(k, rows, "a product of [{r}, {k}] and [{rows}, {n}]");
    let (x, w) = (Dense::of(&x), Weight::of(w));
    if r * k * n == 0 {
        return tensor(vec![0.0; r * n], [r, n]);
    }
    if r < FEW {
        return few_rows(&x, &w, [r, k, n]);
    }
    let panels = n.div_ceil(WIDTH);
    let tiles = if r * k * n < SMALL { 1 } else { rayon::current_num_threads().min(panels) };
    let edge = |tile: usize| (tile * panels / tiles * WIDTH).min(n);
    let mut out = vec![0.0f32; r * n];
    let target = Out(out.as_mut_ptr());
    (0..tiles).into_par_iter().for_each(|tile| multiply(&x, &w, [r, k, n], edge(tile)..edge(tile + 1), &target));
    tensor(out, [r, n])
}

/// Where the result goes: each task writes its own columns.
struct Out(*mut f32);

// SAFETY: no two tasks touch the same element, and nobody else does before all have ended.
unsafe impl Sync for Out {}

/// Some columns of the product, panel by panel, on this thread.
fn multiply(x: &[f32], w: &Weight, [r, k, n]: [usize; 3], columns: Range<usize>, out: &Out) {
    let mut panel = vec![[0.0; WIDTH]; DEPTH.min(k)];
    for first in columns.clone().step_by(WIDTH) {
        let width = WIDTH.min(columns.end - first);
        let mut ragged = vec![0.0f32; if width < WIDTH { r * WIDTH } else { 0 }];
        // SAFETY: `out` has r·n elements, and nobody else touches these columns.
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
            unsafe { add_products(&x[depth..], [r, k], panel, &mut sums) };
        }
        for (row, sums) in ragged.chunks_exact(WIDTH).enumerate() {
            // SAFETY: as above.
            unsafe { out.0.add(row * n + first).copy_from_nonoverlapping(sums.as_ptr(), width) };
        }
    }
}

/// Rows of sums, a panel wide; they begin `stride` apart, and others may be writing what lies between them.
struct Sums {
    first: *mut f32,
    stride: usize,
}

impl Sums {
    /// # Safety
    /// There must be such a row, and nobody else may use it.
    #[inline(always)]
    unsafe fn row(&mut self, row: usize) -> &mut Line {
        // SAFETY: see above.
        unsafe { &mut *self.first.add(row * self.stride).cast() }
    }
}

/// Adds to R rows of sums the products of rows of x, which begin K apart, with the columns of a panel.
///
/// # Safety
/// There must be R rows of sums, which nobody else uses.
#[pulp::with_simd(add_products = pulp::Arch::new())]
#[inline(always)]
unsafe fn add_products_on<S: Simd>(simd: S, x: &[f32], [r, k]: [usize; 2], panel: &[Line], sums: &mut Sums) {
    let strip = |first| Strip { x: &x[first * k..], stride: k, first, panel };
    let whole = r / STRIP * STRIP;
    // SAFETY: see above.
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
            0 => (),
            _ => unreachable!("fewer than a strip"),
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
            for (row, tile) in tile.iter_mut().enumerate() {
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

#[cfg(test)]
mod tests {
    //! The kernels of machines unlike the one that the tests run on.

    use super::*;

    struct AddProducts<'a> {
        x: &'a [f32],
        dims: [usize; 2],
        panel: &'a [Line],
        sums: Sums,
    }

    impl pulp::WithSimd for AddProducts<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, simd: S) {
            // SAFETY: the test below made as many rows.
            unsafe { add_products_on(simd, self.x, self.dims, self.panel, &mut self.sums) }
        }
    }

    fn products(r: usize, x: &[f32], panel: &[Line], run: impl Fn(AddProducts)) -> Vec<f32> {
        let mut sums = vec![1.0f32; r * WIDTH];
        let target = Sums { first: sums.as_mut_ptr(), stride: WIDTH };
        run(AddProducts { x, dims: [r, panel.len()], panel, sums: target });
        sums
    }

    #[test]
    fn narrow_vectors_multiply_too() {
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        let panel: Vec<Line> = (0..40).map(|k| std::array::from_fn(|column| value(k * WIDTH + column))).collect();
        for r in 6..=11 {
            let x: Vec<f32> = (0..r * panel.len()).map(|i| value(i * 3)).collect();
            let product = |at: usize| {
                let (row, column) = (&x[at / WIDTH * panel.len()..], at % WIDTH);
                1.0 + row.iter().zip(&panel).map(|(x, line)| x * line[column]).sum::<f32>()
            };
            let near = |sums: Vec<f32>| sums.iter().enumerate().all(|(at, sum)| (sum - product(at)).abs() < 1e-4);
            assert!(near(products(r, &x, &panel, |job| pulp::WithSimd::with_simd(job, pulp::Scalar::new()))));
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = pulp::x86::V3::try_new() {
                assert!(near(products(r, &x, &panel, |job| pulp::Simd::vectorize(v3, job))));
            }
        }
    }
}
