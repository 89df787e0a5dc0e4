//! Which prompt makes this language model say exactly that?

pub mod checkpoint;
pub mod error;
pub mod method;
pub mod model;
pub mod noise;
pub mod objective;
pub mod ops;
pub mod optimiser;
pub mod prompt;
pub mod subject;
pub mod target;
#[cfg(test)]
mod testing;
pub mod tokenizer;

pub use error::{Error, Result};
