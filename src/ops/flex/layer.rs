//! A decoder layer's blocks and their backward passes, and Adam.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use pulp::Simd;
use rayon::prelude::*;

use super::vector::{add_mixed, dot, exp, softmax};
use super::{Dense, TASK, map_chunks, tensor};
use crate::optimiser::{AdamStep, Moments};

type Matrix = Tensor<Flex, 2>;

pub fn rms_norm(x: Matrix, weight: Tensor<Flex, 1>, epsilon: f64) -> Matrix {
    let (width, weight) = (x.dims()[1], Dense::of(&weight));
    map_chunks(&x, width, |_, x, out| rms_norm_rows(&weight, epsilon as f32, x, out))
}

#[pulp::with_simd(rms_norm_rows = pulp::Arch::new())]
#[inline(always)]
fn rms_norm_rows_on<S: Simd>(_: S, weight: &[f32], epsilon: f32, x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let scale = inverse_root(x, epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// The gradient of x; see [`crate::ops::layer::rms_norm_backward`].
pub fn rms_norm_backward(x: Matrix, weight: Tensor<Flex, 1>, epsilon: f64, output: Matrix) -> Matrix {
    let (width, weight, output) = (x.dims()[1], Dense::of(&weight), Dense::of(&output));
    map_chunks(&x, width, |start, x, out| rms_norm_backward_rows(&weight, epsilon as f32, x, &output[start..], out))
}

#[pulp::with_simd(rms_norm_backward_rows = pulp::Arch::new())]
#[inline(always)]
fn rms_norm_backward_rows_on<S: Simd>(_: S, weight: &[f32], epsilon: f32, x: &[f32], output: &[f32], out: &mut [f32]) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(output.chunks_exact(width));
    for ((x, output), out) in rows.zip(out.chunks_exact_mut(width)) {
        let scale = inverse_root(x, epsilon);
        for ((out, output), weight) in out.iter_mut().zip(output).zip(weight) {
            *out = output * weight;
        }
        let mean = dot(out, x) / width as f32 * scale * scale;
        for (out, x) in out.iter_mut().zip(x) {
            *out = (*out - x * mean) * scale;
        }
    }
}

/// 1/√(mean(x²) + ε).
#[inline(always)]
fn inverse_root(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt()
}

pub fn swiglu(gate: Matrix, up: Matrix) -> Matrix {
    let up = Dense::of(&up);
    map_chunks(&gate, 1, |start, gate, out| swiglu_values(gate, &up[start..], out))
}

#[pulp::with_simd(swiglu_values = pulp::Arch::new())]
#[inline(always)]
fn swiglu_values_on<S: Simd>(_: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// Gradients of (gate, up); see [`crate::ops::layer::swiglu_backward`].
pub fn swiglu_backward(gate: Matrix, up: Matrix, output: Matrix) -> (Matrix, Matrix) {
    let (shape, gate, up, output) = (gate.dims(), Dense::of(&gate), Dense::of(&up), Dense::of(&output));
    let (mut dgate, mut dup) = (vec![0.0f32; gate.len()], vec![0.0f32; gate.len()]);
    let chunks = dgate.par_chunks_mut(TASK).zip(dup.par_chunks_mut(TASK)).enumerate();
    chunks.for_each(|(i, (dgate, dup))| swiglu_backward_values(&gate[i * TASK..], &up[i * TASK..], &output[i * TASK..], dgate, dup));
    (tensor(dgate, shape), tensor(dup, shape))
}

#[pulp::with_simd(swiglu_backward_values = pulp::Arch::new())]
#[inline(always)]
fn swiglu_backward_values_on<S: Simd>(_: S, gate: &[f32], up: &[f32], output: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let inputs = gate.iter().zip(up).zip(output);
    for ((dgate, dup), ((&gate, &up), &output)) in dgate.iter_mut().zip(dup).zip(inputs) {
        let sigma = 1.0 / (1.0 + exp(-gate));
        *dgate = output * up * sigma * (1.0 + gate * (1.0 - sigma));
        *dup = output * gate * sigma;
    }
}

pub fn rotate(x: Matrix, cos: Matrix, sin: Matrix, head_dim: usize) -> Matrix {
    let (line, cos, sin) = (cos.dims()[1], Dense::of(&cos), Dense::of(&sin));
    map_chunks(&x, head_dim, |start, x, out| {
        for (head, (x, out)) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let at = (start + head * head_dim) % line;
            rotate_head(x, &cos[at..at + head_dim], &sin[at..at + head_dim], out);
        }
    })
}

#[inline(always)]
fn rotate_head(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = x.len() / 2;
    for i in 0..half {
        out[i] = x[i] * cos[i] + x[i + half] * sin[i];
        out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
    }
}

/// Queries, keys and values of a batch.
struct Heads {
    q: Rows,
    k: Rows,
    v: Rows,
}

impl Heads {
    /// Heads H, groups of them KV, queries T, positions past + T, and width d.
    #[inline(always)]
    fn sizes(&self) -> (usize, usize, usize, usize, usize) {
        (self.q.heads, self.k.heads, self.q.t, self.k.t, self.q.d)
    }
}

/// See [`crate::ops::layer::attention`]; the mask is the causal one by construction.
pub fn attention(q: Tensor<Flex, 4>, k: Tensor<Flex, 4>, v: Tensor<Flex, 4>) -> Matrix {
    let [s, h, t, d] = q.dims();
    let heads = Heads { q: Rows::of(q), k: Rows::of(k), v: Rows::of(v) };
    let mut out = vec![0.0f32; s * t * h * d];
    out.par_chunks_mut(t * h * d).enumerate().for_each(|(sample, out)| attend(&heads, sample, out));
    tensor(out, [s * t, h * d])
}

/// One sample's result, `[T, H·d]`.
#[pulp::with_simd(attend = pulp::Arch::new())]
#[inline(always)]
fn attend_on<S: Simd>(_: S, heads: &Heads, sample: usize, out: &mut [f32]) {
    let (h, kv, t, all, d) = heads.sizes();
    let mut weights = vec![0.0f32; padded(all)];
    for group in 0..kv {
        let (columns, values) = (transposed(&heads.k.block(sample, group), d), heads.v.block(sample, group));
        for head in group * (h / kv)..(group + 1) * (h / kv) {
            for position in 0..t {
                let weights = look(heads.q.row(sample, head, position), &columns, all - t + position + 1, &mut weights);
                add_mixed(weights.iter().copied(), &values, d, &mut out[(position * h + head) * d..][..d]);
            }
        }
    }
}

/// Gradients of (q, k, v); see [`crate::ops::layer::attention_backward`].
pub fn attention_backward(q: Tensor<Flex, 4>, k: Tensor<Flex, 4>, v: Tensor<Flex, 4>, output: Matrix) -> [Tensor<Flex, 4>; 3] {
    let ([s, h, t, d], [_, kv, all, _]) = (q.dims(), k.dims());
    let heads = Heads { q: Rows::of(q), k: Rows::of(k), v: Rows::of(v) };
    let output = Rows::of(output.reshape([s, t, h, d]).swap_dims(1, 2));
    let [mut dq, mut dk, mut dv] = [s * t * h * d, s * all * kv * d, s * all * kv * d].map(|len| vec![0.0f32; len]);
    let samples = dq.par_chunks_mut(t * h * d).zip(dk.par_chunks_mut(all * kv * d)).zip(dv.par_chunks_mut(all * kv * d));
    samples.enumerate().for_each(|(sample, ((dq, dk), dv))| attend_backward(&heads, &output, sample, dq, dk, dv));
    [(dq, t, h), (dk, all, kv), (dv, all, kv)].map(|(values, t, heads)| tensor(values, [s, t, heads, d]).swap_dims(1, 2))
}

/// One sample's gradients, `[T, H, d]` and twice `[past + T, KV, d]`.
#[pulp::with_simd(attend_backward = pulp::Arch::new())]
#[inline(always)]
fn attend_backward_on<S: Simd>(_: S, heads: &Heads, output: &Rows, sample: usize, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
    let (h, kv, t, all, d) = heads.sizes();
    let line = padded(all);
    let (mut p, mut ds) = (vec![0.0f32; t * line], vec![0.0f32; t * line]);
    for group in 0..kv {
        let (keys, values) = (heads.k.block(sample, group), heads.v.block(sample, group));
        let (key_columns, value_columns) = (transposed(&keys, d), transposed(&values, d));
        for head in group * (h / kv)..(group + 1) * (h / kv) {
            let (queries, outputs) = (heads.q.block(sample, head), output.block(sample, head));
            for i in 0..t {
                let seen = all - t + i + 1;
                let p = look(&queries[i * d..][..d], &key_columns, seen, &mut p[i * line..][..line]);
                let ds = products(&outputs[i * d..][..d], &value_columns, seen, &mut ds[i * line..][..line]);
                let (mean, scale) = (dot(p, ds), (d as f32).powf(-0.5));
                for (ds, p) in ds.iter_mut().zip(&*p) {
                    *ds = p * (*ds - mean) * scale;
                }
                add_mixed(ds.iter().copied(), &keys, d, &mut dq[(i * h + head) * d..][..d]);
            }
            for j in 0..all {
                // The first query that sees position j.
                let first = (j + t).saturating_sub(all);
                let at = (j * kv + group) * d;
                add_mixed((first..t).map(|i| ds[i * line + j]), &queries[first * d..], d, &mut dk[at..at + d]);
                add_mixed((first..t).map(|i| p[i * line + j]), &outputs[first * d..], d, &mut dv[at..at + d]);
            }
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

    /// `[d]`.
    #[inline(always)]
    fn row(&self, sample: usize, head: usize, position: usize) -> &[f32] {
        let start = self.start + sample * self.strides[0] + head * self.strides[1] + position * self.strides[2];
        &self.tensor.storage::<f32>()[start..start + self.d]
    }

    /// All positions of one head, `[T, d]`.
    fn block(&self, sample: usize, head: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.t * self.d);
        (0..self.t).for_each(|position| out.extend_from_slice(self.row(sample, head, position)));
        out
    }
}

/// Values in a vector of the widest kind. Columns are filled up to whole vectors, for [`add_mixed`] takes a remainder value by value.
const LANES: usize = 16;

/// `columns`, rounded up to whole vectors.
#[inline(always)]
fn padded(columns: usize) -> usize {
    columns.next_multiple_of(LANES)
}

/// softmax(q·kᵀ/√d) over the first `seen` positions, at the start of `weights`. Keys are columns, from [`transposed`].
#[inline(always)]
fn look<'a>(query: &[f32], columns: &[f32], seen: usize, weights: &'a mut [f32]) -> &'a mut [f32] {
    let (weights, scale) = (products(query, columns, seen, weights), (query.len() as f32).powf(-0.5));
    for weight in weights.iter_mut() {
        *weight *= scale;
    }
    softmax(weights);
    weights
}

/// The products of x `[d]` with the first `seen` columns of a matrix `[d, out.len()]`, at the start of `out`.
#[inline(always)]
fn products<'a>(x: &[f32], columns: &[f32], seen: usize, out: &'a mut [f32]) -> &'a mut [f32] {
    let line = out.len();
    let whole = &mut out[..padded(seen)];
    whole.fill(0.0);
    add_mixed(x.iter().copied(), columns, line, whole);
    &mut whole[..seen]
}

/// `[T, d]` → `[d, T]`, padded.
#[inline(always)]
fn transposed(rows: &[f32], d: usize) -> Vec<f32> {
    let line = padded(rows.len() / d);
    let mut out = vec![0.0; d * line];
    for (j, row) in rows.chunks_exact(d).enumerate() {
        for (i, &x) in row.iter().enumerate() {
            out[i * line + j] = x;
        }
    }
    out
}

/// See [`crate::optimiser::adam`].
pub fn adam(step: AdamStep, value: Matrix, gradient: Matrix, moments: &mut Moments<Flex>) -> Matrix {
    let (shape, AdamStep { rule, unbias }) = (value.dims(), step);
    let (value, gradient) = (Dense::of(&value), Dense::of(&gradient));
    let (first, second) = (Dense::of(&moments.first), Dense::of(&moments.second));
    let [mut new, mut m, mut v] = [(); 3].map(|()| vec![0.0f32; value.len()]);
    let rates = [rule.beta1, 1.0 - rule.beta1, rule.beta2, 1.0 - rule.beta2, rule.learning_rate / unbias.0, 1.0 / unbias.1, rule.epsilon];
    let rates = rates.map(|x| x as f32);
    let outputs = new.par_chunks_mut(TASK).zip(m.par_chunks_mut(TASK)).zip(v.par_chunks_mut(TASK));
    outputs.enumerate().for_each(|(i, ((new, m), v))| {
        let at = i * TASK..i * TASK + new.len();
        let inputs = [&value, &gradient, &first, &second].map(|x| &x[at.clone()]);
        adam_values(&rates, inputs, new, m, v);
    });
    *moments = Moments { first: tensor(m, shape), second: tensor(v, shape) };
    tensor(new, shape)
}

#[pulp::with_simd(adam_values = pulp::Arch::new())]
#[inline(always)]
fn adam_values_on<S: Simd>(_: S, rates: &[f32; 7], inputs: [&[f32]; 4], new: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    let ([beta1, rest1, beta2, rest2, rate, root, epsilon], [value, gradient, first, second]) = (*rates, inputs);
    for j in 0..new.len() {
        m[j] = beta1 * first[j] + rest1 * gradient[j];
        v[j] = beta2 * second[j] + rest2 * gradient[j] * gradient[j];
        new[j] = value[j] - rate * m[j] / ((v[j] * root).sqrt() + epsilon);
    }
}
