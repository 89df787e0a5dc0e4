//! Targets from files, drawn by difficulty (the paper's Algorithm 2), or known to be reachable.

mod difficulty;
mod file;
mod make;

pub use difficulty::{Likelihood, Recipe, draw, measure};
pub use file::{Labelled, parse_prompts, parse_targets, read_targets};
pub use make::{Maker, Record, Wanted};
