//! The runs, one after another on one device, measured as they go.

use std::time::Instant;

use super::line::SCHEMA;
use super::measurement::{Clocks, REFERENCE_PROMPTS, measure};
use super::{Line, Measurement, Plan, Unit};
use crate::Result;
use crate::backend::{self, Choice, Job};
use crate::invert::Model;
use crate::method::relaxed::RelaxedMethod;
use crate::method::{Clock, Method};
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;

/// Is told how it goes.
pub trait Observer {
    /// After every step of a run: how many it has made.
    fn step(&mut self, unit: &Unit, steps: u64);

    /// After every measurement.
    fn line(&mut self, line: Line) -> Result<()>;

    /// Whether to stop now.
    fn interrupted(&self) -> bool;
}

/// Makes these runs and measures them.
///
/// Inline, as is all that leads to [`backend::dispatch`].
///
/// # Errors
/// Those of loading and of the observer.
#[inline]
pub fn measure_all(model: &mut Model, plan: &Plan, units: &[Unit], choice: Choice, observer: &mut dyn Observer) -> Result<()> {
    backend::dispatch(&choice.device, Runs { model, plan, units, observer })
}

/// Runs on their way to the device.
struct Runs<'a> {
    model: &'a mut Model,
    plan: &'a Plan,
    units: &'a [Unit],
    observer: &'a mut dyn Observer,
}

impl Job for Runs<'_> {
    type Output = Result<()>;

    fn run<B: TrackedBackend>(self, device: B::Device) -> Result<()> {
        let Self { model, plan, units, observer } = self;
        let subject = Subject::<B>::new(model.load(&device, plan.options.dtype)?, model.tokenizer().clone());
        for unit in units {
            let problem = plan.problem(model, &unit.target)?;
            along(&subject, &problem, plan, unit, observer)?;
        }
        Ok(())
    }
}

/// One run up to its last measurement, unless it is interrupted.
fn along<B: TrackedBackend>(subject: &Subject<B>, problem: &Problem, plan: &Plan, unit: &Unit, observer: &mut dyn Observer) -> Result<()> {
    let clock = |step: u64| Clock { seed: unit.seed, restart: 0, step: step as u32 };
    let mut method = RelaxedMethod::<B>::new(unit.row);
    method.start(subject, problem, clock(0))?;
    let mut steps = 0;
    for point in plan.points() {
        while steps < point && !observer.interrupted() {
            method.step(subject, problem, clock(steps))?;
            steps += 1;
            observer.step(unit, steps);
        }
        if observer.interrupted() {
            break;
        }
        let began = Instant::now();
        let clocks = Clocks { seed: unit.seed, step: point as u32 };
        let measured = measure(method.estimator()?, &method.relaxation(subject, problem), &plan.protocol, clocks);
        observer.line(line(plan, unit, problem, subject.vocab_size(), point, measured, began.elapsed().as_secs_f64()))?;
    }
    Ok(())
}

fn line(plan: &Plan, unit: &Unit, problem: &Problem, vocab_size: usize, step: u64, measurement: Measurement, seconds: f64) -> Line {
    Line {
        schema: SCHEMA.into(),
        unit: unit.id.clone(),
        estimator: unit.estimator.label().into(),
        target: unit.target.id.clone(),
        k: unit.target.k,
        seed: unit.seed,
        step,
        steps: plan.steps,
        model: plan.digest.clone(),
        prompt_tokens: problem.prompt.tokens(),
        vocab_size,
        target_tokens: problem.target_tokens(),
        samples: unit.row.samples,
        draws: plan.protocol.draws,
        reference_samples: plan.protocol.reference_gradients() * REFERENCE_PROMPTS,
        measurement,
        seconds,
    }
}
