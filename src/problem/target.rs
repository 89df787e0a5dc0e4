//! The text that the model is to write.

use crate::source::tokenizer::Tokenizer;
use crate::{Error, Result};

/// y: a text and its M token ids, as they read behind a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// As given, byte for byte.
    pub text: String,
    /// M ids, without special tokens added; with a stop token at the end, where the model is to stop.
    pub ids: Vec<u32>,
    /// The last of the ids is a stop token. It ends the text, and is no part of it.
    pub stops: bool,
}

impl Target {
    /// A text and its ids.
    pub fn new(text: impl Into<String>, ids: Vec<u32>) -> Self {
        Self { text: text.into(), ids, stops: false }
    }

    /// The same, behind which the model stops with this token.
    #[must_use]
    pub fn stopping_with(mut self, stop: u32) -> Self {
        self.ids.push(stop);
        Self { stops: true, ..self }
    }

    /// The ids of the text alone.
    pub fn text_ids(&self) -> &[u32] {
        &self.ids[..self.ids.len() - usize::from(self.stops)]
    }

    /// What is text of what a model wrote: not the token at which it stopped, where this is asked of it.
    pub fn text_of<'a>(&self, written: &'a [u32]) -> &'a [u32] {
        match written.split_last() {
            Some((last, text)) if self.stops && self.ids.last() == Some(last) => text,
            _ => written,
        }
    }

    /// Tokenises `text` as what follows a prompt. An empty target is refused, one that no context holds, and one that the tokenizer
    /// cannot spell: a few vocabularies lack bytes, and such characters vanish silently.
    pub fn from_text(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        tokenizer.check_length(text, "the target")?;
        match tokenizer.encode_behind(text) {
            Some(ids) if !ids.is_empty() => Ok(Self::new(text, ids)),
            _ if text.is_empty() => Err(Error::input("the target is empty; give the text that the model should write")),
            _ => Err(unwritable(text, tokenizer)),
        }
    }

    /// Tokenises `text` as what is typed first: a prompt that leads to a target.
    ///
    /// # Errors
    /// Those of [`Self::from_text`].
    pub fn from_typed(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Self::from_text(text, tokenizer).map(|_| Self::new(text, tokenizer.encode(text)))
    }

    /// These ids, which must be of the vocabulary. Their text may be tokenised to others.
    pub fn from_ids(ids: Vec<u32>, tokenizer: &Tokenizer) -> Self {
        Self::new(tokenizer.decode_inside(&ids), ids)
    }

    /// Whether the text is tokenised to the ids.
    pub fn round_trips(&self, tokenizer: &Tokenizer) -> bool {
        tokenizer.encode_behind(&self.text).is_some_and(|ids| ids == self.text_ids())
    }
}

fn unwritable(text: &str, tokenizer: &Tokenizer) -> Error {
    let spelt = tokenizer.decode(&tokenizer.encode(text));
    let same = text.char_indices().zip(spelt.chars()).take_while(|((_, a), b)| a == b).last();
    let at = same.map_or(0, |((at, character), _)| at + character.len_utf8());
    Error::input(format!("this model's tokenizer cannot write the target's character at byte {at}; leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_a_text_and_is_no_part_of_it() {
        let plain = Target::new("ab", vec![1, 2]);
        let stopping = plain.clone().stopping_with(0);
        assert_eq!((&*stopping.text, &*stopping.ids, stopping.text_ids()), ("ab", &[1, 2, 0][..], &[1, 2][..]));
        assert_eq!(plain.text_ids(), [1, 2]);
        assert_eq!((stopping.text_of(&[1, 3, 0]), stopping.text_of(&[1, 0, 3])), (&[1, 3][..], &[1, 0, 3][..]));
        assert_eq!((plain.text_of(&[1, 2]), stopping.text_of(&[])), (&[1, 2][..], &[][..]));
    }
}
