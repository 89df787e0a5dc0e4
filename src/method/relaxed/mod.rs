//! The relaxed methods: one loop over Z and Φ. What tells the methods apart is a value, a row of the paper's Table 1 or one
//! in its manner.

pub mod dlmi;
pub mod gbda;
pub mod rebar;
pub mod reinforce;
pub mod relax;
pub mod soda;
mod step;
pub mod stgs;
mod table;
mod variables;
mod words;

pub use step::RelaxedMethod;
pub use table::{Initial, InitialPhi, KEYS, TableRow};
pub(super) use variables::Variable;

#[cfg(test)]
mod tests;
