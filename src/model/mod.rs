//! The frozen language model: a Llama with Hugging Face field names, generic over the backend.

pub mod config;

pub use config::{LlamaConfig, RopeScaling};
