//! What a cell costs, predicted from its settings alone.
//!
//! Operations are counted, the slower kinds weighted by how much slower they are (fitted to steps of all methods on bard, on one core). The
//! seconds that an operation takes are a machine's own: a measured step or finished cells give them for each model, method and N.

mod rates;
#[cfg(test)]
mod tests;
mod work;

pub use rates::{Rates, measure};
pub use work::{step, work};
