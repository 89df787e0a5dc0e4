//! A method of one's own, through the public trait: at one position after the other, the best of some random tokens.
//! `cargo run --release --no-default-features --example own_method`

use burn::backend::{Autodiff, Flex};
use burn::tensor::DType;
use dlmi::invert::{Budget, Outcome, Quiet, Trial};
use dlmi::method::{Clock, Held, Method, Progress, State};
use dlmi::noise::{Draws, Purpose, Stream};
use dlmi::objective::Objective;
use dlmi::ops::TrackedBackend;
use dlmi::problem::PromptOptions;
use dlmi::{Judge, Llama, Problem, Result, Subject, Target};

#[derive(Default)]
struct InTurn(Vec<u32>);

impl<B: TrackedBackend> Method<B> for InTurn {
    fn start(&mut self, _: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        let mut draws = Draws::new(Stream::new(clock.seed, clock.restart, 0, Purpose::InitialPrompt, 0));
        let readable = problem.prompt.readable();
        self.0 = (0..problem.prompt.tokens()).map(|_| readable[draws.below(readable.len())]).collect();
        Ok(())
    }

    fn step(&mut self, subject: &Subject<B>, problem: &Problem, clock: Clock) -> Result<Progress> {
        let mut draws = Draws::new(Stream::new(clock.seed, clock.restart, clock.step, Purpose::SearchDraws, 0));
        let (position, readable) = (clock.step as usize % self.0.len(), problem.prompt.readable());
        let mut tries = vec![self.0.clone(); 32];
        tries[1..].iter_mut().for_each(|free| free[position] = readable[draws.below(readable.len())]);
        // What cannot be typed is not worth trying.
        tries.retain(|free| problem.round_trips(free));
        let margins = if tries.is_empty() { Vec::new() } else { subject.all_margins(&tries, problem) };
        let losses = margins.iter().map(|margins| Objective::hinge(0.3, margins));
        let best = tries.into_iter().zip(losses).min_by(|a, b| a.1.total_cmp(&b.1));
        let (free, objective) = best.unwrap_or((self.0.clone(), f32::MAX));
        self.0 = free;
        Ok(Progress { objective, gradient_norm: None, temperature: None, entropy: None, stalled: false })
    }

    fn held(&self, _: &Subject<B>, _: &Problem) -> Held {
        Held { free: self.0.clone(), margins: None }
    }

    fn state(&self) -> State {
        State::new(&self.0)
    }

    fn restore(&mut self, state: State, _: &Subject<B>, _: &Problem) -> Result<()> {
        self.0 = state.fields()?;
        Ok(())
    }
}

fn invert(text: &str, steps: u64) -> Result<(String, Outcome)> {
    let mut checkpoint = dlmi::model::open("bard", true, dlmi::source::hub::SILENT)?;
    let (config, tokenizer) = (checkpoint.config.clone(), checkpoint.tokenizer.clone());
    let model = Llama::<Flex>::load(&config, &mut checkpoint, &Default::default(), DType::F32)?;
    let (judge, subject) = (Judge::new(model.clone()), Subject::<Autodiff<Flex>>::new(model, tokenizer.clone()));
    let target = Target::from_text(text, &tokenizer)?;
    let options = PromptOptions { tokens: 20, ..PromptOptions::default() };
    let problem = Problem::new(options, target, &tokenizer, config.vocab_size)?;
    let budget = Budget { steps: Some(steps), seconds: None, restarts: 0, eval_every: 20, early_stop: true };
    let trial = Trial { subject: &subject, judge: &judge, problem: &problem, budget, seed: 0 };
    let outcome = trial.run(&mut InTurn::default(), None, &mut Quiet)?;
    Ok((problem.prompt.text(&outcome.best.free), outcome))
}

fn main() -> Result<()> {
    let (prompt, outcome) = invert("I'll not be a king, and I am too.", 400)?;
    println!("{prompt:?}: {} tokens matched, exact: {}", outcome.best.matched_prefix, outcome.verdict.exact);
    Ok(())
}

#[test]
fn a_method_of_ones_own_gets_somewhere() {
    let shortfall = |steps| invert("I'll not be a king.", steps).unwrap().1.best.shortfall;
    assert!(shortfall(200) < shortfall(1) / 2.0);
}
