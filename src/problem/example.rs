//! One use of the free part: what stands around it, and what the model must write behind it.

use super::{PromptOptions, Target};
use crate::source::Tokenizer;

/// Text around the prompt that belongs to one example alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// Before the prompt's prefix.
    pub before: String,
    /// Between the prompt's suffix and the target.
    pub between: String,
}

/// `[BoS, before + prefix] free part [suffix + between] target`.
#[derive(Debug, Clone)]
pub struct Example {
    /// y.
    pub target: Target,
    /// Text before the free part.
    before: String,
    /// Text after it.
    after: String,
    bos: Option<u32>,
    head: Vec<u32>,
    tail: Vec<u32>,
    tokens: usize,
    target_round_trips: bool,
    tokenizer: Tokenizer,
}

impl Example {
    pub(super) fn new(options: &PromptOptions, context: Context, target: Target, tokenizer: &Tokenizer) -> Self {
        let (before, after) = (context.before + &options.prefix, options.suffix.clone() + &context.between);
        let head = options.bos.into_iter().chain(tokenizer.encode(&before)).collect();
        let tail = tokenizer.encode(&after);
        let target_round_trips = tokenizer.encode(&target.text) == target.ids;
        let (bos, tokens, tokenizer) = (options.bos, options.tokens, tokenizer.clone());
        Self { target, before, after, bos, head, tail, tokens, target_round_trips, tokenizer }
    }

    /// Fixed tokens before the free part, BoS included.
    pub fn head(&self) -> &[u32] {
        &self.head
    }

    /// Fixed tokens after it.
    pub fn tail(&self) -> &[u32] {
        &self.tail
    }

    /// All positions of the prompt as searched.
    pub fn len(&self) -> usize {
        self.head.len() + self.tokens + self.tail.len()
    }

    /// A prompt always has free positions.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The ids as searched: BoS, text before, `free`, text after.
    pub fn search_ids(&self, free: &[u32]) -> Vec<u32> {
        [&self.head, free, &self.tail].concat()
    }

    /// What a user types.
    pub fn text(&self, free: &[u32]) -> String {
        format!("{}{}{}", self.before, self.tokenizer.decode(free), self.after)
    }

    /// The ids that the model sees when the text is typed, BoS first where one is wanted.
    pub fn typed_ids(&self, free: &[u32]) -> Vec<u32> {
        self.bos.into_iter().chain(self.tokenizer.encode(&self.text(free))).collect()
    }

    /// Whether typing the text gives the ids as searched.
    pub fn round_trips(&self, free: &[u32]) -> bool {
        self.typed_ids(free) == self.search_ids(free)
    }

    /// Whether the target's text is tokenised to its ids. Where it is not, the ids can be written and scored, but no text is exact.
    pub fn target_round_trips(&self) -> bool {
        self.target_round_trips
    }

    /// What is left of typed ids between the fixed beginning and end.
    pub(super) fn free_part<'a>(&self, typed: &'a [u32]) -> &'a [u32] {
        let head = common(self.head.iter(), typed.iter());
        let rest = &typed[head..];
        let tail = common(self.tail.iter().rev(), rest.iter().rev());
        &rest[..rest.len() - tail]
    }
}

/// Length of the common beginning.
fn common<'a>(a: impl Iterator<Item = &'a u32>, b: impl Iterator<Item = &'a u32>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}
