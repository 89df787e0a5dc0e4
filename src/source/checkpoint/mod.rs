//! Untrusted model files → named tensors of agreed shapes, nothing else.
//!
//! The formats differ only in where a tensor lies and how its values are stored, so each of them is read into the same
//! table of [`Entry`]. The table is compared with what the architecture needs before any tensor is read.

mod gguf;
mod safetensors;
mod shards;
mod storage;

use crate::error::{Error, Result, quoted};
use crate::files::read_text;
use crate::model::LlamaConfig;
use crate::source::tokenizer::Tokenizer;
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
    use crate::testing::{Written, golden, peak_memory, safetensors, tiny_config, tiny_tokenizer, values};
    use proptest::prelude::*;
    use proptest::sample::Index;
    use serde_json::Value;
    use std::fs;
    use std::path::PathBuf;

    /// The tensors of a config in f32.
    fn written(config: &Value) -> Vec<Written> {
        let config = LlamaConfig::from_json(&config.to_string(), "config.json").unwrap();
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let values = values(&name, shape.iter().product());
            (name, "F32", shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
        };
        config.tensors().into_iter().map(tensor).collect()
    }

    fn folder(config: &Value, weights: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("tokenizer.json"), tiny_tokenizer().to_string()).unwrap();
        fs::write(folder.path().join("model.safetensors"), weights).unwrap();
        folder
    }

    fn open(config: &Value, tensors: &[Written]) -> Result<Checkpoint> {
        Checkpoint::from_bytes(&config.to_string(), &tiny_tokenizer().to_string(), safetensors(tensors).leak())
    }

    fn refused(config: &Value, tensors: &[Written]) -> String {
        let error = open(config, tensors).err().expect("the model should be refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn a_folder_its_file_and_the_embedded_bytes_are_one_model() {
        let config = tiny_config();
        let weights = safetensors(&written(&config));
        let folder = folder(&config, &weights);
        let paths = [folder.path().to_owned(), folder.path().join("model.safetensors")];
        let mut embedded = open(&config, &written(&config)).unwrap();
        for path in paths {
            let mut opened = Checkpoint::open(&path).unwrap();
            assert_eq!(opened.config, embedded.config);
            assert_eq!(opened.digest, embedded.digest);
            assert_eq!(opened.origin, path.display().to_string());
            for (name, shape) in opened.config.tensors() {
                let expected = values(&name, shape.iter().product());
                assert_eq!(opened.read(&name, &shape).unwrap(), expected);
                assert_eq!(embedded.read(&name, &shape).unwrap(), expected);
            }
        }
        let digest: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(embedded.digest, digest);
    }

    #[test]
    fn the_digest_of_shards_is_that_of_their_concatenation() {
        let folder = golden("tiny/sharded");
        let mut shards: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        shards.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("model-"));
        shards.sort();
        let bytes: Vec<u8> = shards.iter().flat_map(|path| fs::read(path).unwrap()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(Checkpoint::open(&folder).unwrap().digest, digest);
    }

    #[test]
    fn every_tensor_that_does_not_fit_is_named() {
        let config = tiny_config();
        let mut tensors = written(&config);
        let (_, _, shape, bytes) = &mut tensors[1];
        (*shape, *bytes) = (vec![64, 32], vec![0; 64 * 32 * 4]);
        (tensors[2].1, tensors[2].3) = ("I8", vec![0; 32 * 64]);
        tensors.remove(3);
        tensors.push(("extra".to_owned(), "F32", vec![1], vec![0; 4]));
        let text = refused(&config, &tensors);
        for part in [
            "1 missing: `model.layers.0.self_attn.v_proj.weight` [32, 64]",
            "1 of another shape: `model.layers.0.self_attn.q_proj.weight` expected [64, 64], found [64, 32]",
            "1 of a type that is not read: `model.layers.0.self_attn.k_proj.weight` stored as I8",
            "1 unused: `extra` [1]",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let text = refused(&tiny_config(), &[]);
        assert!(text.contains("20 missing: `model.embed_tokens.weight` [264, 64], ") && text.contains(" and 12 more"), "{text}");
    }

    #[test]
    fn a_config_larger_than_its_weights_is_refused_before_memory_is_taken() {
        let mut config = tiny_config();
        let tensors = written(&config);
        config["hidden_size"] = 65_536.into();
        config["intermediate_size"] = (1 << 20).into();
        config["head_dim"] = 1024.into();
        config["num_hidden_layers"] = 1024.into();
        let (text, memory) = peak_memory(|| refused(&config, &tensors));
        assert!(text.contains("expected [264, 65536], found [264, 64]"), "{text}");
        // The names and shapes of a thousand layers, not their values.
        assert!(memory < 16 << 20, "{memory} bytes");
    }

    #[test]
    fn leftovers_that_no_model_reads_are_ignored() {
        let config = tiny_config();
        let mut tensors = written(&config);
        tensors.push(("lm_head.weight".to_owned(), "I8", vec![3], vec![0; 3]));
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), "F64", vec![1], vec![0; 8]));
        let mut opened = open(&config, &tensors).unwrap();
        assert!(opened.read("lm_head.weight", &[3]).is_err());
        // An own head is needed, not ignored.
        let mut untied = config;
        untied["tie_word_embeddings"] = false.into();
        assert!(refused(&untied, &tensors).contains("`lm_head.weight` expected [264, 64], found [3]"));
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let config = tiny_config();
        for (kind, width, wild) in [("BF16", 2, [0xc0, 0x7f]), ("F16", 2, [0x00, 0xfc]), ("F32", 4, [0x80, 0x7f])] {
            let mut tensors = written(&config);
            let (name, stored, shape, bytes) = tensors.last_mut().unwrap();
            (*stored, *bytes) = (kind, vec![0; shape[0] * width]);
            for at in [3, 63] {
                bytes[at * width + width - 2..][..2].copy_from_slice(&wild);
            }
            let (name, shape) = (name.clone(), shape.clone());
            let text = open(&config, &tensors).unwrap().read(&name, &shape).unwrap_err().to_string();
            assert!(text.contains("`model.norm.weight`") && text.contains("holds 2 values that are not finite"), "{text}");
        }
    }

    #[test]
    fn a_tensor_is_read_by_its_name_and_shape_only() {
        let config = tiny_config();
        let mut opened = open(&config, &written(&config)).unwrap();
        let text = opened.read("model.norm.weight", &[8, 8]).unwrap_err().to_string();
        assert!(text.contains("has shape [64], expected [8, 8]"), "{text}");
        assert!(opened.read("model.norm", &[64]).unwrap_err().to_string().contains("`model.norm` of `embedded model` is missing"));
    }

    #[test]
    fn a_tokenizer_larger_than_the_embeddings_is_refused() {
        let mut config = tiny_config();
        config["vocab_size"] = 261.into();
        let text = refused(&config, &written(&config));
        assert!(text.contains("has 262 tokens, but the model has embeddings for 261"), "{text}");
    }

    #[test]
    fn what_is_no_model_is_a_sentence() {
        let config = tiny_config();
        let folder = folder(&config, &safetensors(&written(&config)));
        let sentence = |name: &str| Checkpoint::open(&folder.path().join(name)).err().unwrap().to_string();
        assert!(sentence("absent").contains("absent"));
        assert!(sentence("tokenizer.json").contains("is not a model"));
        fs::write(folder.path().join("model.gguf"), b"GGML").unwrap();
        assert!(sentence("model.gguf").contains("is not a GGUF file"));
        fs::write(folder.path().join("config.json"), b"{\"a\": \xff}").unwrap();
        assert!(sentence("model.safetensors").contains("is not UTF-8 text at byte 6"));
        fs::remove_file(folder.path().join("config.json")).unwrap();
        assert!(sentence(".").contains("config.json"));
    }

    #[test]
    fn a_file_cut_while_the_model_loads_is_a_sentence() {
        let config = tiny_config();
        let folder = folder(&config, &safetensors(&written(&config)));
        let mut opened = Checkpoint::open(folder.path()).unwrap();
        let file = fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
        file.set_len(4096).unwrap();
        let text = opened.read("model.norm.weight", &[64]).unwrap_err().to_string();
        assert!(text.contains("changed while it was read"), "{text}");
    }

    /// Models of the golden fixtures: a folder or file, and the weight file in it.
    const MODELS: [(&str, &str); 6] = [
        ("tiny/gqa3-tied", "model.safetensors"),
        ("tiny/sharded", "model-00001-of-00002.safetensors"),
        ("tiny/sharded", "model.safetensors.index.json"),
        ("tiny_gguf/gqa3-tied.f32.gguf", ""),
        ("tiny_gguf/gqa4-untied-llama3.q4_0.gguf", ""),
        ("tiny_gguf/kquants.gguf", ""),
    ];

    /// A copy of a golden model.
    fn copied(model: &str) -> (tempfile::TempDir, PathBuf) {
        let (source, folder) = (golden(model), tempfile::tempdir().unwrap());
        if source.is_file() {
            let path = folder.path().join(source.file_name().unwrap());
            fs::copy(source, &path).unwrap();
            return (folder, path);
        }
        for entry in fs::read_dir(source).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let path = folder.path().to_owned();
        (folder, path)
    }

    fn open_and_read(path: &Path) -> Result<()> {
        let mut checkpoint = Checkpoint::open(path)?;
        for (name, shape) in checkpoint.config.tensors() {
            checkpoint.read(&name, &shape)?;
        }
        Ok(())
    }

    proptest! {
        /// Whatever is wrong with a weight file, opening and reading the model neither panics nor takes memory that the
        /// file is not worth.
        #[test]
        fn a_damaged_model_is_read_or_refused(
            (model, file) in proptest::sample::select(&MODELS[..]),
            near in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..3),
            far in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..3),
            cut in proptest::option::of(any::<Index>()),
        ) {
            let (_folder, path) = copied(model);
            let damaged = if file.is_empty() { path.clone() } else { path.join(file) };
            let mut bytes = fs::read(&damaged).unwrap();
            // Counts and offsets are in the first kilobyte.
            let header = bytes.len().min(1024);
            for (at, byte) in near {
                bytes[at.index(header)] = byte;
            }
            for (at, byte) in far {
                *at.get_mut(&mut bytes) = byte;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            fs::write(&damaged, &bytes).unwrap();
            let (outcome, memory) = peak_memory(|| open_and_read(&path));
            prop_assert!(memory < 2 << 20, "{memory} bytes");
            if let Err(error) = outcome {
                prop_assert!(error.exit_code() == 2 && !error.to_string().contains('\n'), "{error}");
            }
        }
    }
}
