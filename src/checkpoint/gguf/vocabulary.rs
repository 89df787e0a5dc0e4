//! The tokenizer inside a GGUF file, as the `tokenizer.json` it was made from.

use super::header::Header;
use crate::error::{Error, Result, quoted};
use crate::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

// Values of `tokenizer.ggml.token_type` that matter here.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Builds a byte-level BPE tokenizer from the metadata.
///
/// # Errors
/// [`Error::Input`] naming another kind of tokenizer or of pre-tokenizer, or the defect.
pub(super) fn tokenizer(header: &Header) -> Result<Tokenizer> {
    let model = header.text("tokenizer.ggml.model")?.unwrap_or("(none)");
    if model != "gpt2" {
        return Err(refused(header, "kind", model, "`gpt2`, byte-level BPE, is"));
    }
    let tokens = header.texts("tokenizer.ggml.tokens")?;
    let types = header.integers("tokenizer.ggml.token_type")?;
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(header.error(format!("has {} tokens but {} token types", tokens.len(), types.len())));
    }
    let kind = |id: usize| types.get(id).copied();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|id| matches!(kind(*id), Some(CONTROL | USER_DEFINED)))
        .map(|id| added_token(id, tokens[id], kind(id) == Some(CONTROL)))
        .collect();
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| kind(*id) != Some(UNUSED)) {
        if vocabulary.insert((*token).to_owned(), id.into()).is_some() {
            return Err(header.error(format!("has the token {} twice", quoted(token))));
        }
    }
    let json = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": pre_tokenizers(header)? },
        "decoder": byte_level(),
        "model": { "type": "BPE", "vocab": vocabulary, "merges": merges(header)? },
    });
    Tokenizer::from_json_bytes(json.to_string().as_bytes(), header.origin())
}

fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

/// How text is cut before it is merged, by the name llama.cpp gives it.
fn pre_tokenizers(header: &Header) -> Result<Vec<Value>> {
    let digits = json!({ "type": "Digits", "individual_digits": true });
    match header.text("tokenizer.ggml.pre")?.unwrap_or("(none)") {
        "smollm" => Ok(vec![digits, byte_level()]),
        "gpt-2" => Ok(vec![byte_level()]),
        other => Err(refused(header, "pre-tokenizer", other, "`smollm` and `gpt-2` are")),
    }
}

/// Bytes as letters, text cut by GPT-2's regular expression.
fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true })
}

fn merges(header: &Header) -> Result<Vec<Value>> {
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(header.error(format!("has the merge {}, which is not a pair", quoted(merge)))),
    };
    header.texts("tokenizer.ggml.merges")?.into_iter().map(pair).collect()
}

fn refused(header: &Header, what: &str, found: &str, supported: &str) -> Error {
    header.error(format!(
        "the tokenizer {what} {} cannot be built from a GGUF ({supported}); put the model's `tokenizer.json` beside the file",
        quoted(found)
    ))
}
