//! Runs that are interrupted after any of their steps.

use std::cell::Cell;

use burn::backend::{Autodiff, Flex};
use burn::tensor::DType;

use super::event::{BestSoFar, Event};
use super::record::{Circumstances, ModelIdentity};
use super::*;
use super::{judge::Judged, scores::Scores};
use crate::interrupt::Signal;
use crate::method::registry::MethodName;
use crate::method::relaxed::dlmi::DLMI;
use crate::method::relaxed::{RelaxedMethod, TableRow};
use crate::method::search::snap::SNAP;
use crate::method::search::{Acceptance, Growth, Proposal, Schedule, Search, SearchMethod, random_prompt};
use crate::method::{Build, Clock, HardPrompt, Method, Progress, State};
use crate::problem::{Context, Problem, PromptOptions, Target};
use crate::subject::{Cost, Subject};
use crate::testing::{loaded, one_at_a_time, tiny};
use crate::{Error, Result};

type B = Autodiff<Flex>;
type Maker = fn() -> Box<dyn Method<B>>;

/// Keeps what it sees, and ends the run after some steps.
#[derive(Debug, Default)]
struct Watch {
    until: u64,
    events: Vec<Event>,
    kept: Option<Snapshot>,
    end: Option<(BestSoFar, Option<Scores>)>,
    /// Times that the signal is still asked for in vain, where it comes inside of a computation.
    in_vain: Option<Cell<usize>>,
    outcome: Option<Outcome>,
}

impl Observer for Watch {
    fn step(&mut self, report: &Report) -> Result<()> {
        self.events.push(Event { seconds: 0.0, ..Event::from(report) });
        Ok(())
    }

    fn save(&mut self, snapshot: &dyn Fn() -> Snapshot) -> Result<()> {
        self.kept = Some(snapshot());
        Ok(())
    }

    fn end(&mut self, best: &Judged, scores: Option<Scores>) -> Result<()> {
        assert!(self.end.replace((BestSoFar::from(best), scores)).is_none(), "a run ends once");
        Ok(())
    }

    fn signal(&self) -> Signal {
        let inside = self.in_vain.as_ref().is_some_and(|left| left.replace(left.get().saturating_sub(1)) == 0);
        let ended = self.events.last().is_some_and(|event| event.step >= self.until);
        let signal = Signal::default();
        signal.come(usize::from(ended || inside));
        signal
    }
}

struct Bench {
    subject: Subject<B>,
    judge: Judge<'static>,
    problem: Problem,
    /// Of a start.
    steps: u64,
    shortest: bool,
}

impl Bench {
    /// A target out of reach.
    fn new() -> Self {
        Self::of("the quick brown fox")
    }

    fn of(target: &str) -> Self {
        let mut checkpoint = tiny();
        let model = loaded::<Flex>(&mut checkpoint, DType::F32);
        let target = Target::from_text(target, &checkpoint.tokenizer).unwrap();
        let options = PromptOptions { tokens: 5, ..PromptOptions::default() };
        let problem = Problem::new(options, target, &checkpoint.tokenizer, model.config().vocab_size).unwrap();
        let judge = Judge::new(model.clone());
        Self { subject: Subject::new(model, checkpoint.tokenizer), judge, problem, steps: 6, shortest: false }
    }

    /// Two starts.
    fn run(&self, method: Maker, eval_every: u64, until: u64, resume: Option<Snapshot>) -> Watch {
        self.watched(method().as_mut(), eval_every, resume, Watch { until, ..Watch::default() })
    }

    fn budget(&self, eval_every: u64) -> Budget {
        let (steps, shortest) = (Some(self.steps), self.shortest);
        Budget { steps, positions: None, seconds: None, restarts: 1, eval_every, early_stop: true, shortest }
    }

    fn trial(&self, budget: Budget) -> Trial<'_, B> {
        Trial { subject: &self.subject, judge: &self.judge, problem: &self.problem, budget, seed: 3 }
    }

    fn watched(&self, method: &mut dyn Method<B>, eval_every: u64, resume: Option<Snapshot>, mut watch: Watch) -> Watch {
        let trial = self.trial(self.budget(eval_every));
        self.subject.set_cost(Cost::default());
        let outcome = trial.run(method, resume, &mut watch).unwrap();
        assert_eq!(watch.end.map(|(_, scores)| scores), Some(outcome.scores));
        Watch { outcome: Some(outcome), ..watch }
    }
}

fn relaxed() -> Box<dyn Method<B>> {
    Box::new(RelaxedMethod::new(TableRow { samples: 2, ..DLMI }))
}

/// It stalls before its steps are used up.
fn impatient() -> Box<dyn Method<B>> {
    let growth = Some(Growth { patience: 1, batch_max: 1, restart_when_stalled: false });
    let search = Search {
        proposal: Proposal::Gradient { top: 4, momentum: 0.6 },
        acceptance: Acceptance::Better,
        schedule: Schedule { batch: 1, growth },
        ..SNAP
    };
    Box::new(SearchMethod::new(search))
}

/// Whether the last step was one of many, one with scores, or one before a restart.
#[test]
fn an_interruption_after_any_step_leaves_no_trace() {
    let _guard = one_at_a_time();
    let bench = Bench::new();
    for (method, name) in [(relaxed as Maker, "dlmi"), (impatient, "snap")] {
        let whole = bench.run(method, 4, u64::MAX, None);
        let steps = whole.events.len() as u64;
        let restarted = whole.events.iter().position(|event| event.restart == 1).expect("a restart");
        assert!(if name == "snap" { restarted < 6 } else { restarted == 6 && steps == 12 }, "{name}: {restarted} of {steps}");
        for until in 1..=steps {
            let first = bench.run(method, 4, until, None);
            assert_eq!(first.events.len() as u64, until);
            let second = bench.run(method, 4, u64::MAX, first.kept);
            assert_eq!([first.events, second.events].concat(), whole.events, "{name} interrupted after step {until}");
            assert_eq!(second.end, whole.end, "{name} interrupted after step {until}");
        }
    }
}

/// A run ends with the step that uses the positions up, however many restarts are left; an interrupted one too.
#[test]
fn positions_are_a_budget_over_all_starts() {
    let _guard = one_at_a_time();
    let bench = Bench::new();
    let all = bench.run(relaxed, 4, u64::MAX, None).events;
    for limit in [1, all[3].cost.positions(), all[8].cost.positions() - 1] {
        let last = all.iter().position(|event| event.cost.positions() >= limit).unwrap();
        let run = |until, resume| {
            let budget = Budget {
                steps: Some(6),
                positions: Some(limit),
                seconds: None,
                restarts: 9,
                eval_every: 4,
                early_stop: true,
                shortest: false,
            };
            let (mut watch, trial) = (Watch { until, ..Watch::default() }, bench.trial(budget));
            bench.subject.set_cost(Cost::default());
            let outcome = trial.run(relaxed().as_mut(), resume, &mut watch).unwrap();
            (watch, outcome.stopped)
        };
        let (whole, stopped) = run(u64::MAX, None);
        assert_eq!((&whole.events[..], stopped), (&all[..=last], Stopped::Budget), "{limit} positions");
        let (first, _) = run(1, None);
        let (second, stopped) = run(u64::MAX, first.kept);
        assert_eq!(([first.events, second.events].concat(), stopped), (whole.events, Stopped::Budget), "{limit} positions");
    }
}

/// A step that is left before its end has not happened, whatever the method.
#[test]
fn an_interruption_inside_of_a_step_leaves_no_trace() {
    let _guard = one_at_a_time();
    let bench = Bench::new();
    for name in MethodName::all() {
        let method = || name.registered().defaults.build::<B>();
        let endless = || Watch { until: u64::MAX, ..Watch::default() };
        let whole = bench.watched(method().as_mut(), 4, None, endless());
        // It is asked for at the start, before the step and in it.
        let left = bench.watched(method().as_mut(), 4, None, Watch { in_vain: Some(Cell::new(2)), ..endless() });
        // Some methods make their first step without the model.
        assert!(left.events.len() <= 1, "{name}");
        assert!(left.events.is_empty() || ["echo", "floor"].contains(&&*name.to_string()), "{name}");
        let resumed = bench.watched(method().as_mut(), 4, left.kept, endless());
        assert_eq!([left.events, resumed.events].concat(), whole.events, "{name}");
        assert_eq!(resumed.end, whole.end, "{name}");
    }
}

/// There is no prompt to show then. Where a start asks nothing of the model it is over at once, and the run ends before its first step.
#[test]
fn an_interruption_inside_of_the_first_start_ends_the_run() {
    let _guard = one_at_a_time();
    let bench = Bench::new();
    let run = |mut method: Box<dyn Method<B>>| {
        let mut watch = Watch { in_vain: Some(Cell::new(0)), until: u64::MAX, ..Watch::default() };
        let outcome = bench.trial(bench.budget(4)).run(method.as_mut(), None, &mut watch);
        assert!(watch.events.is_empty());
        outcome
    };
    let early = run(MethodName::default().registered().defaults.build());
    assert!(matches!(early, Err(Error::Interrupted)), "{early:?}");
    assert_eq!(run(relaxed()).unwrap().stopped, Stopped::Signal);
}

/// A search that finds what is easy.
fn eager() -> Box<dyn Method<B>> {
    let schedule = Schedule { batch: 12, growth: None };
    Box::new(SearchMethod::new(Search { proposal: Proposal::Gradient { top: 64, momentum: 0.6 }, schedule, ..SNAP }))
}

/// N falls by one after a step that solves, never otherwise, and what is returned is the shortest prompt that did. An interruption after
/// any step, or inside of the one that begins with a token less, leaves no trace.
#[test]
fn shorter_and_shorter_prompts_are_found() {
    let _guard = one_at_a_time();
    let bench = Bench { steps: 30, shortest: true, ..Bench::of("er") };
    let whole = bench.run(eager, 4, u64::MAX, None);
    let outcome = whole.outcome.expect("a run has an outcome");
    let lengths: Vec<usize> = whole.events.iter().map(|event| event.prompt_tokens.unwrap()).collect();
    let solved = |event: &Event| event.best.is_some_and(|best| best.valid && best.matched_prefix == bench.problem.target_tokens());
    assert_eq!(lengths[0], 5);
    for (event, next) in whole.events.iter().zip(&lengths[1..]) {
        assert_eq!(*next, event.prompt_tokens.unwrap() - usize::from(solved(event)), "{lengths:?}");
    }
    let found = outcome.best.free.len();
    assert_eq!(whole.events.iter().rfind(|event| solved(event)).unwrap().prompt_tokens, Some(found));
    assert!(found < 4 && (outcome.stopped == Stopped::Exact) == (found == 1), "{lengths:?}");
    assert!(outcome.verdict.exact && outcome.seconds_to_exact.is_some());
    assert_eq!(outcome.best.typed, bench.problem.of_length(found).typed_ids(&outcome.best.free));

    for until in 1..=whole.events.len() as u64 {
        let first = bench.run(eager, 4, until, None);
        let inside = Watch { in_vain: Some(Cell::new(1)), until: u64::MAX, ..Watch::default() };
        let left = bench.watched(eager().as_mut(), 4, first.kept.clone(), inside);
        assert!(left.events.is_empty());
        for kept in [first.kept, left.kept.filter(|_| until < whole.events.len() as u64)].into_iter().flatten() {
            let second = bench.run(eager, 4, u64::MAX, Some(kept));
            assert_eq!([first.events.clone(), second.events].concat(), whole.events, "interrupted after step {until}");
            assert_eq!(second.end, whole.end, "interrupted after step {until}");
            assert_eq!(second.outcome.unwrap().best, outcome.best, "interrupted after step {until}");
        }
    }
}

/// What a run is said to have reached at its end is what its last step left, even where a restart would have come next.
#[test]
fn the_scores_at_the_end_are_those_of_the_last_step() {
    let _guard = one_at_a_time();
    let bench = Bench::new();
    for method in [relaxed as Maker, impatient] {
        let every = bench.run(method, 1, u64::MAX, None).events;
        for event in &every {
            let (best, scores) = bench.run(method, 1000, event.step, None).end.unwrap();
            assert_eq!((scores, best.matched_prefix), (event.scores, every[best.step as usize - 1].best.unwrap().matched_prefix));
        }
    }
}

/// Claims for its second prompt what the plain path cannot confirm, and finds no second start.
#[derive(Default)]
struct Boaster {
    prompts: Vec<Vec<u32>>,
    steps: usize,
}

impl Method<B> for Boaster {
    fn start(&mut self, _: &Subject<B>, problem: &Problem, clock: Clock) -> Result<()> {
        if clock.restart > 0 {
            return Err(Error::input("no start is found"));
        }
        self.prompts = (0..2).map(|number| random_prompt(problem, clock, number)).collect::<Result<_>>()?;
        Ok(())
    }

    fn step(&mut self, _: &Subject<B>, _: &Problem, _: Clock) -> Result<Progress> {
        self.steps += 1;
        Ok(Progress { objective: 1.0, ..Progress::default() })
    }

    fn hard_prompt(&self, _: &Subject<B>, problem: &Problem) -> HardPrompt {
        let (second, m) = (self.steps > 1, problem.target_tokens());
        let margins = (0..m).map(|position| if second || position + 1 < m { 1.0 } else { -1.0 });
        HardPrompt::new(self.prompts[usize::from(second)].clone(), Some(margins.collect()))
    }

    fn state(&self) -> State {
        State::new(&self.steps)
    }

    fn restore(&mut self, state: State, _: &Subject<B>, _: &Problem) -> Result<()> {
        self.steps = state.fields()?;
        Ok(())
    }
}

/// A prompt that only seems to solve the problem does not take the place of a good one, and a start that fails costs no run.
#[test]
fn what_was_found_outlives_a_false_claim_and_a_failed_start() {
    let _guard = one_at_a_time();
    let bench = Bench::new();
    let mut method = Boaster::default();
    let watch = bench.watched(&mut method, 1, None, Watch { until: u64::MAX, ..Watch::default() });
    let Outcome { stopped, run, best, .. } = watch.outcome.unwrap();
    assert_eq!((stopped, run.step, run.restart), (Stopped::Budget, 12, 1));
    assert_eq!((&best.free, best.step), (&method.prompts[0], 1));
    assert_eq!(best.matched_prefix, bench.problem.target_tokens() - 1);
}

/// A record names one example, or each of several; the first of several stands where the only one does.
#[test]
fn a_record_says_what_became_of_every_example() {
    let _guard = one_at_a_time();
    let Bench { subject, judge, problem, .. } = Bench::new();
    let tokenizer = subject.tokenizer();
    let example = |before: &str, target: &str| {
        (Context { before: before.into(), between: String::new() }, Target::from_text(target, tokenizer).unwrap())
    };
    let examples = vec![example("", "the quick brown fox"), example("on ", "he is")];
    let two = Problem::with_examples(problem.prompt.options().clone(), examples, tokenizer, subject.vocab_size()).unwrap();
    let record = |problem: &Problem| {
        let budget =
            Budget { steps: Some(2), positions: None, seconds: None, restarts: 0, eval_every: 1, early_stop: true, shortest: false };
        let outcome = Trial { subject: &subject, judge: &judge, problem, budget, seed: 3 }.run(relaxed().as_mut(), None, &mut ()).unwrap();
        let model = ModelIdentity { spec: "tiny".into(), digest: "0".into(), architecture: "Llama".into(), vocab_size: 288 };
        let [backend, device, dtype, method] = ["flex", "CPU", "f32", "dlmi"].map(str::to_owned);
        let (preset, settings) = (Vec::new(), serde_json::Value::Null);
        let of = Circumstances {
            model,
            backend,
            device,
            dtype,
            method,
            preset,
            seed: 3,
            bos: false,
            settings,
            load_seconds: 0.0,
            bos_token: None,
        };
        serde_json::to_value(Inversion::new(outcome, problem, &judge, of, tokenizer).unwrap()).unwrap()
    };
    let (alone, both) = (record(&problem), record(&two));
    assert!(alone.get("examples").is_none() && alone["method"] == "dlmi" && alone.get("bos_token").is_none(), "{alone}");
    let examples = both["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 2);
    for name in ["target_text", "target_ids", "prompt_text", "prompt_ids", "completion_text", "completion_ids"] {
        assert_eq!(examples[0][name], both[name], "{name}");
    }
    let free = both["free_text"].as_str().unwrap();
    assert_eq!((&examples[1]["prompt_text"], &examples[1]["target_text"]), (&format!("on {free}").into(), &"he is".into()));
    assert_eq!(examples.iter().all(|example| example["exact"] == true), both["exact"] == true);
}
