//! floor, a control: another random prompt at every step, none led by the target. The mean of its scores over the steps is what a prompt
//! is worth that nobody searched for, and belongs beside every score of a method that did.

use super::echo::wrong_tokens;
use super::search::random_prompt;
use super::{Clock, HardPrompt, Method, Progress, State};
use crate::Result;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;

/// The control.
#[derive(Debug, Default)]
pub struct Floor {
    free: Vec<u32>,
}

impl<B: TrackedBackend> Method<B> for Floor {
    fn start(&mut self, _: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        self.free = random_prompt(problem, clock, 0)?;
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        self.free = random_prompt(problem, clock, clock.step)?;
        Ok(Progress { objective: wrong_tokens(subject, problem, &self.free), ..Progress::default() })
    }

    fn hard_prompt(&self, _: &Subject<B>, _: &Problem) -> HardPrompt {
        HardPrompt { free: self.free.clone(), margins: None }
    }

    fn state(&self) -> State {
        State::new(&self.free)
    }

    fn restore(&mut self, state: State, _: &Subject<B>, _: &Problem) -> Result<()> {
        self.free = state.fields()?;
        Ok(())
    }
}
