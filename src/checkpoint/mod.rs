//! Untrusted model files → named tensors of agreed shapes, nothing else.
//!
//! The formats differ only in where a tensor lies and how its values are stored, so each of them is read into the same
//! table of [`Entry`]. The table is compared with what the architecture needs before any tensor is read.

mod gguf;
mod safetensors;
mod shards;
mod storage;

use crate::error::{Error, Result, quoted};
use crate::model::LlamaConfig;
use crate::tokenizer::Tokenizer;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use storage::{Source, Stored};

/// Largest `config.json` that is read, in bytes: what is parsed takes many times the memory of its text.
const LARGEST_CONFIG: u64 = 1 << 20;

/// Tensors by their Hugging Face name.
type Tensors = BTreeMap<String, Entry>;

/// Where a tensor lies and how it is stored.
#[derive(Debug)]
struct Entry {
    /// Which of the weight files.
    source: usize,
    /// First byte in that file.
    start: u64,
    /// Bytes.
    len: usize,
    shape: Vec<usize>,
    stored: Stored,
    /// Number of heads whose rows lie interleaved, as llama.cpp stores queries and keys.
    interleaved: Option<usize>,
}

/// A model on disk or in the program: its architecture, its tokenizer and, on demand, its weights.
pub struct Checkpoint {
    /// The architecture, checked against the weights.
    pub config: LlamaConfig,
    /// The tokenizer; it has no more tokens than the embedding matrix has rows.
    pub tokenizer: Tokenizer,
    /// SHA-256 of the weight file in hexadecimal; of shards, one after another in the order of their names
    /// (`cat model-*.safetensors | sha256sum`).
    pub digest: String,
    /// The path as given, or the name of an embedded model.
    pub origin: String,
    sources: Vec<Source>,
    tensors: Tensors,
}

impl Checkpoint {
    /// Opens a folder in Hugging Face layout, a `.gguf` file, or a `.safetensors` file with `config.json` and
    /// `tokenizer.json` beside it.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and what is wrong with it, before memory is taken for any tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let metadata = std::fs::metadata(path).map_err(|error| Error::reading(path, &error))?;
        if metadata.is_dir() {
            let (config, tokenizer) = read_beside(&path.join("model.safetensors"))?;
            let (sources, tensors) = shards::open_folder(path)?;
            return Self::assemble(origin, config, tokenizer, sources, tensors);
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => {
                let (config, tokenizer) = read_beside(path)?;
                let mut source = Source::open(path)?;
                let tensors = safetensors::tensors(&mut source, 0)?;
                Self::assemble(origin, config, tokenizer, vec![source], tensors)
            }
            Some("gguf") => {
                let (config, tokenizer, source, tensors) = gguf::open(path)?;
                Self::assemble(origin, config, tokenizer, vec![source], tensors)
            }
            _ => Err(Error::input(format!(
                "{} is not a model: give a folder in Hugging Face layout, or a `.gguf` or `.safetensors` file",
                quoted(&origin)
            ))),
        }
    }

    /// A model embedded in the program: the texts of `config.json` and `tokenizer.json`, the bytes of
    /// `model.safetensors`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(config: &str, tokenizer: &str, weights: &'static [u8]) -> Result<Self> {
        let config = LlamaConfig::from_json(config, "config.json")?;
        let tokenizer = Tokenizer::from_json_bytes(tokenizer.as_bytes(), "tokenizer.json")?;
        let mut source = Source::embedded("model.safetensors", weights);
        let tensors = safetensors::tensors(&mut source, 0)?;
        Self::assemble("embedded model".to_owned(), config, tokenizer, vec![source], tensors)
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
            values = rows_by_halves(&values, heads, shape[0]);
        }
        Ok(values)
    }

    /// The last step of every way to open a model: the parts must fit together.
    fn assemble(origin: String, config: LlamaConfig, tokenizer: Tokenizer, mut sources: Vec<Source>, mut tensors: Tensors) -> Result<Self> {
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::input(format!(
                "the tokenizer of {} has {} tokens, but the model has embeddings for {}; they belong to different models",
                quoted(&origin),
                tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        drop_ignored(&mut tensors, &config, &origin);
        compare(&tensors, &config, &origin)?;
        let mut hash = Sha256::new();
        for source in &mut sources {
            source.hash(&mut hash)?;
        }
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { config, tokenizer, digest, origin, sources, tensors })
    }
}

/// `config.json` and `tokenizer.json` in the folder of a weight file.
fn read_beside(weights: &Path) -> Result<(LlamaConfig, Tokenizer)> {
    let path = weights.with_file_name("config.json");
    let config = LlamaConfig::from_json(&read_text(&path, LARGEST_CONFIG)?, &path.display().to_string())?;
    Ok((config, Tokenizer::from_file(&weights.with_file_name("tokenizer.json"))?))
}

/// The whole of a regular file that may not be larger than `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut source = Source::open(path)?;
    if source.len > limit {
        return Err(source.error(format!("has {} bytes; at most {limit} are read", source.len)));
    }
    Ok(source.read(0, source.len as usize)?.to_vec())
}

fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_small(path, limit)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::input(format!("{} is not UTF-8 text at byte {at}", quoted(&path.display().to_string())))
    })
}

/// Removes what old files carry along and no model reads: rotary frequencies, and a head beside tied embeddings.
fn drop_ignored(tensors: &mut Tensors, config: &LlamaConfig, origin: &str) {
    tensors.retain(|name, _| !name.ends_with(".rotary_emb.inv_freq"));
    if config.tie_word_embeddings && tensors.remove("lm_head.weight").is_some() {
        tracing::warn!("{}: `lm_head.weight` is ignored, the config ties the head to the embeddings", quoted(origin));
    }
}

/// Compares the tensors at hand with those the architecture needs.
fn compare(tensors: &Tensors, config: &LlamaConfig, origin: &str) -> Result<()> {
    let needed: BTreeMap<_, _> = config.tensors().into_iter().collect();
    let (mut missing, mut misshaped, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in &needed {
        match tensors.get(name) {
            None => missing.push(format!("{} {shape:?}", quoted(name))),
            Some(found) if found.shape != *shape => {
                misshaped.push(format!("{} expected {shape:?}, found {:?}", quoted(name), found.shape));
            }
            Some(Entry { stored: Stored::Unreadable(kind), .. }) => {
                unreadable.push(format!("{} stored as {kind}", quoted(name)));
            }
            Some(_) => {}
        }
    }
    let unused = tensors.iter().filter(|(name, _)| !needed.contains_key(*name));
    let unused = unused.map(|(name, found)| format!("{} {:?}", quoted(name), found.shape)).collect();
    let problems: Vec<String> =
        [("missing", missing), ("of another shape", misshaped), ("of a type that is not read", unreadable), ("unused", unused)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| listed(what, &names))
            .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input(format!("the weights of {} do not fit their config: {}", quoted(origin), problems.join("; "))))
}

/// `2 missing: a, b`, with the first few names of many.
fn listed(what: &str, names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = match names.len() {
        0..=SHOWN => String::new(),
        many => format!(" and {} more", many - SHOWN),
    };
    format!("{} {what}: {}{more}", names.len(), names[..names.len().min(SHOWN)].join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn smoke() {
        let mut all = vec![];
        for p in ["/work/tmp/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "/tmp/hf/smollm2-f32"] {
            let t = std::time::Instant::now();
            let mut c = Checkpoint::open(Path::new(p)).unwrap();
            eprintln!("open {:?} {:?} {}", t.elapsed(), c.config, c.digest);
            let ts: Vec<_> = c.config.tensors().into_iter().map(|(name, shape)| c.read(&name, &shape).unwrap()).collect();
            eprintln!("read {:?} {}", t.elapsed(), ts.iter().map(|v| v.len()).sum::<usize>());
            let ids = c.tokenizer.encode("Hello world 123 <|im_end|>");
            eprintln!("{ids:?} {:?} {}", c.tokenizer.decode(&ids), c.tokenizer.round_trips(&ids));
            let texts = (0..49152).filter(|i| c.tokenizer.is_text(*i)).count();
            eprintln!("{texts} {:?}", t.elapsed());
            for f in ["/work/shared/data/tinyshakespeare.txt", "/work/shared/data/gsm8k-train.jsonl"] {
                all.push(c.tokenizer.encode(&std::fs::read_to_string(f).unwrap()));
                eprintln!("{} {:?}", all.last().unwrap().len(), t.elapsed());
            }
            all.push(ts.concat().iter().map(|v| v.to_bits()).collect());
        }
        for i in 0..3 {
            assert!(all[i] == all[i + 3], "{i}");
        }
    }
}
