//! The frozen language model: a Llama with Hugging Face field names, generic over the backend.

pub mod attention;
pub mod config;
pub mod generate;
pub mod llama;
pub mod rope;

pub use attention::Cache;
pub use config::{LlamaConfig, RopeScaling};
pub use generate::{Generation, greedy};
pub use llama::{Llama, WeightSource};
