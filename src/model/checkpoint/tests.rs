//! Models of every format, whole and damaged.

use super::*;
use crate::error::Result;
use crate::files::hex;
use crate::testing::{Written, golden, peak_memory, safetensors, tiny_config, tiny_tokenizer, values};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

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
    let files = ModelFiles::embedded(&config.to_string(), &tiny_tokenizer().to_string(), safetensors(tensors).leak())?;
    Checkpoint::of(files, &Digests::of_user())
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
    let digest = hex(&Sha256::digest(&weights));
    assert_eq!(embedded.digest, digest);
}

#[test]
fn the_digest_of_shards_is_that_of_their_concatenation() {
    let folder = golden("tiny/sharded");
    let mut shards: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    shards.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("model-"));
    shards.sort();
    let bytes: Vec<u8> = shards.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    let digest = hex(&Sha256::digest(&bytes));
    assert_eq!(Checkpoint::open(&folder).unwrap().digest, digest);
}

#[test]
fn weights_are_hashed_once() {
    let config = tiny_config();
    let (folder, cache) = (folder(&config, &safetensors(&written(&config))), tempfile::tempdir().unwrap());
    let path = folder.path().join("model.safetensors");
    let digest = || Checkpoint::of(ModelFiles::open(folder.path()).unwrap(), &Digests::within(cache.path())).unwrap().digest;
    let change = |seconds| {
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        hex(&Sha256::digest(&bytes))
    };
    let first = change(1_000);
    assert_eq!(digest(), first);
    // Other bytes of the same length and time are not seen: the file is not read.
    let unseen = change(1_000);
    assert_eq!(digest(), first);
    assert_ne!(unseen, first);
    let second = change(1_001);
    assert_eq!(second, first);
    let third = change(1_002);
    assert_eq!(digest(), third);
    // A model in the program has no file to know it by.
    let embedded = ModelFiles::embedded(&config.to_string(), &tiny_tokenizer().to_string(), safetensors(&written(&config)).leak()).unwrap();
    Checkpoint::of(embedded, &Digests::within(cache.path())).unwrap();
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
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
    config["vocab_size"] = 260.into();
    let text = refused(&config, &written(&config));
    assert!(text.contains("has 262 tokens, but the model has embeddings for 260"), "{text}");
    // Of the last two only one was learned; the other was added, and nobody trained an embedding for it.
    config["vocab_size"] = 261.into();
    assert_eq!(open(&config, &written(&config)).unwrap().tokenizer.encode("<tool>"), [261]);
}

#[test]
fn the_head_of_a_tied_model_is_what_transformers_takes() {
    const HEAD: &str = "lm_head.weight";
    let config = tiny_config();
    let embeddings = written(&config)[0].clone();
    let with_head = |values: Vec<u8>| {
        let mut tensors = written(&config);
        tensors.push((HEAD.to_owned(), "F32", embeddings.2.clone(), values));
        open(&config, &tensors).unwrap()
    };
    // A copy is no second matrix.
    assert!(with_head(embeddings.3.clone()).config.tie_word_embeddings);
    // Another head is used, though the config ties.
    let mut other = embeddings.3.clone();
    *other.last_mut().unwrap() ^= 1;
    let mut opened = with_head(other.clone());
    assert!(!opened.config.tie_word_embeddings);
    assert_eq!(opened.read(HEAD, &embeddings.2).unwrap(), written_values(&other));
    // A head alone is the embeddings.
    let mut tensors = written(&config);
    tensors[0].0 = HEAD.to_owned();
    let mut opened = open(&config, &tensors).unwrap();
    let found = opened.read("model.embed_tokens.weight", &embeddings.2).unwrap();
    assert_eq!(found, written_values(&embeddings.3));
}

fn written_values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn stop_tokens_are_those_of_the_generation_config() {
    let config = tiny_config();
    let folder = folder(&config, &safetensors(&written(&config)));
    let ends = |generation: &str| {
        fs::write(folder.path().join("generation_config.json"), generation).unwrap();
        Checkpoint::open(folder.path()).map(|checkpoint| checkpoint.config.eos_token_ids)
    };
    assert_eq!(ends(r#"{"eos_token_id": [2, 5], "top_p": NaN}"#).unwrap(), [2, 5]);
    assert_eq!(ends(r#"{"eos_token_id": 7}"#).unwrap(), [7]);
    assert_eq!(ends(r#"{"eos_token_id": null}"#).unwrap(), [0]);
    assert_eq!(ends(r#"{"top_k": 3}"#).unwrap(), [0]);
    // One that is broken is passed over, with a warning, as transformers does.
    assert_eq!(ends("{").unwrap(), [0]);
}

#[test]
fn a_folder_with_one_gguf_is_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = golden("tiny_gguf/gqa3-tied.f32.gguf");
    fs::copy(&gguf, folder.path().join("model.gguf")).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().digest, Checkpoint::open(&gguf).unwrap().digest);
    fs::copy(&gguf, folder.path().join("other.gguf")).unwrap();
    let text = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(text.contains("holds 2 GGUF files") && text.contains("model.gguf"), "{text}");
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
    assert!(sentence("model.safetensors").contains("is not UTF-8 text: byte 6 (0xff)"));
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
