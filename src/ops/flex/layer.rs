//! A decoder layer's blocks but attention, their backward passes, and Adam.

use burn::backend::Flex;
use burn::tensor::Tensor;
use pulp::Simd;
use rayon::prelude::*;

use super::vector::{dot, exp};
use super::{Dense, TASK, map_chunks, tensor};
use crate::ops::{AdamStep, Moments};

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

/// The gradient of x; see [`crate::ops::reference::layer::rms_norm_backward`].
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

/// Gradients of (gate, up); see [`crate::ops::reference::layer::swiglu_backward`].
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

pub fn rotate(x: Matrix, cos: Matrix, sin: Matrix) -> Matrix {
    let ([_, width], [line, head_dim]) = (x.dims(), cos.dims());
    let (cos, sin) = (Dense::of(&cos), Dense::of(&sin));
    map_chunks(&x, head_dim, |start, x, out| {
        for (head, (x, out)) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let at = (start + head * head_dim) / width % line * head_dim;
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

/// See [`crate::ops::adam`].
pub fn adam(step: AdamStep, value: Matrix, gradient: Matrix, moments: &mut Moments<Flex>) -> Matrix {
    let (shape, AdamStep { learning_rate, beta1, beta2, epsilon, bias_correction }) = (value.dims(), step);
    let (value, gradient) = (Dense::of(&value), Dense::of(&gradient));
    let (first, second) = (Dense::of(&moments.first), Dense::of(&moments.second));
    let [mut new, mut m, mut v] = [(); 3].map(|()| vec![0.0f32; value.len()]);
    let (rate, root) = (learning_rate / bias_correction.0, 1.0 / bias_correction.1);
    let rates = [beta1, 1.0 - beta1, beta2, 1.0 - beta2, rate, root, epsilon];
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
