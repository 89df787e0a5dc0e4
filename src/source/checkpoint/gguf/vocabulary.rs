//! The tokenizer inside a GGUF file, as the `tokenizer.json` it was made from.

use super::header::Header;
use crate::error::{Error, Result, quoted};
use crate::source::tokenizer::Tokenizer;
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

#[cfg(test)]
mod tests {
    use super::super::fixture::Gguf;
    use super::*;
    use crate::source::checkpoint::storage::Source;
    use crate::testing::{golden, real_smollm2};
    use std::path::Path;

    fn build(file: &Gguf) -> Result<Tokenizer> {
        tokenizer(&Header::read(&mut Source::embedded("model.gguf", file.bytes().leak()))?)
    }

    fn built(path: &Path) -> Tokenizer {
        tokenizer(&Header::read(&mut Source::open(path).unwrap()).unwrap()).unwrap()
    }

    /// Checks every `{"text", "ids"}` of a golden file.
    fn gives_the_ids_of(tokenizer: &Tokenizer, cases: &str) {
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(golden(cases)).unwrap()).unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text), ids, "{text:?}");
            assert_eq!(tokenizer.decode(&ids), text);
        }
    }

    #[test]
    fn a_gguf_gives_the_ids_of_the_tokenizer_json_it_was_made_from() {
        let tokenizer = built(&golden("tiny_gguf/gqa3-tied.f32.gguf"));
        gives_the_ids_of(&tokenizer, "tiny/tokenizer_cases.json");
        // The padding of the file stands for no token.
        assert_eq!(tokenizer.vocab_size(), 282);
    }

    /// Shakespeare, GSM8K, and digits, whitespace, emoji and scripts; `tests/golden/tokenizer_ids.py` made the ids with
    /// the real `tokenizer.json`.
    #[test]
    fn the_real_gguf_gives_the_ids_of_the_real_tokenizer_json() {
        let Some(path) = real_smollm2("the_real_gguf_gives_the_ids_of_the_real_tokenizer_json") else { return };
        let tokenizer = built(&path);
        assert_eq!(tokenizer.vocab_size(), 49_152);
        assert_eq!((tokenizer.token_id("<|endoftext|>"), tokenizer.token_id("<|im_end|>")), (Some(0), Some(2)));
        let text = std::fs::read_to_string(golden("smollm2/texts.txt")).unwrap();
        let expected: Value = serde_json::from_slice(&std::fs::read(golden("smollm2/ids.json")).unwrap()).unwrap();
        let lines: Vec<Vec<u32>> = serde_json::from_value(expected["lines"].clone()).unwrap();
        assert_eq!(lines.len(), text.split('\n').count());
        for (line, ids) in text.split('\n').zip(lines) {
            assert_eq!(tokenizer.encode(line), ids, "{line:?}");
            assert_eq!(tokenizer.decode(&ids), line);
        }
        let whole: Vec<u32> = serde_json::from_value(expected["whole"].clone()).unwrap();
        assert_eq!(tokenizer.encode(&text), whole);
        assert_eq!(tokenizer.decode(&whole), text);
    }

    #[test]
    fn control_tokens_are_special_user_defined_ones_added_and_unused_ones_absent() {
        let file = |pre| Gguf::new().tokenizer(pre, &["<s>", "a", "b", "ab", "<tool>", "[PAD5]"], &[3, 1, 1, 1, 4, 5], &["a b"]);
        let tokenizer = build(&file("smollm")).unwrap();
        assert_eq!(tokenizer.encode("ab<s>ba<tool>[PAD5]"), [3, 0, 2, 1, 4]);
        assert_eq!(tokenizer.decode(&[3, 0, 4]), "ab<s><tool>");
        assert!(tokenizer.is_special(0) && tokenizer.is_special(4) && !tokenizer.is_special(3));
        assert!(tokenizer.is_text(1) && !tokenizer.is_text(5) && !tokenizer.is_text(6));
        // Of the two pre-tokenizers only SmolLM's splits digits.
        let digits = |pre| build(&Gguf::new().tokenizer(pre, &["1", "2", "12"], &[1, 1, 1], &["1 2"])).unwrap().encode("12");
        assert_eq!((digits("smollm"), digits("gpt-2")), (vec![0, 1], vec![2]));
    }

    #[test]
    fn what_cannot_be_built_is_refused_by_name() {
        let good = Gguf::new().tokenizer("smollm", &["a", "b", "ab"], &[1, 1, 1], &["a b"]);
        build(&good).unwrap();
        let cases = [
            (good.clone().text("tokenizer.ggml.model", "llama"), "the tokenizer kind `llama`"),
            (good.clone().text("tokenizer.ggml.pre", "llama-bpe"), "the tokenizer pre-tokenizer `llama-bpe`"),
            (Gguf::new(), "the tokenizer kind `(none)`"),
            (good.clone().texts("tokenizer.ggml.tokens", &["a", "b"]), "2 tokens but 3 token types"),
            (good.clone().texts("tokenizer.ggml.tokens", &["a", "b", "a"]), "the token `a` twice"),
            (good.clone().texts("tokenizer.ggml.merges", &["ab"]), "the merge `ab`"),
            (good.clone().texts("tokenizer.ggml.merges", &["a x"]), "is invalid"),
            (good.clone().u32("tokenizer.ggml.tokens", 3), "must be an array of texts"),
            (good.texts("tokenizer.ggml.token_type", &["1", "1", "1"]), "must be an array of 32-bit integers"),
        ];
        for (file, expected) in cases {
            let text = build(&file).unwrap_err().to_string();
            assert!(text.contains(expected) && text.contains("`model.gguf`"), "{expected}: {text}");
        }
    }
}
