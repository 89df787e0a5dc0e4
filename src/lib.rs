//! Which prompt makes this language model say exactly that?

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod doctor;
pub mod error;
pub mod evaluate;
pub mod hub;
pub mod method;
pub mod metrics;
pub mod model;
pub mod noise;
pub mod objective;
pub mod ops;
pub mod optimiser;
pub mod prompt;
pub mod run;
pub mod settings;
pub mod spec;
pub mod subject;
pub mod target;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod ui;

pub use error::{Error, Result};
