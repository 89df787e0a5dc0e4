//! The architecture, as the model code uses it, and its checked reading from `config.json`.
//!
//! A config is untrusted: every number has a range, so that no product of two of them overflows and no list grows
//! large before the weight file has been seen to hold what the config promises.

use crate::error::{Error, Result, quoted};
use crate::source::checkpoint::{ConfigFields, ROPE_FACTORS};
use serde_json::{Map, Value};
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
    /// `LlamaForCausalLM` or `SmolLM3ForCausalLM`.
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
    /// q, k, v and o projections carry a bias.
    pub attention_bias: bool,
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

/// What differs between the architectures when `config.json` leaves it out, as in transformers.
struct Defaults {
    key_value_heads: Option<usize>,
    positions: usize,
    rope_theta: f64,
    tied: bool,
    /// Every n-th layer goes without RoPE.
    no_rope_interval: Option<usize>,
}

const LLAMA: Defaults = Defaults { key_value_heads: None, positions: 2048, rope_theta: 10_000.0, tied: false, no_rope_interval: None };

const SMOLLM3: Defaults =
    Defaults { key_value_heads: Some(4), positions: 32_768, rope_theta: 2_000_000.0, tied: true, no_rope_interval: Some(4) };

impl LlamaConfig {
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
    /// `LlamaForCausalLM` and `SmolLM3ForCausalLM`, a feature this program does not compute, a number out of range.
    pub fn from_fields(config: &ConfigFields) -> Result<Self> {
        let fields = Fields { object: &config.fields, origin: &config.origin, parent: String::new() };
        let (architecture, defaults) = architecture(&fields)?;
        refuse_unsupported(&fields)?;
        let hidden_size = fields.required("hidden_size", WIDTH)?;
        let num_attention_heads = fields.required("num_attention_heads", HEADS)?;
        let num_hidden_layers = fields.required("num_hidden_layers", LAYERS)?;
        let vocab_size = fields.required("vocab_size", VOCABULARY)?;
        let max_position_embeddings = fields.count("max_position_embeddings", POSITIONS)?.unwrap_or(defaults.positions);
        let head_dim = head_dim(&fields, hidden_size, num_attention_heads)?;
        let (rope_theta, rope_scaling) = rope(&fields, &defaults, max_position_embeddings, head_dim)?;
        Ok(Self {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: fields.required("intermediate_size", MLP_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: key_value_heads(&fields, &defaults, num_attention_heads)?,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps", "a number from 0 to 1", |v| (0.0..=1.0).contains(&v))?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            rope_layers: rope_layers(&fields, &defaults, num_hidden_layers)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            bos_token_id: fields.token_ids("bos_token_id", vocab_size)?.first().copied(),
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
        })
    }
}

/// Name of the architecture and its defaults, from `architectures` or, where that is absent, `model_type`.
fn architecture(fields: &Fields) -> Result<(String, Defaults)> {
    let named = match fields.get("architectures") {
        Some(Value::Array(list)) if list.len() == 1 => list[0].as_str(),
        Some(Value::Array(list)) if list.is_empty() => None,
        Some(other) => return Err(fields.wrong("architectures", "a list of one name", other)),
        None => None,
    };
    let name = match (named, fields.text("model_type")?) {
        (Some(name), _) => name,
        (None, Some("llama")) => "LlamaForCausalLM",
        (None, Some("smollm3")) => "SmolLM3ForCausalLM",
        (None, other) => other.unwrap_or("(none named)"),
    };
    let defaults = match name {
        "LlamaForCausalLM" => LLAMA,
        "SmolLM3ForCausalLM" => SMOLLM3,
        other => {
            return Err(Error::input(format!(
                "{}: architecture {} is not supported; `LlamaForCausalLM` and `SmolLM3ForCausalLM` are",
                quoted(fields.origin),
                quoted(other)
            )));
        }
    };
    Ok((name.to_owned(), defaults))
}

/// Refuses, by name, what would change the forward pass and is not computed here.
fn refuse_unsupported(fields: &Fields) -> Result<()> {
    let expect = |key: &str, accepted: &str, fine: bool| match fields.get(key) {
        Some(found) if !fine => Err(fields.wrong(key, accepted, found)),
        _ => Ok(()),
    };
    let activation = fields.text("hidden_act")?.unwrap_or("silu");
    expect("hidden_act", "`silu`", activation == "silu")?;
    expect("rope_interleaved", "false", !fields.flag("rope_interleaved")?.unwrap_or(false))?;
    expect("use_sliding_window", "false", !fields.flag("use_sliding_window")?.unwrap_or(false))?;
    let full = |value: &Value| value.as_str() == Some("full_attention");
    let layer_types = fields.get("layer_types").and_then(Value::as_array);
    expect("layer_types", "a list of `full_attention`", layer_types.is_some_and(|types| types.iter().all(full)))?;
    expect("quantization_config", "absent (weights stored as f32, f16 or bf16)", false)
}

/// Width of one head: the config's own, or an equal share of the model's width.
fn head_dim(fields: &Fields, hidden_size: usize, heads: usize) -> Result<usize> {
    let explicit = fields.count("head_dim", HEAD_WIDTH)?;
    let head_dim = match explicit {
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

fn key_value_heads(fields: &Fields, defaults: &Defaults, heads: usize) -> Result<usize> {
    let groups = fields.count("num_key_value_heads", HEADS)?.or(defaults.key_value_heads).unwrap_or(heads);
    if !heads.is_multiple_of(groups) {
        return Err(Error::input(format!(
            "{}: `num_attention_heads` {heads} is not divisible by `num_key_value_heads` {groups}",
            quoted(fields.origin)
        )));
    }
    Ok(groups)
}

/// Base and scaling of the rotary frequencies, from either form of the config.
fn rope(fields: &Fields, defaults: &Defaults, positions: usize, head_dim: usize) -> Result<(f64, Option<RopeScaling>)> {
    let nested = match fields.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => fields.object("rope_parameters")?,
    };
    let holder = |key: &str| nested.as_ref().filter(|nested| nested.get(key).is_some()).unwrap_or(fields);
    holder("partial_rotary_factor").number("partial_rotary_factor", "1", |v| v == 1.0)?;
    let theta = holder("rope_theta").number("rope_theta", "a number above 0", |v| v > 0.0)?.unwrap_or(defaults.rope_theta);
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
        "llama3" => llama3(nested, positions).map(|scaling| (theta, Some(scaling))),
        ROPE_FACTORS => factors(nested, head_dim / 2).map(|scaling| (theta, Some(scaling))),
        other => Err(Error::input(format!(
            "{}: RoPE scaling {} is not supported; `default` and `llama3` are",
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
fn rope_layers(fields: &Fields, defaults: &Defaults, layers: usize) -> Result<Vec<bool>> {
    let Some(default_interval) = defaults.no_rope_interval else {
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

/// The fields of a JSON object, read one by one so that an error names the field, what is accepted and what was
/// found. A field that is `null` counts as absent.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// The file, for errors.
    origin: &'a str,
    /// `rope_scaling.` for the fields of that object, empty at the top.
    parent: String,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, accepted: &str, found: &Value) -> Error {
        Error::input(format!("{}: `{}{key}` must be {accepted}, found {}", quoted(self.origin), self.parent, quoted(&found.to_string())))
    }

    fn missing(&self, key: &str) -> Error {
        Error::input(format!("{}: `{}{key}` is missing", quoted(self.origin), self.parent))
    }

    fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        let count = found.as_u64().and_then(|value| usize::try_from(value).ok());
        match count.filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => {
                let accepted = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(key, &accepted, found))
            }
        }
    }

    fn required(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.count(key, range)?.ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str, accepted: &str, fine: impl Fn(f64) -> bool) -> Result<Option<f64>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        match found.as_f64().filter(|value| value.is_finite() && fine(*value)) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(key, accepted, found)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        found.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false", found))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        found.as_str().map(Some).ok_or_else(|| self.wrong(key, "a text", found))
    }

    /// A nested object; an empty one counts as absent.
    fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        let object = found.as_object().ok_or_else(|| self.wrong(key, "an object", found))?;
        let fields = Fields { object, origin: self.origin, parent: format!("{key}.") };
        Ok((!object.is_empty()).then_some(fields))
    }

    /// One id or a list of them. Ids outside the vocabulary occur in the wild (a shrunk copy of a model keeps the
    /// ids of the original) and can never be produced, so they are dropped with a warning.
    fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>> {
        let Some(found) = self.get(key) else {
            return Ok(Vec::new());
        };
        let listed = match found {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let mut ids = Vec::new();
        for value in listed {
            let id = value.as_i64().ok_or_else(|| self.wrong(key, "a token id or a list of them", found))?;
            match u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size) {
                Some(id) => ids.push(id),
                None => tracing::warn!("{}: `{key}` {id} is outside the vocabulary and ignored", quoted(self.origin)),
            }
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests;
