//! Panels of a matrix: some of its columns, so laid out that a product reads them in order.

use std::ops::Range;

use pulp::Simd;

/// Columns of a panel.
pub const WIDTH: usize = 64;

/// Values of a column in a panel: two of them, and the rows that meet them, stay in the second cache.
pub const DEPTH: usize = 256;

/// One value of each column. Aligned, so that no vector of it lies in two lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [f32; WIDTH]);

impl Line {
    pub const ZERO: Self = Self([0.0; WIDTH]);
}

/// A matrix, or a part of one: what panels are filled with.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// From its first value on.
    pub values: &'a [f32],
    /// From one row to the next or, if transposed, from one column to the next.
    pub stride: usize,
    /// Whether columns lie together in memory, and not rows.
    pub transposed: bool,
    /// Rows.
    pub depth: usize,
    /// Columns.
    pub width: usize,
}

impl Block<'_> {
    pub fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let start = match self.transposed {
            true => columns.start * self.stride + rows.start,
            false => rows.start * self.stride + columns.start,
        };
        Self { values: &self.values[start..], depth: rows.len(), width: columns.len(), ..self }
    }

    /// Fills a panel of as many rows; its columns beyond the block's are 0.
    pub fn fill(self, panel: &mut [Line]) {
        assert!(panel.len() == self.depth && self.width <= WIDTH, "a panel of {} rows for {}x{}", panel.len(), self.depth, self.width);
        match self.transposed {
            true => fill_transposed(self, panel),
            false => fill_rows(self, panel),
        }
    }

    /// Has the processor fetch a part of the block, as large as `part` is of `whole`, while it goes on.
    #[inline(always)]
    pub fn fetch(self, part: Range<usize>, whole: usize) {
        let (runs, len) = if self.transposed { (self.width, self.depth) } else { (self.depth, self.width) };
        let lines = len.div_ceil(CACHE_LINE);
        let [first, end] = [part.start, part.end].map(|at| runs * lines * at / whole);
        let (mut run, mut line) = (first / lines, first % lines);
        for _ in first..end {
            // Where the memory's lines begin elsewhere, this takes the later of two: the first was fetched with what lies before.
            prefetch(&self.values[run * self.stride + (line * CACHE_LINE + CACHE_LINE - 1).min(len - 1)]);
            line += 1;
            if line == lines {
                (run, line) = (run + 1, 0);
            }
        }
    }
}

/// Values that are fetched together.
const CACHE_LINE: usize = 16;

/// Asks for a value and its neighbours, without waiting.
#[inline(always)]
fn prefetch(value: &f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: it is in memory.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[pulp::with_simd(fill_rows = pulp::Arch::new())]
#[inline(always)]
fn fill_rows_on<S: Simd>(_: S, block: Block<'_>, panel: &mut [Line]) {
    let width = block.width;
    for (row, line) in panel.iter_mut().enumerate() {
        let row = &block.values[row * block.stride..][..width];
        if width == WIDTH {
            // In vectors: this much is a call otherwise.
            for (to, from) in S::as_mut_simd_f32s(&mut line.0).0.iter_mut().zip(S::as_simd_f32s(row).0) {
                *to = *from;
            }
        } else {
            line.0[..width].copy_from_slice(row);
            line.0[width..].fill(0.0);
        }
    }
}

fn fill_transposed(block: Block, panel: &mut [Line]) {
    if block.width < WIDTH {
        panel.fill(Line::ZERO);
    }
    let (whole, depth) = transpose_squares(block, panel);
    for (row, line) in panel.iter_mut().enumerate() {
        for column in if row < depth { whole } else { 0 }..block.width {
            line.0[column] = block.values[column * block.stride + row];
        }
    }
}

/// Side of a square that is transposed in registers.
#[cfg(target_arch = "x86_64")]
const SIDE: usize = 8;

/// Fills what can be filled in squares: how many columns, and how much of each.
#[cfg(target_arch = "x86_64")]
fn transpose_squares(block: Block, panel: &mut [Line]) -> (usize, usize) {
    if !std::is_x86_feature_detected!("avx") {
        return (0, 0);
    }
    let whole = (block.width / SIDE * SIDE, panel.len() / SIDE * SIDE);
    for first in (0..whole.0).step_by(SIDE) {
        // SAFETY: the processor has AVX.
        unsafe { transpose_squares_avx(panel, &block.values[first * block.stride..], block.stride, first) };
    }
    whole
}

/// Other processors transpose value by value.
#[cfg(not(target_arch = "x86_64"))]
fn transpose_squares(_: Block, _: &mut [Line]) -> (usize, usize) {
    (0, 0)
}

/// The squares of the columns from `first`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
fn transpose_squares_avx(panel: &mut [Line], columns: &[f32], stride: usize, first: usize) {
    use std::arch::x86_64::*;
    for (square, lines) in panel.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
        let mut x = [_mm256_setzero_ps(); SIDE];
        for column in 0..SIDE {
            let values: &[f32; SIDE] = columns[column * stride + square * SIDE..].first_chunk().expect("a square lies in the matrix");
            // SAFETY: eight values are read.
            x[column] = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        }
        // Values change places with those of the neighbour, pairs with those of the next but one, halves with those four away.
        for i in [0, 2, 4, 6] {
            (x[i], x[i + 1]) = (_mm256_unpacklo_ps(x[i], x[i + 1]), _mm256_unpackhi_ps(x[i], x[i + 1]));
        }
        let mut y = x;
        for (i, j) in [(0, 0), (1, 2), (4, 4), (5, 6)] {
            y[j] = _mm256_shuffle_ps::<0x44>(x[i], x[i + 2]);
            y[j + 1] = _mm256_shuffle_ps::<0xEE>(x[i], x[i + 2]);
        }
        for i in 0..4 {
            let halves = [_mm256_permute2f128_ps::<0x20>(y[i], y[i + 4]), _mm256_permute2f128_ps::<0x31>(y[i], y[i + 4])];
            for (line, half) in [i, i + 4].into_iter().zip(halves) {
                // SAFETY: eight values are written, within the line.
                unsafe { _mm256_storeu_ps(lines[line].0[first..first + SIDE].as_mut_ptr(), half) };
            }
        }
    }
}
