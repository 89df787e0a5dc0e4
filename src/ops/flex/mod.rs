//! The CPU's own kernels. Burn's element-wise operations on flex run on one thread and pass over memory once each; the blocks here
//! are one pass, on all threads, compiled once for each width of vectors. What meets the vocabulary does so some
//! columns at a time, in buffers that stay in the cache.
//!
//! Everything is for f32; other types take the plain definitions.

mod attention;
mod few_rows;
mod layer;
mod matmul;
mod panel;
mod parallel;
mod rough;
mod strip;
mod vector;
mod vocabulary;

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Int, Shape, Tensor, TensorPrimitive};
use rayon::prelude::*;

use super::{AdamStep, Kernels, Moments, Parallel, Products, SoftEmbeddings, SoftPrompt, TargetLoss, reference};
use crate::objective::Objective;

/// Elements that one task handles at least, so that small tensors do not pay for threads.
const TASK: usize = 1 << 14;

impl Parallel for Flex {
    fn groups(rows: usize, each: usize, _: usize) -> usize {
        parallel::groups(rows, each)
    }

    fn at_once() -> usize {
        rayon::current_num_threads()
    }

    fn side_by_side<T: Send, J: FnOnce() -> T + Send>(jobs: Vec<J>, at_once: usize) -> Vec<T> {
        parallel::side_by_side(jobs, at_once)
    }
}

impl Kernels for Flex {
    fn soft_embedding(prompt: &SoftPrompt<Self>) -> SoftEmbeddings<Self> {
        match prompt.embedding.dtype() {
            DType::F32 => vocabulary::soft_embedding(prompt),
            _ => reference::soft_embedding::forward(prompt),
        }
    }

    fn soft_embedding_backward(
        prompt: &SoftPrompt<Self>,
        result: SoftEmbeddings<Self>,
        output: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        match prompt.embedding.dtype() {
            DType::F32 => vocabulary::soft_embedding_backward(prompt, result, output),
            _ => reference::soft_embedding::backward(prompt, result, output),
        }
    }

    fn draw(prompt: &SoftPrompt<Self>) -> Vec<Vec<u32>> {
        match prompt.logits.dtype() {
            DType::F32 => vocabulary::draw(prompt),
            _ => reference::soft_embedding::draw(prompt),
        }
    }

    fn entropy(prompt: &SoftPrompt<Self>) -> Vec<f32> {
        match prompt.logits.dtype() {
            DType::F32 => vocabulary::entropy(prompt),
            _ => reference::soft_embedding::entropy(prompt),
        }
    }

    fn margins(hidden: Tensor<Self, 2>, head: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
        match hidden.dtype() {
            DType::F32 => vocabulary::margins(Products::Full, hidden, head, targets),
            _ => reference::target_loss::margins(hidden, head, targets),
        }
    }

    fn has_rough_products() -> bool {
        rough::are_available()
    }

    fn rough_margins(hidden: Tensor<Self, 2>, head: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
        match hidden.dtype() {
            DType::F32 => vocabulary::margins(Products::Rough, hidden, head, targets),
            _ => Self::margins(hidden, head, targets),
        }
    }

    fn margins_and_cross_entropies(
        hidden: Tensor<Self, 2>,
        head: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 1>) {
        match hidden.dtype() {
            DType::F32 => vocabulary::margins_and_cross_entropies(hidden, head, targets),
            _ => reference::target_loss::margins_and_cross_entropies(hidden, head, targets),
        }
    }

    fn target_loss(
        hidden: Tensor<Self, 2>,
        head: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        objective: Objective,
    ) -> TargetLoss<Self> {
        match hidden.dtype() {
            DType::F32 => vocabulary::target_loss(hidden, head, targets, objective),
            _ => reference::target_loss::forward(hidden, head, targets, objective),
        }
    }

    fn matmul(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match x.dtype() {
            DType::F32 => matmul::matmul(Products::Full, x, weight),
            _ => x.matmul(weight),
        }
    }

    fn rough_matmul(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match x.dtype() {
            DType::F32 => matmul::matmul(Products::Rough, x, weight),
            _ => Self::matmul(x, weight),
        }
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        match x.dtype() {
            DType::F32 => layer::rms_norm(x, weight, epsilon),
            _ => reference::layer::rms_norm(x, weight, epsilon),
        }
    }

    fn rms_norm_backward(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64, output: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match x.dtype() {
            DType::F32 => layer::rms_norm_backward(x, weight, epsilon, output),
            _ => reference::layer::rms_norm_backward(x, weight, epsilon, output),
        }
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match gate.dtype() {
            DType::F32 => layer::swiglu(gate, up),
            _ => reference::layer::swiglu(gate, up),
        }
    }

    fn swiglu_backward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>, output: Tensor<Self, 2>) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        match gate.dtype() {
            DType::F32 => layer::swiglu_backward(gate, up, output),
            _ => reference::layer::swiglu_backward(gate, up, output),
        }
    }

    fn rotate(x: Tensor<Self, 2>, cos: Tensor<Self, 2>, sin: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match x.dtype() {
            DType::F32 => layer::rotate(x, cos, sin),
            _ => reference::layer::rotate(x, cos, sin),
        }
    }

    fn causal_attention(q: Tensor<Self, 4>, k: Tensor<Self, 4>, v: Tensor<Self, 4>, mask: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match q.dtype() {
            DType::F32 => attention::attention(q, k, v),
            _ => reference::layer::attention(q, k, v, mask),
        }
    }

    fn causal_attention_backward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Tensor<Self, 2>,
        output: Tensor<Self, 2>,
    ) -> [Tensor<Self, 4>; 3] {
        match q.dtype() {
            DType::F32 => attention::attention_backward(q, k, v, output),
            _ => reference::layer::attention_backward(q, k, v, mask, output),
        }
    }

    fn adam(step: AdamStep, value: Tensor<Self, 2>, gradient: Tensor<Self, 2>, moments: &mut Moments<Self>) -> Tensor<Self, 2> {
        match value.dtype() {
            DType::F32 => layer::adam(step, value, gradient, moments),
            _ => super::adam(step, value, gradient, moments),
        }
    }
}

/// The values of a tensor in row-major order, copied only where it is a view that is not.
struct Dense(FlexTensor);

impl Dense {
    fn of<const R: usize>(tensor: &Tensor<Flex, R>) -> Self {
        let tensor = tensor.clone().into_primitive().tensor();
        Self(if tensor.layout().is_contiguous() { tensor } else { tensor.to_contiguous() })
    }
}

impl std::ops::Deref for Dense {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // A contiguous view may begin inside a larger buffer.
        let (start, end) = self.0.layout().contiguous_offsets().expect("made contiguous");
        &self.0.storage()[start..end]
    }
}

fn tensor<const R: usize>(values: Vec<f32>, shape: [usize; R]) -> Tensor<Flex, R> {
    let tensor = FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::from(shape)), DType::F32);
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// Applies `work(first element, values, out)` to chunks of `x` `[R, C]` that are whole multiples of `unit`; the result is `[R, C]`.
fn map_chunks(x: &Tensor<Flex, 2>, unit: usize, work: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Tensor<Flex, 2> {
    let (shape, x) = (x.dims(), Dense::of(x));
    let chunk = unit * TASK.div_ceil(unit);
    let mut out = vec![0.0f32; x.len()];
    out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate().for_each(|(i, (out, x))| {
        work(i * chunk, x, out);
    });
    tensor(out, shape)
}

#[cfg(test)]
mod tests;
