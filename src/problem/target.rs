//! The text that the model is to write.

use crate::source::tokenizer::Tokenizer;
use crate::{Error, Result};

/// y: a text and its M token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// As given, byte for byte.
    pub text: String,
    /// M ids, without special tokens added.
    pub ids: Vec<u32>,
}

impl Target {
    /// Tokenises `text`. An empty target is refused, one that no context holds, and one that the tokenizer cannot spell: a few vocabularies lack bytes, and
    /// such characters vanish silently.
    pub fn from_text(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        tokenizer.check_length(text, "the target")?;
        let ids = tokenizer.encode(text);
        if ids.is_empty() {
            return Err(Error::input("the target is empty; give the text that the model should write"));
        }
        let spelt = tokenizer.decode(&ids);
        if spelt != text {
            let same = text.char_indices().zip(spelt.chars()).take_while(|((_, a), b)| a == b).last();
            let at = same.map_or(0, |((at, character), _)| at + character.len_utf8());
            return Err(Error::input(format!("this model's tokenizer cannot write the target's character at byte {at}; leave it out")));
        }
        Ok(Self { text: text.to_owned(), ids })
    }

    /// These ids, which must be of the vocabulary. Their text may be tokenised to others.
    pub fn from_ids(ids: Vec<u32>, tokenizer: &Tokenizer) -> Self {
        Self { text: tokenizer.decode(&ids), ids }
    }
}
