//! The text that the model is to write.

use crate::source::tokenizer::Tokenizer;
use crate::{Error, Result};

/// y: a text and its M token ids, as they read behind a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// As given, byte for byte.
    pub text: String,
    /// M ids, without special tokens added.
    pub ids: Vec<u32>,
}

impl Target {
    /// Tokenises `text` as what follows a prompt. An empty target is refused, one that no context holds, and one that the tokenizer
    /// cannot spell: a few vocabularies lack bytes, and such characters vanish silently.
    pub fn from_text(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        tokenizer.check_length(text, "the target")?;
        match tokenizer.encode_behind(text) {
            Some(ids) if !ids.is_empty() => Ok(Self { text: text.to_owned(), ids }),
            _ if text.is_empty() => Err(Error::input("the target is empty; give the text that the model should write")),
            _ => Err(unwritable(text, tokenizer)),
        }
    }

    /// These ids, which must be of the vocabulary. Their text may be tokenised to others.
    pub fn from_ids(ids: Vec<u32>, tokenizer: &Tokenizer) -> Self {
        Self { text: tokenizer.decode_inside(&ids), ids }
    }

    /// Whether the text is tokenised to the ids.
    pub fn round_trips(&self, tokenizer: &Tokenizer) -> bool {
        tokenizer.encode_behind(&self.text).as_ref() == Some(&self.ids)
    }
}

fn unwritable(text: &str, tokenizer: &Tokenizer) -> Error {
    let spelt = tokenizer.decode(&tokenizer.encode(text));
    let same = text.char_indices().zip(spelt.chars()).take_while(|((_, a), b)| a == b).last();
    let at = same.map_or(0, |((at, character), _)| at + character.len_utf8());
    Error::input(format!("this model's tokenizer cannot write the target's character at byte {at}; leave it out"))
}
