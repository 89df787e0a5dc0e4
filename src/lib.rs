//! Which prompt makes this language model say exactly that?

pub mod checkpoint;
pub mod error;
pub mod model;
pub mod tokenizer;

pub use error::{Error, Result};
