//! Plain greedy decoding with a key/value cache.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::{Cache, Llama};
use crate::ops::Kernels;

/// What a model wrote by itself, one row for each sequence of the batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// Token ids.
    pub ids: Vec<Vec<u32>>,
    /// How far each token was ahead of the second best, in logits.
    pub margins: Vec<Vec<f32>>,
}

/// Token ids as a tensor `[S, T]`; all rows must have the same length.
pub fn ids_tensor<B: Backend>(rows: &[impl AsRef<[u32]>], device: &B::Device) -> Tensor<B, 2, Int> {
    let shape = [rows.len(), rows.first().map_or(0, |row| row.as_ref().len())];
    let ids: Vec<i64> = rows.iter().flat_map(|row| row.as_ref().iter().map(|&id| i64::from(id))).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// Feeds `prompt` `[S, T, D]` and lets the model write `tokens` tokens, its own argmax fed back.
///
/// Writing ends early only after a token of `stop`, and only for a batch of one. Of equal logits the lowest id wins.
pub fn greedy<B: Kernels>(model: &Llama<B>, prompt: Tensor<B, 3>, tokens: usize, stop: &[u32]) -> Generation {
    let samples = prompt.dims()[0];
    let mut cache = Cache::new(model.config().num_hidden_layers, samples);
    let mut out = Generation { ids: vec![Vec::new(); samples], margins: vec![Vec::new(); samples] };
    let mut input = prompt;
    for _ in 0..tokens {
        let [s, t, d] = input.dims();
        cache.grow(cache.len() + t);
        let last = model.hidden_cached(input.reshape([s * t, d]), &mut cache, 1);
        let logits = host(model.logits(last));
        let vocabulary = logits.len() / samples;
        let next: Vec<[u32; 1]> = logits
            .chunks_exact(vocabulary)
            .enumerate()
            .map(|(sample, row)| {
                let (id, margin) = argmax(row);
                out.ids[sample].push(id);
                out.margins[sample].push(margin);
                [id]
            })
            .collect();
        if samples == 1 && stop.contains(&next[0][0]) {
            break;
        }
        input = model.embed(ids_tensor(&next, &model.device()));
    }
    out
}

/// The position of the largest value, the first of equals, and how far it is ahead of the second.
pub fn argmax(row: &[f32]) -> (u32, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (id, &value) in row.iter().enumerate() {
        if value > first {
            (best, second, first) = (id as u32, first, value);
        } else if value > second {
            second = value;
        }
    }
    (best, first - second)
}

/// The [`argmax`] of every row of `logits` `[R, V]`, `[R]`.
pub fn argmax_rows<B: Backend>(logits: Tensor<B, 2>) -> Vec<u32> {
    let v = logits.dims()[1];
    host(logits).chunks_exact(v).map(|row| argmax(row).0).collect()
}

/// The values of a tensor, row-major.
pub fn host<B: Backend, const R: usize>(tensor: Tensor<B, R>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("converted to f32")
}
