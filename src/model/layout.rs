//! Which tensors an architecture needs, and whether the files have them.

use super::LlamaConfig;
use crate::error::{Error, Result, quoted};
use crate::source::checkpoint::{HEAD, TensorInfo, Weights, is_rotary_buffer};
use std::collections::BTreeMap;

/// W_E.
const EMBEDDINGS: &str = "model.embed_tokens.weight";

impl LlamaConfig {
    /// Every tensor the architecture needs: Hugging Face name and shape, in the order of the forward pass.
    /// Linear weights are `[out, in]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (v, d) = (self.vocab_size, self.hidden_size);
        let mut all = vec![(EMBEDDINGS.to_owned(), vec![v, d])];
        for layer in 0..self.num_hidden_layers {
            self.layer_tensors(&format!("model.layers.{layer}"), &mut all);
        }
        all.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tie_word_embeddings {
            all.push((HEAD.to_owned(), vec![v, d]));
        }
        all
    }

    fn layer_tensors(&self, layer: &str, all: &mut Vec<(String, Vec<usize>)>) {
        let (d, mlp) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let mut linear = |name: &str, out: usize, input: usize, bias: bool| {
            all.push((format!("{layer}.{name}.weight"), vec![out, input]));
            if bias {
                all.push((format!("{layer}.{name}.bias"), vec![out]));
            }
        };
        linear("self_attn.q_proj", q, d, self.attention_bias);
        linear("self_attn.k_proj", kv, d, self.attention_bias);
        linear("self_attn.v_proj", kv, d, self.attention_bias);
        linear("self_attn.o_proj", d, q, self.attention_output_bias);
        linear("mlp.gate_proj", mlp, d, self.mlp_bias);
        linear("mlp.up_proj", mlp, d, self.mlp_bias);
        linear("mlp.down_proj", d, mlp, self.mlp_bias);
        let mut norm = |name: &str, width: usize| all.push((format!("{layer}.{name}.weight"), vec![width]));
        norm("input_layernorm", d);
        norm("post_attention_layernorm", d);
        if self.query_key_norm {
            norm("self_attn.q_norm", self.head_dim);
            norm("self_attn.k_norm", self.head_dim);
        }
    }

    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Weights that meet every position: the matrices of the layers.
    pub fn layer_weights(&self) -> usize {
        let tensors = self.tensors().into_iter();
        let matrices = tensors.filter(|(name, shape)| name.starts_with("model.layers.") && shape.len() == 2);
        matrices.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Weights of the LM head.
    pub fn head_weights(&self) -> usize {
        self.vocab_size * self.hidden_size
    }
}

/// Removes what old files carry along and no model reads: rotary frequencies, and a copy of the embeddings as head. A config that ties the
/// head to the embeddings is not followed where the files have another head, as in transformers; where they have a head alone, it
/// is the embeddings.
///
/// # Errors
/// Input: a file that cannot be read or has changed since it was opened.
pub(super) fn settle(weights: &mut Weights, config: &mut LlamaConfig) -> Result<()> {
    weights.retain(|name| !is_rotary_buffer(name));
    if !config.tie_word_embeddings || weights.get(HEAD).is_none() {
        return Ok(());
    }
    let shape = [config.vocab_size, config.hidden_size];
    let usable = weights.get(HEAD).is_some_and(|head| head.shape == shape && head.unreadable.is_none());
    if weights.get(EMBEDDINGS).is_none() {
        weights.rename(HEAD, EMBEDDINGS);
    } else if usable && !weights.alike(EMBEDDINGS, HEAD)? {
        tracing::warn!(
            "{}: its config ties the head to the embeddings, but `{HEAD}` differs from them and is used",
            quoted(weights.origin())
        );
        config.tie_word_embeddings = false;
    } else {
        if !usable {
            tracing::warn!("{}: `{HEAD}` is ignored, the config ties the head to the embeddings", quoted(weights.origin()));
        }
        weights.retain(|name| name != HEAD);
    }
    Ok(())
}

/// Compares the tensors at hand with those the architecture needs. Nothing but names and shapes is in memory yet.
///
/// # Errors
/// Input: every tensor that is missing, of another shape, of a type that is not read, or unused, the first of many by name.
pub(super) fn compare(weights: &Weights, config: &LlamaConfig) -> Result<()> {
    let needed: BTreeMap<_, _> = config.tensors().into_iter().collect();
    let (mut missing, mut misshaped, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in &needed {
        match weights.get(name) {
            None => missing.push(format!("{} {shape:?}", quoted(name))),
            Some(found) if found.shape != shape => {
                misshaped.push(format!("{} expected {shape:?}, found {:?}", quoted(name), found.shape));
            }
            Some(TensorInfo { unreadable: Some(kind), .. }) => unreadable.push(format!("{} stored as {kind}", quoted(name))),
            Some(_) => {}
        }
    }
    let unused = weights.tensors().filter(|(name, _)| !needed.contains_key(*name));
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
    Err(Error::input(format!("the weights of {} do not fit their config: {}", quoted(weights.origin()), problems.join("; "))))
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
