//! What a `tokenizer.json` may ask of the library that reads it, said before it does.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::growth;

/// Steps of a part, those of sequences within sequences counted too. Each works on every text; real files have up to ten.
const MOST_STEPS: usize = 64;
/// Bytes of an added token: what finds it takes the square of them. Real ones have some tens.
const LONGEST_ADDED: usize = 1 << 10;
/// Bytes of all of them. Real vocabularies have up to a few thousand.
const MOST_ADDED: usize = 1 << 20;

/// Bytes of a token of the vocabulary, or of what is put before or behind one. Real ones have up to some hundreds.
const LONGEST_TOKEN: usize = 1 << 12;
/// Characters of a word that WordPiece cuts: it takes the cube of them. Real files say 100.
const LONGEST_WORD: u64 = 1 << 10;

/// What is looked into.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

#[derive(Deserialize, Default)]
struct Model {
    #[serde(default)]
    vocab: Longest,
    max_input_chars_per_word: Option<u64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// Bytes of the longest token of a vocabulary: tokens with their ids, or a list of them with their scores.
#[derive(Default)]
struct Longest(usize);

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LongestOf)
    }
}

struct LongestOf;

impl<'de> Visitor<'de> for LongestOf {
    type Value = Longest;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some((token, _)) = map.next_entry::<String, IgnoredAny>()? {
            longest = longest.max(token.len());
        }
        Ok(Longest(longest))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some((token, _)) = list.next_element::<(String, IgnoredAny)>()? {
            longest = longest.max(token.len());
        }
        Ok(Longest(longest))
    }
}

/// Refuses what would take the library too long. What is no such file is for the library to say.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Ok(Parts { model, added_tokens, normalizer, pre_tokenizer, post_processor, decoder }) = serde_json::from_slice(bytes) else {
        return Ok(());
    };
    check_model(&model)?;
    check_added(added_tokens.iter().map(|token| token.content.len()))?;
    let parts = [("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("post_processor", post_processor), ("decoder", decoder)];
    for (name, part) in parts {
        let part = part.unwrap_or_default();
        let steps = count(&part);
        if steps > MOST_STEPS {
            return Err(format!("its {name} has {steps} steps, and at most {MOST_STEPS} are taken"));
        }
        growth::check(name, &part)?;
    }
    Ok(())
}

fn check_model(model: &Model) -> Result<(), String> {
    let Model { vocab, max_input_chars_per_word, continuing_subword_prefix, end_of_word_suffix } = model;
    let around = [continuing_subword_prefix, end_of_word_suffix].into_iter().flatten().map(String::len);
    let longest = around.chain([vocab.0]).max().unwrap_or(0);
    if longest > LONGEST_TOKEN {
        return Err(format!("a token of its vocabulary has {longest} bytes, and may have {LONGEST_TOKEN} at most"));
    }
    match max_input_chars_per_word {
        Some(word @ LONGEST_WORD..) => Err(format!("it cuts words of up to {word} characters, and may cut those below {LONGEST_WORD}")),
        _ => Ok(()),
    }
}

fn check_added(lengths: impl Iterator<Item = usize> + Clone) -> Result<(), String> {
    if let Some(length) = lengths.clone().find(|length| *length > LONGEST_ADDED) {
        return Err(format!("one of its added tokens has {length} bytes, and may have {LONGEST_ADDED} at most"));
    }
    match lengths.sum::<usize>() {
        sum if sum > MOST_ADDED => Err(format!("its added tokens have {sum} bytes together, and may have {MOST_ADDED} at most")),
        _ => Ok(()),
    }
}

/// The steps of a sequence; nothing of another part.
pub(super) fn steps(part: &Value) -> Option<&Vec<Value>> {
    ["normalizers", "pretokenizers", "processors", "decoders"].iter().find_map(|name| part[*name].as_array())
}

/// Itself and all that it is made of.
fn count(part: &Value) -> usize {
    1 + steps(part).map_or(0, |steps| steps.iter().map(count).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tokenizer::Tokenizer;
    use crate::testing::tiny_tokenizer;
    use serde_json::json;

    fn with(key: &str, value: Value) -> Result<Tokenizer, String> {
        let mut tokenizer = tiny_tokenizer();
        tokenizer[key] = value;
        Tokenizer::from_json_bytes(tokenizer.to_string().as_bytes(), "t").map_err(|error| error.to_string())
    }

    fn added(tokens: impl Iterator<Item = String>) -> Result<Tokenizer, String> {
        let flags = json!({"single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false});
        let token = |(number, content): (usize, String)| {
            let mut token = flags.clone();
            (token["id"], token["content"]) = ((262 + number).into(), content.into());
            token
        };
        with("added_tokens", tokens.enumerate().map(token).collect())
    }

    #[test]
    fn added_tokens_are_bounded_one_by_one_and_together() {
        assert!(added(["z".repeat(1024)].into_iter()).is_ok());
        let error = added(["a".into(), "z".repeat(1025)].into_iter()).unwrap_err();
        assert!(error.contains("one of its added tokens has 1025 bytes, and may have 1024 at most"), "{error}");
        // As many as the largest vocabularies have, and as long.
        assert!(added((0..4000).map(|number| format!("<|reserved_special_token_{number}|>"))).is_ok());
        let error = added((0..1025).map(|number| format!("{number:z>1024}"))).unwrap_err();
        assert!(error.contains("its added tokens have 1049600 bytes together, and may have 1048576 at most"), "{error}");
    }

    #[test]
    fn the_vocabulary_is_bounded() {
        let word = |length: usize| "z".repeat(length);
        let pieces = |length: usize| json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], [word(length), -1.0]]});
        assert!(with("model", pieces(4096)).is_ok());
        let words = |limit: u64, prefix: usize| {
            json!({
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": word(prefix), "max_input_chars_per_word": limit,
                "vocab": {"[UNK]": 0, "a": 1},
            })
        };
        assert!(with("model", words(100, 2)).is_ok());
        for (model, what) in [
            (pieces(4097), "a token of its vocabulary has 4097 bytes, and may have 4096 at most"),
            (words(100, 5000), "a token of its vocabulary has 5000 bytes"),
            (words(1_000_000_000, 2), "it cuts words of up to 1000000000 characters, and may cut those below 1024"),
        ] {
            let error = with("model", model).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn steps_are_counted_through_sequences() {
        let sequence = |key: &str, steps: Vec<Value>| json!({"type": "Sequence", key: steps});
        let fuse = json!({"type": "Fuse"});
        let many = |count: usize| sequence("decoders", vec![fuse.clone(); count]);
        assert!(with("decoder", many(63)).is_ok());
        let nested = sequence("decoders", vec![sequence("decoders", vec![fuse.clone(); 40]); 3]);
        for (key, part) in [
            ("decoder", many(64)),
            ("decoder", many(100_000)),
            ("decoder", nested),
            ("normalizer", sequence("normalizers", vec![json!({"type": "StripAccents"}); 64])),
            ("pre_tokenizer", sequence("pretokenizers", vec![json!({"type": "Whitespace"}); 64])),
            ("post_processor", sequence("processors", vec![json!({"type": "ByteLevel"}); 64])),
        ] {
            let error = with(key, part).unwrap_err();
            assert!(error.contains(&format!("its {key} has ")) && error.contains("steps, and at most 64 are taken"), "{error}");
        }
    }
}
