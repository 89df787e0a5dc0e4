//! The blocks in plain Burn: their definition, what a backend without kernels of its own runs, and what kernels are compared with.

pub mod layer;
pub mod soft_embedding;
pub mod target_loss;
