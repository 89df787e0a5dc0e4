//! One use of the free part: what stands around it, and what the model must write behind it.

use super::frame::Frame;
use super::{PromptOptions, Target};
use crate::Result;
use crate::source::Tokenizer;

/// Text around the prompt that belongs to one example alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// Before the prompt's prefix.
    pub before: String,
    /// Between the prompt's suffix and the target.
    pub between: String,
}

/// `[BoS, before + prefix] free part [suffix + between] target`; in a chat, all but the target is the user's turn.
#[derive(Debug, Clone)]
pub struct Example {
    /// y.
    pub target: Target,
    frame: Frame,
    bos: Option<u32>,
    /// BoS and the fixed tokens before the free part.
    head: Vec<u32>,
    tokens: usize,
    target_round_trips: bool,
    tokenizer: Tokenizer,
}

impl Example {
    pub(super) fn new(options: &PromptOptions, context: Context, target: Target, tokenizer: &Tokenizer) -> Result<Self> {
        let (before, after) = (context.before + &options.prefix, options.suffix.clone() + &context.between);
        let frame = Frame::new(&before, &after, options.chat.as_ref(), tokenizer)?;
        let head = options.bos.iter().chain(&frame.head).copied().collect();
        let target_round_trips = target.round_trips(tokenizer);
        Ok(Self { target, frame, bos: options.bos, head, tokens: options.tokens, target_round_trips, tokenizer: tokenizer.clone() })
    }

    /// The same with so many free tokens.
    pub(super) fn of_length(&self, tokens: usize) -> Self {
        Self { tokens, ..self.clone() }
    }

    /// Fixed tokens before the free part, BoS included.
    pub fn head(&self) -> &[u32] {
        &self.head
    }

    /// Fixed tokens after it.
    pub fn tail(&self) -> &[u32] {
        &self.frame.tail
    }

    /// All positions of the prompt as searched.
    pub fn positions(&self) -> usize {
        self.head.len() + self.tokens + self.tail().len()
    }

    /// Positions that a pass computes behind the fixed beginning, the target's own tokens fed: all but that and the last target token.
    pub fn positions_behind_head(&self) -> usize {
        self.tokens + self.tail().len() + self.target.ids.len() - 1
    }

    /// The ids as searched: BoS, fixed tokens, `free`, fixed tokens.
    pub fn search_ids(&self, free: &[u32]) -> Vec<u32> {
        [&self.head, free, self.tail()].concat()
    }

    /// The text of the free part where it stands.
    pub fn free_text(&self, free: &[u32]) -> String {
        self.frame.free_text(free, &self.tokenizer)
    }

    /// The whole text with this free part: what is typed, or what the chat's template makes of it. Nothing where the template refuses it.
    pub fn text(&self, free_text: &str) -> String {
        self.frame.whole(free_text, "").unwrap_or_default()
    }

    /// The ids that the model sees when this free part is typed, BoS first where one is wanted; none where the text gives none.
    pub fn typed_ids(&self, free_text: &str) -> Vec<u32> {
        self.ids_with(free_text, "")
    }

    /// The same with a text typed behind everything.
    pub fn ids_with(&self, free_text: &str, behind: &str) -> Vec<u32> {
        let own = self.tokenizer.encode(&self.frame.whole(free_text, behind).unwrap_or_default());
        if own.is_empty() { own } else { self.bos.into_iter().chain(own).collect() }
    }

    /// Whether typing the text of `free`, which is `free_text`, gives the ids as searched.
    pub(super) fn round_trips(&self, free: &[u32], free_text: &str) -> bool {
        self.typed_ids(free_text) == self.search_ids(free)
    }

    /// Whether the target's text is tokenised to its ids. Where it is not, the ids can be written and scored, but no text is exact.
    pub fn target_round_trips(&self) -> bool {
        self.target_round_trips
    }

    /// Whether what is left of typed ids between the fixed beginning and end is no longer than N.
    pub(super) fn is_short_enough(&self, typed: &[u32]) -> bool {
        typed.len() <= self.positions() && self.free_part(typed).len() <= self.tokens
    }

    /// What is left of typed ids between the fixed beginning and end.
    pub(super) fn free_part<'a>(&self, typed: &'a [u32]) -> &'a [u32] {
        let head = common(self.head.iter(), typed.iter());
        let rest = &typed[head..];
        let tail = common(self.tail().iter().rev(), rest.iter().rev());
        &rest[..rest.len() - tail]
    }
}

/// Length of the common beginning.
fn common<'a>(a: impl Iterator<Item = &'a u32>, b: impl Iterator<Item = &'a u32>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}
