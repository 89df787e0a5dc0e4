//! A few rows times a panel: what every product of matrices here comes down to, with sums that stay in registers.

use std::marker::PhantomData;

use pulp::Simd;

use super::panel::{Block, Line, WIDTH};

/// Rows that are multiplied at a time.
pub const STRIP: usize = 6;

/// The left side of a product, from its first value on: rows that begin `row` apart, of values that lie `step` apart.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// Rows of sums, a panel wide, that begin `stride` apart.
pub struct Sums<'a> {
    first: *mut f32,
    stride: usize,
    rows: usize,
    begun: bool,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Sums<'a> {
    /// Rows of a slice.
    pub fn of(values: &'a mut [f32], stride: usize, rows: usize) -> Self {
        assert!(rows == 0 || values.len() >= (rows - 1) * stride + WIDTH, "{rows} rows of sums in {} values", values.len());
        Self { first: values.as_mut_ptr(), stride, rows, begun: true, life: PhantomData }
    }

    /// Rows of a matrix that was not written yet; others may be writing what lies between them.
    ///
    /// # Safety
    /// There must be room for such rows, which nobody else uses.
    pub unsafe fn unwritten(first: *mut f32, stride: usize, rows: usize) -> Self {
        Self { first, stride, rows, begun: false, life: PhantomData }
    }

    /// How many there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether there is something to add to: what was never written counts as 0.
    pub fn are_begun(&self) -> bool {
        self.begun
    }

    /// All of them are written now.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// A row from a column on.
    ///
    /// # Safety
    /// There must be such a row.
    #[inline(always)]
    pub unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: see above.
        unsafe { self.first.add(row * self.stride + column) }
    }
}

/// Adds to sums the products of as many rows of x with the columns of a panel. The columns from `width` on may or may not be left out.
/// Every sum is formed in the order of the panel. Meanwhile what the next panel is made of is fetched.
#[pulp::with_simd(add_products = pulp::Arch::new())]
#[inline(always)]
pub fn add_products_on<S: Simd>(simd: S, x: Factors<'_>, panel: &[Line], width: usize, sums: &mut Sums<'_>, next: Option<Block<'_>>) {
    let rows = sums.rows;
    if rows == 0 || panel.is_empty() {
        return;
    }
    assert!(width <= WIDTH, "{width} columns of a panel");
    assert!((rows - 1) * x.row + (panel.len() - 1) * x.step < x.values.len(), "too few factors for {rows} rows");
    let strip = |first| Strip { x, first, panel, width, next };
    let whole = rows / STRIP * STRIP;
    // SAFETY: there are as many factors, and as many sums.
    unsafe {
        for first in (0..whole).step_by(STRIP) {
            strip(first).add::<S, STRIP>(simd, sums);
        }
        match rows - whole {
            1 => strip(whole).add::<S, 1>(simd, sums),
            2 => strip(whole).add::<S, 2>(simd, sums),
            3 => strip(whole).add::<S, 3>(simd, sums),
            4 => strip(whole).add::<S, 4>(simd, sums),
            5 => strip(whole).add::<S, 5>(simd, sums),
            0 => (),
            _ => unreachable!("fewer than a strip"),
        }
    }
    sums.begin();
}

/// A few rows of a product, from row `first`.
struct Strip<'a> {
    x: Factors<'a>,
    first: usize,
    panel: &'a [Line],
    width: usize,
    next: Option<Block<'a>>,
}

impl Strip<'_> {
    /// Adds R rows.
    ///
    /// # Safety
    /// There must be R rows of factors and of sums.
    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(self, simd: S, sums: &mut Sums) {
        // With so many vectors of columns, the sums stay in registers.
        // SAFETY: see above.
        match S::REGISTER_COUNT {
            32.. if self.width > 2 * S::F32_LANES => unsafe { self.add_vectors::<S, R, 4>(simd, sums) },
            _ => unsafe { self.add_vectors::<S, R, 2>(simd, sums) },
        }
    }

    /// C vectors of columns at a time.
    #[inline(always)]
    unsafe fn add_vectors<S: Simd, const R: usize, const C: usize>(self, simd: S, sums: &mut Sums) {
        let Factors { values, row: apart, step } = self.x;
        let x = &values[self.first * apart..];
        for first in (0..self.width).step_by(C * S::F32_LANES) {
            if let Some(next) = self.next {
                let [start, end] = [first, (first + C * S::F32_LANES).min(self.width)].map(|column| self.first * self.width + R * column);
                next.fetch(start..end, sums.rows * self.width);
            }
            let mut tile = [[simd.splat_f32s(0.0); C]; R];
            if sums.begun {
                for (row, tile) in tile.iter_mut().enumerate() {
                    for (column, tile) in tile.iter_mut().enumerate() {
                        // SAFETY: see `add`.
                        *tile = unsafe { sums.at(self.first + row, first).cast::<S::f32s>().add(column).read_unaligned() };
                    }
                }
            }
            for (k, line) in self.panel.iter().enumerate() {
                let line = S::as_simd_f32s(&line.0[first..first + C * S::F32_LANES]).0;
                for (row, tile) in tile.iter_mut().enumerate() {
                    // SAFETY: see `add`.
                    let x = simd.splat_f32s(unsafe { *x.get_unchecked(k * step + row * apart) });
                    for (column, sum) in tile.iter_mut().enumerate() {
                        *sum = simd.mul_add_e_f32s(x, line[column], *sum);
                    }
                }
            }
            for (row, tile) in tile.iter().enumerate() {
                for (column, tile) in tile.iter().enumerate() {
                    // SAFETY: see `add`.
                    unsafe { sums.at(self.first + row, first).cast::<S::f32s>().add(column).write_unaligned(*tile) };
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
        x: Factors<'a>,
        panel: &'a [Line],
        width: usize,
        sums: Sums<'a>,
        next: Option<Block<'a>>,
    }

    impl pulp::WithSimd for AddProducts<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, simd: S) {
            add_products_on(simd, self.x, self.panel, self.width, &mut self.sums, self.next)
        }
    }

    #[test]
    fn narrow_vectors_multiply_too() {
        const DEPTH: usize = 40;
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        let ahead: Vec<f32> = (0..7 * 33).map(value).collect();
        let panel: Vec<Line> = (0..DEPTH).map(|k| Line(std::array::from_fn(|column| value(k * WIDTH + column)))).collect();
        for (rows, width) in (1..=12).flat_map(|rows| [1, 16, 33, WIDTH].map(|width| (rows, width))) {
            // Rows of x together, and columns of it.
            for (row, step) in [(DEPTH + 3, 1), (1, rows + 2)] {
                let x: Vec<f32> = (0..rows * row + DEPTH * step).map(|i| value(i * 3)).collect();
                let product = |r: usize, column: usize| {
                    1.0 + panel.iter().enumerate().map(|(k, line)| x[r * row + k * step] * line.0[column]).sum::<f32>()
                };
                let transposed = step > 1;
                let (depth, across) = if transposed { (33, 7) } else { (7, 33) };
                let near = |run: &dyn Fn(AddProducts)| {
                    let mut sums = vec![1.0f32; rows * WIDTH];
                    let target = Sums::of(&mut sums, WIDTH, rows);
                    let next = Some(Block { values: &ahead, stride: 33, transposed, depth, width: across });
                    run(AddProducts { x: Factors { values: &x, row, step }, panel: &panel, width, sums: target, next });
                    let mut used = (0..rows).flat_map(|r| (0..width).map(move |column| (r, column)));
                    used.all(|(r, column)| (sums[r * WIDTH + column] - product(r, column)).abs() < 1e-4)
                };
                assert!(near(&|job| pulp::WithSimd::with_simd(job, pulp::Scalar::new())));
                assert!(near(&|job| pulp::Arch::new().dispatch(job)));
                #[cfg(target_arch = "x86_64")]
                if let Some(v3) = pulp::x86::V3::try_new() {
                    assert!(near(&|job| pulp::Simd::vectorize(v3, job)));
                }
            }
        }
    }
}
