//! What a run tells those who watch it, and what they may keep of it.

use serde::{Deserialize, Serialize};

use super::judge::Judged;
use super::scores::Scores;
use super::shortest::Solved;
use crate::Result;
use crate::interrupt::Signal;
use crate::method::{Progress, State};
use crate::subject::Cost;

/// One step, for those who watch.
#[derive(Debug)]
pub struct Report<'a> {
    /// Steps in all.
    pub step: u64,
    /// Restarts so far.
    pub restart: u32,
    /// Seconds since the run began, before an interruption too.
    pub seconds: f64,
    /// N at work, where it becomes smaller.
    pub prompt_tokens: Option<usize>,
    /// What the method says.
    pub progress: Progress,
    /// The best prompt so far.
    pub best: Option<&'a Judged>,
    /// The four scores, where they were taken.
    pub scores: Option<Scores>,
    /// Work so far.
    pub cost: Cost,
}

/// Everything that a run needs to go on as if it had never stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The run itself.
    pub run: RunState,
    /// What the method keeps.
    pub method: State,
}

/// A run between two steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps in all.
    pub step: u64,
    /// Restarts so far.
    pub restart: u32,
    /// Steps since the last restart.
    pub step_of_start: u64,
    /// Seconds spent.
    pub seconds: f64,
    /// Work done.
    pub cost: Cost,
    /// The best prompt so far, of as many free tokens as are at work.
    pub best: Option<Judged>,
    /// The shortest prompt that solved the problem, where shorter ones are looked for.
    pub shortest: Option<Solved>,
    /// The free part that was judged last.
    pub judged: Vec<u32>,
    /// The last step found nothing better for so long that a restart is due, if one is left.
    pub stalled: bool,
}

/// Watches a run, keeps its snapshots, and may end it.
pub trait Observer {
    /// After every step.
    fn step(&mut self, _report: &Report) -> Result<()> {
        Ok(())
    }

    /// Every `eval_every` steps and when a run ends early. `snapshot` is costly: ask only where it is kept.
    fn save(&mut self, _snapshot: &dyn Fn() -> Snapshot) -> Result<()> {
        Ok(())
    }

    /// Once, when the run is over: the best prompt and the four scores of the step that was its last, if there was time for them.
    fn end(&mut self, _best: &Judged, _scores: Option<Scores>) -> Result<()> {
        Ok(())
    }

    /// Comes when the run should end. A long step is left then.
    fn signal(&self) -> Signal {
        Signal::default()
    }
}

/// Nobody watches.
impl Observer for () {}
