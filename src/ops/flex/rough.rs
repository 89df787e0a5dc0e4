//! Products whose factors are rounded to bf16 and summed in f32: twice as many a second, where the processor has them.

use super::panel::{Block, Line, WIDTH};
use super::strip::Sums;

/// Two values of each column, one after the other in depth, as bf16. Aligned, so that no vector of it lies in two lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct PairLine([u32; WIDTH]);

impl PairLine {
    pub const ZERO: Self = Self([0; WIDTH]);
}

/// Rows of K values as pairs of bf16; where K is odd, the last is with 0.
pub struct Pairs {
    values: Vec<u32>,
    /// Pairs of a row.
    row: usize,
}

#[cfg(not(target_arch = "x86_64"))]
mod here {
    use super::*;

    pub fn are_available() -> bool {
        false
    }

    impl Pairs {
        pub fn of(_: &[f32], _: usize) -> Self {
            unreachable!("not on this processor")
        }
    }

    pub fn add_products(_: &Pairs, _: usize, _: &[Line], _: &mut [PairLine], _: &mut Sums, _: Option<Block>) {
        unreachable!("not on this processor")
    }
}

#[cfg(target_arch = "x86_64")]
mod here {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::*;
    use crate::ops::flex::strip::STRIP;

    /// Values of a vector.
    const LANES: usize = 16;
    /// Vectors of a line of a panel.
    const VECTORS: usize = WIDTH / LANES;

    /// Whether the processor multiplies so.
    pub fn are_available() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16")
    }

    impl Pairs {
        /// Rows of `k` values. Only where such products [`are_available`].
        pub fn of(x: &[f32], k: usize) -> Self {
            assert!(are_available(), "bf16 products on a processor without");
            let row = k.div_ceil(2);
            let mut values = vec![0; x.len() / k * row];
            for (x, pairs) in x.chunks_exact(k).zip(values.chunks_exact_mut(row)) {
                // SAFETY: the processor can.
                unsafe { round_row(x, pairs) };
            }
            Self { values, row }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round_row(x: &[f32], pairs: &mut [u32]) {
        let (whole, rest) = x.as_chunks::<{ 2 * LANES }>();
        let (vectors, last) = pairs.split_at_mut(whole.len() * LANES);
        for (x, pairs) in whole.iter().zip(vectors.as_chunks_mut::<LANES>().0) {
            // SAFETY: both are as long as what is read and written.
            unsafe {
                let [low, high] = [0, LANES].map(|at| _mm512_loadu_ps(x[at..].as_ptr()));
                let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), rounded);
            }
        }
        for (x, pair) in rest.chunks(2).zip(last) {
            let bits = |x: Option<&f32>| u32::from(x.map_or(0, |x| bf16::from_f32(*x).to_bits()));
            *pair = bits(x.first()) | bits(x.get(1)) << 16;
        }
    }

    /// Adds to sums the products of as many rows of x, from the value `depth` of each on, with the columns of a panel, for which `pairs` is
    /// room. Every sum is formed in the order of the panel. Meanwhile what the next panel is made of is fetched.
    pub fn add_products(x: &Pairs, depth: usize, panel: &[Line], pairs: &mut [PairLine], sums: &mut Sums, next: Option<Block>) {
        let count = panel.len().div_ceil(2);
        assert!(depth.is_multiple_of(2) && depth / 2 + count <= x.row, "{count} pairs of a row of {} from {depth} on", x.row);
        assert!(sums.rows() * x.row <= x.values.len(), "too few factors for {} rows", sums.rows());
        // SAFETY: there were no pairs without such a processor; there are as many factors, and as many sums.
        unsafe {
            round_panel(panel, &mut pairs[..count]);
            add_pairs(&x.values[depth / 2..], x.row, &pairs[..count], sums, next);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn round_panel(panel: &[Line], pairs: &mut [PairLine]) {
        // A value of the first line, then one of the second.
        let order: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
        for (lines, pairs) in panel.chunks(2).zip(pairs) {
            let second = lines.get(1).unwrap_or(&Line::ZERO);
            for at in (0..WIDTH).step_by(LANES) {
                // SAFETY: vectors of lines.
                unsafe {
                    let order = _mm512_loadu_si512(order.as_ptr().cast());
                    let [first, second] = [&lines[0], second].map(|line| _mm512_load_ps(line.0[at..].as_ptr()));
                    let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                    _mm512_store_si512(pairs.0[at..].as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, rounded));
                }
            }
        }
    }

    /// # Safety
    /// There must be factors for all rows of sums.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add_pairs(x: &[u32], apart: usize, panel: &[PairLine], sums: &mut Sums, next: Option<Block>) {
        let rows = sums.rows();
        let whole = rows / STRIP * STRIP;
        let strip = |first| Strip { x, apart, first, panel, next };
        // SAFETY: see above.
        unsafe {
            for first in (0..whole).step_by(STRIP) {
                strip(first).add::<STRIP>(sums);
            }
            match rows - whole {
                1 => strip(whole).add::<1>(sums),
                2 => strip(whole).add::<2>(sums),
                3 => strip(whole).add::<3>(sums),
                4 => strip(whole).add::<4>(sums),
                5 => strip(whole).add::<5>(sums),
                0 => (),
                _ => unreachable!("fewer than a strip"),
            }
        }
        sums.begin();
    }

    /// A few rows of a product, from row `first`.
    struct Strip<'a> {
        x: &'a [u32],
        /// From one row of x to the next.
        apart: usize,
        first: usize,
        panel: &'a [PairLine],
        next: Option<Block<'a>>,
    }

    impl Strip<'_> {
        /// Adds R rows.
        ///
        /// # Safety
        /// There must be R rows of factors and of sums.
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn add<const R: usize>(self, sums: &mut Sums) {
            if let Some(next) = self.next {
                next.fetch(self.first..self.first + R, sums.rows());
            }
            let mut tile = [[_mm512_setzero_ps(); VECTORS]; R];
            // SAFETY: see above.
            unsafe {
                if sums.are_begun() {
                    for (row, tile) in tile.iter_mut().enumerate() {
                        for (vector, tile) in tile.iter_mut().enumerate() {
                            *tile = _mm512_loadu_ps(sums.at(self.first + row, vector * LANES));
                        }
                    }
                }
                let x = self.x.as_ptr().add(self.first * self.apart);
                for (k, line) in self.panel.iter().enumerate() {
                    let line: [__m512i; VECTORS] =
                        std::array::from_fn(|vector| _mm512_load_si512(line.0.as_ptr().add(vector * LANES).cast()));
                    for (row, tile) in tile.iter_mut().enumerate() {
                        let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x.add(row * self.apart + k) as i32));
                        for (sum, line) in tile.iter_mut().zip(line) {
                            *sum = _mm512_dpbf16_ps(*sum, x, std::mem::transmute::<__m512i, __m512bh>(line));
                        }
                    }
                }
                for (row, tile) in tile.iter().enumerate() {
                    for (vector, tile) in tile.iter().enumerate() {
                        _mm512_storeu_ps(sums.at(self.first + row, vector * LANES), *tile);
                    }
                }
            }
        }
    }
}

pub use here::{add_products, are_available};
