//! What a cell costs, predicted from its settings alone.
//!
//! The count is of operations, those that are slower for their number weighted by how much slower. Its scale is a machine's: seconds for
//! one operation, which a short measurement or finished cells give for each method.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Add, Mul};

use serde_json::Value;

use super::{Cell, Store, Study};
use crate::Result;
use crate::backend::{self, Choice, DeviceInfo, Job};
use crate::bench::{head, layers};
use crate::estimator::EstimatorKind;
use crate::method::registry::MethodSettings;
use crate::method::relaxed::TableRow;
use crate::method::search::{Proposal, Search};
use crate::method::{Build, Clock};
use crate::model::LlamaConfig;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::subject::Subject;
use crate::subject::feeding::{Feedback, Feeding};

/// How much longer a position takes that is decoded alone: the weights are read for it.
const DECODED: f64 = 2.5;
/// How much longer a position of a backward pass takes whose distributions were fed back: Burn's graph, token by token.
const GRAPH: f64 = 2.0;
/// Operations for an entry of a sample's `[N, V]`: noise and softmax, there and back.
const ENTRY: f64 = 60.0;
/// Share of a batch's positions that a search computes: some candidates are known, others are dropped on the way.
const SCORED: f64 = 0.8;

/// What is asked of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Work {
    /// Positions through the layers, many at once, either way.
    positions: f64,
    /// Positions that are decoded one after another.
    decoded: f64,
    /// Rows that are multiplied with a matrix `[V, D]`.
    rows: f64,
    /// Rows of V entries that are drawn or normalised.
    distributions: f64,
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            positions: self.positions + other.positions,
            decoded: self.decoded + other.decoded,
            rows: self.rows + other.rows,
            distributions: self.distributions + other.distributions,
        }
    }
}

impl Mul<f64> for Work {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        let Self { positions, decoded, rows, distributions } = self;
        Self { positions: positions * times, decoded: decoded * times, rows: rows * times, distributions: distributions * times }
    }
}

impl Work {
    /// The target's tokens are fed to so many samples.
    fn forced(samples: f64, n: f64, m: f64) -> Self {
        Self { positions: samples * (n + m - 1.0), rows: samples * m, ..Self::default() }
    }

    /// So many samples write M tokens.
    fn free(samples: f64, n: f64, m: f64) -> Self {
        Self { positions: samples * n, decoded: samples * (m - 1.0), rows: samples * m, ..Self::default() }
    }

    fn operations(self, config: &LlamaConfig) -> f64 {
        let Self { positions, decoded, rows, distributions } = self;
        let products = (positions + DECODED * decoded) * layers(config) as f64 + rows * head(config) as f64;
        2.0 * products + ENTRY * distributions * config.vocab_size as f64
    }
}

/// Operations of a step.
pub fn step(cell: &Cell, config: &LlamaConfig) -> f64 {
    let (n, m) = sizes(cell);
    let work = match cell.options.method_settings() {
        MethodSettings::Relaxed(row) => relaxed(row, n, m),
        MethodSettings::Search(search) => candidates(search, n, m),
        MethodSettings::Echo | MethodSettings::Floor => Work::forced(1.0, n, m),
    };
    work.operations(config)
}

/// Operations of a cell: its steps with a look at the hard prompt after each, its scores, and what is measured at the end.
pub fn work(cell: &Cell, config: &LlamaConfig) -> f64 {
    let ((n, m), options) = (sizes(cell), &cell.options);
    let steps = total_steps(cell);
    let hard = Work::forced(1.0, n, m) + Work::free(1.0, n, m);
    let (look, scores) = match options.method_settings() {
        MethodSettings::Relaxed(row) => {
            (Work::forced(1.0, n, m) + Work { distributions: n, ..Work::default() }, hard + soft_scores(row, n, m))
        }
        // A search knows what its prompt is worth.
        MethodSettings::Search(_) | MethodSettings::Echo => (Work::default(), hard),
        MethodSettings::Floor => (Work::forced(1.0, n, m), hard),
    };
    let rest = look * steps + scores * (steps / options.eval_every as f64) + hard * 3.0;
    steps * step(cell, config) + rest.operations(config)
}

/// N and M.
fn sizes(cell: &Cell) -> (f64, f64) {
    (cell.options.prompt_tokens as f64, cell.target.target.ids.len() as f64)
}

/// An estimate of the gradient, and a step of the optimiser.
fn relaxed(row: &TableRow, n: f64, m: f64) -> Work {
    let s = row.samples as f64;
    let soft = Work { rows: 2.0 * s * n, distributions: s * n, ..Work::default() } * row.estimator.soft_embeddings() as f64;
    let optimiser = Work { distributions: n, ..Work::default() };
    let drawn = Work { distributions: s * n, ..Work::default() };
    soft + optimiser
        + match row.estimator {
            EstimatorKind::Reinforce(_) => drawn + fed(row, s, n, m, false),
            kind if kind.has_control() => drawn + fed(row, s, n, m, false) + fed(row, s, n, m, true) * 2.0,
            _ => fed(row, s, n, m, true),
        }
}

/// The objective of S prompts, and its gradient.
fn fed(row: &TableRow, s: f64, n: f64, m: f64, gradient: bool) -> Work {
    let back = |slower: f64| Work { positions: if gradient { slower * s * (n + m - 1.0) } else { 0.0 }, ..Work::default() };
    match row.feeding {
        Feeding::Forced => Work::forced(s, n, m) + back(1.0),
        Feeding::Free(Feedback::Hard) if gradient => Work::free(s, n, m) + Work::forced(s, n, m) + back(1.0),
        Feeding::Free(Feedback::Hard) => Work::free(s, n, m),
        Feeding::Free(_) => {
            let fed_back = Work { rows: 2.0 * s * (m - 1.0), distributions: s * (m - 1.0), ..Work::default() };
            Work::free(s, n, m) + fed_back + back(GRAPH)
        }
    }
}

/// The scores of the relaxed prompt.
fn soft_scores(row: &TableRow, n: f64, m: f64) -> Work {
    if !row.estimator.is_soft() {
        return Work::default();
    }
    let s = row.samples as f64;
    Work::forced(s, n, m) + Work::free(s, n, m) + Work { rows: s * n, distributions: s * n, ..Work::default() }
}

/// A batch of single-token swaps, half of the prompt and the target each, and the gradient that proposes them.
fn candidates(search: &Search, n: f64, m: f64) -> Work {
    let batch = search.schedule.batch as f64 * SCORED;
    let scored = Work { positions: batch * (n / 2.0 + m), rows: batch * m, ..Work::default() };
    match search.proposal {
        Proposal::Uniform => scored,
        Proposal::Gradient { .. } => {
            let there = Work::forced(1.0, n, m);
            scored + there * 2.0 + Work { rows: 2.0 * n, distributions: n, ..Work::default() }
        }
    }
}

/// Which cells go at the same speed: place of the model, label of the method.
type Kind = (usize, String);

fn kind(cell: &Cell) -> Kind {
    (cell.model, cell.method.clone())
}

/// Seconds for an operation, by model and method.
#[derive(Debug, Default)]
pub struct Rates {
    of: HashMap<Kind, f64>,
    /// How many finished cells they come from.
    pub finished: usize,
    /// How many steps' measurements they come from.
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
            let (inversion, number) = (&record["inversion"], |value: &Value| value.as_f64());
            let threads = if device.is_gpu() { Some(1.0) } else { number(&record["provenance"]["threads"]) };
            let (Some(seconds), Some(threads), Some(steps)) = (number(&inversion["seconds"]), threads, number(&inversion["steps"])) else {
                continue;
            };
            if inversion["backend"] != device.backend.as_str() {
                continue;
            }
            let (sum, finished_here) = (sums.entry(kind(cell)).or_default(), steps / total_steps(cell));
            *sum = (sum.0 + seconds * threads, sum.1 + study.work(place) * finished_here);
            finished += 1;
        }
        let of = sums.into_iter().filter(|(_, (_, work))| *work > 0.0).map(|(kind, (seconds, work))| (kind, seconds / work)).collect();
        Ok(Self { of, finished, measured: 0 })
    }

    /// The cells whose steps must be measured: of each model and method that has no rate the one with the shortest step.
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
            self.of.insert(kind(cell), seconds / study.step(place).max(1.0));
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

/// Steps of a cell, all starts together.
fn total_steps(cell: &Cell) -> f64 {
    cell.options.steps.unwrap_or(0) as f64 * f64::from(1 + cell.options.restarts)
}

/// Steps of these cells are measured for so many seconds each.
const MEASURED_SECONDS: f64 = 0.5;
/// Steps that are measured at most.
const MEASURED_STEPS: u32 = 50;

/// What a step of each of these cells takes on a device, in seconds by `clock`. The first step is left out.
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
    let mut method = cell.options.method_settings().build::<B>();
    let at = |step| Clock { seed: cell.options.seed, restart: 0, step };
    subject.prepare(problem);
    method.start(subject, problem, at(0))?;
    method.step(subject, problem, at(0))?;
    let began = clock();
    let mut steps = 0;
    while steps < 2 || (steps < MEASURED_STEPS && clock() - began < MEASURED_SECONDS) {
        steps += 1;
        method.step(subject, problem, at(steps))?;
    }
    Ok((clock() - began) / f64::from(steps))
}
