//! The tokenizer inside a GGUF file, as the `tokenizer.json` it was made from.

mod byte_level;
mod pieces;

use super::header::Header;
use crate::error::{Error, Result, quoted};
use crate::source::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// The texts of all tokens.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// What each of them is.
const TYPES: &str = "tokenizer.ggml.token_type";

// Values of [`TYPES`] that matter here.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Builds the tokenizer from the metadata: byte-level BPE, or SentencePiece's.
///
/// # Errors
/// [`Error::Input`] naming another kind of tokenizer or of pre-tokenizer, or the defect.
pub(super) fn tokenizer(header: &Header) -> Result<Tokenizer> {
    let build = match header.text("tokenizer.ggml.model")?.unwrap_or("(none)") {
        "gpt2" => byte_level::parts,
        "llama" => pieces::parts,
        other => return Err(refused(header, "kind", other, "`gpt2`, byte-level BPE, and `llama`, SentencePiece's, are")),
    };
    let vocabulary = Vocabulary::of(header)?;
    let mut json = build(&vocabulary)?;
    json["version"] = "1.0".into();
    json["added_tokens"] = vocabulary.added();
    json["model"]["type"] = "BPE".into();
    json["model"]["vocab"] = vocabulary.ids()?.into();
    Tokenizer::from_json_bytes(json.to_string().as_bytes(), header.origin())
}

/// The tokens of a file, by id.
struct Vocabulary<'a> {
    header: &'a Header,
    tokens: Vec<&'a str>,
    /// What each token is; empty where the file does not say.
    types: Vec<i32>,
}

impl<'a> Vocabulary<'a> {
    fn of(header: &'a Header) -> Result<Self> {
        let (tokens, types) = (header.texts(TOKENS)?, header.integers(TYPES)?);
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(header.error(format!("has {} tokens but {} token types", tokens.len(), types.len())));
        }
        Ok(Self { header, tokens, types })
    }

    /// What a token is.
    fn kind(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    /// The tokens of these kinds, with their ids.
    fn of_kinds(&self, kinds: &'static [i32]) -> impl Iterator<Item = (usize, &'a str)> {
        self.tokens.iter().copied().enumerate().filter(|(id, _)| kinds.contains(&self.kind(*id)))
    }

    /// Those that a text is searched for before all others.
    fn added(&self) -> Value {
        let token = |(id, content): (usize, &str)| {
            json!({
                "id": id, "content": content, "special": self.kind(id) != USER_DEFINED,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        self.of_kinds(&[UNKNOWN, CONTROL, USER_DEFINED]).map(token).collect()
    }

    /// All but the unused ones.
    fn ids(&self) -> Result<Map<String, Value>> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.kind(*id) != UNUSED) {
            if ids.insert((*token).to_owned(), id.into()).is_some() {
                return Err(self.header.error(format!("has the token {} twice", quoted(token))));
            }
        }
        Ok(ids)
    }
}

/// The control tokens of the file, with their ids.
///
/// # Errors
/// As [`tokenizer`], for lists of tokens that are none.
pub(super) fn controls(header: &Header) -> Result<Vec<(usize, &str)>> {
    Ok(Vocabulary::of(header)?.of_kinds(&[CONTROL]).collect())
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

fn refused(header: &Header, what: &str, found: &str, supported: &str) -> Error {
    header.error(format!(
        "the tokenizer {what} {} cannot be built from a GGUF ({supported}); put the model's `tokenizer.json` beside the file",
        quoted(found)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::checkpoint::gguf::fixture::Gguf;
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

    /// `tests/golden/pieces.py` made the ids with SentencePiece itself.
    #[test]
    fn a_gguf_of_pieces_gives_the_ids_of_sentencepiece() {
        let tokenizer = built(&golden("tiny_gguf/pieces.f16.gguf"));
        for (text, ids) in cases_of("tiny/tokenizer_cases.pieces.json") {
            assert_eq!(tokenizer.encode(&text), ids, "{text:?}");
            // The space before the text behind a special token is shown, and so is what stands for one.
            if !text.contains("s>") && !text.contains("<unk>") && !text.contains('▁') {
                assert_eq!(tokenizer.decode(&ids), text);
            }
        }
        assert_eq!((tokenizer.token_id("<unk>"), tokenizer.token_id("</s>")), (Some(0), Some(2)));
        assert!((0..3).all(|id| tokenizer.is_special(id)) && tokenizer.is_learned(3) && tokenizer.is_text(262));
    }

    #[test]
    fn pieces_may_go_without_a_space_before_the_text() {
        let file = |prefix: u8| pieces(&["▁", "a", "▁a"], &[0.0, 0.0, -1.0]).pair("tokenizer.ggml.add_space_prefix", 7, &[prefix]);
        let tokenizers = [1, 0].map(|prefix| build(&file(prefix)).unwrap());
        assert_eq!(tokenizers.each_ref().map(|tokenizer| tokenizer.encode("a a")), [vec![3, 3], vec![2, 3]]);
        assert_eq!(tokenizers.map(|tokenizer| tokenizer.decode(&[3, 3])), ["a a", " a a"]);
    }

    /// A vocabulary of pieces after `<unk>`, whose id is 0.
    fn pieces(texts: &[&str], scores: &[f32]) -> Gguf {
        let types: Vec<u8> = [UNKNOWN].into_iter().chain(texts.iter().map(|_| NORMAL)).flat_map(i32::to_le_bytes).collect();
        let bytes: Vec<u8> = [0.0].iter().chain(scores).flat_map(|score| score.to_le_bytes()).collect();
        Gguf::new()
            .text("tokenizer.ggml.model", "llama")
            .texts(TOKENS, &[&["<unk>"], texts].concat())
            .array(TYPES, 5, types.len() as u64 / 4, &types)
            .array("tokenizer.ggml.scores", 6, bytes.len() as u64 / 4, &bytes)
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
            (good.clone().text("tokenizer.ggml.model", "t5"), "the tokenizer kind `t5`"),
            (good.clone().text("tokenizer.ggml.model", "llama"), "3 tokens but 0 scores"),
            (pieces(&["a", "b"], &[1.0]), "3 tokens but 2 scores"),
            (pieces(&["a", "b"], &[1.0, f32::NAN]), "the score of token 2 is not finite"),
            (pieces(&["a", "a"], &[1.0, 1.0]), "the token `a` twice"),
            (pieces(&[&"a".repeat(1 << 15), &"b".repeat(1 << 15)], &[1.0, 1.0]), "too long"),
            (pieces(&["a"], &[1.0]).texts("tokenizer.ggml.scores", &["1", "1"]), "must be an array of 32-bit floats"),
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
