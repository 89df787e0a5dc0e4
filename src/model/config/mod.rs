//! The architecture, as the model code uses it, and its checked reading from `config.json`.
//!
//! A config is untrusted: every number has a range, so that no product of two of them overflows and no list grows
//! large before the weight file has been seen to hold what the config promises.

mod family;
mod fields;

use crate::error::{Error, Result, quoted};
use crate::source::checkpoint::{ConfigFields, ROPE_FACTORS};
use family::{Biases, FAMILIES, Family, Window};
use fields::Fields;
use serde_json::Value;
use std::ops::RangeInclusive;

const VOCABULARY: RangeInclusive<usize> = 1..=1 << 22;
const WIDTH: RangeInclusive<usize> = 1..=1 << 16;
const MLP_WIDTH: RangeInclusive<usize> = 1..=1 << 20;
const LAYERS: RangeInclusive<usize> = 1..=1 << 10;
const HEADS: RangeInclusive<usize> = 1..=1 << 10;
const HEAD_WIDTH: RangeInclusive<usize> = 2..=1 << 10;
const POSITIONS: RangeInclusive<usize> = 1..=1 << 24;

/// Resolved architecture of a Llama-style model: every default of `config.json` filled in and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// `LlamaForCausalLM`, or another of [`LlamaConfig::architectures`].
    pub architecture: String,
    /// V, rows of the embedding matrix.
    pub vocab_size: usize,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// ε inside the root of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether layer i rotates queries and keys (SmolLM3 leaves some layers without RoPE).
    pub rope_layers: Vec<bool>,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// q, k and v projections carry a bias.
    pub attention_bias: bool,
    /// The o projection carries one.
    pub attention_output_bias: bool,
    /// Queries and keys are normalised, head by head, before they rotate.
    pub query_key_norm: bool,
    /// How many positions a layer looks back, its own counted, where that is less than all. Nothing longer is computed here.
    pub sliding_window: Option<usize>,
    /// gate, up and down projections carry a bias.
    pub mlp_bias: bool,
    /// Token that starts a text, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// Stretching of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a smooth blend between.
    Llama3 {
        /// Division of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context of the original training.
        original_max_position_embeddings: f64,
    },
    /// A divisor for each frequency, `[head_dim / 2]`, as GGUF stores it in `rope_freqs.weight`.
    Factors(Vec<f64>),
}

impl LlamaConfig {
    /// The `architectures` of a `config.json` that are computed.
    pub fn architectures() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|family| family.name)
    }

    /// The longest text that is computed as the model was meant to, in tokens: within its positions and within its sliding window.
    pub fn context(&self) -> usize {
        self.sliding_window.map_or(self.max_position_embeddings, |window| window.min(self.max_position_embeddings))
    }

    /// Reads a `config.json`; see [`LlamaConfig::from_fields`]. `origin` names the file in errors.
    ///
    /// # Errors
    /// Those of [`ConfigFields::parse`] and of [`LlamaConfig::from_fields`].
    pub fn from_json(text: &str, origin: &str) -> Result<Self> {
        Self::from_fields(&ConfigFields::parse(text, origin)?)
    }

    /// Reads the fields of a `config.json` in either form: `rope_theta` and `rope_scaling` at the top, or transformers 5's
    /// `rope_parameters`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field, what is accepted and what was found: an architecture other than
    /// [`LlamaConfig::architectures`], a feature this program does not compute, a number out of range.
    pub fn from_fields(config: &ConfigFields) -> Result<Self> {
        let fields = Fields { object: &config.fields, origin: &config.origin, parent: String::new() };
        let family = family(&fields)?;
        refuse_unsupported(&fields, family)?;
        let hidden_size = fields.required("hidden_size", WIDTH)?;
        let num_attention_heads = fields.required("num_attention_heads", HEADS)?;
        let num_hidden_layers = fields.required("num_hidden_layers", LAYERS)?;
        let vocab_size = fields.required("vocab_size", VOCABULARY)?;
        let max_position_embeddings = fields.count("max_position_embeddings", POSITIONS)?.unwrap_or(family.positions);
        let head_dim = head_dim(&fields, family, hidden_size, num_attention_heads)?;
        let (rope_theta, rope_scaling) = rope(&fields, family, max_position_embeddings, head_dim)?;
        let (attention, mlp) = (fields.flag("attention_bias")?.unwrap_or(false), fields.flag("mlp_bias")?.unwrap_or(false));
        let attention = attention && matches!(family.biases, Biases::Attention | Biases::AttentionAndMlp);
        Ok(Self {
            architecture: family.name.to_owned(),
            vocab_size,
            hidden_size,
            intermediate_size: fields.required("intermediate_size", MLP_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: key_value_heads(&fields, family, num_attention_heads)?,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps", "a number from 0 to 1", |v| (0.0..=1.0).contains(&v))?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            rope_layers: rope_layers(&fields, family, num_hidden_layers)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(family.tied),
            attention_bias: attention || family.biases == Biases::QueryKeyValue,
            attention_output_bias: attention,
            query_key_norm: family.query_key_norm,
            sliding_window: sliding_window(&fields, family, num_hidden_layers)?,
            mlp_bias: mlp && family.biases == Biases::AttentionAndMlp,
            bos_token_id: fields.token_ids("bos_token_id", vocab_size)?.first().copied(),
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
        })
    }
}

/// The architecture that `architectures` names or, where that is absent, `model_type`.
fn family(fields: &Fields) -> Result<&'static Family> {
    let named = match fields.get("architectures") {
        Some(Value::Array(list)) if list.len() == 1 => list[0].as_str(),
        Some(Value::Array(list)) if list.is_empty() => None,
        Some(other) => return Err(fields.wrong("architectures", "a list of one name", other)),
        None => None,
    };
    let kind = fields.text("model_type")?;
    let is_meant = |family: &&Family| named.map_or(kind == Some(family.model_type), |name| name == family.name);
    FAMILIES.iter().find(is_meant).ok_or_else(|| {
        Error::input(format!(
            "{}: architecture {} is not supported; {} are",
            quoted(fields.origin),
            quoted(named.or(kind).unwrap_or("(none named)")),
            LlamaConfig::architectures().collect::<Vec<_>>().join(", ")
        ))
    })
}

/// Refuses, by name, what would change the forward pass and is not computed here.
fn refuse_unsupported(fields: &Fields, family: &Family) -> Result<()> {
    let expect = |key: &str, accepted: &str, fine: bool| match fields.get(key) {
        Some(found) if !fine => Err(fields.wrong(key, accepted, found)),
        _ => Ok(()),
    };
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    expect("hidden_act", "`silu`", ["silu", "swish"].contains(&activation))?;
    expect("rope_interleaved", "false", !fields.flag("rope_interleaved")?.unwrap_or(false))?;
    let slides = fields.flag("use_sliding_window")?.unwrap_or(false);
    let switched = family.window == Window::Switched;
    expect("use_sliding_window", "false", !slides || family.window != Window::Whole)?;
    let known = |value: &Value| match value.as_str() {
        Some("full_attention") => true,
        Some("sliding_attention") => slides && switched,
        _ => false,
    };
    let layer_types = fields.get("layer_types").and_then(Value::as_array);
    expect("layer_types", "a list of `full_attention`", layer_types.is_some_and(|types| types.iter().all(known)))?;
    expect("quantization_config", "absent (weights stored as f32, f16 or bf16)", false)
}

/// How far layers look back, where some do not look back to the beginning.
fn sliding_window(fields: &Fields, family: &Family, layers: usize) -> Result<Option<usize>> {
    const DEFAULT: usize = 4096;
    let slides = match family.window {
        Window::Whole => false,
        Window::Sliding => true,
        Window::Switched => fields.flag("use_sliding_window")?.unwrap_or(false) && some_layer_slides(fields, layers)?,
    };
    // `null` is none, silence the default.
    match fields.object.contains_key("sliding_window") {
        _ if !slides => Ok(None),
        true => fields.count("sliding_window", POSITIONS),
        false => Ok(Some(DEFAULT)),
    }
}

/// Whether there is a layer that a switched window holds for.
fn some_layer_slides(fields: &Fields, layers: usize) -> Result<bool> {
    const FIRST: usize = 28;
    match fields.get("layer_types").and_then(Value::as_array) {
        Some(types) => Ok(types.iter().any(|kind| kind.as_str() == Some("sliding_attention"))),
        None => Ok(fields.count("max_window_layers", 0..=*LAYERS.end())?.unwrap_or(FIRST) < layers),
    }
}

/// Width of one head: the config's own, or an equal share of the model's width.
fn head_dim(fields: &Fields, family: &Family, hidden_size: usize, heads: usize) -> Result<usize> {
    let explicit = fields.count("head_dim", HEAD_WIDTH)?;
    let head_dim = match explicit.or(family.head_dim) {
        Some(width) => width,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(Error::input(format!(
                "{}: `hidden_size` {hidden_size} is not divisible by `num_attention_heads` {heads}, and no `head_dim` is given",
                quoted(fields.origin)
            )));
        }
    };
    if head_dim % 2 != 0 || !HEAD_WIDTH.contains(&head_dim) {
        return Err(Error::input(format!(
            "{}: the width of a head must be even and from {} to {}, found {head_dim}",
            quoted(fields.origin),
            HEAD_WIDTH.start(),
            HEAD_WIDTH.end()
        )));
    }
    Ok(head_dim)
}

fn key_value_heads(fields: &Fields, family: &Family, heads: usize) -> Result<usize> {
    let groups = fields.count("num_key_value_heads", HEADS)?.or(family.key_value_heads).unwrap_or(heads);
    if !heads.is_multiple_of(groups) {
        return Err(Error::input(format!(
            "{}: `num_attention_heads` {heads} is not divisible by `num_key_value_heads` {groups}",
            quoted(fields.origin)
        )));
    }
    Ok(groups)
}

/// Base and scaling of the rotary frequencies, from either form of the config.
fn rope(fields: &Fields, family: &Family, positions: usize, head_dim: usize) -> Result<(f64, Option<RopeScaling>)> {
    let nested = match fields.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => fields.object("rope_parameters")?,
    };
    let holder = |key: &str| nested.as_ref().filter(|nested| nested.get(key).is_some()).unwrap_or(fields);
    holder("partial_rotary_factor").number("partial_rotary_factor", "1", |v| v == 1.0)?;
    let theta = holder("rope_theta").number("rope_theta", "a number above 0", |v| v > 0.0)?.unwrap_or(family.rope_theta);
    let Some(nested) = &nested else {
        return Ok((theta, None));
    };
    let kind = match nested.text("rope_type")? {
        Some(kind) => Some(kind),
        None => nested.text("type")?,
    };
    match kind.unwrap_or("default") {
        "default" if nested.object.values().all(|value| !value.is_object()) => Ok((theta, None)),
        "default" => Err(Error::input(format!("{}: RoPE parameters for each layer type are not supported", quoted(fields.origin)))),
        // Divided by 1 they are what they were.
        "linear" => nested.number("factor", "1, where the scaling is linear", |v| v == 1.0).map(|_| (theta, None)),
        "llama3" => llama3(nested, positions).map(|scaling| (theta, Some(scaling))),
        ROPE_FACTORS => factors(nested, head_dim / 2).map(|scaling| (theta, Some(scaling))),
        other => Err(Error::input(format!(
            "{}: RoPE scaling {} is not supported; `default`, `llama3` and `linear` of factor 1 are",
            quoted(fields.origin),
            quoted(other)
        ))),
    }
}

fn llama3(fields: &Fields, positions: usize) -> Result<RopeScaling> {
    let required = |key: &str, accepted: &str, least: f64| match fields.number(key, accepted, |v| v >= least)? {
        Some(value) => Ok(value),
        None => Err(fields.missing(key)),
    };
    let low_freq_factor = required("low_freq_factor", "a number above 0", f64::MIN_POSITIVE)?;
    let high_freq_factor = required("high_freq_factor", "a number above 0", f64::MIN_POSITIVE)?;
    if high_freq_factor <= low_freq_factor {
        return Err(Error::input(format!(
            "{}: `high_freq_factor` {high_freq_factor} must be above `low_freq_factor` {low_freq_factor}",
            quoted(fields.origin)
        )));
    }
    let original = fields.count("original_max_position_embeddings", POSITIONS)?;
    Ok(RopeScaling::Llama3 {
        factor: required("factor", "a number of at least 1", 1.0)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original.unwrap_or(positions) as f64,
    })
}

fn factors(fields: &Fields, count: usize) -> Result<RopeScaling> {
    let listed = fields.get("factors").ok_or_else(|| fields.missing("factors"))?;
    let factor = |value: &Value| value.as_f64().filter(|factor| factor.is_finite() && *factor > 0.0);
    let factors = listed.as_array().filter(|list| list.len() == count).and_then(|list| list.iter().map(factor).collect());
    let wrong = || fields.wrong("factors", &format!("a list of {count} numbers above 0"), listed);
    factors.map(RopeScaling::Factors).ok_or_else(wrong)
}

/// Which layers rotate: SmolLM3's list (1 = the layer uses RoPE), else every layer but each n-th.
fn rope_layers(fields: &Fields, family: &Family, layers: usize) -> Result<Vec<bool>> {
    let Some(default_interval) = family.no_rope_interval else {
        return Ok(vec![true; layers]);
    };
    let Some(listed) = fields.get("no_rope_layers") else {
        let interval = fields.count("no_rope_layer_interval", LAYERS)?.unwrap_or(default_interval);
        return Ok((1..=layers).map(|layer| layer % interval != 0).collect());
    };
    let uses_rope = |value: &Value| match value.as_u64() {
        Some(flag @ 0..=1) => Some(flag == 1),
        _ => None,
    };
    listed
        .as_array()
        .filter(|list| list.len() >= layers)
        .and_then(|list| list[..layers].iter().map(uses_rope).collect())
        .ok_or_else(|| fields.wrong("no_rope_layers", &format!("a list of {layers} times 0 or 1"), listed))
}

#[cfg(test)]
mod tests;
