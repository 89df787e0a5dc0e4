//! Variance and bias of the estimators' gradients: the paper's figure 5.
//!
//! What gradients an estimator gives depends on where Z is, and where Z comes to depends on the estimator. So each is measured along a run
//! of its own, as in the paper: every few steps the run stands still and a copy of its estimator is asked for several gradients. The
//! runs of a target and seed begin at the same Z. All have one objective, what the model is fed included: otherwise their gradients would
//! differ for a reason that is not the estimator's, and the difference would be called bias.

mod compared;
mod file;
mod line;
mod measurement;
mod plan;
mod run;
mod running;
mod summary;

pub use compared::{Compared, SHARED};
pub use file::LineFile;
pub use line::{Line, SCHEMA};
pub use measurement::{Bias, Extent, Measurement, REFERENCE_PROMPTS};
pub use plan::{Plan, Protocol, Unit};
pub use run::{Observer, measure_all, measure_run};
pub use summary::{Both, Figures, SCHEMA as SUMMARY_SCHEMA, Summary, Tests};

#[cfg(test)]
mod tests;
