//! The unknown: a fixed prefix, N free positions, a fixed suffix, and which tokens may stand in the free ones.

use std::collections::HashSet;

use rayon::prelude::*;

use super::ban::Ban;
use super::rules::Rule;
use super::{Chat, Target};
use crate::source::tokenizer::Tokenizer;
use crate::{Error, Result, terminal};

/// What a prompt may look like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptOptions {
    /// N, free positions.
    pub tokens: usize,
    /// Text before the free part.
    pub prefix: String,
    /// Text after it.
    pub suffix: String,
    /// The chat in which the prompt is the user's turn, where it is one.
    pub chat: Option<Chat>,
    /// Token put before everything, where one is wanted.
    pub bos: Option<u32>,
    /// Tokens and words of the target may be used.
    pub allow_target_tokens: bool,
    /// Special and added tokens may be used; never in a chat, whose turns they end.
    pub allow_special: bool,
    /// Every token of the vocabulary may be used, whatever its text (the paper's setting).
    pub allow_everything: bool,
    /// Words and phrases that may not occur in the free part, one a line; they hold whatever else is allowed, as all that follows does.
    pub forbid: String,
    /// Only printable ASCII in the free part.
    pub ascii: bool,
    /// Only English words in the free part, with spaces between them.
    pub words: bool,
}

/// The free part of a prompt: how long it is, and what may stand in it.
#[derive(Debug, Clone)]
pub struct Prompt {
    options: PromptOptions,
    allowed: Vec<bool>,
    ids: Vec<u32>,
    readable: Vec<u32>,
    /// On the text; the options say whether it is in force.
    ban: Ban,
    /// On the text too.
    rules: Vec<Rule>,
}

impl Prompt {
    /// Prepares the search vocabulary for a model with `vocab_size` embeddings, and for these targets.
    ///
    /// # Errors
    /// Nothing is left that may stand in the prompt.
    pub fn new(options: PromptOptions, targets: &[&Target], tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self> {
        let mut allowed = search_vocabulary(&options, targets, tokenizer, vocab_size);
        if !allowed.contains(&true) {
            return Err(Error::option(
                "allow_target_tokens",
                "no token of the vocabulary may stand in the prompt; allow those of the target, or special ones (allow_special)",
            ));
        }
        let rules = Rule::of(&options);
        rules.iter().try_for_each(|rule| rule.cut(&mut allowed, tokenizer))?;
        let ids: Vec<u32> = (0..).zip(&allowed).filter_map(|(id, allowed)| allowed.then_some(id)).collect();
        let words: Vec<u32> = ids.iter().copied().filter(|&id| is_plain_word(&tokenizer.decode_inside(&[id]))).collect();
        let readable = if words.is_empty() { ids.clone() } else { words };
        Ok(Self { options, allowed, ids, readable, ban: Ban::new(targets), rules })
    }

    /// The same with so many free tokens.
    pub(super) fn of_length(&self, tokens: usize) -> Self {
        Self { options: PromptOptions { tokens, ..self.options.clone() }, ..self.clone() }
    }

    /// What it was made from.
    pub fn options(&self) -> &PromptOptions {
        &self.options
    }

    /// N.
    pub fn tokens(&self) -> usize {
        self.options.tokens
    }

    /// Whether each token may stand in the free part, `[V]`.
    pub fn allowed(&self) -> &[bool] {
        &self.allowed
    }

    /// The tokens that may stand there, in order.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Allowed tokens that are a space and a word, or all allowed ones where the tokenizer has none such.
    pub fn readable(&self) -> &[u32] {
        &self.readable
    }

    /// Whether a text keeps the ban on the target's words, where it is in force, and is what was asked for.
    pub fn keeps_rules(&self, text: &str) -> bool {
        self.broken_rule(text).is_none()
    }

    /// The first of these that it does not keep.
    pub fn broken_rule(&self, text: &str) -> Option<&'static str> {
        let lifted = self.options.allow_everything || self.options.allow_target_tokens;
        let ban = (!lifted && self.repeats_target(text)).then_some("it holds words of the target (--allow-target-tokens)");
        ban.or_else(|| self.rules.iter().find(|rule| !rule.allows(text)).map(Rule::broken))
    }

    /// Whether a text holds words of a target, allowed or not.
    pub fn repeats_target(&self, text: &str) -> bool {
        !self.ban.allows(text)
    }

    /// Whether all of these tokens are of the search vocabulary.
    pub(super) fn permits(&self, free: &[u32]) -> bool {
        free.iter().all(|&id| self.allowed.get(id as usize) == Some(&true))
    }
}

/// What no key gives and a terminal would act on, or hide: controls but tab and line feed, and characters that show nothing.
fn is_hidden(c: char) -> bool {
    terminal::acts(c) && !matches!(c, '\t' | '\n')
}

/// A space and at least three ASCII letters.
fn is_plain_word(text: &str) -> bool {
    text.strip_prefix(' ').is_some_and(|word| word.len() >= 3 && word.bytes().all(|b| b.is_ascii_alphabetic()))
}

/// Leaves out special, added, unused and broken tokens, those that nobody can type or see and, unless allowed, what belongs to the
/// target: its tokens, and every token of three letters or more that equals, contains or is contained in one of its words.
fn search_vocabulary(options: &PromptOptions, targets: &[&Target], tokenizer: &Tokenizer, vocab_size: usize) -> Vec<bool> {
    let special = |id: u32| tokenizer.is_special(id) && (options.chat.is_some() || !options.allow_special);
    if options.allow_everything {
        return (0..vocab_size as u32).map(|id| options.chat.is_none() || !special(id)).collect();
    }
    let lower: Vec<String> = targets.iter().map(|target| target.text.to_lowercase()).collect();
    let words: HashSet<&str> =
        lower.iter().flat_map(|text| text.split(|c: char| !c.is_alphabetic())).filter(|word| !word.is_empty()).collect();
    let target_ids: HashSet<u32> = targets.iter().flat_map(|target| target.ids.iter().copied()).collect();
    let belongs_to_target = |id: u32, text: &str| {
        let core = text.trim().to_lowercase();
        let related = |word: &&str| word.contains(&core) || (word.chars().count() >= 3 && core.contains(*word));
        target_ids.contains(&id) || (core.chars().count() >= 3 && words.iter().any(related))
    };
    (0..vocab_size as u32)
        .into_par_iter()
        .map(|id| {
            let text = tokenizer.decode_inside(&[id]);
            let whole = !text.is_empty() && !text.contains('\u{fffd}');
            let typeable = whole && !text.contains(is_hidden) && !special(id) && tokenizer.is_typeable(id, &text);
            typeable && (options.allow_target_tokens || !belongs_to_target(id, &text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    #[test]
    fn the_tokens_that_may_stand_there_are_those_that_are_allowed() {
        let (tokenizer, vocab_size) = (tiny().tokenizer, tiny().config.vocab_size);
        let target = Target::from_text("the king", &tokenizer).unwrap();
        let prompt = Prompt::new(PromptOptions { tokens: 3, ..PromptOptions::default() }, &[&target], &tokenizer, vocab_size).unwrap();
        let permitted: Vec<u32> = (0..vocab_size as u32).filter(|&id| prompt.permits(&[id])).collect();
        assert!(prompt.ids() == permitted && (1..vocab_size).contains(&permitted.len()), "{permitted:?}");
    }

    #[test]
    fn what_shows_nothing_or_acts_is_hidden() {
        for text in ["\u{1b}", "a\r", "\u{7f}", "\u{85}", "a\u{202e}b", "\u{200b}", "\u{feff}", "\u{ad}", "\u{2066}", "\u{e0041}"] {
            assert!(text.contains(is_hidden), "{text:?}");
        }
        for text in ["\t", "\n\n", " the", "é", "世", "🙂", "\u{a0}", "\u{301}"] {
            assert!(!text.contains(is_hidden), "{text:?}");
        }
    }
}
