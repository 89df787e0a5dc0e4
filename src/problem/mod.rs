//! What is looked for: the shape of the prompt and the target it must lead to.

pub mod prompt;
pub mod target;
pub mod targets;

pub use prompt::{Prompt, PromptOptions};
pub use target::Target;

/// A prompt to find and the target it must lead to.
#[derive(Debug, Clone)]
pub struct Problem {
    /// x: what may be varied.
    pub prompt: Prompt,
    /// y.
    pub target: Target,
}
