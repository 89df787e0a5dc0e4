//! The text that the model is to write.

use crate::tokenizer::Tokenizer;
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
    /// Tokenises `text`. An empty target is refused.
    pub fn from_text(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let ids = tokenizer.encode(text);
        if ids.is_empty() {
            return Err(Error::input("the target is empty; give the text that the model should write"));
        }
        Ok(Self { text: text.to_owned(), ids })
    }
}
