//! Text ↔ token ids.
//!
//! Text is tokenised as transformers does with `add_special_tokens=False`: special tokens written in a text are
//! recognised, nothing is added. A tokenizer file is untrusted, and the library that reads it can panic on a crafted
//! one, at loading as well as later; every call into it is therefore caught and becomes an error sentence or an empty
//! answer.

use crate::error::{Error, Result, quoted};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Once};
use tokenizers::{ModelWrapper, PostProcessorWrapper};

/// Ids above this are refused: a table has one entry per id.
const MOST_TOKENS: usize = 1 << 22;
/// Largest tokenizer file that is read, in bytes.
const LARGEST_FILE: u64 = 64 << 20;

/// A frozen tokenizer. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    library: tokenizers::Tokenizer,
    /// What each id is, `[vocab_size]`.
    kinds: Vec<Kind>,
}

/// What one token id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No token has this id.
    Unused,
    /// A special token, or one added to the trained vocabulary.
    Added,
    /// Decodes alone to nothing or to a part of a character.
    Fragment,
    /// Decodes alone to whole characters.
    Text,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Its truncation and padding are switched off, they are for training batches; so is its
    /// post-processor, which adds special tokens.
    ///
    /// # Errors
    /// [`Error::Input`] when the bytes are not a tokenizer, when the library panics on it, when it tokenises at random
    /// (BPE dropout), or when an id is out of any reasonable range.
    pub fn from_json_bytes(bytes: &[u8], origin: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::input(format!("tokenizer {} is invalid: {reason}", quoted(origin)));
        let library = caught(|| load(bytes)).and_then(|loaded| loaded).map_err(|reason| invalid(&reason))?;
        let size = caught(|| vocab_size(&library)).map_err(|reason| invalid(&reason))?;
        if size == 0 || size > MOST_TOKENS {
            return Err(invalid(&format!("its ids must lie below {MOST_TOKENS}, and there must be some")));
        }
        let kinds = caught(|| kinds(&library, size)).map_err(|reason| invalid(&reason))?;
        let tokenizer = Self(Arc::new(Inner { library, kinds }));
        tokenizer.try_encode(PROBE).map_err(|reason| invalid(&reason))?;
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` file; see [`Tokenizer::from_json_bytes`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = crate::files::read_small(path, LARGEST_FILE)?;
        Self::from_json_bytes(&bytes, &path.display().to_string())
    }

    /// Token ids of a text. A text that the tokenizer cannot express gives no ids, and a warning.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.try_encode(text).unwrap_or_else(|reason| {
            tracing::warn!("the tokenizer failed on a text of {} bytes: {reason}", text.len());
            Vec::new()
        })
    }

    fn try_encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let library = &self.0.library;
        let encoding = caught(|| library.encode_fast(text, false))?.map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens included; ids that no token has are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let library = &self.0.library;
        caught(|| library.decode(ids, false)).and_then(|text| text.map_err(|error| error.to_string())).unwrap_or_else(|reason| {
            tracing::warn!("the tokenizer failed to decode {} ids: {reason}", ids.len());
            String::new()
        })
    }

    /// Whether the text of `ids`, tokenised again, gives `ids`.
    pub fn round_trips(&self, ids: &[u32]) -> bool {
        self.encode(&self.decode(ids)) == ids
    }

    /// One more than the largest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.0.kinds.len()
    }

    /// Whether `id` is a special token or one added to the trained vocabulary.
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Kind::Added
    }

    /// Whether `id` is an ordinary token that decodes alone to one or more whole characters.
    pub fn is_text(&self, id: u32) -> bool {
        self.kind(id) == Kind::Text
    }

    /// Id of a token by its name in the vocabulary, such as `<|endoftext|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        caught(|| self.0.library.token_to_id(token)).ok().flatten()
    }

    fn kind(&self, id: u32) -> Kind {
        self.0.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}

/// A text of many scripts. A tokenizer that fails on it would fail in the middle of a run.
const PROBE: &str = "Hello,  world!\n\t’tis 1234.5 é ß 你好 мир سلام 👩‍💻 \u{0} \u{fffd} ";

fn load(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let mut library = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
    library.with_padding(None);
    library.with_post_processor(None::<PostProcessorWrapper>);
    library.with_truncation(None).map_err(|error| error.to_string())?;
    match library.get_model() {
        ModelWrapper::BPE(bpe) if bpe.dropout.is_some_and(|dropout| dropout != 0.0) => {
            Err("`dropout` makes it tokenise at random; set it to null".to_owned())
        }
        _ => Ok(library),
    }
}

fn vocab_size(library: &tokenizers::Tokenizer) -> usize {
    let largest = library.get_vocab(true).into_values().max();
    largest.map_or(0, |id| id as usize + 1)
}

fn kinds(library: &tokenizers::Tokenizer, size: usize) -> Vec<Kind> {
    let added = library.get_added_tokens_decoder();
    let kind = |id: u32| {
        if added.contains_key(&id) {
            return Kind::Added;
        }
        if library.id_to_token(id).is_none() {
            return Kind::Unused;
        }
        match library.decode(&[id], false) {
            Ok(text) if !text.is_empty() && !text.contains('\u{fffd}') => Kind::Text,
            _ => Kind::Fragment,
        }
    };
    (0..size as u32).map(kind).collect()
}

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs code that may panic on hostile data; a panic becomes its message and prints nothing.
fn caught<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                usual(panic);
            }
        }));
    });
    let outer = CAUGHT.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(code));
    CAUGHT.set(outer);
    outcome.map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        message.unwrap_or("it makes the tokenizer library panic").to_owned()
    })
}

/// Refuses ids that are no row of a model's embedding matrix.
///
/// # Errors
/// The first such id.
pub fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => Err(Error::input(format!("token id {id} is out of range, this model has ids 0 to {}", vocab_size - 1))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
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
}
