//! Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM have it: bytes as letters, text cut by a regular expression, merges in a list.

use super::{Vocabulary, refused};
use crate::error::{Result, quoted};
use crate::source::checkpoint::gguf::header::Header;
use serde_json::{Value, json};

/// How Llama 3 and Qwen 2 cut text, but for the runs of digits: at contractions, words with what stands before them, punctuation with the
/// line ends behind it, and white space.
const WORDS: [&str; 2] =
    [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"];

/// What stands in a `tokenizer.json` beside the vocabulary.
pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Value> {
    let Split { composed, pre_tokenizers, whole_words } = split(vocabulary.header)?;
    Ok(json!({
        "normalizer": composed.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": pre_tokenizers },
        "decoder": byte_level(true),
        "model": { "merges": merges(vocabulary.header)?, "ignore_merges": whole_words },
    }))
}

/// What becomes of a text before it is merged.
struct Split {
    /// Letters and their accents become one character (NFC).
    composed: bool,
    pre_tokenizers: Vec<Value>,
    /// A piece that is a token is not put together by merges.
    whole_words: bool,
}

/// By the name llama.cpp gives it.
fn split(header: &Header) -> Result<Split> {
    let plain = |pre_tokenizers| Split { composed: false, pre_tokenizers, whole_words: false };
    let cut = |digits: &str| {
        let pattern = json!({ "Regex": WORDS.join(digits) });
        vec![json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false }), byte_level(false)]
    };
    let digits = json!({ "type": "Digits", "individual_digits": true });
    match header.text("tokenizer.ggml.pre")?.unwrap_or("(none)") {
        "smollm" => Ok(plain(vec![digits, byte_level(true)])),
        "gpt-2" => Ok(plain(vec![byte_level(true)])),
        // SmolLM3, and Llama 3 by some converters.
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => Ok(Split { whole_words: true, ..plain(cut(r"\p{N}{1,3}")) }),
        "qwen2" => Ok(Split { composed: true, ..plain(cut(r"\p{N}")) }),
        other => Err(refused(header, "pre-tokenizer", other, "`smollm`, `gpt-2`, `llama-bpe`, `smaug-bpe` and `qwen2` are")),
    }
}

/// Bytes as letters; text cut by GPT-2's regular expression, or as it was cut before.
fn byte_level(cut: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut })
}

fn merges(header: &Header) -> Result<Vec<Value>> {
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(header.error(format!("has the merge {}, which is not a pair", quoted(merge)))),
    };
    header.texts("tokenizer.ggml.merges")?.into_iter().map(pair).collect()
}
