//! Many sequences that leave one trunk: what they share is computed once.
//!
//! A search scores prompts that differ from the current one at a single position. Before that position all of them have the keys and
//! values of the current prompt, so only the rows from there on are pushed through the layers, all candidates' rows under each other.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::attention::{Pass, Rows};
use super::{Cache, Llama};
use crate::ops::Kernels;

/// Where C sequences of T positions lie in a trunk and in the rows `[R, D]` of their own.
#[derive(Debug)]
pub struct Branches<B: Backend> {
    /// C.
    pub(super) samples: usize,
    /// T.
    pub(super) len: usize,
    /// Row of the queries for each position of each sequence, `[C·T]`; any row for positions in the trunk.
    pub(super) queries: Tensor<B, 1, Int>,
    /// Row of the keys, counted through the trunk's positions first, `[C·T]`.
    pub(super) keys: Tensor<B, 1, Int>,
    /// Where each own row stands among all positions, `[R]`.
    pub(super) own: Tensor<B, 1, Int>,
}

/// C sequences of `len` positions, the c-th of which leaves the trunk at position `starts[c]`.
#[derive(Debug, Clone, Copy)]
pub struct Leaving<'a> {
    /// First position of each sequence that is its own.
    pub starts: &'a [usize],
    /// T.
    pub len: usize,
}

impl Leaving<'_> {
    /// R: rows of all sequences' own.
    pub fn rows(&self) -> usize {
        self.starts.iter().map(|start| self.len - start).sum()
    }

    /// (sequence, position) of every own row.
    fn own(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.starts.iter().enumerate().flat_map(|(c, &start)| (start..self.len).map(move |t| (c, t)))
    }

    /// First row of each sequence.
    fn offsets(&self) -> Vec<usize> {
        let ends = self.starts.iter().scan(0, |end, start| {
            let begin = *end;
            *end += self.len - start;
            Some(begin)
        });
        ends.collect()
    }

    /// Rows of the positions `from..` of every sequence; no sequence may leave the trunk later than `from`.
    pub fn rows_from(&self, from: usize) -> Vec<usize> {
        let offsets = self.offsets();
        let rows =
            self.starts.iter().zip(offsets).flat_map(|(start, offset)| (from - start..self.len - start).map(move |row| offset + row));
        rows.collect()
    }

    fn branches<B: Backend>(&self, trunk: usize, device: &B::Device) -> Branches<B> {
        let offsets = self.offsets();
        let mut queries = Vec::with_capacity(self.starts.len() * self.len);
        let mut keys = Vec::with_capacity(queries.capacity());
        for (&start, offset) in self.starts.iter().zip(&offsets) {
            for t in 0..self.len {
                queries.push(if t < start { 0 } else { offset + t - start });
                keys.push(if t < start { t } else { trunk + offset + t - start });
            }
        }
        let own = self.own().map(|(c, t)| c * self.len + t).collect();
        let (samples, len) = (self.starts.len(), self.len);
        Branches { samples, len, queries: indices(queries, device), keys: indices(keys, device), own: indices(own, device) }
    }
}

/// Row numbers as a tensor.
pub fn indices<B: Backend>(rows: Vec<usize>, device: &B::Device) -> Tensor<B, 1, Int> {
    let count = rows.len();
    let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

impl<B: Kernels> Llama<B> {
    /// Hidden states before [`Llama::norm`] of the sequences' own rows, `x` `[R, D]`, behind a trunk of one sequence in `trunk`.
    pub fn forward_branches(&self, x: Tensor<B, 2>, leaving: Leaving, trunk: &mut Cache<B>) -> Tensor<B, 2> {
        let positions: Vec<usize> = leaving.own().map(|(_, t)| t).collect();
        let pass = Pass {
            rotate_q: self.rotation(&positions, self.config().num_attention_heads, x.dtype()),
            rotate_k: self.rotation(&positions, self.config().num_key_value_heads, x.dtype()),
            mask: self.causal_mask(leaving.len, 0, x.dtype()),
            rows: Rows::Branches(leaving.branches(trunk.len(), &self.device())),
        };
        self.layers(x, &pass, Some(trunk))
    }
}
