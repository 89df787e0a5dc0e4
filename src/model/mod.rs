//! The frozen language model: a Llama with Hugging Face field names, generic over the backend.

pub mod attention;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod generate;
mod layout;
pub mod llama;
pub mod norm;
pub mod rope;

pub use cache::Cache;
pub use checkpoint::{Checkpoint, Rounded, open};
pub use config::{LlamaConfig, RopeScaling};
pub use generate::{Generation, greedy};
pub use llama::{Llama, WeightSource};

#[cfg(test)]
mod tests;
