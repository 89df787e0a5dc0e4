//! Which prompt makes this language model say exactly that?

pub mod cli;
pub mod error;
pub mod metrics;
pub mod model;
pub mod settings;
pub mod ui;

pub use error::{Error, Result};
