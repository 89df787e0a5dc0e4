//! Which prompt makes this language model say exactly that?

pub mod backend;
pub mod doctor;
pub mod error;
pub mod hub;
pub mod model;

pub use error::{Error, Result};
