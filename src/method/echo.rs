//! echo, a control: the prompt that repeats the (first) target, over and over. It shows what this known trick is worth; the ban on the
//! target's tokens makes it invalid unless `--allow-target-tokens` is given.

use super::{Clock, HardPrompt, Method, Progress, State};
use crate::Result;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;

/// The control.
#[derive(Debug, Default)]
pub struct Echo {
    free: Vec<u32>,
}

impl<B: TrackedBackend> Method<B> for Echo {
    fn start(&mut self, _: &Subject<B>, problem: &Problem, _: Clock) -> Result<()> {
        // The last repetition is whole: what comes after it is the target's beginning.
        let (n, target) = (problem.prompt.tokens(), problem.first().target.text_ids());
        let skipped = (target.len() - n % target.len()) % target.len();
        self.free = target.iter().cycle().skip(skipped).take(n).copied().collect();
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, _: Clock) -> Result<Progress> {
        Ok(Progress { objective: wrong_tokens(subject, problem, &self.free), stalled: true, ..Progress::default() })
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

/// Target tokens that are not the argmax behind a prompt under teacher forcing: what the controls have for an objective.
pub(super) fn wrong_tokens<B: TrackedBackend>(subject: &Subject<B>, problem: &Problem, free: &[u32]) -> f32 {
    let margins = subject.all_margins(&[free], problem);
    margins[0].iter().filter(|&&margin| margin <= 0.0).count() as f32
}
