//! Keys and values of sequences, which may share their beginnings.
//!
//! Decoding grows a batch of sequences token by token. A search scores prompts that differ from the current one from some position on:
//! before that position they have the keys and values of the current prompt, from there on each has rows of its own. Both are the same
//! here: every position of every sequence names a row, the rows of all sequences go through the layers as one matrix, and none is
//! computed twice.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

/// Keys and values of one layer's rows, `[rows, KV·head_dim]` each; none before the first pass.
pub type KeysAndValues<B> = Option<(Tensor<B, 2>, Tensor<B, 2>)>;

/// Keys and values of C sequences of T positions.
#[derive(Debug, Clone)]
pub struct Cache<B: Backend> {
    /// By layer.
    pub(super) layers: Vec<KeysAndValues<B>>,
    paths: Paths,
}

impl<B: Backend> Cache<B> {
    /// Sequences without a position yet, for a model of `layers` layers.
    pub fn new(layers: usize, sequences: usize) -> Self {
        Self { layers: vec![None; layers], paths: Paths { rows: vec![Vec::new(); sequences], count: 0, computed: 0 } }
    }

    /// Sequences that share the only sequence of `self`, the trunk, up to these positions, one each. Where a position is beyond its end, the
    /// trunk is extended to the largest one: these rows, in order, must be computed next, before those that [`Self::grow`] adds.
    pub fn fork(&self, starts: &[usize]) -> Self {
        let trunk = starts.iter().copied().max().unwrap_or(0).max(self.len());
        let paths = Paths { rows: starts.iter().map(|&start| (0..start).collect()).collect(), count: trunk, computed: self.paths.computed };
        Self { layers: self.layers.clone(), paths }
    }

    /// So many sequences that all go on from the only one of `self`.
    pub fn repeated(&self, sequences: usize) -> Self {
        self.fork(&vec![self.len(); sequences])
    }

    /// T.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether the sequences have no position yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives every sequence rows of its own until it has `len` positions, sequence after sequence. They must be computed next.
    pub fn grow(&mut self, len: usize) {
        self.paths.grow(len);
    }

    /// Keeps the sequences for which `keep` is true.
    pub fn retain(&mut self, keep: &[bool]) {
        retain(&mut self.paths.rows, keep);
    }

    /// The rows that were added, before they are computed.
    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// From now on the rows that were added are part of the past.
    pub(super) fn computed(&mut self) {
        self.paths.computed = self.paths.count;
    }
}

impl<B: AutodiffBackend> Cache<B> {
    /// The same on the backend with gradients; no gradient reaches what is cached.
    pub fn from_inner(cache: Cache<B::InnerBackend>) -> Self {
        let layer = |layer: KeysAndValues<B::InnerBackend>| layer.map(|(k, v)| (Tensor::from_inner(k), Tensor::from_inner(v)));
        Self { layers: cache.layers.into_iter().map(layer).collect(), paths: cache.paths }
    }
}

/// Which rows the positions of the sequences are.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    /// Row of every position, one list for each sequence, all of the same length.
    rows: Vec<Vec<usize>>,
    /// Number of rows, those of sequences that were dropped included.
    count: usize,
    /// How many of them are cached; those after them are new.
    computed: usize,
}

impl Paths {
    fn grow(&mut self, len: usize) {
        for path in &mut self.rows {
            let own = len - path.len();
            path.extend(self.count..self.count + own);
            self.count += own;
        }
    }

    /// C.
    pub fn sequences(&self) -> usize {
        self.rows.len()
    }

    /// T.
    pub fn len(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// All rows, cached and new.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The smallest number of last positions of the sequences that holds all new rows.
    pub fn new_positions(&self) -> usize {
        let known = |path: &Vec<usize>| path.iter().take_while(|row| **row < self.computed).count();
        self.len() - self.rows.iter().map(known).min().unwrap_or(0)
    }

    /// (position, index among the last `len` positions of all sequences) of every new row. A row that several sequences share has the
    /// same past in each of them, so the index in any of them will do.
    pub fn places(&self, len: usize) -> Vec<(usize, usize)> {
        let before = self.len() - len;
        let mut places = vec![(0, 0); self.count - self.computed];
        for (c, path) in self.rows.iter().enumerate() {
            for (t, row) in path.iter().enumerate().filter(|(_, row)| **row >= self.computed) {
                places[row - self.computed] = (t, c * len + t - before);
            }
        }
        places
    }

    /// Row of each of the last `len` positions of every sequence.
    pub fn ends(&self, len: usize) -> impl Iterator<Item = usize> + '_ {
        self.rows.iter().flat_map(move |path| path[path.len() - len..].iter().copied())
    }

    /// As [`Self::ends`], counted among the new rows; 0 for cached ones.
    pub fn new_ends(&self, len: usize) -> impl Iterator<Item = usize> + '_ {
        self.ends(len).map(|row| row.saturating_sub(self.computed))
    }
}

/// Keeps the items for which `keep` is true.
pub fn retain<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| *keep.next().expect("one for each item"));
}

/// Row numbers as a tensor.
fn indices<B: Backend>(rows: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// Which rows to take of `count`; none where it is all of them in their order.
pub(super) fn picked<B: Backend>(rows: impl Iterator<Item = usize>, count: usize, device: &B::Device) -> Option<Tensor<B, 1, Int>> {
    let rows: Vec<usize> = rows.collect();
    (rows.len() != count || rows.iter().enumerate().any(|(i, &row)| i != row)).then(|| indices(&rows, device))
}
