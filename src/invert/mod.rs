//! An inversion from task to record: the loop around a method, what it reached, what is kept of it.

pub mod event;
pub mod folder;
pub mod judge;
mod log;
pub mod model;
pub(crate) mod notes;
pub mod observer;
pub mod record;
pub mod robust;
pub mod run;
pub mod scores;
mod shortest;
pub mod task;
mod tensorboard;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole_text_tests;

pub use crate::budget::Budget;
pub use judge::{Judge, Verdict};
pub use model::Model;
pub use observer::{Observer, Report, RunState, Snapshot};
pub use record::Inversion;
pub use robust::Robust;
pub use run::{Outcome, Stopped, Trial};
pub use scores::Scores;
pub use shortest::Solved;
pub use task::Task;
