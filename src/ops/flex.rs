//! The CPU's own kernels. Burn's element-wise operations on flex run on one thread and pass over memory once each; a layer's
//! blocks here are one pass, on all threads, compiled for the widest vectors that the processor has.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorMetadata, TensorPrimitive};
use rayon::prelude::*;

use super::{Kernels, layer};

/// Elements that one task handles at least, so that small tensors do not pay for threads.
const TASK: usize = 1 << 14;

impl Kernels for Flex {
    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        if x.dtype() != DType::F32 {
            return layer::rms_norm(x, weight, epsilon);
        }
        let (width, weight) = (x.dims()[1], contiguous(weight));
        let weight: &[f32] = weight.storage();
        map_rows(x, width, |row, out| {
            let mean_square = dot(row, row) / width as f32;
            let scale = 1.0 / (mean_square + epsilon as f32).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(row).zip(weight) {
                *out = x * scale * weight;
            }
        })
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if gate.dtype() != DType::F32 {
            return layer::swiglu(gate, up);
        }
        let width = gate.dims()[1];
        let up = contiguous(up);
        let up: &[f32] = up.storage();
        map_chunks(gate, width, |start, gate, out| {
            let up = &up[start..start + gate.len()];
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        })
    }

    fn rotate(x: Tensor<Self, 2>, cos: Tensor<Self, 2>, sin: Tensor<Self, 2>, head_dim: usize) -> Tensor<Self, 2> {
        if x.dtype() != DType::F32 {
            return layer::rotate(x, cos, sin, head_dim);
        }
        let (line, half) = (cos.dims()[1], head_dim / 2);
        let (cos, sin) = (contiguous(cos), contiguous(sin));
        let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
        map_chunks(x, head_dim, |start, x, out| {
            for (head, (x, out)) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
                let at = (start + head * head_dim) % line;
                let (cos, sin) = (&cos[at..at + head_dim], &sin[at..at + head_dim]);
                for i in 0..half {
                    out[i] = x[i] * cos[i] + x[i + half] * sin[i];
                    out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
                }
            }
        })
    }

    fn causal_attention(q: Tensor<Self, 4>, k: Tensor<Self, 4>, v: Tensor<Self, 4>, mask: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let ([s, h, t, d], [_, kv, all, _]) = (q.dims(), k.dims());
        let views = [q.clone(), k.clone(), v.clone()].map(View::new);
        let [Some(q), Some(k), Some(v)] = &views else {
            return layer::attention(q, k, v, mask);
        };
        let (past, scale) = (all - t, (d as f32).powf(-0.5));
        let mut out = vec![0.0f32; s * t * h * d];
        out.par_chunks_mut(t * h * d).enumerate().for_each(|(sample, out)| {
            let mut weights = vec![0.0f32; all];
            vectorised(|| {
                for head in 0..h {
                    let group = head / (h / kv);
                    for position in 0..t {
                        let weights = &mut weights[..past + position + 1];
                        let query = q.row(sample, head, position);
                        for (j, weight) in weights.iter_mut().enumerate() {
                            *weight = dot(query, k.row(sample, group, j)) * scale;
                        }
                        softmax(weights);
                        let out = &mut out[(position * h + head) * d..][..d];
                        for (j, &weight) in weights.iter().enumerate() {
                            for (out, value) in out.iter_mut().zip(v.row(sample, group, j)) {
                                *out += weight * value;
                            }
                        }
                    }
                }
            });
        });
        tensor(out, [s * t, h * d])
    }
}

/// A tensor of rank 4 whose last axis is dense; the others may be permuted.
struct View {
    tensor: FlexTensor,
    start: usize,
    strides: [usize; 3],
    width: usize,
}

impl View {
    fn new(tensor: Tensor<Flex, 4>) -> Option<Self> {
        let width = tensor.dims()[3];
        let tensor = tensor.into_primitive().tensor();
        let dense = tensor.dtype() == DType::F32 && tensor.layout().has_contiguous_inner() && tensor.layout().has_positive_strides();
        let start = tensor.layout().start_offset();
        let strides = std::array::from_fn(|axis| tensor.layout().strides()[axis].unsigned_abs());
        dense.then_some(Self { tensor, start, strides, width })
    }

    #[inline(always)]
    fn row(&self, a: usize, b: usize, c: usize) -> &[f32] {
        let start = self.start + a * self.strides[0] + b * self.strides[1] + c * self.strides[2];
        &self.tensor.storage::<f32>()[start..start + self.width]
    }
}

fn contiguous<const R: usize>(tensor: Tensor<Flex, R>) -> FlexTensor {
    let tensor = tensor.into_primitive().tensor();
    // A contiguous view may begin inside a larger buffer; the kernels index from its first element.
    match tensor.layout().contiguous_offsets() {
        Some((0, end)) if end == tensor.bytes().len() / size_of::<f32>() => tensor,
        _ => {
            let shape = tensor.shape();
            let whole = tensor.to_contiguous();
            let (start, end) = whole.layout().contiguous_offsets().expect("made contiguous");
            FlexTensor::new(Bytes::from_elems(whole.storage::<f32>()[start..end].to_vec()), Layout::contiguous(shape), DType::F32)
        }
    }
}

fn tensor<const R: usize>(values: Vec<f32>, shape: [usize; R]) -> Tensor<Flex, R> {
    let tensor = FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::from(shape)), DType::F32);
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// Applies `work(row, out)` to every row of `x`.
fn map_rows(x: Tensor<Flex, 2>, width: usize, work: impl Fn(&[f32], &mut [f32]) + Sync) -> Tensor<Flex, 2> {
    map_chunks(x, width, |_, x, out| {
        for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            work(row, out);
        }
    })
}

/// Applies `work(first element, values, out)` to chunks of whole multiples of `unit`.
fn map_chunks(x: Tensor<Flex, 2>, unit: usize, work: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Tensor<Flex, 2> {
    let shape = x.dims();
    let x = contiguous(x);
    let x: &[f32] = x.storage();
    let chunk = unit * TASK.div_ceil(unit);
    let mut out = vec![0.0f32; x.len()];
    out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate().for_each(|(i, (out, x))| {
        vectorised(|| work(i * chunk, x, out));
    });
    tensor(out, shape)
}

/// Runs `work`, whose loops are compiled once for each width of vectors.
#[inline(always)]
fn vectorised(work: impl FnOnce()) {
    pulp::Arch::new().dispatch(work);
}

/// Sixteen running sums, so that the loop is one of vectors, added in a fixed order.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, (a, a_rest), (b, b_rest)) = ([0.0f32; 16], a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// In place, shifted by the largest value.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let total: f32 = row.iter().sum();
    for x in row.iter_mut() {
        *x /= total;
    }
}

/// eˣ within two units in the last place, without a call: 2ⁿ·e^r with |r| ≤ ln 2 / 2 and a polynomial for e^r. What underflows is
/// (almost) 0, what overflows is very large; a NaN stays one.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.0);
    let n = (clamped * std::f32::consts::LOG2_E + 0.5).floor();
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let p = [8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0].into_iter().fold(1.398_2e-3, |p, c| p * r + c);
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    //! Every kernel against its definition in plain Burn.

    use super::*;
    use crate::model::generate::host;
    use crate::noise::{Purpose, Stream};
    use crate::testing::largest_difference;
    use proptest::prelude::*;

    fn random<const R: usize>(sample: u32, shape: [usize; R]) -> Tensor<Flex, R> {
        let count = shape.iter().product();
        tensor(Stream::new(5, 0, 0, Purpose::InitialLogits, sample).normal(1, count), shape)
    }

    fn close<const R: usize>(a: Tensor<Flex, R>, b: Tensor<Flex, R>) {
        let difference = largest_difference(&host(a), &host(b));
        assert!(difference < 2e-6, "{difference}");
    }

    #[test]
    fn layers_blocks_agree_with_their_definitions() {
        // Rows enough for several tasks, and a view that begins inside a buffer.
        let x = random(0, [701, 64]).narrow(0, 1, 700);
        let (weight, gate, up) = (random(1, [64]), random(2, [700, 64]), random(3, [64, 700]).transpose());
        close(Flex::rms_norm(x.clone(), weight.clone(), 1e-5), layer::rms_norm(x.clone(), weight, 1e-5));
        close(Flex::swiglu(gate.clone(), up.clone()), layer::swiglu(gate, up));
        let (cos, sin) = (random(4, [1, 7 * 64]), random(5, [1, 7 * 64]));
        close(Flex::rotate(x.clone(), cos.clone(), sin.clone(), 16), layer::rotate(x, cos, sin, 16));
    }

    #[test]
    fn attention_agrees_with_its_definition() {
        for (t, past) in [(7, 0), (1, 5), (3, 4)] {
            let all = t + past;
            let q = random(6, [2, t, 6, 16]).swap_dims(1, 2);
            let k = random(7, [2, all, 2, 16]).swap_dims(1, 2);
            let v = random(8, [2, 2, all, 16]);
            let mask: Vec<f32> = (0..t).flat_map(|i| (0..all).map(move |j| if j <= past + i { 0.0 } else { -1e30 })).collect();
            let mask = tensor(mask, [1, t * all]);
            close(Flex::causal_attention(q.clone(), k.clone(), v.clone(), mask.clone()), layer::attention(q, k, v, mask));
        }
    }

    #[test]
    fn exp_keeps_its_ends() {
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(-1e30) < 1e-37 && exp(f32::NAN).is_nan());
        assert!(exp(1e30) > 1e38 && exp(1e30).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    proptest! {
        #[test]
        fn exp_is_exp(x in -87f32..88.0) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() < 3e-7, "{} {}", exp(x), x.exp());
        }
    }
}
