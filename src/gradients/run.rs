//! The runs, one after another on one device, measured as they go.

use std::time::Instant;

use super::line::SCHEMA;
use super::measurement::{Clocks, REFERENCE_PROMPTS, measure};
use super::{Line, Measurement, Plan, Unit};
use crate::Result;
use crate::backend::{self, Choice, Job};
use crate::interrupt::{self, Interrupt, Signal};
use crate::invert::Model;
use crate::method::relaxed::RelaxedMethod;
use crate::method::{Clock, Method};
use crate::model::Llama;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;

/// Is told how it goes.
pub trait Observer {
    /// After every step of a run: how many it has made.
    fn step(&mut self, unit: &Unit, steps: u64) -> Result<()>;

    /// Whether the measurement before this step is there already: it is not made again.
    fn has(&self, unit: &Unit, step: u64) -> bool;

    /// After every measurement.
    fn line(&mut self, line: Line) -> Result<()>;

    /// Comes when to stop. A long step or measurement is left then.
    fn signal(&self) -> Signal;

    /// Whether to stop now.
    fn interrupted(&self) -> bool {
        self.signal().has_come()
    }
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
        let plain = model.load(&device, plan.options.dtype)?;
        for unit in units {
            if !measure_run::<B>(&plain, model, plan, unit, observer)? {
                break;
            }
        }
        Ok(())
    }
}

/// Makes a run up to its last measurement. Whether it came there: else it was interrupted.
///
/// # Errors
/// The run does not fit into memory; those of the observer.
pub fn measure_run<B: TrackedBackend>(
    plain: &Llama<B::InnerBackend>,
    model: &Model,
    plan: &Plan,
    unit: &Unit,
    observer: &mut dyn Observer,
) -> Result<bool> {
    let (problem, row) = (plan.problem(model, &unit.target)?, &unit.row);
    let subject = Subject::<B>::new(plain.clone(), model.tokenizer().clone());
    let subject = subject.within(plan.options.max_memory, &problem, row.footprint())?;
    subject.prepare(&problem);
    along(&subject, &problem, plan, unit, observer)
}

fn along<B: TrackedBackend>(
    subject: &Subject<B>,
    problem: &Problem,
    plan: &Plan,
    unit: &Unit,
    observer: &mut dyn Observer,
) -> Result<bool> {
    let clock = |step: u64| Clock { seed: unit.seed, restart: 0, step: step as u32 };
    let interrupt = Interrupt::on(observer.signal());
    let mut method = RelaxedMethod::<B>::new(unit.row);
    method.start(subject, problem, clock(0))?;
    let mut steps = 0;
    for point in plan.points() {
        while steps < point {
            let step = || method.step(subject, problem, clock(steps));
            if observer.interrupted() || interrupt::within(interrupt.clone(), step).transpose()?.is_none() {
                return Ok(false);
            }
            steps += 1;
            observer.step(unit, steps)?;
        }
        if observer.has(unit, point) {
            continue;
        }
        if observer.interrupted() {
            return Ok(false);
        }
        let (began, clocks) = (Instant::now(), Clocks { seed: unit.seed, step: point as u32 });
        let measurement = || Ok(measure(method.estimator()?, &method.relaxation(subject, problem), &plan.protocol, clocks));
        let Some(measured) = interrupt::within(interrupt.clone(), measurement).transpose()? else { return Ok(false) };
        observer.line(line(plan, unit, problem, subject.vocab_size(), point, measured, began.elapsed().as_secs_f64()))?;
    }
    Ok(true)
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
