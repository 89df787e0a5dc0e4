//! The relaxed methods: one loop over Z and Φ. What tells the methods apart is a value, a row of the paper's Table 1.

pub mod dlmi;
pub mod gbda;
pub mod reinforce;
pub mod soda;
mod step;
mod table;
mod variables;
mod words;

pub use step::RelaxedMethod;
pub use table::{Initial, InitialPhi, KEYS, MARGIN, TableRow};

#[cfg(test)]
mod tests;
