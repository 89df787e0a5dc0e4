//! Grouped-query attention with an optional key/value cache.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Tensor, backend::Backend};

use super::branches::Branches;
use super::rope::Rotation;
use crate::ops::Kernels;

/// What all layers of one forward pass share.
pub struct Pass<B: Backend> {
    /// How the rows of the pass stand to each other.
    pub rows: Rows<B>,
    /// Rotation of the queries.
    pub rotate_q: Rotation<B>,
    /// Rotation of the keys.
    pub rotate_k: Rotation<B>,
    /// Additive causal mask `[1, T·(past + T)]`: 0 where a position may look, −1e30 where not.
    pub mask: Tensor<B, 2>,
}

/// What the rows of a pass are.
pub enum Rows<B: Backend> {
    /// S sequences of T new positions.
    Sequences {
        /// S.
        samples: usize,
        /// T.
        len: usize,
    },
    /// Sequences that leave a trunk.
    Branches(Branches<B>),
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

impl<B: Kernels> LlamaAttention<B> {
    /// Attends from the T new positions to all positions so far. `x` and the result are `[S·T, D]`.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>, past: Option<&mut Option<(Tensor<B, 4>, Tensor<B, 4>)>>) -> Tensor<B, 2> {
        let mut q = self.q_proj.forward(x.clone());
        let mut k = self.k_proj.forward(x.clone());
        let v = self.v_proj.forward(x);
        if self.use_rope {
            q = pass.rotate_q.apply(q, self.head_dim);
            k = pass.rotate_k.apply(k, self.head_dim);
        }
        let mixed = match &pass.rows {
            Rows::Sequences { samples, len } => {
                let [q, mut k, mut v] = [q, k, v].map(|x| self.heads(x, *samples, *len));
                if let Some(past) = past {
                    if let Some((keys, values)) = past.take() {
                        k = Tensor::cat(vec![keys, k], 2);
                        v = Tensor::cat(vec![values, v], 2);
                    }
                    *past = Some((k.clone(), v.clone()));
                }
                B::causal_attention(q, k, v, pass.mask.clone())
            }
            Rows::Branches(branches) => {
                let (keys, values) = past.and_then(|past| past.clone()).expect("branches have a trunk");
                let behind = |trunk: Tensor<B, 4>, own| {
                    let [_, kv, t, d] = trunk.dims();
                    Tensor::cat(vec![trunk.swap_dims(1, 2).reshape([t, kv * d]), own], 0).select(0, branches.keys.clone())
                };
                let all = [q.select(0, branches.queries.clone()), behind(keys, k), behind(values, v)];
                let [q, k, v] = all.map(|x| self.heads(x, branches.samples, branches.len));
                B::causal_attention(q, k, v, pass.mask.clone()).select(0, branches.own.clone())
            }
        };
        self.o_proj.forward(mixed)
    }

    /// `[S·T, heads·head_dim]` → `[S, heads, T, head_dim]`.
    fn heads(&self, x: Tensor<B, 2>, samples: usize, len: usize) -> Tensor<B, 4> {
        let heads = x.dims()[1] / self.head_dim;
        x.reshape([samples, len, heads, self.head_dim]).swap_dims(1, 2)
    }
}
