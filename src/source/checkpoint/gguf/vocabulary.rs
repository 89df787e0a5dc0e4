//! The tokenizer inside a GGUF file, as the `tokenizer.json` it was made from.

use super::header::Header;
use crate::error::{Error, Result, quoted};
use crate::source::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// How Llama 3 and Qwen 2 cut text, but for the runs of digits: at contractions, words with what stands before them, punctuation with the
/// line ends behind it, and white space.
const WORDS: [&str; 2] =
    [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"];

/// The texts of all tokens.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// What each of them is.
const TYPES: &str = "tokenizer.ggml.token_type";

// Values of [`TYPES`] that matter here.
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
    let (tokens, types) = (header.texts(TOKENS)?, header.integers(TYPES)?);
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
    let Split { composed, pre_tokenizers, whole_words } = split(header)?;
    let json = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": composed.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": pre_tokenizers },
        "decoder": byte_level(true),
        "model": { "type": "BPE", "vocab": vocabulary, "merges": merges(header)?, "ignore_merges": whole_words },
    });
    Tokenizer::from_json_bytes(json.to_string().as_bytes(), header.origin())
}

/// A token of the file that a tokenizer does not have at the same id; none where they agree, and where the file has no vocabulary. What
/// users defined is not compared: llama.cpp writes some of it otherwise.
///
/// # Errors
/// [`Error::Input`] for a vocabulary that is no list of texts and of their types.
pub(super) fn disagreement<'a>(header: &'a Header, tokenizer: &Tokenizer) -> Result<Option<&'a str>> {
    if !header.has(TOKENS) {
        return Ok(None);
    }
    let (tokens, types) = (header.texts(TOKENS)?, header.integers(TYPES)?);
    let compared = |id: usize| !matches!(types.get(id), Some(&(USER_DEFINED | UNUSED)));
    let differs = |(id, token): &(usize, &str)| compared(*id) && tokenizer.token_id(token) != Some(*id as u32);
    Ok(tokens.into_iter().enumerate().find(differs).map(|(_, token)| token))
}

fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
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
        "llama-bpe" => Ok(Split { whole_words: true, ..plain(cut(r"\p{N}{1,3}")) }),
        "qwen2" => Ok(Split { composed: true, ..plain(cut(r"\p{N}")) }),
        other => Err(refused(header, "pre-tokenizer", other, "`smollm`, `gpt-2`, `llama-bpe` and `qwen2` are")),
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

    /// Every `{"text", "ids"}` of a golden file.
    fn cases_of(file: &str) -> Vec<(String, Vec<u32>)> {
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(golden(file)).unwrap()).unwrap();
        assert!(!cases.is_empty());
        let case = |case: &Value| (case["text"].as_str().unwrap().to_owned(), serde_json::from_value(case["ids"].clone()).unwrap());
        cases.iter().map(case).collect()
    }

    #[test]
    fn a_gguf_gives_the_ids_of_the_tokenizer_json_it_was_made_from() {
        let tokenizer = built(&golden("tiny_gguf/gqa3-tied.f32.gguf"));
        for (text, ids) in cases_of("tiny/tokenizer_cases.json") {
            assert_eq!(tokenizer.encode(&text), ids, "{text:?}");
            assert_eq!(tokenizer.decode(&ids), text);
        }
        // The padding of the file stands for no token.
        assert_eq!(tokenizer.vocab_size(), 282);
        for (model, split) in [("llama32", "llama-bpe"), ("qwen2", "qwen2"), ("qwen3", "qwen2")] {
            let tokenizer = built(&golden(&format!("tiny_gguf/{model}.bf16.gguf")));
            for (text, ids) in cases_of(&format!("tiny/tokenizer_cases.{split}.json")) {
                assert_eq!(tokenizer.encode(&text), ids, "{model}: {text:?}");
            }
        }
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
            (good.clone().text("tokenizer.ggml.pre", "tekken"), "the tokenizer pre-tokenizer `tekken`"),
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
