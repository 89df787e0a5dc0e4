//! How long a text can be at most, said before it is tokenised: that takes a hundred times the memory of the text.

use super::{Tokenizer, caught};
use crate::{Error, Result};

impl Tokenizer {
    /// The same tokenizer, of a model that takes so many tokens at most.
    pub fn for_context(self, context: usize) -> Self {
        Self { context, ..self }
    }

    /// Refuses a text, `what`, that is too long for the model's context whatever its tokens are.
    ///
    /// # Errors
    /// It has more bytes than a context full of the longest token.
    pub fn check_length(&self, text: &str, what: &str) -> Result<()> {
        let (length, context) = (text.len(), self.context);
        // A token has a byte at least.
        if length <= context {
            return Ok(());
        }
        let longest = caught(|| self.inner.library.get_vocab(true).keys().map(String::len).max().unwrap_or(0)).unwrap_or(0);
        let most = context.saturating_mul(longest);
        if length <= most {
            return Ok(());
        }
        Err(Error::input(format!(
            "{what} has {length} bytes, but the model's context of {context} tokens holds {most} at most (its longest token has {longest}); \
             shorten it"
        )))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::tiny;

    #[test]
    fn a_text_is_too_long_when_a_context_of_the_longest_token_would_not_hold_it() {
        let checkpoint = tiny();
        let (tokenizer, context) = (checkpoint.tokenizer, checkpoint.config.max_position_embeddings);
        let longest = "<|endoftext|>";
        let most = longest.repeat(context);
        assert_eq!(tokenizer.encode(&most).len(), context);
        tokenizer.check_length(&most, "the target").unwrap();
        let message = tokenizer.check_length(&(most.clone() + "a"), "the target").unwrap_err().to_string();
        for part in ["the target", &(most.len() + 1).to_string(), &most.len().to_string(), &context.to_string()] {
            assert!(message.contains(part), "{message}");
        }
        tokenizer.for_context(usize::MAX).check_length(&(most + "a"), "the target").unwrap();
    }
}
