//! What is looked for: the shape of the prompt and the targets it must lead to.

pub mod ban;
pub mod example;
mod forbidden;
mod frame;
pub mod prompt;
mod rules;
pub mod target;
pub mod targets;
mod words;

pub(crate) use ban::LONGEST_RUN;
pub use example::{Context, Example};
pub use frame::Chat;
pub use prompt::{Prompt, PromptOptions};
pub use target::Target;

use crate::Result;
use crate::source::Tokenizer;

/// One free part and every use that it is made for. The loss is the mean over the examples; exact means all of them.
#[derive(Debug, Clone)]
pub struct Problem {
    /// x: what may be varied.
    pub prompt: Prompt,
    /// Where it stands and what the model must write there; one or more.
    pub examples: Vec<Example>,
    /// What every target token must lead by, in logits, beside being the only best one.
    pub min_margin: f32,
}

impl Problem {
    /// One target, right behind the prompt.
    ///
    /// # Errors
    /// Nothing is left that may stand in the prompt; a chat template that fails.
    pub fn new(options: PromptOptions, target: Target, tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self> {
        Self::with_examples(options, vec![(Context::default(), target)], tokenizer, vocab_size)
    }

    /// One target or more, each in a context of its own.
    ///
    /// # Errors
    /// As [`Self::new`].
    ///
    /// # Panics
    /// Without an example.
    pub fn with_examples(
        options: PromptOptions,
        examples: Vec<(Context, Target)>,
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> Result<Self> {
        assert!(!examples.is_empty(), "a problem has an example");
        let targets: Vec<&Target> = examples.iter().map(|(_, target)| target).collect();
        let prompt = Prompt::new(options, &targets, tokenizer, vocab_size)?;
        let example = |(context, target)| Example::new(prompt.options(), context, target, tokenizer);
        let examples = examples.into_iter().map(example).collect::<Result<_>>()?;
        Ok(Self { prompt, examples, min_margin: 0.0 })
    }

    /// The same with so many free tokens.
    #[must_use]
    pub fn of_length(&self, tokens: usize) -> Self {
        let examples = self.examples.iter().map(|example| example.of_length(tokens)).collect();
        Self { prompt: self.prompt.of_length(tokens), examples, min_margin: self.min_margin }
    }

    /// Whether a target token that is so far ahead of all others, in logits, is as it should be.
    pub fn is_led(&self, margin: f32) -> bool {
        margin > 0.0 && margin >= self.min_margin
    }

    /// The first example: the only one, unless the problem says otherwise.
    pub fn first(&self) -> &Example {
        &self.examples[0]
    }

    /// The moment whose date the chat's template has written, in seconds since 1970, where it has.
    pub fn moment(&self) -> Option<i64> {
        self.prompt.options().chat.as_ref().and_then(Chat::moment)
    }

    /// Positions of the longest example, target included.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(|example| example.positions() + example.target.ids.len()).max().unwrap_or(0)
    }

    /// M of each example.
    pub fn target_lengths(&self) -> impl ExactSizeIterator<Item = usize> {
        self.examples.iter().map(|example| example.target.ids.len())
    }

    /// Tokens of all targets.
    pub fn target_tokens(&self) -> usize {
        self.target_lengths().sum()
    }

    /// The text of the free part, as it reads in the first example.
    pub fn free_text(&self, free: &[u32]) -> String {
        self.first().free_text(free)
    }

    /// The ids that the model sees when each example is typed with this free part.
    pub fn typed_ids(&self, free: &[u32]) -> Vec<Vec<u32>> {
        let text = self.free_text(free);
        self.examples.iter().map(|example| example.typed_ids(&text)).collect()
    }

    /// Whether typing the free part gives the ids as searched, in every example.
    #[cfg(test)]
    pub(crate) fn round_trips(&self, free: &[u32]) -> bool {
        let text = self.free_text(free);
        self.examples.iter().all(|example| example.round_trips(free, &text))
    }

    /// Whether a prompt can be exact at all: every target's text is tokenised to its ids.
    pub fn can_be_exact(&self) -> bool {
        self.examples.iter().all(Example::target_round_trips)
    }

    /// Whether a free part may be proposed: what is typed gives the ids as searched, and its text keeps the rules.
    pub fn admits(&self, free: &[u32]) -> bool {
        let text = self.free_text(free);
        self.examples.iter().all(|example| example.round_trips(free, &text)) && self.prompt.keeps_rules(&text)
    }

    /// The N tokens behind the head of the first example as it was typed, if they may be proposed.
    pub fn proposable(&self, typed: &[u32]) -> Option<Vec<u32>> {
        let first = self.first().head().len();
        let free = typed.get(first..first + self.prompt.tokens())?;
        (self.prompt.permits(free) && self.admits(free)).then(|| free.to_vec())
    }

    /// The first position of the free part that is read otherwise when it is typed, or the nearest to what is.
    pub fn first_misread(&self, free: &[u32]) -> Option<usize> {
        let misread = |(example, typed): (&Example, Vec<u32>)| {
            let searched = example.search_ids(free);
            let same = searched.iter().zip(&typed).take_while(|(a, b)| a == b).count();
            (searched != typed).then(|| same.saturating_sub(example.head().len()).min(free.len() - 1))
        };
        self.examples.iter().zip(self.typed_ids(free)).filter_map(misread).min()
    }

    /// Whether the prompts typed with a free part keep the rules.
    pub fn is_valid(&self, free: &[u32], typed: &[Vec<u32>]) -> bool {
        self.broken_rule(free, typed).is_none()
    }

    /// The first rule that prompts typed with a free part break: no more than N free tokens, all of the search vocabulary, no word of the
    /// target in their text, and whatever else was asked of it.
    pub fn broken_rule(&self, free: &[u32], typed: &[Vec<u32>]) -> Option<&'static str> {
        let of_example = |(example, typed): (&Example, &Vec<u32>)| match () {
            () if typed.is_empty() => Some("it is empty"),
            () if !example.is_short_enough(typed) => Some("tokenised again, it has more than N free tokens"),
            () if !self.prompt.permits(example.free_part(typed)) => Some(
                "it holds a token that may not stand there: of the target (--allow-target-tokens), a special one, or one that nobody can type",
            ),
            () => None,
        };
        let of_text = || self.prompt.broken_rule(&self.free_text(free));
        self.examples.iter().zip(typed).find_map(of_example).or_else(of_text)
    }
}
