//! Tokenizers, whole and hostile.

use super::*;
use crate::testing::{golden, tiny_tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(tokenizer: &Value) -> Result<Tokenizer> {
    Tokenizer::from_json_bytes(tokenizer.to_string().as_bytes(), "tokenizer.json")
}

fn with(key: &str, value: Value) -> Value {
    let mut tokenizer = tiny_tokenizer();
    tokenizer[key] = value;
    tokenizer
}

#[test]
fn a_file_gives_the_ids_of_the_library_in_python() {
    let tokenizer = Tokenizer::from_file(&golden("tiny/gqa1-tied/tokenizer.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(golden("tiny/tokenizer_cases.json")).unwrap()).unwrap();
    for case in cases {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn special_tokens_in_a_text_are_recognised_and_shown_and_none_is_added() {
    let tokenizer = parse(&tiny_tokenizer()).unwrap();
    let byte = |letter: &str| tokenizer.token_id(letter).unwrap();
    let (he, llo) = (byte("he"), byte("llo"));
    assert_eq!(tokenizer.encode("hello"), [he, llo]);
    assert_eq!(tokenizer.encode("hello<|endoftext|>hello<tool>"), [he, llo, 0, he, llo, 261]);
    assert_eq!(tokenizer.decode(&[he, llo, 0, 261]), "hello<|endoftext|><tool>");
    assert!(tokenizer.encode("").is_empty() && tokenizer.decode(&[]).is_empty());
}

#[test]
fn the_kinds_of_tokens_are_told_apart() {
    let mut json = tiny_tokenizer();
    json["model"]["vocab"].as_object_mut().unwrap().insert("é".into(), 300.into());
    let tokenizer = parse(&json).unwrap();
    // `é` is the name of the byte 0xE9, which alone is no text.
    let kinds = |id: u32| (tokenizer.is_special(id), tokenizer.is_text(id));
    assert_eq!(tokenizer.vocab_size(), 301);
    assert_eq!(kinds(0), (true, false));
    assert_eq!(kinds(261), (true, false));
    assert_eq!(kinds(tokenizer.token_id("he").unwrap()), (false, true));
    assert_eq!(kinds(300), (false, false));
    for unused in [262, 299, 301, u32::MAX] {
        assert_eq!(kinds(unused), (false, false));
    }
}

#[test]
fn round_trips_are_those_of_the_text() {
    let tokenizer = parse(&tiny_tokenizer()).unwrap();
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    assert!(tokenizer.round_trips(&[id("he"), id("llo")]));
    // `h` and `e` come back as `he`; a lone byte comes back as a replacement character.
    assert!(!tokenizer.round_trips(&[id("h"), id("e")]));
    assert!(!tokenizer.round_trips(&[id("Ã")]));
    assert!(tokenizer.round_trips(&[id("Ã"), id("©")]), "é");
    assert!(!tokenizer.round_trips(&[9999]) && tokenizer.round_trips(&[]));
}

#[test]
fn what_cuts_pads_or_adds_tokens_is_switched_off() {
    let cut = |length: u32, stride: u32| {
        let value = json!({"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": stride});
        ("truncation", value)
    };
    let pad = json!({"strategy": {"Fixed": 1_000_000_000_000u64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let piece = |special: bool| match special {
        true => json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}),
        false => json!({"Sequence": {"id": "A", "type_id": 0}}),
    };
    let twice = json!([piece(true), piece(false), piece(false)]);
    let add = json!({"type": "TemplateProcessing", "single": twice, "pair": twice, "special_tokens": {}});
    let plain = parse(&tiny_tokenizer()).unwrap().encode("hello hello");
    // A stride that is longer than the text would make the library panic.
    for (key, value) in [cut(2, 0), cut(1, 9), ("padding", pad), ("post_processor", add)] {
        assert_eq!(parse(&with(key, value)).unwrap().encode("hello hello"), plain, "{key}");
    }
}

/// The crafted files of huggingface/tokenizers #2094 and #2151, and others; each of them panics or fails somewhere.
#[test]
fn hostile_files_are_refused_in_a_sentence() {
    let mut long_merge = tiny_tokenizer();
    long_merge["model"] = json!({"type": "BPE", "vocab": {"aa": 0, "bb": 1}, "merges": [["aa", "bb"]]});
    let mut far = tiny_tokenizer();
    far["model"]["vocab"]["zz"] = 4_000_000_000u32.into();
    let mut random = tiny_tokenizer();
    random["model"]["dropout"] = 0.1.into();
    let cases = [
        ("a merge longer than every token", long_merge),
        ("an id of four thousand million", far),
        ("dropout", random),
        ("a decoder that strips more than there is", with("decoder", json!({"type": "Strip", "content": "h", "start": 0, "stop": 9}))),
        ("pieces of no length", with("pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
        ("a broken table of characters", with("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}))),
        (
            "a broken regular expression",
            with("pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false})),
        ),
        ("an unknown version", with("version", json!("2.0"))),
        ("no model", with("model", Value::Null)),
        ("no tokens", with("model", json!({"type": "BPE", "vocab": {}, "merges": []}))),
        ("no object", json!([])),
    ];
    for (what, mut json) in cases {
        if what == "no tokens" {
            json["added_tokens"] = json!([]);
        }
        let error = parse(&json).err().unwrap_or_else(|| panic!("{what} should be refused"));
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.starts_with("tokenizer `tokenizer.json` is invalid: ") && !text.contains("panicked"), "{what}: {text}");
    }
    for bytes in [&b""[..], b"{", b"\xff\xfe", &b"[".repeat(100_000)] {
        assert!(Tokenizer::from_json_bytes(bytes, "tokenizer.json").is_err());
    }
}

/// A tokenizer of many parts.
fn composed() -> Value {
    let mut json = tiny_tokenizer();
    let replace = json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"});
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replace, {"type": "Prepend", "prepend": "x"},
        {"type": "Strip", "strip_left": true, "strip_right": true}]});
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
        {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": false}, {"type": "FixedLength", "length": 3},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}, json["pre_tokenizer"]]});
    json["decoder"] = json!({"type": "Sequence", "decoders": [json["decoder"], replace, {"type": "Fuse"},
        {"type": "Strip", "content": "x", "start": 1, "stop": 0}, {"type": "WordPiece", "prefix": "##", "cleanup": true}]});
    json["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}});
    json["truncation"] = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    json
}

/// Pointers to all parts of a value, the vocabulary left out.
fn parts(value: &Value, at: &str, all: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in inner.into_iter().filter(|(key, _)| key != "vocab") {
        let at = format!("{at}/{key}");
        parts(value, &at, all);
        all.push(at);
    }
}

fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        any::<bool>().prop_map(Value::from),
        (0u32..300).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,3}|<tool>|[(*+?]".prop_map(Value::from),
    ]
}

#[test]
fn a_tokenizer_of_many_parts_is_read() {
    assert!(!parse(&composed()).unwrap().encode("a1 b").is_empty());
}

#[test]
fn a_panic_becomes_its_message() {
    assert_eq!(caught(|| -> u32 { panic!("{} times", 3) }), Err("3 times".to_owned()));
    assert_eq!(caught(|| caught(|| -> u32 { panic!("inner") })), Ok(Err("inner".to_owned())));
    assert_eq!(caught(|| 7), Ok(7));
}

proptest! {
    #[test]
    fn any_text_survives(text in "(\\PC|[\\s\u{0}-\u{1f}]|hello|<tool>|[0-9]|👩‍💻|e\u{301}){0,40}") {
        let tokenizer = parse(&tiny_tokenizer()).unwrap();
        let ids = tokenizer.encode(&text);
        prop_assert_eq!(tokenizer.decode(&ids), text);
        prop_assert!(tokenizer.round_trips(&ids));
    }

    #[test]
    fn any_ids_decode(ids in proptest::collection::vec(prop_oneof![0u32..262, any::<u32>()], 0..40)) {
        let tokenizer = parse(&tiny_tokenizer()).unwrap();
        let again = tokenizer.encode(&tokenizer.decode(&ids));
        prop_assert_eq!(tokenizer.round_trips(&ids), again == ids);
    }

    /// Any two parts of a tokenizer replaced by anything: read or refused, and never a panic later.
    #[test]
    fn odd_files_are_read_or_refused(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), anything()), 1..3),
        text in "\\PC{0,20}",
    ) {
        let mut json = composed();
        for (at, value) in changes {
            let mut places = Vec::new();
            parts(&json, "", &mut places);
            *json.pointer_mut(&places[at.index(places.len())]).unwrap() = value;
        }
        match parse(&json) {
            Ok(tokenizer) => {
                let ids = tokenizer.encode(&text);
                prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
                tokenizer.decode(&ids);
            }
            Err(error) => prop_assert!(error.to_string().starts_with("tokenizer `tokenizer.json` is invalid: ")),
        }
    }

    /// Any change of any byte of a tokenizer file: read or refused.
    #[test]
    fn damaged_files_are_read_or_refused(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = tiny_tokenizer().to_string().into_bytes();
        for (at, byte) in damage {
            *at.get_mut(&mut bytes) = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_json_bytes(&bytes, "tokenizer.json") {
            let ids = tokenizer.encode(PROBE);
            tokenizer.decode(&ids);
        }
    }
}
