//! e = softmax((Z + g) / τ)·W_E for S samples of the noise g at once, and its backward pass.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;

use crate::ops::precision::{product, product_transposed};
use crate::ops::{Kernels, SoftEmbeddings, SoftPrompt};
use crate::tensor::host;

/// See [`crate::ops::Kernels::draw`].
pub fn draw<B: Kernels>(prompt: &SoftPrompt<B>) -> Vec<Vec<u32>> {
    let n = prompt.logits.dims()[0];
    let mut tokens = Vec::with_capacity(prompt.samples);
    for (first, count) in prompt.chunks() {
        tokens.extend(B::argmax_rows(prompt.noisy(first, count)).chunks_exact(n).map(<[u32]>::to_vec));
    }
    tokens
}

/// See [`crate::ops::Kernels::entropy`].
pub fn entropy<B: Kernels>(prompt: &SoftPrompt<B>) -> Vec<f32> {
    let log_p = log_softmax(prompt.scaled(0, 1), 1);
    host((log_p.clone().exp() * log_p).sum_dim(1).neg())
}

/// See [`crate::ops::Kernels::soft_embedding`]; a group of samples at a time.
pub fn forward<B: Kernels>(prompt: &SoftPrompt<B>) -> SoftEmbeddings<B> {
    let [mut embeddings, mut largest, mut sums] = [const { Vec::new() }; 3];
    for (first, count) in prompt.chunks() {
        let y = prompt.scaled(first, count);
        let top = y.clone().max_dim(1);
        let p = (y - top.clone()).exp();
        let sum = p.clone().sum_dim(1);
        embeddings.push(product(p, &prompt.embedding) / sum.clone());
        largest.push(top);
        sums.push(sum);
    }
    let [embeddings, largest, sums] = [embeddings, largest, sums].map(|parts| Tensor::cat(parts, 0));
    SoftEmbeddings { embeddings, largest, sums }
}

/// With p = softmax(y), y = (Z + g)/τ: ds = p ⊙ (dp − Σ dp ⊙ p), dZ = Σ_samples ds/τ, dτ = −Σ ds ⊙ y / τ.
/// p is computed again from the same draws, so nothing V-wide outlives the forward pass.
pub fn backward<B: Kernels>(prompt: &SoftPrompt<B>, result: SoftEmbeddings<B>, output: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let [n, _] = prompt.logits.dims();
    let (mut logits, mut temperature) = (Tensor::zeros_like(&prompt.logits), Tensor::zeros_like(&prompt.temperature));
    for (first, count) in prompt.chunks() {
        let rows = |x: &Tensor<B, 2>| x.clone().narrow(0, first * n, count * n);
        let y = prompt.scaled(first, count);
        let p = (y.clone() - rows(&result.largest)).exp() / rows(&result.sums);
        let dp = product_transposed(rows(&output), &prompt.embedding);
        let mean = (dp.clone() * p.clone()).sum_dim(1);
        let ds = p * (dp - mean);
        let dy = (ds.clone() * y).sum_dim(1);
        for sample in 0..count {
            logits = logits + ds.clone().narrow(0, sample * n, n);
            temperature = temperature - dy.clone().narrow(0, sample * n, n);
        }
    }
    (logits / prompt.temperature.clone(), temperature / prompt.temperature.clone())
}
