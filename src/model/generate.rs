//! Plain greedy decoding with a key/value cache.

use burn::tensor::Tensor;

use super::{Cache, Llama};
use crate::ops::Kernels;
use crate::tensor::{argmax, host, ids_tensor};

/// What a model wrote by itself, for each sequence of the batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// Token ids.
    pub ids: Vec<Vec<u32>>,
    /// Logit of each token minus that of the second best; see [`argmax`].
    pub margins: Vec<Vec<f32>>,
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
