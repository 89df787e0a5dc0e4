//! Which prompt makes this language model say exactly that?

pub mod error;
pub mod model;
pub mod noise;
pub mod objective;
pub mod ops;

pub use error::{Error, Result};
