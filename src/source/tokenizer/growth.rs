//! How much longer a tokenizer may make a text. A few kilobytes of replacements in a row can ask for gigabytes, so they are multiplied
//! out before the library is given any text.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::limits::steps;

/// Bytes out of one byte at most. SentencePiece's `▁` is three bytes of one; real files stay below a hundred.
const LARGEST: f64 = 1024.0;
/// Of the steps whose tables are not looked into: compatibility forms (one ligature is 33 bytes of 3), and forms that only take apart.
const OF_A_TABLE: [f64; 2] = [11.0, 3.0];

/// Refuses a part that could make a text more than a thousand times as long.
pub(super) fn check(name: &str, part: &Value) -> Result<(), String> {
    let growth = growth(part);
    if growth > LARGEST {
        return Err(format!("its {name} makes a text up to {growth:.0e} times as long, and at most {LARGEST} are computed"));
    }
    Ok(())
}

/// Bytes that a step, or a sequence of steps, makes of one byte at most.
fn growth(part: &Value) -> f64 {
    if let Some(steps) = steps(part) {
        return steps.iter().map(growth).product();
    }
    // The library tells these by their fields where their type is none.
    if let Some(content) = part["content"].as_str() {
        // A regular expression may match nothing, between all characters.
        let grown = |pattern: &str| (content.len() as f64 / pattern.len() as f64).max(1.0);
        return part["pattern"]["String"].as_str().map_or(content.len() as f64 + 1.0, grown);
    }
    if let Some(map) = part["precompiled_charsmap"].as_str() {
        return longest_of_a_map(map);
    }
    match part["type"].as_str() {
        // Every byte beyond ASCII becomes a letter of two.
        Some("ByteLevel") => 2.0,
        Some("Metaspace") => 3.0,
        Some("Prepend") => 1.0 + part["prepend"].as_str().unwrap_or_default().len() as f64,
        Some("NFKC" | "NFKD") => OF_A_TABLE[0],
        Some("NFC" | "NFD" | "Nmt" | "Lowercase") => OF_A_TABLE[1],
        _ => 1.0,
    }
}

/// Bytes of the longest text in a map of SentencePiece's: the length of its trie, the trie, then texts that end with a zero.
fn longest_of_a_map(map: &str) -> f64 {
    let bytes = BASE64_STANDARD.decode(map).unwrap_or_default();
    let texts = bytes.split_first_chunk::<4>().and_then(|(length, rest)| rest.get(u32::from_le_bytes(*length) as usize..));
    texts.unwrap_or_default().split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tokenizer::Tokenizer;
    use crate::testing::tiny_tokenizer;
    use serde_json::json;

    fn with(key: &str, steps: Vec<Value>) -> Result<Tokenizer, String> {
        let mut tokenizer = tiny_tokenizer();
        tokenizer[key] = json!({"type": "Sequence", format!("{key}s"): steps});
        Tokenizer::from_json_bytes(tokenizer.to_string().as_bytes(), "t").map_err(|error| error.to_string())
    }

    fn replace(pattern: Value, content: &str, times: usize) -> Vec<Value> {
        vec![json!({"type": "Replace", "pattern": pattern, "content": content}); times]
    }

    #[test]
    fn files_that_amplify_are_refused_before_they_do() {
        for (key, steps) in [
            ("normalizer", replace(json!({"String": "a"}), &"a".repeat(100), 5)),
            ("decoder", replace(json!({"String": "a"}), &"a".repeat(1000), 2)),
            ("decoder", replace(json!({"String": "a"}), "aa", 40)),
            ("normalizer", replace(json!({"Regex": ""}), "aaaa", 8)),
            ("normalizer", replace(json!({"String": ""}), "a", 1)),
            ("normalizer", vec![json!({"pattern": {"String": "a"}, "content": "a".repeat(100)}); 5]),
            ("normalizer", vec![json!({"type": "ByteLevel"}); 18]),
            ("normalizer", vec![json!({"type": "Prepend", "prepend": "a".repeat(2000)})]),
            (
                "normalizer",
                vec![json!({"type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode([&[0; 4][..], &[b'a'; 2000]].concat())})],
            ),
        ] {
            let error = with(key, steps).unwrap_err();
            assert!(error.contains(&format!("its {key} makes a text up to")), "{error}");
        }
    }

    #[test]
    fn real_files_pass() {
        let space = json!({"String": "▁"});
        assert!(with("decoder", replace(space, " ", 1)).is_ok());
        let nfkc = vec![json!({"type": "NFKC"}), json!({"type": "Lowercase"})];
        assert!(
            with("normalizer", [nfkc, replace(json!({"String": " "}), "▁", 1), replace(json!({"Regex": " {2,}"}), "▁", 1)].concat())
                .is_ok()
        );
    }
}
