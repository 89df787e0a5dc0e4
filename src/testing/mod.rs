//! What the unit tests share.

mod faults;
mod floors;
mod memory;

pub use memory::peak_memory;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::ops::TrackedBackend;

/// A file under `tests/golden`. Relative, as cargo runs tests in the package's root: clones may share what it compiled.
pub fn golden(path: &str) -> PathBuf {
    Path::new("tests/golden").join(path)
}

/// The GGUF of the real SmolLM2-135M-Instruct: `SMOLLM2_GGUF`, else where `./check` puts it. Without it a test says so and
/// passes, but under `CI=true` it fails.
pub fn real_smollm2(test: &str) -> Option<PathBuf> {
    let default = || "models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".into();
    let path = std::env::var_os("SMOLLM2_GGUF").map_or_else(default, PathBuf::from);
    (path.exists() || skipped(test, "the real SmolLM2 is absent")).then_some(path)
}

/// Says loudly that a test did not run; under `CI=true` that is a failure.
fn skipped(test: &str, why: &str) -> bool {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test}: {why}");
    eprintln!("SKIPPED ({why}): {test}");
    false
}

/// Burn 0.21 loses gradients when several threads of a process pull them; tests that do hold this.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Expected values that a script of `tests/golden` made.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: &str) -> Self {
        Self(std::fs::read(golden(path)).unwrap())
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    pub fn doubles(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let ids: Vec<u32> = view.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect();
        ids.chunks(*view.shape().last().unwrap()).map(<[u32]>::to_vec).collect()
    }

    /// max |expected − found|; infinite where the lengths differ or a value is not a number.
    pub fn largest_difference(&self, name: &str, found: &[f32]) -> f32 {
        largest_difference(&self.floats(name), found)
    }
}

/// max |a − b|; infinite where the lengths differ or a value is not a number.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) })
}

/// Turns `fn name<B: Backend>()` into one test on flex and one on ndarray.
macro_rules! each_cpu_backend {
    ($($name:ident),* $(,)?) => {
        mod on_flex { $(#[test] fn $name() { super::$name::<burn::backend::Flex>(); })* }
        #[cfg(feature = "ndarray")]
        mod on_ndarray { $(#[test] fn $name() { super::$name::<burn::backend::NdArray>(); })* }
    };
}

/// The same for `fn name<B: TrackedBackend>()`, one test at a time.
macro_rules! each_tracked_cpu_backend {
    ($($name:ident),* $(,)?) => {
        mod on_flex { $(#[test] fn $name() {
            let _guard = crate::testing::one_at_a_time();
            super::$name::<burn::backend::Autodiff<burn::backend::Flex>>();
        })* }
        #[cfg(feature = "ndarray")]
        mod on_ndarray { $(#[test] fn $name() {
            let _guard = crate::testing::one_at_a_time();
            super::$name::<burn::backend::Autodiff<burn::backend::NdArray>>();
        })* }
    };
}

pub(crate) use {each_cpu_backend, each_tracked_cpu_backend};

/// The tiny model of most tests: three query heads for each key head, tied.
pub fn tiny() -> crate::model::Checkpoint {
    crate::model::Checkpoint::open(&golden("tiny/gqa3-tied")).unwrap()
}

/// The weights of a model in this type.
pub fn loaded<B: Backend>(checkpoint: &mut crate::model::Checkpoint, dtype: DType) -> crate::model::Llama<B> {
    let config = checkpoint.config.clone();
    crate::model::Llama::load(&config, checkpoint, &B::Device::default(), dtype).unwrap()
}

/// The tiny model with its tokenizer.
pub fn tiny_subject<B: TrackedBackend>(dtype: DType) -> crate::subject::Subject<B> {
    let mut checkpoint = tiny();
    crate::subject::Subject::new(loaded(&mut checkpoint, dtype), checkpoint.tokenizer)
}

/// The fixture of `table1_steps.py`.
pub const TABLE_1: &str = "table1_steps.safetensors";

/// Its target on the tiny model, to be found with n free tokens of the whole vocabulary behind `prefix`.
pub fn table_1_problem(n: usize, prefix: &str) -> crate::Problem {
    use crate::problem::PromptOptions;
    let (checkpoint, ids) = (tiny(), Golden::open(TABLE_1).ids("target").remove(0));
    let target = crate::Target::new(checkpoint.tokenizer.decode(&ids), ids);
    let options = PromptOptions { tokens: n, allow_everything: true, prefix: prefix.into(), ..PromptOptions::default() };
    crate::Problem::new(options, target, &checkpoint.tokenizer, checkpoint.config.vocab_size).unwrap()
}

/// A matrix of so many columns, row-major.
pub fn matrix<B: Backend>(values: &[f32], columns: usize, dtype: DType) -> Tensor<B, 2> {
    let data = TensorData::new(values.to_vec(), [values.len() / columns, columns]);
    Tensor::from_data(data, (&B::Device::default(), dtype))
}

/// A `tokenizer.json` for byte-level BPE: `<|endoftext|>` (0, special), the 256 bytes, `he`, `ll`, ` t`, `llo`, and
/// `<tool>` (261, added but not special).
pub fn tiny_tokenizer() -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let letters = alphabet.iter().map(char::to_string);
    let tokens = std::iter::once("<|endoftext|>".to_owned()).chain(letters);
    let merged = ["he", "ll", "Ġt", "llo"].map(str::to_owned);
    let vocabulary: Value = tokens.chain(merged).enumerate().map(|(id, token)| (token, Value::from(id))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(0, "<|endoftext|>", true), added(261, "<tool>", false)],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "vocab": vocabulary,
            "merges": [["h", "e"], ["l", "l"], ["Ġ", "t"], ["ll", "o"]]},
    })
}

/// A `config.json` of a model with grouped queries that goes with [`tiny_tokenizer`].
pub fn tiny_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": 264, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "bos_token_id": 0, "eos_token_id": 0,
    })
}

/// Repeatable values in (-1, 1) that differ from tensor to tensor.
pub fn values(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(0x9e37_79b9_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A tensor to be written: name, type as safetensors calls it, shape, bytes.
pub type Written = (String, &'static str, Vec<usize>, Vec<u8>);

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Written]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, kind, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": kind, "shape": shape, "data_offsets": offsets}));
        data.extend_from_slice(bytes);
    }
    safetensors_with(&Value::from(header).to_string(), &data)
}

/// A safetensors file with any header.
pub fn safetensors_with(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}
