//! A GGUF file as llama.cpp writes it for Llama models and their kin, in Hugging Face terms.
//!
//! llama.cpp renames the tensors, turns the config into metadata, permutes the rows of the query and key projections
//! (it rotates neighbouring channels of Llama where transformers rotates halves) and bakes Llama 3's scaling of the rotary
//! frequencies into a tensor of factors. All of that is undone here. Mistral is a Llama there. SmolLM3 is converted by the same code; which
//! of its layers go without RoPE is fixed in llama.cpp (every fourth) and not written to the file. The rows of Qwen are not permuted.

#[cfg(test)]
mod fixture;
mod header;
mod vocabulary;

use super::storage::Source;
use super::{ConfigFields, Entry, ROPE_FACTORS, Rest, STOP_TOKENS, TOKENIZER, Tensors};
use crate::error::{Result, quoted};
use crate::source::chat::ChatFiles;
use crate::source::tokenizer::Tokenizer;
use header::Header;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A kind of models in both worlds.
struct Architecture {
    /// What `general.architecture` says.
    name: &'static str,
    /// The class of transformers.
    class: &'static str,
    /// The rows of queries and keys are permuted.
    permuted: bool,
}

const ARCHITECTURES: [Architecture; 4] = [
    Architecture { name: "llama", class: "LlamaForCausalLM", permuted: true },
    Architecture { name: "smollm3", class: "SmolLM3ForCausalLM", permuted: true },
    Architecture { name: "qwen2", class: "Qwen2ForCausalLM", permuted: false },
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", permuted: false },
];

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

/// Keys that change the forward pass in a way that is not computed here, unless they are absent or have one of
/// these values.
const UNSUPPORTED: [(&str, &[f64]); 9] = [
    ("expert_count", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scaling.factor", &[0.0, 1.0]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("rope.scale_linear", &[0.0, 1.0]),
];

/// Wider heads are refused with the config; nothing as long as one of them is read before.
const LARGEST_HEAD: u64 = 1 << 10;

/// Divisors of the rotary frequencies, `[head_dim / 2]`.
const FACTORS: &str = "rope_freqs.weight";

/// Opens a GGUF file; a `tokenizer.json` next to it is used instead of the tokenizer in its metadata, if both have the same vocabulary.
pub(super) fn open(path: &Path) -> Result<(ConfigFields, ChatFiles, Rest)> {
    let mut source = Source::open(path)?;
    let header = Header::read(&mut source)?;
    refuse_parts(&header)?;
    let architecture = architecture(&header)?;
    let mut tensors = tensors(&header, architecture.name)?;
    let mut fields = fields(&header, architecture, &tensors)?;
    // Of another width there is no model: the config is refused.
    if let Some(head_dim) = head_dim(&fields) {
        refuse_partial_heads(&header, architecture.name, head_dim)?;
        if let Some(entry) = tensors.remove(FACTORS) {
            let factors = factors(&header, &mut source, &entry, head_dim / 2)?;
            fields.insert("rope_scaling".to_owned(), json!({ "rope_type": ROPE_FACTORS, "factors": factors }));
        }
    }
    if architecture.permuted {
        tensors.iter_mut().for_each(|(name, entry)| entry.interleaved = interleaved(name, &fields));
    }
    let config = ConfigFields { fields, origin: header.origin().to_owned() };
    let chat = chat(&header)?;
    let next_to_it = path.with_file_name(TOKENIZER);
    let rest = move || Ok((tokenizer(&header, &next_to_it)?, vec![source], tensors));
    Ok((config, chat, Box::new(rest)))
}

/// The chat template, and the special tokens that templates call by name.
fn chat(header: &Header) -> Result<ChatFiles> {
    let mut tokens = Map::new();
    let template = header.text("tokenizer.chat_template")?.map(str::to_owned);
    if template.is_some() {
        let texts = header.texts("tokenizer.ggml.tokens")?;
        for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")] {
            let id = header.scalar(&format!("tokenizer.ggml.{key}_token_id"))?.and_then(Value::as_u64);
            let text = id.and_then(|id| texts.get(id as usize));
            tokens.extend(text.map(|text| (name.to_owned(), (*text).into())));
        }
    }
    Ok(ChatFiles::Inside { origin: header.origin().to_owned(), template, tokens })
}

/// The tokenizer of the file next to it, if that is this model's, else the one in the metadata.
fn tokenizer(header: &Header, next_to_it: &Path) -> Result<Tokenizer> {
    if !next_to_it.exists() {
        return vocabulary::tokenizer(header);
    }
    let given = Tokenizer::from_file(next_to_it)?;
    let Some(token) = vocabulary::disagreement(header, &given)? else { return Ok(given) };
    tracing::warn!(
        "{} is left aside: it is not the tokenizer of {}, whose token {} is another there",
        quoted(&next_to_it.display().to_string()),
        quoted(header.origin()),
        quoted(token)
    );
    vocabulary::tokenizer(header)
}

/// The tensors under their Hugging Face names.
fn tensors(header: &Header, architecture: &str) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for tensor in &header.tensors {
        let name = hugging_face(&tensor.name, architecture).unwrap_or_else(|| tensor.name.clone());
        let (start, len, shape, stored) = (tensor.start, tensor.len, tensor.shape.clone(), tensor.stored.clone());
        let entry = Entry { source: 0, start, len, shape, stored, interleaved: None };
        if tensors.insert(name, entry).is_some() {
            return Err(header.error(format!("has the tensor {} twice", quoted(&tensor.name))));
        }
    }
    Ok(tensors)
}

/// The Hugging Face name of a tensor of llama.cpp's.
fn hugging_face(name: &str, architecture: &str) -> Option<String> {
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
        "attn_q_norm" if architecture == "qwen3" => "self_attn.q_norm",
        "attn_k_norm" if architecture == "qwen3" => "self_attn.k_norm",
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
fn fields(header: &Header, architecture: &Architecture, tensors: &Tensors) -> Result<Map<String, Value>> {
    refuse_unsupported(header, architecture.name)?;
    let has = |name: &str| Value::from(tensors.contains_key(name));
    let mut fields = sizes(header, architecture.name, tensors)?;
    let mut set = |field: &str, value: Value| drop(fields.insert(field.to_owned(), value));
    set("architectures", vec![architecture.class].into());
    if let Some(window) = header.scalar(&format!("{}.attention.sliding_window", architecture.name))?.filter(|window| **window != 0) {
        // Of the Llamas only Mistral has one.
        if architecture.name == "llama" {
            set("architectures", vec!["MistralForCausalLM"].into());
        }
        set("sliding_window", window.clone());
        set("use_sliding_window", true.into());
        set("max_window_layers", 0.into());
    }
    set("tie_word_embeddings", (!tensors.contains_key("lm_head.weight")).into());
    set("attention_bias", has("model.layers.0.self_attn.q_proj.bias"));
    set("mlp_bias", has("model.layers.0.mlp.down_proj.bias"));
    if let Some(id) = header.scalar("tokenizer.ggml.bos_token_id")? {
        set("bos_token_id", id.clone());
    }
    set(STOP_TOKENS, ends(header)?.into());
    Ok(fields)
}

/// The numbers of [`FIELDS`], and what llama.cpp assumes where the file is silent.
fn sizes(header: &Header, architecture: &str, tensors: &Tensors) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    let mut set = |field: &str, value: Value| drop(fields.insert(field.to_owned(), value));
    set("rope_theta", 10_000.into());
    let number = |key: &str| header.scalar(&format!("{architecture}.{key}"));
    let (width, heads) = (number("embedding_length")?, number("attention.head_count")?);
    if let Some(heads) = heads {
        set("num_key_value_heads", heads.clone());
    }
    if let (Some(width), Some(heads @ 1..)) = (width.and_then(Value::as_u64), heads.and_then(Value::as_u64))
        && width.is_multiple_of(heads)
    {
        set("head_dim", (width / heads).into());
    }
    if let Some(rows) = tensors.get("model.embed_tokens.weight").and_then(|entry| entry.shape.first()) {
        set("vocab_size", (*rows).into());
    }
    for (field, key, required) in FIELDS {
        match number(key)? {
            Some(value) => set(field, value.clone()),
            None if required => return Err(header.error(format!("{} is missing", quoted(&format!("{architecture}.{key}"))))),
            None => {}
        }
    }
    Ok(fields)
}

/// The texts of tokens that end a text, a turn or a message wherever they are control tokens. A file names one of them or two, and its model's
/// `generation_config.json` all.
const ENDS: [&str; 6] = ["<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"];

/// The stop tokens: those that the file names, and control tokens that are some by their texts, as llama.cpp has it. One that stands for what
/// is unknown is none, as SmolLM2's `<|endoftext|>`.
fn ends(header: &Header) -> Result<Vec<Value>> {
    let named = |key: &str| Ok(header.scalar(&format!("tokenizer.ggml.{key}_token_id"))?.cloned());
    let of_keys = ["eos", "eot", "eom"].map(named).into_iter().filter_map(Result::transpose).collect::<Result<Vec<Value>>>()?;
    let unknown = named("unknown")?;
    let of_texts = vocabulary::controls(header)?.into_iter().filter(|(_, text)| ENDS.contains(text)).map(|(id, _)| Value::from(id));
    let mut ends: Vec<Value> = Vec::new();
    for end in of_keys.into_iter().chain(of_texts.filter(|id| Some(id) != unknown.as_ref())) {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    Ok(ends)
}

fn architecture(header: &Header) -> Result<&'static Architecture> {
    let name = header.text("general.architecture")?.unwrap_or("(none)");
    ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| {
        let all: Vec<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
        header.error(format!("architecture {} is not supported; {} are", quoted(name), all.join(", ")))
    })
}

/// Width of a head, given or an equal share of the model's width. None where it is no sensible one.
fn head_dim(fields: &Map<String, Value>) -> Option<usize> {
    let head_dim = fields.get("head_dim").and_then(Value::as_u64);
    head_dim.filter(|width| (2..=LARGEST_HEAD).contains(width)).map(|width| width as usize)
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
    match scaling.filter(|kind| !["none", "linear"].contains(kind)) {
        Some(other) => Err(header.error(format!("RoPE scaling {} is not supported", quoted(other)))),
        None => Ok(()),
    }
}

/// Refuses a part of a model: the first knows of all others, and these have no metadata but their number.
fn refuse_parts(header: &Header) -> Result<()> {
    let number = |key: &str| Ok(header.scalar(key)?.and_then(Value::as_u64).unwrap_or(0));
    let (part, parts) = (number("split.no")?, number("split.count")?);
    if part > 0 || parts > 1 {
        let what = format!("part {} is one of {parts} parts of a model; join them first (`llama-gguf-split --merge`)", part + 1);
        return Err(header.error(what));
    }
    Ok(())
}

/// Refuses heads that rotate only a part of their channels, or whose values have another width.
fn refuse_partial_heads(header: &Header, architecture: &str, head_dim: usize) -> Result<()> {
    for key in ["rope.dimension_count", "attention.value_length"] {
        let key = format!("{architecture}.{key}");
        if let Some(value) = header.scalar(&key)?
            && value.as_u64() != Some(head_dim as u64)
        {
            return Err(header.error(format!("{} is {value}, but heads are {head_dim} wide", quoted(&key))));
        }
    }
    Ok(())
}

/// The divisors of `count` rotary frequencies.
fn factors(header: &Header, source: &mut Source, entry: &Entry, count: usize) -> Result<Vec<f32>> {
    if entry.shape != [count] {
        let what = format!("tensor `{FACTORS}` has shape {:?}, expected [{count}]", entry.shape);
        return Err(header.error(what));
    }
    let factors = entry.stored.decode(&source.read(entry.start, entry.len)?, count);
    let factors = factors.map_err(|what| header.error(format!("tensor `{FACTORS}` {what}")))?;
    match factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        true => Ok(factors),
        false => Err(header.error(format!("tensor `{FACTORS}` holds values that are not above zero"))),
    }
}

/// Heads of a tensor whose rows llama.cpp permutes.
fn interleaved(name: &str, fields: &Map<String, Value>) -> Option<usize> {
    let (layer, _) = name.rsplit_once('.')?;
    let heads = match layer.rsplit_once('.')?.1 {
        "q_proj" => "num_attention_heads",
        "k_proj" => "num_key_value_heads",
        _ => return None,
    };
    fields.get(heads)?.as_u64().and_then(|heads| usize::try_from(heads).ok())
}

#[cfg(test)]
mod tests;
