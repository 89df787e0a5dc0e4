//! echo and floor, the controls: prompts that nothing searched for. What they get belongs beside every score of a method that did search.

use super::search::{cycled, random_prompt};
use super::{Clock, HardPrompt, Method, Progress, State, wrong};
use crate::Result;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The prompt that repeats the (first) target, over and over. It shows what this known trick is worth; the ban on the target's tokens
    /// makes it invalid unless `--allow-target-tokens` is given.
    Echo,
    /// Another random prompt at every step, none led by the target. The mean of its scores over the steps is what a prompt is worth that
    /// nobody searched for.
    Floor,
}

impl Control {
    /// Its N free tokens, the same at every step or those of this number.
    fn prompt(self, problem: &Problem, clock: Clock, number: u32) -> Result<Vec<u32>> {
        match self {
            Self::Echo => Ok(repeated(problem.first().target.text_ids(), problem.prompt.tokens())),
            Self::Floor => random_prompt(problem, clock, number),
        }
    }
}

/// A target as `n` tokens. Its last repetition is whole: what comes after it is the target's beginning.
fn repeated(target: &[u32], n: usize) -> Vec<u32> {
    (0..n).map(|position| target[cycled(position, [n, target.len()])]).collect()
}

/// A control at work.
pub struct ControlMethod {
    control: Control,
    prompt: HardPrompt,
}

impl ControlMethod {
    /// A method that is to be started.
    pub fn new(control: Control) -> Self {
        Self { control, prompt: HardPrompt::default() }
    }
}

impl<B: TrackedBackend> Method<B> for ControlMethod {
    fn start(&mut self, _: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        self.prompt = HardPrompt::new(self.control.prompt(problem, clock, 0)?, None);
        Ok(())
    }

    /// The objective is the number of target tokens that are not the argmax behind the prompt under teacher forcing.
    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        // Where no other one is found, the last once more.
        let free = self.control.prompt(problem, clock, clock.step).unwrap_or_else(|_| self.prompt.free.clone());
        let margins = subject.all_margins(&[&free], problem).remove(0);
        let wrong = wrong(&margins);
        self.prompt = HardPrompt::new(free, Some(margins));
        Ok(Progress { objective: wrong as f32, stalled: self.control == Control::Echo, ..Progress::default() })
    }

    fn hard_prompt(&self, _: &Subject<B>, _: &Problem) -> HardPrompt {
        self.prompt.clone()
    }

    fn state(&self) -> State {
        State::new(&self.prompt)
    }

    fn restore(&mut self, state: State, _: &Subject<B>, _: &Problem) -> Result<()> {
        self.prompt = state.fields()?;
        Ok(())
    }
}
