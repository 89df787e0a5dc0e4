//! Grouped-query attention.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, backend::Backend};

use super::cache::KeysAndValues;
use super::norm::LlamaRMSNorm;
use super::rope::Rotation;
use crate::ops::{Kernels, Products};

/// What all layers of one pass share: R rows are computed, one for each new position, of S sequences of T positions in all. Sequences
/// may share rows.
pub struct Pass<B: Backend> {
    /// How exact its products are.
    pub products: Products,
    /// S.
    pub samples: usize,
    /// T.
    pub len: usize,
    /// The row of every position of every sequence, `[S·T]`, cached rows counted first; none where they are in order.
    pub keys: Option<Tensor<B, 1, Int>>,
    /// The query rows of every layer but the last: all R.
    pub all: Queries<B>,
    /// The query rows of the last layer: those whose result is wanted.
    pub last: Queries<B>,
}

impl<B: Backend> Pass<B> {
    /// The query rows of layer `i` of `layers`.
    pub fn queries(&self, i: usize, layers: usize) -> &Queries<B> {
        if i + 1 == layers { &self.last } else { &self.all }
    }
}

impl<B: Kernels> Pass<B> {
    /// The same for the backward pass, where everything rotates by the opposite angles.
    pub fn for_backward(mut self) -> Self {
        self.all.rotate = self.all.rotate.inverse();
        self.last.rotate = self.last.rotate.inverse();
        self
    }
}

/// The query rows of a layer: R' rows of a pass, all within the last T_q positions of the sequences.
pub struct Queries<B: Backend> {
    /// T_q.
    pub len: usize,
    /// Which of the R rows, `[R']`; none where it is all of them.
    pub rows: Option<Tensor<B, 1, Int>>,
    /// Their rotation.
    pub rotate: Rotation<B>,
    /// For each of the S·T_q positions the query row that is there, `[S·T_q]`; any row for a position that has none. None where they are
    /// in order.
    pub to_positions: Option<Tensor<B, 1, Int>>,
    /// For each query row one of the S·T_q positions where it is, `[R']`; none where they are in order.
    pub to_rows: Option<Tensor<B, 1, Int>>,
    /// Additive causal mask `[1, T_q·T]`, [`wide`](crate::ops::wide): 0 where a position may look, −1e30 where not.
    pub mask: Tensor<B, 2>,
}

impl<B: Backend> Queries<B> {
    /// The query rows of `x` `[R, D]`, `[R', D]`.
    pub fn of(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        select(x, &self.rows)
    }

    /// The backward pass of [`Queries::of`]: `x` `[R', D]` added to the query rows of `all` `[R, D]`.
    pub fn add_to(&self, all: Tensor<B, 2>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.rows {
            Some(rows) => all.select_assign(0, rows.clone(), x, IndexingUpdateOp::Add),
            None => all + x,
        }
    }
}

/// These rows of `x`; all of them for none.
fn select<B: Backend>(x: Tensor<B, 2>, rows: &Option<Tensor<B, 1, Int>>) -> Tensor<B, 2> {
    match rows {
        Some(rows) => x.select(0, rows.clone()),
        None => x,
    }
}

/// x·W + b, `[R, in]` → `[R, out]`.
pub(super) fn linear<B: Kernels>(layer: &Linear<B>, products: Products, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let out = products.matmul(x, layer.weight.val());
    match &layer.bias {
        Some(bias) => out + bias.val().unsqueeze::<2>(),
        None => out,
    }
}

/// The gradient of x from that of [`linear`]'s result.
pub(super) fn linear_backward<B: Kernels>(layer: &Linear<B>, products: Products, output: Tensor<B, 2>) -> Tensor<B, 2> {
    products.matmul(output, layer.weight.val().transpose())
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
    /// Of each head of the queries, before it rotates; none in most models.
    pub q_norm: Option<LlamaRMSNorm<B>>,
    /// Of each head of the keys, likewise.
    pub k_norm: Option<LlamaRMSNorm<B>>,
    #[module(skip)]
    pub(super) head_dim: usize,
    #[module(skip)]
    pub(super) use_rope: bool,
}

/// What the backward pass needs.
pub struct AttentionTrace<B: Backend> {
    /// Queries, keys and values `[S, heads, T, head_dim]` as attention saw them.
    seen: [Tensor<B, 4>; 3],
    /// Queries `[R', H·head_dim]` and keys `[R, KV·head_dim]` before their norms; none where they have none.
    before_norm: [Option<Tensor<B, 2>>; 2],
}

/// Normalises the heads of `x`, and what the backward pass needs for it.
fn normalised<B: Kernels>(norm: &Option<LlamaRMSNorm<B>>, x: Tensor<B, 2>) -> (Tensor<B, 2>, Option<Tensor<B, 2>>) {
    match norm {
        Some(norm) => (norm.forward_heads(x.clone()), Some(x)),
        None => (x, None),
    }
}

/// The gradient of x from that of [`normalised`]'s result.
fn normalised_backward<B: Kernels>(norm: &Option<LlamaRMSNorm<B>>, x: Option<Tensor<B, 2>>, output: Tensor<B, 2>) -> Tensor<B, 2> {
    match (norm, x) {
        (Some(norm), Some(x)) => norm.backward_heads(x, output),
        _ => output,
    }
}

impl<B: Kernels> LlamaAttention<B> {
    /// Attends from the query rows of `x` `[R, D]` to all positions of their sequences so far: `[R', D]`. The keys and values of `x` are
    /// appended to those of the `past`.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        queries: &Queries<B>,
        past: Option<&mut KeysAndValues<B>>,
    ) -> (Tensor<B, 2>, AttentionTrace<B>) {
        let (mut q, q_before) = normalised(&self.q_norm, linear(&self.q_proj, pass.products, queries.of(x.clone())));
        let (mut k, k_before) = normalised(&self.k_norm, linear(&self.k_proj, pass.products, x.clone()));
        let mut v = linear(&self.v_proj, pass.products, x);
        if self.use_rope {
            q = queries.rotate.apply(q);
            k = pass.all.rotate.apply(k);
        }
        if let Some(past) = past {
            if let Some((keys, values)) = past.take() {
                k = Tensor::cat(vec![keys, k], 0);
                v = Tensor::cat(vec![values, v], 0);
            }
            *past = Some((k.clone(), v.clone()));
        }
        let q = self.heads(select(q, &queries.to_positions), pass.samples, queries.len);
        let [k, v] = [k, v].map(|x| self.heads(select(x, &pass.keys), pass.samples, pass.len));
        let mixed = B::causal_attention(q.clone(), k.clone(), v.clone(), queries.mask.clone());
        let trace = AttentionTrace { seen: [q, k, v], before_norm: [q_before, k_before] };
        (linear(&self.o_proj, pass.products, select(mixed, &queries.to_rows)), trace)
    }

    /// The gradient of `x` `[R, D]` from that of the result `[R', D]`, of a pass in which all sequences compute the same positions, made
    /// [for the backward pass](Pass::for_backward).
    pub fn backward(&self, output: Tensor<B, 2>, trace: AttentionTrace<B>, pass: &Pass<B>, queries: &Queries<B>) -> Tensor<B, 2> {
        let mixed = linear_backward(&self.o_proj, pass.products, output);
        let AttentionTrace { seen: [q, k, v], before_norm: [q_before, k_before] } = trace;
        let [dq, dk, dv] = B::causal_attention_backward(q, k, v, queries.mask.clone(), mixed);
        // Cached positions need no gradient.
        let own = |x: Tensor<B, 4>, positions: usize| {
            let [s, heads, t, d] = x.dims();
            x.narrow(2, t - positions, positions).swap_dims(1, 2).reshape([s * positions, heads * d])
        };
        let (mut dq, mut dk, dv) = (own(dq, queries.len), own(dk, pass.all.len), own(dv, pass.all.len));
        if self.use_rope {
            dq = queries.rotate.apply(dq);
            dk = pass.all.rotate.apply(dk);
        }
        dq = normalised_backward(&self.q_norm, q_before, dq);
        dk = normalised_backward(&self.k_norm, k_before, dk);
        let through_keys = linear_backward(&self.k_proj, pass.products, dk) + linear_backward(&self.v_proj, pass.products, dv);
        queries.add_to(through_keys, linear_backward(&self.q_proj, pass.products, dq))
    }

    /// `[S·T, heads·head_dim]` → `[S, heads, T, head_dim]`.
    fn heads(&self, x: Tensor<B, 2>, samples: usize, len: usize) -> Tensor<B, 4> {
        let heads = x.dims()[1] / self.head_dim;
        x.reshape([samples, len, heads, self.head_dim]).swap_dims(1, 2)
    }
}
