//! Text ↔ token ids.
//!
//! Text is tokenised as transformers does with `add_special_tokens=False`: special tokens written in a text are
//! recognised, nothing is added. A tokenizer file is untrusted, and the library that reads it can panic on a crafted
//! one, at loading as well as later; every call into it is therefore caught and becomes an error sentence or an empty
//! answer.

mod context;
mod growth;
mod length;
mod limits;

use crate::error::{Error, Result, panic_message, quoted};
use crate::files::hex;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Once};
use tokenizers::{ModelWrapper, PostProcessorWrapper};

/// Ids above this are refused: a table has one entry per id.
const MAX_TOKENS: usize = 1 << 22;
/// Largest tokenizer file that is read, in bytes.
const LARGEST_FILE: u64 = 64 << 20;

/// A frozen tokenizer. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    /// Tokens that its model takes.
    context: usize,
}

struct Inner {
    library: tokenizers::Tokenizer,
    /// SHA-256 of its `tokenizer.json`, in hexadecimal.
    digest: String,
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
        limits::check(bytes).map_err(|reason| invalid(&reason))?;
        let library = caught(|| load(bytes)).and_then(|loaded| loaded).map_err(|reason| invalid(&reason))?;
        let size = caught(|| vocab_size(&library)).map_err(|reason| invalid(&reason))?;
        if size == 0 || size > MAX_TOKENS {
            return Err(invalid(&format!("its ids must lie below {MAX_TOKENS}, and there must be some")));
        }
        let kinds = caught(|| kinds(&library, size)).map_err(|reason| invalid(&reason))?;
        let digest = hex(&Sha256::digest(bytes));
        let tokenizer = Self { inner: Arc::new(Inner { library, digest, kinds }), context: usize::MAX };
        tokenizer.try_encode(PROBE).map_err(|reason| invalid(&reason))?;
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` file; see [`Tokenizer::from_json_bytes`].
    pub fn from_file(path: &Path) -> Result<Self> {
        if !path.exists() && path.with_file_name("tokenizer.model").exists() {
            let name = quoted(&path.display().to_string());
            return Err(Error::input(format!(
                "there is no {name}, only SentencePiece's `tokenizer.model`; AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of \
                 transformers writes it"
            )));
        }
        if !path.exists() {
            let name = quoted(&path.display().to_string());
            return Err(Error::input(format!(
                "there is no {name}; a model's folder holds `config.json`, `tokenizer.json` and its weights"
            )));
        }
        let text = crate::files::read_text(path, LARGEST_FILE)?;
        Self::from_json_bytes(text.as_bytes(), &path.display().to_string())
    }

    /// Token ids of a text. A text that the tokenizer cannot express gives no ids, and a warning.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.try_encode(text).unwrap_or_else(|reason| {
            tracing::warn!("the tokenizer failed on a text of {} bytes: {reason}", text.len());
            Vec::new()
        })
    }

    fn try_encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let library = &self.inner.library;
        let encoding = caught(|| library.encode_fast(text, false))?.map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens included; ids that no token has are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let library = &self.inner.library;
        caught(|| library.decode(ids, false)).and_then(|text| text.map_err(|error| error.to_string())).unwrap_or_else(|reason| {
            tracing::warn!("the tokenizer failed to decode {} ids: {reason}", ids.len());
            String::new()
        })
    }

    /// Whether the text of `ids`, tokenised again, gives `ids`.
    pub fn round_trips(&self, ids: &[u32]) -> bool {
        self.encode(&self.decode(ids)) == ids
    }

    /// SHA-256 of the `tokenizer.json` that it was made from, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.inner.digest
    }

    /// One more than the largest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.kinds.len()
    }

    /// Whether `id` is a special token or one added to the trained vocabulary.
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Kind::Added
    }

    /// Whether `id` is a token of the trained vocabulary, whatever it decodes to.
    pub fn is_learned(&self, id: u32) -> bool {
        matches!(self.kind(id), Kind::Fragment | Kind::Text)
    }

    /// Whether `id` is an ordinary token that decodes alone to one or more whole characters.
    pub fn is_text(&self, id: u32) -> bool {
        self.kind(id) == Kind::Text
    }

    /// Id of a token by its name in the vocabulary, such as `<|endoftext|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        caught(|| self.inner.library.token_to_id(token)).ok().flatten()
    }

    fn kind(&self, id: u32) -> Kind {
        self.inner.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
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
    outcome.map_err(|panic| panic_message(&*panic).unwrap_or("it makes the tokenizer library panic").to_owned())
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
mod tests;
