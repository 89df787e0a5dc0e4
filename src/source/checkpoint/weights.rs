//! The table of tensors in weight files, and the reading of one of them.

use super::storage::{Source, Stored};
use crate::error::{Error, Result, quoted};
use crate::files::hex;
use crate::source::digests::Digests;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The LM head, which a model may lack: its embeddings are the head then.
pub const HEAD: &str = "lm_head.weight";

/// Whether a tensor of this name is a table of rotary frequencies: old files carry them along, no model reads them.
pub fn is_rotary_buffer(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// Bytes compared at a time.
const PIECE: usize = 1 << 18;

/// Tensors by their Hugging Face name.
pub(super) type Tensors = BTreeMap<String, Entry>;

/// Where a tensor lies and how it is stored.
#[derive(Debug)]
pub(super) struct Entry {
    /// Which of the weight files.
    pub source: usize,
    /// First byte in that file.
    pub start: u64,
    /// Bytes.
    pub len: usize,
    pub shape: Vec<usize>,
    pub stored: Stored,
    /// Number of heads whose rows lie interleaved, as llama.cpp stores queries and keys.
    pub interleaved: Option<usize>,
}

/// What the files say about a tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// The name of its type, where that is not read.
    pub unreadable: Option<&'a str>,
}

impl Entry {
    fn info(&self) -> TensorInfo<'_> {
        let unreadable = match &self.stored {
            Stored::Unreadable(kind) => Some(kind.as_str()),
            _ => None,
        };
        TensorInfo { shape: &self.shape, unreadable }
    }
}

/// The tensors in one or more weight files. Values are in memory only once they are [read](Weights::read).
pub struct Weights {
    origin: String,
    sources: Vec<Source>,
    tensors: Tensors,
}

impl Weights {
    pub(super) fn new(origin: String, sources: Vec<Source>, tensors: Tensors) -> Self {
        Self { origin, sources, tensors }
    }

    /// The model's path as given, or the name of an embedded model.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The tensor of this Hugging Face name.
    pub fn get(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.tensors.get(name).map(Entry::info)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorInfo<'_>)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.info()))
    }

    /// Forgets the tensors for whose names `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| keep(name));
    }

    /// Calls a tensor by another name.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(entry) = self.tensors.remove(from) {
            self.tensors.insert(to.to_owned(), entry);
        }
    }

    /// Whether two tensors are there and stored alike to the byte. Only pieces of them are in memory.
    ///
    /// # Errors
    /// [`Error::Input`] when a file cannot be read or has changed since it was opened.
    pub fn alike(&mut self, a: &str, b: &str) -> Result<bool> {
        let (Some(a), Some(b)) = (self.tensors.get(a), self.tensors.get(b)) else { return Ok(false) };
        if (&a.shape, &a.stored, a.interleaved, a.len) != (&b.shape, &b.stored, b.interleaved, b.len) {
            return Ok(false);
        }
        for start in (0..a.len).step_by(PIECE) {
            let len = PIECE.min(a.len - start);
            let mut piece = |entry: &Entry| self.sources[entry.source].read(entry.start + start as u64, len);
            if *piece(a)? != *piece(b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// SHA-256 of the weight file in hexadecimal; of shards, one after another in the order of their names
    /// (`cat model-*.safetensors | sha256sum`). Files whose digest is among `digests` are not read.
    ///
    /// # Errors
    /// [`Error::Input`] when a file cannot be read or has changed since it was opened.
    pub fn digest(&mut self, digests: &Digests) -> Result<String> {
        let stamps = self.sources.iter().map(Source::stamp).collect();
        digests.get(stamps, || {
            let mut hash = Sha256::new();
            for source in &mut self.sources {
                source.hash(&mut hash)?;
            }
            Ok(hex(&hash.finalize()))
        })
    }

    /// Values of one tensor in Hugging Face orientation, row-major.
    ///
    /// # Errors
    /// [`Error::Input`] when the tensor is missing or has another shape, when the file has changed since it was
    /// opened, or when values are not finite.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let about = |what: String| Error::input(format!("tensor {} of {} {what}", quoted(name), quoted(&self.origin)));
        let entry = self.tensors.get(name).ok_or_else(|| about("is missing".to_owned()))?;
        if entry.shape != shape {
            return Err(about(format!("has shape {:?}, expected {shape:?}", entry.shape)));
        }
        let bytes = self.sources[entry.source].read(entry.start, entry.len)?;
        let mut values = entry.stored.decode(&bytes, shape.iter().product()).map_err(about)?;
        let wild = values.par_iter().filter(|value| !value.is_finite()).count();
        if wild > 0 {
            return Err(about(format!("holds {wild} values that are not finite (NaN or infinity)")));
        }
        if let Some(heads) = entry.interleaved {
            if heads == 0 || !shape[0].is_multiple_of(2 * heads) {
                return Err(about(format!("has {} rows, which are not those of {heads} heads of an even width", shape[0])));
            }
            values = rows_by_halves(&values, heads, shape[0]);
        }
        Ok(values)
    }
}

/// llama.cpp rotates neighbouring rows of a head, transformers rotates row `j` with row `j + half`: row `2j + p` of the
/// file is row `j + p·half` of the model. `values` is `[rows, …]` of `heads` equal heads.
fn rows_by_halves(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (head, row) = (rows / heads, values.len() / rows);
    let half = head / 2;
    let mut ordered = vec![0.0; values.len()];
    ordered.par_chunks_mut(row).enumerate().for_each(|(to, out)| {
        let (start, within) = (to / head * head, to % head);
        let from = start + 2 * (within % half) + within / half;
        out.copy_from_slice(&values[from * row..][..row]);
    });
    ordered
}
