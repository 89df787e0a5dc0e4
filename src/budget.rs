//! When an inversion ends.

/// All limits hold; the first one reached ends the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Steps of each start.
    pub steps: Option<u64>,
    /// Positions pushed through the model in all, forward and backward.
    pub positions: Option<u64>,
    /// Seconds in all.
    pub seconds: Option<f64>,
    /// Restarts after the first start: when the steps are used up, or the method stalls.
    pub restarts: u32,
    /// Steps from one set of scores to the next.
    pub eval_every: u64,
    /// End as soon as a prompt is exact.
    pub early_stop: bool,
    /// With `early_stop`: go on from such a prompt with one free token less, until the budget ends.
    pub shortest: bool,
}
