//! Causal attention and its backward pass: a strip of queries at a time against panels of keys and values.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use pulp::Simd;
use rayon::prelude::*;

use super::panel::{Block, Line, WIDTH};
use super::strip::{Factors, STRIP, Sums, add_products};
use super::tensor;
use super::vector::{dot, softmax};

/// Queries, keys and values of a batch.
struct Heads {
    q: Rows,
    k: Rows,
    v: Rows,
}

impl Heads {
    /// Heads H, groups of them KV, queries T, positions past + T, and width d.
    fn sizes(&self) -> (usize, usize, usize, usize, usize) {
        (self.q.heads, self.k.heads, self.q.t, self.k.t, self.q.d)
    }
}

/// See [`crate::ops::reference::layer::attention`]; the mask is the causal one by construction.
pub fn attention(q: Tensor<Flex, 4>, k: Tensor<Flex, 4>, v: Tensor<Flex, 4>) -> Tensor<Flex, 2> {
    let [s, h, t, d] = q.dims();
    let heads = Heads { q: Rows::of(q), k: Rows::of(k), v: Rows::of(v) };
    let mut out = vec![0.0f32; s * t * h * d];
    out.par_chunks_mut(t * h * d).enumerate().for_each(|(sample, out)| attend(&heads, sample, out));
    tensor(out, [s * t, h * d])
}

/// One sample's result, `[T, H·d]`.
fn attend(heads: &Heads, sample: usize, out: &mut [f32]) {
    let (h, kv, t, all, d) = heads.sizes();
    let (mut weights, mut sums) = (vec![0.0f32; STRIP * padded(all)], vec![0.0f32; STRIP * padded(d)]);
    for group in 0..kv {
        let (keys, values) = (heads.k.columns(sample, group), heads.v.panels(sample, group));
        for head in group * (h / kv)..(group + 1) * (h / kv) {
            for rows in strips(t) {
                look(heads.q.factors(sample, head, rows.start), &keys, &rows, all - t, &mut weights);
                sums.fill(0.0);
                values.multiply(Factors { values: &weights, row: padded(all), step: 1 }, rows.len(), 0..all - t + rows.end, d, &mut sums);
                put(&sums, d, rows, |row| (row * h + head) * d, out);
            }
        }
    }
}

/// Gradients of (q, k, v); see [`crate::ops::reference::layer::attention_backward`].
pub fn attention_backward(q: Tensor<Flex, 4>, k: Tensor<Flex, 4>, v: Tensor<Flex, 4>, output: Tensor<Flex, 2>) -> [Tensor<Flex, 4>; 3] {
    let ([s, h, t, d], [_, kv, all, _]) = (q.dims(), k.dims());
    let heads = Heads { q: Rows::of(q), k: Rows::of(k), v: Rows::of(v) };
    let output = Rows::of(output.reshape([s, t, h, d]).swap_dims(1, 2));
    let [mut dq, mut dk, mut dv] = [s * t * h * d, s * all * kv * d, s * all * kv * d].map(|len| vec![0.0f32; len]);
    let samples = dq.par_chunks_mut(t * h * d).zip(dk.par_chunks_mut(all * kv * d)).zip(dv.par_chunks_mut(all * kv * d));
    samples.enumerate().for_each(|(sample, ((dq, dk), dv))| attend_backward(&heads, &output, sample, dq, dk, dv));
    [(dq, t, h), (dk, all, kv), (dv, all, kv)].map(|(values, t, heads)| tensor(values, [s, t, heads, d]).swap_dims(1, 2))
}

/// One sample's gradients, `[T, H, d]` and twice `[past + T, KV, d]`.
fn attend_backward(heads: &Heads, output: &Rows, sample: usize, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
    let (h, kv, t, all, d) = heads.sizes();
    let (line, past) = (padded(all), all - t);
    let (mut p, mut ds, mut dq_sums) = (vec![0.0f32; t * line], vec![0.0f32; t * line], vec![0.0f32; STRIP * padded(d)]);
    for group in 0..kv {
        let (keys, key_columns, value_columns) =
            (heads.k.panels(sample, group), heads.k.columns(sample, group), heads.v.columns(sample, group));
        let [mut dk_sums, mut dv_sums] = [(); 2].map(|()| vec![0.0f32; all * padded(d)]);
        for head in group * (h / kv)..(group + 1) * (h / kv) {
            for rows in strips(t) {
                let (p, ds, seen) = (&mut p[rows.start * line..], &mut ds[rows.start * line..], past + rows.end);
                look(heads.q.factors(sample, head, rows.start), &key_columns, &rows, past, p);
                ds[..rows.len() * line].fill(0.0);
                value_columns.multiply(output.factors(sample, head, rows.start), rows.len(), 0..d, seen, ds);
                softmax_backward(&p[..rows.len() * line], line, (d as f32).powf(-0.5), ds);
                dq_sums.fill(0.0);
                keys.multiply(Factors { values: ds, row: line, step: 1 }, rows.len(), 0..seen, d, &mut dq_sums);
                put(&dq_sums, d, rows, |row| (row * h + head) * d, dq);
            }
            let (queries, outputs) = (heads.q.panels(sample, head), output.panels(sample, head));
            for columns in strips(all) {
                // From the first query that sees one of these positions.
                let looking = columns.start.saturating_sub(past)..t;
                let at = looking.start * line + columns.start;
                for (weights, rows, sums) in [(&ds, &queries, &mut dk_sums), (&p, &outputs, &mut dv_sums)] {
                    let weights = Factors { values: &weights[at..], row: 1, step: line };
                    rows.multiply(weights, columns.len(), looking.clone(), d, &mut sums[columns.start * padded(d)..]);
                }
            }
        }
        put(&dk_sums, d, 0..all, |row| (row * kv + group) * d, dk);
        put(&dv_sums, d, 0..all, |row| (row * kv + group) * d, dv);
    }
}

/// Up to [`STRIP`] rows at a time.
fn strips(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(STRIP).map(move |first| first..(first + STRIP).min(rows))
}

/// Copies rows of d sums, which are padded, to where they belong.
fn put(sums: &[f32], d: usize, rows: Range<usize>, place: impl Fn(usize) -> usize, out: &mut [f32]) {
    for (row, sums) in rows.zip(sums.chunks_exact(padded(d))) {
        out[place(row)..][..d].copy_from_slice(&sums[..d]);
    }
}

/// softmax(q·kᵀ/√d) of the queries `rows`, `[rows, padded(past + T)]`; 0 where a query does not look.
fn look(queries: Factors, keys: &Panels, rows: &Range<usize>, past: usize, weights: &mut [f32]) {
    let line = padded(keys.columns);
    let weights = &mut weights[..rows.len() * line];
    weights.fill(0.0);
    keys.multiply(queries, rows.len(), 0..keys.depth, past + rows.end, weights);
    for (row, weights) in rows.clone().zip(weights.chunks_exact_mut(line)) {
        causal_softmax(weights, past + row + 1, (keys.depth as f32).powf(-0.5));
    }
}

/// Values of the widest vector: a row is taken in whole ones.
const LANES: usize = 16;

/// Of the first `seen` values, multiplied by `scale`; the others become 0.
#[pulp::with_simd(causal_softmax = pulp::Arch::new())]
#[inline(always)]
fn causal_softmax_on<S: Simd>(_: S, row: &mut [f32], seen: usize, scale: f32) {
    let (looking, beyond) = row.split_at_mut(seen.next_multiple_of(LANES));
    beyond.fill(0.0);
    for x in looking.iter_mut() {
        *x *= scale;
    }
    looking[seen..].fill(f32::NEG_INFINITY);
    softmax(looking);
}

/// The gradients of a few rows' products q·kᵀ from those of their weights p, in place; 0 where p is.
#[pulp::with_simd(softmax_backward = pulp::Arch::new())]
#[inline(always)]
fn softmax_backward_on<S: Simd>(_: S, p: &[f32], line: usize, scale: f32, ds: &mut [f32]) {
    for (p, ds) in p.chunks_exact(line).zip(ds.chunks_exact_mut(line)) {
        let mean = dot(p, ds);
        for (ds, p) in ds.iter_mut().zip(p) {
            *ds = p * (*ds - mean) * scale;
        }
    }
}

/// Rows of a tensor `[S, heads, T, d]`, which may be a view with its axes permuted.
struct Rows {
    tensor: FlexTensor,
    start: usize,
    strides: [usize; 3],
    heads: usize,
    t: usize,
    d: usize,
}

impl Rows {
    fn of(tensor: Tensor<Flex, 4>) -> Self {
        let [_, heads, t, d] = tensor.dims();
        let tensor = tensor.into_primitive().tensor();
        let plain = tensor.layout().has_contiguous_inner() && tensor.layout().has_positive_strides();
        let tensor = if plain { tensor } else { tensor.to_contiguous() };
        let start = tensor.layout().start_offset();
        let strides = std::array::from_fn(|axis| tensor.layout().strides()[axis].unsigned_abs());
        Self { tensor, start, strides, heads, t, d }
    }

    /// One head from a position on.
    fn factors(&self, sample: usize, head: usize, position: usize) -> Factors<'_> {
        let start = self.start + sample * self.strides[0] + head * self.strides[1] + position * self.strides[2];
        Factors { values: &self.tensor.storage()[start..], row: self.strides[2], step: 1 }
    }

    /// One head as a matrix `[T, d]`.
    fn panels(&self, sample: usize, head: usize) -> Panels {
        let Factors { values, row, .. } = self.factors(sample, head, 0);
        Panels::of(Block { values, stride: row, transposed: false, depth: self.t, width: self.d })
    }

    /// The same transposed, `[d, T]`.
    fn columns(&self, sample: usize, head: usize) -> Panels {
        let Factors { values, row, .. } = self.factors(sample, head, 0);
        Panels::of(Block { values, stride: row, transposed: true, depth: self.d, width: self.t })
    }
}

/// All columns of a matrix, panel after panel.
struct Panels {
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
}

/// Columns of all panels.
fn padded(columns: usize) -> usize {
    columns.next_multiple_of(WIDTH)
}

impl Panels {
    fn of(matrix: Block) -> Self {
        let Block { depth, width: columns, .. } = matrix;
        let mut lines = vec![Line::ZERO; depth * columns.div_ceil(WIDTH)];
        for (panel, first) in lines.chunks_exact_mut(depth).zip((0..columns).step_by(WIDTH)) {
            matrix.part(0..depth, first..(first + WIDTH).min(columns)).fill(panel);
        }
        Self { lines, depth, columns }
    }

    /// Adds to `sums` `[rows, padded(columns)]` the products of x with the values `depth` of the first `columns` columns, at least.
    fn multiply(&self, x: Factors, rows: usize, depth: Range<usize>, columns: usize, sums: &mut [f32]) {
        for (panel, first) in self.lines.chunks_exact(self.depth).zip((0..columns).step_by(WIDTH)) {
            let mut sums = Sums::of(&mut sums[first..], padded(self.columns), rows);
            add_products(x, &panel[depth.clone()], WIDTH.min(columns - first), &mut sums, None);
        }
    }
}
