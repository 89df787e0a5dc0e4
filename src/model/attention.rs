//! Grouped-query attention with an optional key/value cache.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Tensor, activation::softmax, backend::Backend};

use super::rope::Rotation;

/// What all layers of one forward pass share.
pub struct Pass<B: Backend> {
    /// S, sequences in the batch.
    pub samples: usize,
    /// T, new positions of each sequence.
    pub len: usize,
    /// Rotation of the queries.
    pub rotate_q: Rotation<B>,
    /// Rotation of the keys.
    pub rotate_k: Rotation<B>,
    /// Additive causal mask `[1, T·(past + T)]`: 0 where a position may look, −1e30 where not.
    pub mask: Tensor<B, 2>,
}

/// Keys and values of the positions seen so far, `[S, KV, past, head_dim]` for each layer.
#[derive(Debug, Clone)]
pub struct Cache<B: Backend> {
    pub(super) layers: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
}

impl<B: Backend> Cache<B> {
    /// An empty cache for a model of `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers] }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `self_attn` of a decoder layer.
#[derive(Module, Debug)]
pub struct LlamaAttention<B: Backend> {
    /// Queries, D → H·head_dim.
    pub q_proj: Linear<B>,
    /// Keys, D → KV·head_dim.
    pub k_proj: Linear<B>,
    /// Values, D → KV·head_dim.
    pub v_proj: Linear<B>,
    /// Output, H·head_dim → D.
    pub o_proj: Linear<B>,
    #[module(skip)]
    pub(super) head_dim: usize,
    #[module(skip)]
    pub(super) use_rope: bool,
}

impl<B: Backend> LlamaAttention<B> {
    /// Attends from the T new positions to all positions so far. `x` and the result are `[S·T, D]`.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>, past: Option<&mut Option<(Tensor<B, 4>, Tensor<B, 4>)>>) -> Tensor<B, 2> {
        let mut q = self.q_proj.forward(x.clone());
        let mut k = self.k_proj.forward(x.clone());
        let v = self.v_proj.forward(x);
        if self.use_rope {
            q = pass.rotate_q.apply(q, pass.samples, self.head_dim);
            k = pass.rotate_k.apply(k, pass.samples, self.head_dim);
        }
        let (q, mut k, mut v) = (self.heads(q, pass), self.heads(k, pass), self.heads(v, pass));
        if let Some(past) = past {
            if let Some((keys, values)) = past.take() {
                k = Tensor::cat(vec![keys, k], 2);
                v = Tensor::cat(vec![values, v], 2);
            }
            *past = Some((k.clone(), v.clone()));
        }
        self.o_proj.forward(self.attend(q, k, v, pass))
    }

    /// `[S·T, heads·head_dim]` → `[S, heads, T, head_dim]`.
    fn heads(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> Tensor<B, 4> {
        let heads = x.dims()[1] / self.head_dim;
        x.reshape([pass.samples, pass.len, heads, self.head_dim]).swap_dims(1, 2)
    }

    /// softmax(q·kᵀ/√head_dim + mask)·v without repeating keys or values: the query heads that share a key head
    /// stand under each other in one matrix. Returns `[S·T, H·head_dim]`.
    fn attend(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, pass: &Pass<B>) -> Tensor<B, 2> {
        let [s, h, t, d] = q.dims();
        let [_, kv, all, _] = k.dims();
        let rows = h / kv * t;
        let scale = (d as f64).powf(-0.5);
        let scores = matmul_rows(q.reshape([s, kv, rows, d]), k.swap_dims(2, 3)) * scale;
        let scores = scores.reshape([s * h, t * all]) + pass.mask.clone();
        let weights = softmax(scores.reshape([s * h, t, all]), 2).reshape([s, kv, rows, all]);
        let mixed = matmul_rows(weights, v).reshape([s, h, t, d]);
        mixed.swap_dims(1, 2).reshape([s * t, h * d])
    }
}

/// `a·b`; a single row is doubled first, because CubeCL's vector-matrix kernels reject inner axes that
/// are no multiple of the plane size.
fn matmul_rows<B: Backend>(a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 4> {
    if a.dims()[2] > 1 {
        return a.matmul(b);
    }
    Tensor::cat(vec![a.clone(), a], 2).matmul(b).narrow(2, 0, 1)
}
