//! The seconds that an operation takes here: of finished cells, or of steps measured now.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::work::total_steps;
use crate::Result;
use crate::backend::{self, Choice, DeviceInfo, Job};
use crate::method::{Build, Clock};
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::study::{Cell, Store, Study};
use crate::subject::Subject;

/// Which cells go at the same speed: place of the model, label of the method, N.
type Kind = (usize, String, usize);

fn kind(cell: &Cell) -> Kind {
    (cell.model, cell.method.clone(), cell.options.prompt_tokens)
}

/// Seconds for an operation, by model, method and N.
#[derive(Debug, Default)]
pub struct Rates {
    of: HashMap<Kind, f64>,
    /// How many finished cells they come from.
    pub finished: usize,
    /// How many measured steps they come from, one of each kind.
    pub measured: usize,
}

impl Rates {
    /// From the finished cells of a folder that this backend computed: their seconds, on a CPU times their threads.
    ///
    /// # Errors
    /// A broken record.
    pub fn of_finished(study: &Study, store: &Store, device: &DeviceInfo) -> Result<Self> {
        let (mut sums, mut finished) = (HashMap::<Kind, (f64, f64)>::new(), 0);
        for (place, cell) in study.cells().iter().enumerate().filter(|(_, cell)| store.is_done(&cell.id)) {
            let record = store.record(&cell.id)?.unwrap_or_default();
            // What a measured run came to stands in the record itself.
            let (found, number) = (record.get("inversion").unwrap_or(&record), |value: &Value| value.as_f64());
            let threads = if device.is_gpu() { Some(1.0) } else { number(&record["provenance"]["threads"]) };
            let (Some(seconds), Some(threads)) = (number(&found["seconds"]), threads) else { continue };
            if found["backend"] != device.backend.as_str() {
                continue;
            }
            let (sum, finished_here) =
                (sums.entry(kind(cell)).or_default(), number(&found["steps"]).map_or(1.0, |steps| steps / total_steps(cell)));
            *sum = (sum.0 + seconds * threads, sum.1 + study.work(place) * finished_here);
            finished += 1;
        }
        let of = sums.into_iter().filter(|(_, (_, work))| *work > 0.0).map(|(kind, (seconds, work))| (kind, seconds / work)).collect();
        Ok(Self { of, finished, measured: 0 })
    }

    /// The cells whose steps must be measured: of each model, method and N that has no rate the one with the shortest step.
    pub fn missing(&self, study: &Study, cells: &[usize]) -> Vec<usize> {
        let mut shortest: BTreeMap<Kind, (f64, usize)> = BTreeMap::new();
        for &place in cells {
            let cell = &study.cells[place];
            let (kind, step) = (kind(cell), study.step(place));
            if !self.of.contains_key(&kind) && shortest.get(&kind).is_none_or(|(known, _)| step < *known) {
                shortest.insert(kind, (step, place));
            }
        }
        shortest.into_values().map(|(_, place)| place).collect()
    }

    /// Adds what steps of cells took.
    pub fn add(&mut self, study: &Study, measured: &[(usize, f64)]) {
        for &(place, seconds) in measured {
            let cell = &study.cells[place];
            self.of.insert(kind(cell), seconds / study.step(place));
            self.measured += 1;
        }
    }

    /// The seconds that a cell takes.
    ///
    /// # Panics
    /// Its model and method have no rate.
    pub fn seconds(&self, study: &Study, place: usize) -> f64 {
        self.of[&kind(&study.cells[place])] * study.work(place)
    }
}

/// Steps of these cells are measured so many times, for so many seconds, of which the shortest counts: what else the machine does only adds.
const MEASUREMENTS: u32 = 3;
const MEASURED_SECONDS: f64 = 0.4;
/// Steps of a measurement at most.
const MEASURED_STEPS: u32 = 50;

/// What a step of each of these cells takes on a device, in seconds by `clock`.
///
/// Inline, as is all that leads to [`backend::dispatch`].
///
/// # Errors
/// Those of loading the models, and of the methods.
#[inline]
pub fn measure(study: &mut Study, choice: &Choice, cells: &[usize], clock: fn() -> f64) -> Result<Vec<(usize, f64)>> {
    backend::dispatch(&choice.device, Measurement { study, cells, clock })
}

struct Measurement<'a> {
    study: &'a mut Study,
    cells: &'a [usize],
    clock: fn() -> f64,
}

impl Job for Measurement<'_> {
    type Output = Result<Vec<(usize, f64)>>;

    fn run<B: TrackedBackend>(self, device: B::Device) -> Self::Output {
        let (dtype, mut loaded) = (self.study.dtype(), None::<(usize, Subject<B>)>);
        let mut measured = Vec::new();
        for &place in self.cells {
            let cell = &self.study.cells[place];
            let model = &mut self.study.models[cell.model];
            if loaded.as_ref().is_none_or(|(known, _)| *known != cell.model) {
                // The last one goes first: two may not fit.
                drop(loaded.take());
                loaded = Some((cell.model, Subject::new(model.load(&device, dtype)?, model.tokenizer().clone())));
            }
            let (_, subject) = loaded.as_ref().expect("it was just loaded");
            let problem = model.problem_of(cell.target.target.clone(), &cell.options)?;
            measured.push((place, step_seconds(subject, &problem, cell, self.clock)?));
        }
        Ok(measured)
    }
}

fn step_seconds<B: TrackedBackend>(subject: &Subject<B>, problem: &Problem, cell: &Cell, clock: fn() -> f64) -> Result<f64> {
    let mut method = cell.method_settings().build::<B>();
    let at = |step| Clock { seed: cell.options.seed, restart: 0, step };
    subject.prepare(problem);
    method.start(subject, problem, at(0))?;
    // The first step is another one: a GPU's kernels are compiled in it, and it may begin with other prompts.
    method.step(subject, problem, at(0))?;
    let (mut number, mut seconds) = (1, f64::INFINITY);
    for _ in 0..MEASUREMENTS {
        let (began, before) = (clock(), number);
        while number == before || (number - before < MEASURED_STEPS && clock() - began < MEASURED_SECONDS) {
            method.step(subject, problem, at(number))?;
            number += 1;
        }
        seconds = seconds.min((clock() - began) / f64::from(number - before));
        if seconds > MEASURED_SECONDS {
            break;
        }
    }
    Ok(seconds)
}
