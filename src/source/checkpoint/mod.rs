//! Untrusted model files → the fields of a config, a tokenizer and a table of named tensors, nothing else.
//!
//! The formats differ only in where a tensor lies and how its values are stored, so each of them is read into the same table
//! ([`Weights`]). Which architecture the fields describe, and whether the tensors are those that it needs, is for the caller to check
//! before any tensor is read.

mod gguf;
mod q8;
mod safetensors;
mod shards;
mod storage;
mod weights;

use crate::error::{Error, Result, quoted};
use crate::files::read_text;
use crate::source::chat::ChatFiles;
use crate::source::tokenizer::Tokenizer;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use storage::Source;
use weights::{Entry, Tensors};

pub use q8::round_to_q8;
pub(in crate::source) use shards::Index;
pub use weights::{HEAD, TensorInfo, Weights, is_rotary_buffer};

/// The files of a folder in Hugging Face layout.
pub(in crate::source) const CONFIG: &str = "config.json";
pub(in crate::source) const TOKENIZER: &str = "tokenizer.json";
pub(in crate::source) const WEIGHTS: &str = "model.safetensors";
/// Which shard holds what, in place of one file.
pub(in crate::source) const INDEX: &str = "model.safetensors.index.json";

/// Largest `config.json` that is read, in bytes: what is parsed takes many times the memory of its text.
const LARGEST_CONFIG: u64 = 1 << 20;

/// The field of the tokens that end a text.
const STOP_TOKENS: &str = "eos_token_id";

/// The type of `rope_scaling` in the fields of a GGUF that divides each rotary frequency by a factor of its own, `factors`.
pub const ROPE_FACTORS: &str = "frequency_factors";

/// The fields of a `config.json`, or what the metadata of a GGUF are in its terms. Nothing is checked yet.
#[derive(Debug, Clone)]
pub struct ConfigFields {
    /// By Hugging Face's names.
    pub fields: Map<String, Value>,
    /// The file, for errors.
    pub origin: String,
}

impl ConfigFields {
    /// Parses the text of a `config.json`; `origin` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Input`] when it is no JSON object.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let value = serde_json::from_str(text).or_else(|error| serde_json::from_str(&json_of_python(text)).map_err(|_| error));
        match value.map_err(|error| Error::input(format!("{} is not valid JSON: {error}", quoted(origin))))? {
            Value::Object(fields) => Ok(Self { fields, origin: origin.to_owned() }),
            _ => Err(Error::input(format!("{} is not a JSON object", quoted(origin)))),
        }
    }

    /// Reads a `config.json`. Its stop tokens are those of the `generation_config.json` beside it, where that names any, as they are
    /// for `generate` of transformers.
    fn read(path: &Path) -> Result<Self> {
        if !path.exists() && path.with_file_name("adapter_config.json").exists() {
            return Err(Error::input(format!(
                "{} holds an adapter (LoRA): merge it into its model (`merge_and_unload` of peft, then `save_pretrained`), and give that folder",
                quoted(&path.with_file_name("").display().to_string())
            )));
        }
        if !path.exists() {
            return Err(Error::input(format!(
                "there is no {}: give a folder in Hugging Face layout, or the path of a `.gguf` file",
                quoted(&path.display().to_string())
            )));
        }
        let mut config = Self::read_file(path)?;
        let generation = path.with_file_name("generation_config.json");
        if generation.exists() {
            match Self::read_file(&generation) {
                Ok(mut generation) => {
                    let stop = generation.fields.remove(STOP_TOKENS).filter(|ids| !ids.is_null());
                    config.fields.extend(stop.map(|ids| (STOP_TOKENS.to_owned(), ids)));
                }
                Err(error) => tracing::warn!("{error}; the stop tokens are those of the config"),
            }
        }
        Ok(config)
    }

    fn read_file(path: &Path) -> Result<Self> {
        Self::parse(&read_text(path, LARGEST_CONFIG)?, &path.display().to_string())
    }
}

/// Python writes `NaN`, `Infinity` and `-Infinity` where JSON has no number. Here they become texts, so that whoever asks for a number
/// refuses them by name.
fn json_of_python(text: &str) -> String {
    let mut inside = false;
    let pieces = text.split('"').map(|piece| {
        if !inside {
            inside = true;
            return piece.replace("NaN", "\"NaN\"").replace("Infinity", "\"Infinity\"").replace("-\"Infinity\"", "\"-Infinity\"");
        }
        // A quote after an odd number of backslashes is one of the text.
        let backslashes = piece.len() - piece.trim_end_matches('\\').len();
        inside = backslashes % 2 == 1;
        piece.to_owned()
    });
    pieces.collect::<Vec<_>>().join("\"")
}

/// What is left to open once the config is known to be of a model that can be computed.
type Rest = Box<dyn FnOnce() -> Result<(Tokenizer, Vec<Source>, Tensors)>>;

/// A model on disk or in the program, of which only the config has been read so far.
pub struct ModelFiles {
    /// The path as given, or the name of an embedded model.
    pub origin: String,
    /// Its config.
    pub config: ConfigFields,
    /// Where its chat template is.
    pub chat: ChatFiles,
    rest: Rest,
}

impl ModelFiles {
    /// Opens a folder in Hugging Face layout or with a single `.gguf` file, a `.gguf` file, or a `.safetensors` file with
    /// `config.json` and `tokenizer.json` next to it.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let (origin, path) = (path.display().to_string(), path.to_owned());
        let metadata = std::fs::metadata(&path).map_err(|error| Error::reading(&path, &error))?;
        if metadata.is_dir() {
            return match shards::only_gguf(&path)? {
                Some(gguf) => Self::open(&gguf),
                None => Self::in_folder(origin, path.clone(), move || shards::open_folder(&path)),
            };
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("safetensors") if shards::is_shard(&path) => {
                Err(Error::input(format!("{} is one of several files of a model: give the folder that holds them", quoted(&origin))))
            }
            Some("safetensors") => Self::in_folder(origin, path.with_file_name(""), move || {
                let mut source = Source::open(&path)?;
                let tensors = safetensors::tensors(&mut source, 0)?;
                Ok((vec![source], tensors))
            }),
            Some("gguf") => {
                let (config, chat, rest) = gguf::open(&path)?;
                Ok(Self { origin, config, chat, rest })
            }
            _ => Err(Error::input(format!(
                "{} is not a model: give a folder in Hugging Face layout, or a `.gguf` or `.safetensors` file",
                quoted(&origin)
            ))),
        }
    }

    /// Weights, and what a folder in Hugging Face layout says of them.
    fn in_folder(origin: String, folder: PathBuf, weights: impl FnOnce() -> Result<(Vec<Source>, Tensors)> + 'static) -> Result<Self> {
        let config = ConfigFields::read(&folder.join(CONFIG))?;
        let chat = ChatFiles::Folder(folder.clone());
        let rest = move || {
            let tokenizer = Tokenizer::from_file(&folder.join(TOKENIZER))?;
            let (sources, tensors) = weights()?;
            Ok((tokenizer, sources, tensors))
        };
        Ok(Self { origin, config, chat, rest: Box::new(rest) })
    }

    /// A model embedded in the program: the texts of `config.json` and `tokenizer.json`, the bytes of
    /// `model.safetensors`.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn embedded(config: &str, tokenizer: &str, weights: &'static [u8]) -> Result<Self> {
        let config = ConfigFields::parse(config, CONFIG)?;
        let tokenizer = Tokenizer::from_json_bytes(tokenizer.as_bytes(), TOKENIZER)?;
        let rest = move || {
            let mut source = Source::embedded(WEIGHTS, weights);
            let tensors = safetensors::tensors(&mut source, 0)?;
            Ok((tokenizer, vec![source], tensors))
        };
        Ok(Self { origin: "embedded model".to_owned(), config, chat: ChatFiles::None, rest: Box::new(rest) })
    }

    /// Reads the tokenizer, and of the weights what lies where.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and what is wrong with it, before memory is taken for any tensor.
    pub fn read(self) -> Result<(Tokenizer, Weights)> {
        let (tokenizer, sources, tensors) = (self.rest)()?;
        Ok((tokenizer, Weights::new(self.origin, sources, tensors)))
    }
}
