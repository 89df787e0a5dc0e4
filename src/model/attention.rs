//! Grouped-query attention.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Int, Tensor, backend::Backend};

use super::rope::Rotation;
use crate::ops::Kernels;

/// What all layers of one forward pass share: R rows that are computed, of S sequences of T positions.
pub struct Pass<B: Backend> {
    /// S.
    pub samples: usize,
    /// T.
    pub len: usize,
    /// Rotation of the keys, a row each.
    pub rotate_k: Rotation<B>,
    /// Row, the known ones first, of every position of every sequence, `[S·T]`; nothing when they are in order.
    pub keys: Option<Tensor<B, 1, Int>>,
    /// All rows, in every layer but the last.
    pub all: Asking<B>,
    /// The rows that the result is wanted of, in the last.
    pub last: Asking<B>,
}

/// The rows of a pass that look at others.
pub struct Asking<B: Backend> {
    /// The positions from the end of every sequence among which they are, T_q.
    pub len: usize,
    /// Which rows, `[R']`; nothing when it is all of them.
    pub rows: Option<Tensor<B, 1, Int>>,
    /// Their rotation.
    pub rotate: Rotation<B>,
    /// Which of them stands at each of the T_q positions of each sequence, `[S·T_q]`; nothing when they are in order. Any where none does.
    pub spread: Option<Tensor<B, 1, Int>>,
    /// The way back: where each of them stands, `[R']`.
    pub gather: Option<Tensor<B, 1, Int>>,
    /// Additive causal mask `[1, T_q·T]`: 0 where a position may look, −1e30 where not.
    pub mask: Tensor<B, 2>,
}

impl<B: Backend> Asking<B> {
    /// Its rows of `x` `[R, D]`.
    pub fn of(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        select(x, &self.rows)
    }
}

/// The rows of `x` that `rows` names, all without a name.
fn select<B: Backend>(x: Tensor<B, 2>, rows: &Option<Tensor<B, 1, Int>>) -> Tensor<B, 2> {
    match rows {
        Some(rows) => x.select(0, rows.clone()),
        None => x,
    }
}

/// x·W + b, `[R, in]` → `[R, out]`.
pub(super) fn linear<B: Kernels>(layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let out = B::matmul(x, layer.weight.val());
    match &layer.bias {
        Some(bias) => out + bias.val().unsqueeze::<2>(),
        None => out,
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
    /// Attends from the rows that ask, `[R', D]` the result, to all positions of their sequences so far. `x` is `[R, D]`; its keys and
    /// values are added to those of the `past`.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        asking: &Asking<B>,
        past: Option<&mut Option<(Tensor<B, 2>, Tensor<B, 2>)>>,
    ) -> Tensor<B, 2> {
        let mut q = linear(&self.q_proj, asking.of(x.clone()));
        let mut k = linear(&self.k_proj, x.clone());
        let mut v = linear(&self.v_proj, x);
        if self.use_rope {
            q = asking.rotate.apply(q, self.head_dim);
            k = pass.rotate_k.apply(k, self.head_dim);
        }
        if let Some(past) = past {
            if let Some((keys, values)) = past.take() {
                k = Tensor::cat(vec![keys, k], 0);
                v = Tensor::cat(vec![values, v], 0);
            }
            *past = Some((k.clone(), v.clone()));
        }
        let q = self.heads(select(q, &asking.spread), pass.samples, asking.len);
        let [k, v] = [k, v].map(|x| self.heads(select(x, &pass.keys), pass.samples, pass.len));
        let mixed = B::causal_attention(q, k, v, asking.mask.clone());
        linear(&self.o_proj, select(mixed, &asking.gather))
    }

    /// `[S·T, heads·head_dim]` → `[S, heads, T, head_dim]`.
    fn heads(&self, x: Tensor<B, 2>, samples: usize, len: usize) -> Tensor<B, 4> {
        let heads = x.dims()[1] / self.head_dim;
        x.reshape([samples, len, heads, self.head_dim]).swap_dims(1, 2)
    }
}
