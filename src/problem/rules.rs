//! What the found text must be like, beside the ban on the target's words: rules that somebody asks for by an option.

use rayon::prelude::*;

use super::PromptOptions;
use super::forbidden::Forbidden;
use super::words::{are_english, is_english};
use crate::source::Tokenizer;
use crate::{Error, Result};

/// A rule on the text of the free part. It decides which tokens may be proposed, too.
#[derive(Debug, Clone)]
pub(super) enum Rule {
    /// None of these words and phrases.
    Forbid(Forbidden),
    /// Printable ASCII only.
    Ascii,
    /// English words with spaces between them. A token begins with the space; in a chat, whose template may trim a turn, it need not.
    Words { bare: bool },
}

impl Rule {
    /// Those that `options` ask for.
    pub fn of(options: &PromptOptions) -> Vec<Self> {
        let forbid = (!options.forbid.is_empty()).then(|| Self::Forbid(Forbidden::new(&options.forbid)));
        let words = options.words.then_some(Self::Words { bare: options.chat.is_some() });
        forbid.into_iter().chain(options.ascii.then_some(Self::Ascii)).chain(words).collect()
    }

    /// Whether a whole text keeps it.
    pub fn allows(&self, text: &str) -> bool {
        match self {
            Self::Forbid(forbidden) => forbidden.allows(text),
            Self::Ascii => text.bytes().all(|b| matches!(b, b' '..=b'~')),
            Self::Words { .. } => are_english(text),
        }
    }

    /// What is said of a text that breaks it.
    pub fn broken(&self) -> &'static str {
        match self {
            Self::Forbid(_) => "it holds what --forbid names",
            Self::Ascii => "it holds more than printable ASCII (--ascii)",
            Self::Words { .. } => "it holds more than English words (--words)",
        }
    }

    /// Whether a token with this text may stand in one that does.
    fn allows_token(&self, text: &str) -> bool {
        match self {
            Self::Words { bare } => is_english(text.strip_prefix(' ').unwrap_or(if *bare { text } else { "" })),
            _ => self.allows(text),
        }
    }

    /// Takes the tokens that break it out of the search vocabulary.
    ///
    /// # Errors
    /// Nothing is left.
    pub fn cut(&self, allowed: &mut [bool], tokenizer: &Tokenizer) -> Result<()> {
        let before = allowed.iter().filter(|allowed| **allowed).count();
        allowed.par_iter_mut().enumerate().filter(|(_, allowed)| **allowed).for_each(|(id, allowed)| {
            *allowed = self.allows_token(&tokenizer.decode_inside(&[id as u32]));
        });
        if allowed.contains(&true) {
            return Ok(());
        }
        let (option, kept) = match self {
            Self::Forbid(_) => ("forbid", "is free of the forbidden words"),
            Self::Ascii => ("ascii", "is printable ASCII"),
            Self::Words { .. } => ("words", "is an English word"),
        };
        let message =
            format!("none of the {before} tokens that may otherwise stand in the prompt {kept}; ask for less, or use another model");
        Err(Error::option(option, message))
    }
}
