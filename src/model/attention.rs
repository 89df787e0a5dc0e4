//! Grouped-query attention.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, backend::Backend};

use super::cache::KeysAndValues;
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

impl<B: Backend> Pass<B> {
    /// What asks in layer `i` of `layers`.
    pub fn asking(&self, i: usize, layers: usize) -> &Asking<B> {
        if i + 1 == layers { &self.last } else { &self.all }
    }
}

impl<B: Kernels> Pass<B> {
    /// The same for the way back, where everything rotates by the opposite angles.
    pub fn turned_back(mut self) -> Self {
        self.rotate_k = self.rotate_k.inverse();
        self.all.rotate = self.all.rotate.inverse();
        self.last.rotate = self.last.rotate.inverse();
        self
    }
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
    /// Additive causal mask `[1, T_q·T]`, [`wide`](crate::ops::wide): 0 where a position may look, −1e30 where not.
    pub mask: Tensor<B, 2>,
}

impl<B: Backend> Asking<B> {
    /// Its rows of `x` `[R, D]`.
    pub fn of(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        select(x, &self.rows)
    }

    /// The way back: `x` `[R', D]` added to its rows of `all` `[R, D]`.
    pub fn add_to(&self, all: Tensor<B, 2>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.rows {
            Some(rows) => all.select_assign(0, rows.clone(), x, IndexingUpdateOp::Add),
            None => all + x,
        }
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

/// The gradient of x from that of [`linear`]'s result.
pub(super) fn linear_backward<B: Kernels>(layer: &Linear<B>, output: Tensor<B, 2>) -> Tensor<B, 2> {
    B::matmul(output, layer.weight.val().transpose())
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

/// Queries, keys and values `[S, heads, T, head_dim]` as attention saw them, for the way back.
pub struct AttentionTrace<B: Backend>([Tensor<B, 4>; 3]);

impl<B: Kernels> LlamaAttention<B> {
    /// Attends from the rows that ask, `[R', D]` the result, to all positions of their sequences so far. `x` is `[R, D]`; its keys and
    /// values are added to those of the `past`.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        asking: &Asking<B>,
        past: Option<&mut KeysAndValues<B>>,
    ) -> (Tensor<B, 2>, AttentionTrace<B>) {
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
        let mixed = B::causal_attention(q.clone(), k.clone(), v.clone(), asking.mask.clone());
        (linear(&self.o_proj, select(mixed, &asking.gather)), AttentionTrace([q, k, v]))
    }

    /// The gradient of `x` `[R, D]` from that of the result `[R', D]`, of a pass whose sequences all have the same positions computed,
    /// [turned back](Pass::turned_back).
    pub fn backward(&self, output: Tensor<B, 2>, trace: AttentionTrace<B>, pass: &Pass<B>, asking: &Asking<B>) -> Tensor<B, 2> {
        let mixed = linear_backward(&self.o_proj, output);
        let [q, k, v] = trace.0;
        let [dq, dk, dv] = B::causal_attention_backward(q, k, v, asking.mask.clone(), mixed);
        // What lies before the pass has no gradient.
        let own = |x: Tensor<B, 4>, positions: usize| {
            let [s, heads, t, d] = x.dims();
            x.narrow(2, t - positions, positions).swap_dims(1, 2).reshape([s * positions, heads * d])
        };
        let (mut dq, mut dk, dv) = (own(dq, asking.len), own(dk, pass.all.len), own(dv, pass.all.len));
        if self.use_rope {
            dq = asking.rotate.apply(dq, self.head_dim);
            dk = pass.rotate_k.apply(dk, self.head_dim);
        }
        let known = linear_backward(&self.k_proj, dk) + linear_backward(&self.v_proj, dv);
        asking.add_to(known, linear_backward(&self.q_proj, dq))
    }

    /// `[S·T, heads·head_dim]` → `[S, heads, T, head_dim]`.
    fn heads(&self, x: Tensor<B, 2>, samples: usize, len: usize) -> Tensor<B, 4> {
        let heads = x.dims()[1] / self.head_dim;
        x.reshape([samples, len, heads, self.head_dim]).swap_dims(1, 2)
    }
}
