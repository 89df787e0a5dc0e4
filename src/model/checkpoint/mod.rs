//! A model whose parts fit together: config, tokenizer and, on demand, weights.

use std::path::Path;

use super::{LlamaConfig, WeightSource, layout};
use crate::error::{Error, Result, quoted};
use crate::source::chat::ChatFiles;
use crate::source::checkpoint::{ModelFiles, Weights, round_to_q8};
use crate::source::hub::Observer;
use crate::source::tokenizer::Tokenizer;
use crate::source::{self, Digests};

/// Opens the model that `spec` names: bundled, a folder, a file, or on the hub; `observer` is told
/// how a download goes, `offline` forbids one.
///
/// # Errors
/// Those of [`source::open`] and of [`Checkpoint::open`].
pub fn open(spec: &str, offline: bool, observer: Observer) -> Result<Checkpoint> {
    Checkpoint::of(source::open(spec, offline, observer)?, &Digests::of_user())
}

/// A model on disk or in the program: its architecture, its tokenizer and, on demand, its weights.
pub struct Checkpoint {
    /// The architecture, checked against the weights.
    pub config: LlamaConfig,
    /// The tokenizer; but for added tokens, it has no more than the embedding matrix has rows.
    pub tokenizer: Tokenizer,
    /// SHA-256 of the weight file in hexadecimal; of shards, one after another in the order of their names
    /// (`cat model-*.safetensors | sha256sum`).
    pub digest: String,
    /// The path as given, or the name of an embedded model.
    pub origin: String,
    /// Where its chat template is.
    pub chat: ChatFiles,
    weights: Weights,
}

impl Checkpoint {
    /// Opens a folder in Hugging Face layout, a `.gguf` file, or a `.safetensors` file with `config.json` and
    /// `tokenizer.json` next to it.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and what is wrong with it, before memory is taken for any tensor.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(ModelFiles::open(path)?, &Digests::of_user())
    }

    /// Checks the config, then that tokenizer and weights are those of such a model, then hashes the weights, unless
    /// their digest is among `digests`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn of(files: ModelFiles, digests: &Digests) -> Result<Self> {
        let mut config = LlamaConfig::from_fields(&files.config)?;
        let (origin, chat) = (files.origin.clone(), files.chat.clone());
        let (tokenizer, mut weights) = files.read()?;
        // Tokens that were only added to the vocabulary may lie past the embeddings: no text that holds one can be computed.
        if (config.vocab_size..tokenizer.vocab_size()).any(|id| tokenizer.is_learned(id as u32)) {
            return Err(Error::input(format!(
                "the tokenizer of {} has {} tokens, but the model has embeddings for {}; they belong to different models",
                quoted(&origin),
                tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        layout::settle(&mut weights, &mut config)?;
        layout::compare(&weights, &config)?;
        let digest = weights.digest(digests)?;
        let tokenizer = tokenizer.for_context(config.context());
        Ok(Self { config, tokenizer, digest, origin, chat, weights })
    }
}

impl WeightSource for Checkpoint {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weights.read(name, shape)
    }
}

/// The weights of a checkpoint as a GGUF of type Q8_0 would hold them: all matrices rounded.
pub struct Rounded<'a>(pub &'a mut Checkpoint);

impl WeightSource for Rounded<'_> {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut values = self.0.read(name, shape)?;
        if let [_, row] = shape {
            round_to_q8(&mut values, *row);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests;
