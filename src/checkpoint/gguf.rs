//! A GGUF file as llama.cpp writes it for Llama models, in Hugging Face terms.
//!
//! llama.cpp renames the tensors, turns the config into metadata, permutes the rows of the query and key projections
//! (it rotates neighbouring channels where transformers rotates halves) and bakes Llama 3's scaling of the rotary
//! frequencies into a tensor of factors. All of that is undone here. SmolLM3 is converted by the same code; which of its
//! layers go without RoPE is fixed in llama.cpp (every fourth) and not written to the file.

mod header;
mod vocabulary;

use super::storage::Source;
use super::{Entry, Tensors};
use crate::error::{Result, quoted};
use crate::model::{LlamaConfig, RopeScaling};
use crate::tokenizer::Tokenizer;
use header::Header;
use serde_json::{Map, Value};
use std::path::Path;

/// Hugging Face's name, llama.cpp's key after the architecture, whether the key must be there.
const FIELDS: [(&str, &str, bool); 10] = [
    ("hidden_size", "embedding_length", true),
    ("intermediate_size", "feed_forward_length", true),
    ("num_hidden_layers", "block_count", true),
    ("num_attention_heads", "attention.head_count", true),
    ("num_key_value_heads", "attention.head_count_kv", false),
    ("head_dim", "attention.key_length", false),
    ("max_position_embeddings", "context_length", true),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon", true),
    ("rope_theta", "rope.freq_base", false),
    ("vocab_size", "vocab_size", false),
];

/// Keys that change the forward pass in a way that is not computed here, unless they are absent or have one of the
/// values beside them.
const UNSUPPORTED: [(&str, &[f64]); 10] = [
    ("expert_count", &[0.0]),
    ("attention.sliding_window", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scaling.factor", &[0.0, 1.0]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("rope.scale_linear", &[0.0, 1.0]),
];

/// Divisors of the rotary frequencies, `[head_dim / 2]`.
const FACTORS: &str = "rope_freqs.weight";

/// Opens a GGUF file; a `tokenizer.json` beside it goes before the tokenizer in its metadata.
pub(super) fn open(path: &Path) -> Result<(LlamaConfig, Tokenizer, Source, Tensors)> {
    let mut source = Source::open(path)?;
    let header = Header::read(&mut source)?;
    let mut tensors = tensors(&header)?;
    let mut config = config(&header, &tensors)?;
    if let Some(entry) = tensors.remove(FACTORS) {
        config.rope_scaling = Some(factors(&header, &mut source, &entry, config.head_dim)?);
    }
    for (name, entry) in &mut tensors {
        entry.interleaved = interleaved(name, &config);
    }
    let beside = path.with_file_name("tokenizer.json");
    let tokenizer = if beside.exists() { Tokenizer::from_file(&beside)? } else { vocabulary::tokenizer(&header)? };
    Ok((config, tokenizer, source, tensors))
}

/// The tensors under their Hugging Face names.
fn tensors(header: &Header) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for tensor in &header.tensors {
        let name = hugging_face(&tensor.name).unwrap_or_else(|| tensor.name.clone());
        let (start, len, shape, stored) = (tensor.start, tensor.len, tensor.shape.clone(), tensor.stored.clone());
        let entry = Entry { source: 0, start, len, shape, stored, interleaved: None };
        if tensors.insert(name, entry).is_some() {
            return Err(header.error(format!("has the tensor {} twice", quoted(&tensor.name))));
        }
    }
    Ok(tensors)
}

/// The Hugging Face name of a tensor of llama.cpp's.
fn hugging_face(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, value) = part.split_once('.')?;
    let part = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{value}"))
}

/// The config that the metadata and the presence of tensors amount to.
fn config(header: &Header, tensors: &Tensors) -> Result<LlamaConfig> {
    let architecture = header.text("general.architecture")?.unwrap_or("(none)");
    let class = match architecture {
        "llama" => "LlamaForCausalLM",
        "smollm3" => "SmolLM3ForCausalLM",
        other => {
            let what = format!("architecture {} is not supported; `llama` and `smollm3` are", quoted(other));
            return Err(header.error(what));
        }
    };
    refuse_unsupported(header, architecture)?;
    let mut fields = Map::new();
    let mut set = |field: &str, value: Value| drop(fields.insert(field.to_owned(), value));
    let has = |name: &str| Value::from(tensors.contains_key(name));
    set("architectures", vec![class].into());
    set("tie_word_embeddings", (!tensors.contains_key("lm_head.weight")).into());
    set("attention_bias", has("model.layers.0.self_attn.q_proj.bias"));
    set("mlp_bias", has("model.layers.0.mlp.down_proj.bias"));
    // What llama.cpp assumes where the file is silent.
    set("rope_theta", 10_000.into());
    if let Some(heads) = header.scalar(&format!("{architecture}.attention.head_count"))? {
        set("num_key_value_heads", heads.clone());
    }
    if let Some(rows) = tensors.get("model.embed_tokens.weight").and_then(|entry| entry.shape.first()) {
        set("vocab_size", (*rows).into());
    }
    for (field, key, required) in FIELDS {
        let key = format!("{architecture}.{key}");
        match header.scalar(&key)? {
            Some(value) => set(field, value.clone()),
            None if required => return Err(header.error(format!("{} is missing", quoted(&key)))),
            None => {}
        }
    }
    for field in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = header.scalar(&format!("tokenizer.ggml.{field}"))? {
            set(field, id.clone());
        }
    }
    let config = LlamaConfig::from_fields(&fields, header.origin())?;
    refuse_partial_heads(header, architecture, &config)?;
    Ok(config)
}

fn refuse_unsupported(header: &Header, architecture: &str) -> Result<()> {
    for (key, neutral) in UNSUPPORTED {
        let key = format!("{architecture}.{key}");
        if let Some(value) = header.scalar(&key)?
            && !value.as_f64().is_some_and(|number| neutral.contains(&number))
        {
            return Err(header.error(format!("{} is {value}, which is not supported", quoted(&key))));
        }
    }
    let scaling = header.text(&format!("{architecture}.rope.scaling.type"))?;
    // A linear scaling without a factor, or with one of 1, is none.
    if let Some(other) = scaling.filter(|kind| !["none", "linear"].contains(kind)) {
        return Err(header.error(format!("RoPE scaling {} is not supported", quoted(other))));
    }
    match header.scalar("split.count")?.and_then(Value::as_u64) {
        Some(parts @ 2..) => Err(header.error(format!("is one of {parts} parts of a model; join them first (`llama-gguf-split --merge`)"))),
        _ => Ok(()),
    }
}

/// Refuses heads that rotate only a part of their channels, or whose values have another width.
fn refuse_partial_heads(header: &Header, architecture: &str, config: &LlamaConfig) -> Result<()> {
    for key in ["rope.dimension_count", "attention.value_length"] {
        let key = format!("{architecture}.{key}");
        if let Some(value) = header.scalar(&key)?
            && value.as_u64() != Some(config.head_dim as u64)
        {
            let what = format!("{} is {value}, but heads are {} wide", quoted(&key), config.head_dim);
            return Err(header.error(what));
        }
    }
    Ok(())
}

fn factors(header: &Header, source: &mut Source, entry: &Entry, head_dim: usize) -> Result<RopeScaling> {
    let count = head_dim / 2;
    if entry.shape != [count] {
        let what = format!("tensor `{FACTORS}` has shape {:?}, expected [{count}]", entry.shape);
        return Err(header.error(what));
    }
    let factors = entry.stored.decode(&source.read(entry.start, entry.len)?, count);
    let factors = factors.map_err(|what| header.error(format!("tensor `{FACTORS}` {what}")))?;
    if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        return Err(header.error(format!("tensor `{FACTORS}` holds values that are not above zero")));
    }
    Ok(RopeScaling::Factors(factors.into_iter().map(f64::from).collect()))
}

/// Heads of a tensor whose rows llama.cpp permutes.
fn interleaved(name: &str, config: &LlamaConfig) -> Option<usize> {
    let (layer, _) = name.rsplit_once('.')?;
    if layer.ends_with(".q_proj") {
        Some(config.num_attention_heads)
    } else if layer.ends_with(".k_proj") {
        Some(config.num_key_value_heads)
    } else {
        None
    }
}
