//! An inversion from task to record: the loop around a method, what it reached, what is kept of it.

pub mod event;
pub mod folder;
pub mod judge;
mod log;
pub mod record;
pub mod run;
pub mod scores;
mod tensorboard;
#[cfg(test)]
mod tests;

pub use judge::{Judge, Verdict};
pub use run::{Budget, Observer, Outcome, Quiet, Report, Snapshot, Standing, Stopped, Trial};
pub use scores::Scores;
