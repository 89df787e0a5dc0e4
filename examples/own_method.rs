//! A method of one's own: at one position after the other, the best of some random tokens.
//! `cargo run --release --no-default-features --example own_method`

use dlmi::method::{Build, Clock, HardPrompt, Method, Progress, State};
use dlmi::noise::{Draws, Purpose};
use dlmi::{Inversion, Model, Problem, Result, objective::Objective, ops::TrackedBackend, subject::Subject};

#[derive(Clone, Default)]
struct InTurn(Vec<u32>);

impl<B: TrackedBackend> Method<B> for InTurn {
    fn start(&mut self, _: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        let (mut draws, readable) = (Draws::new(clock.stream(Purpose::InitialPrompt)), problem.prompt.readable());
        self.0 = (0..problem.prompt.tokens()).map(|_| readable[draws.below(readable.len())]).collect();
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        let (mut draws, readable) = (Draws::new(clock.stream(Purpose::SearchDraws)), problem.prompt.readable());
        let (mut tries, position) = (vec![self.0.clone(); 32], clock.step as usize % self.0.len());
        tries[1..].iter_mut().for_each(|free| free[position] = readable[draws.below(readable.len())]);
        tries.retain(|free| problem.admits(free) || *free == self.0);
        let hinges = subject.all_margins(&tries, problem).into_iter().map(|margins| Objective::hinge(0.3, &margins));
        let best = tries.into_iter().zip(hinges).min_by(|a, b| a.1.total_cmp(&b.1)).expect("the prompt itself is among them");
        self.0 = best.0;
        Ok(Progress { objective: best.1, ..Progress::default() })
    }
    fn hard_prompt(&self, _: &Subject<B>, _: &Problem) -> HardPrompt {
        HardPrompt { free: self.0.clone(), margins: None }
    }
    fn state(&self) -> State {
        State::new(&self.0)
    }
    fn restore(&mut self, state: State, _: &Subject<B>, _: &Problem) -> Result<()> {
        state.fields().map(|free| self.0 = free)
    }
}

impl Build for InTurn {
    fn build<B: TrackedBackend>(&self) -> Box<dyn Method<B>> {
        Box::new(self.clone())
    }
}

fn invert(target: &str, steps: u64) -> Result<Inversion> {
    let mut model = Model::open("bard")?;
    let mut options = model.options()?;
    (options.steps, options.max_seconds) = (Some(steps), None);
    model.task(target, &options)?.with_method("in-turn", InTurn::default()).run(&mut ())
}

fn main() -> Result<()> {
    invert("I'll not be a king, and I am too.", 400).map(|found| println!("{:?} {:?}", found.prompt_text, found.completion_text))
}

#[test]
fn a_method_of_ones_own_gets_somewhere() {
    let shortfall = |steps| invert("I'll not be a king.", steps).unwrap().best.judged.unwrap().shortfall;
    assert!(shortfall(200) < shortfall(1) / 2.0);
}
