//! Where models come from: a name, a path or the hub → checked config, tokenizer and tensors.

pub mod checkpoint;
pub mod hub;
pub mod spec;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use spec::{BUNDLED, Bundled, bundled, open};
pub use tokenizer::Tokenizer;
