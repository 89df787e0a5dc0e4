//! How many candidates a step scores, and what follows long without a new best: larger batches, then a return or a restart.

use serde::{Deserialize, Serialize};

/// Candidates of a step, over time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Candidates of a step while progress is easy.
    pub batch: usize,
    /// What follows long without a new best; without it every step is the same.
    pub growth: Option<Growth>,
}

/// What follows long without a new best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// Steps without a new best before the batch doubles; at its largest, before the search stalls.
    pub patience: u64,
    /// Candidates of a step at most.
    pub batch_max: usize,
    /// A stalled search starts again from other prompts and does not go on from its best. Worth it where a search takes seconds.
    pub restart_when_stalled: bool,
}

/// Where a search stands in its schedule.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Pace {
    /// Candidates of the next step.
    pub batch: usize,
    /// Steps since the last new best, or since the batch last changed.
    waited: u64,
    /// There was no new best since the search last gave up at its largest batch.
    pub stalled: bool,
}

impl Schedule {
    /// The pace at the start, and after every new best.
    pub(super) fn fresh(&self) -> Pace {
        Pace { batch: self.batch, waited: 0, stalled: false }
    }

    /// Counts a step. Whether the search has just stalled.
    pub(super) fn wait(&self, pace: &mut Pace) -> bool {
        let Some(growth) = self.growth else { return false };
        pace.waited += 1;
        if pace.waited <= growth.patience {
            return false;
        }
        pace.waited = 0;
        let stalls = pace.batch >= growth.batch_max;
        if stalls {
            pace.stalled = true;
        } else {
            pace.batch = (pace.batch * 2).min(growth.batch_max);
        }
        stalls
    }

    /// Whether a stalled search is started again from other prompts.
    pub(super) fn restarts(&self) -> bool {
        self.growth.is_some_and(|growth| growth.restart_when_stalled)
    }
}
