//! What a cell costs, predicted from its settings alone.
//!
//! Operations are counted, the slower kinds weighted by how much slower they are (fitted to steps of all methods on bard, on one core). The
//! seconds that an operation takes are a machine's own: a measured step or finished cells give them for each model, method and N.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Add, Mul};

use serde_json::Value;

use super::{Cell, Store, Study};
use crate::Result;
use crate::backend::{self, Choice, DeviceInfo, Job};
use crate::bench::{head, layers};
use crate::estimator::EstimatorKind;
use crate::gradients::{Compared, Protocol, REFERENCE_PROMPTS};
use crate::method::registry::MethodSettings;
use crate::method::relaxed::TableRow;
use crate::method::search::{Proposal, Search};
use crate::method::{Build, Clock};
use crate::model::LlamaConfig;
use crate::ops::TrackedBackend;
use crate::problem::Problem;
use crate::settings::Options;
use crate::subject::Subject;
use crate::subject::feeding::{Feedback, Feeding};

/// How much longer a position takes that is decoded alone: the weights are read for it.
const DECODED: f64 = 3.5;
/// The same on the way back where distributions were fed: Burn's graph, token by token.
const GRAPH: f64 = 8.5;
/// Operations for an entry of a sample's `[N, V]`: noise and softmax, there and back.
const ENTRY: f64 = 60.0;
/// Share of a batch's positions that a search computes: some candidates are known, others are dropped on the way.
const SCORED: f64 = 0.95;
/// Share of the draws of a search that does not repeat those that miss.
const SURVIVING: f64 = 0.75;

/// What is asked of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Work {
    /// Positions through the layers, many at once, either way.
    positions: f64,
    /// Positions that are decoded one after another.
    decoded: f64,
    /// Positions of a backward pass at which distributions were fed back.
    graph: f64,
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
            graph: self.graph + other.graph,
            rows: self.rows + other.rows,
            distributions: self.distributions + other.distributions,
        }
    }
}

impl Mul<f64> for Work {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self {
            positions: self.positions * times,
            decoded: self.decoded * times,
            graph: self.graph * times,
            rows: self.rows * times,
            distributions: self.distributions * times,
        }
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

    /// Weighted operations; a position looks back on `context` others.
    fn operations(self, config: &LlamaConfig, context: f64) -> f64 {
        let Self { positions, decoded, graph, rows, distributions } = self;
        let attention = 2.0 * context * (config.num_attention_heads * config.head_dim * config.num_hidden_layers) as f64;
        let products = (positions + DECODED * decoded + GRAPH * graph) * (layers(config) as f64 + attention) + rows * head(config) as f64;
        2.0 * products + ENTRY * distributions * config.vocab_size as f64
    }
}

/// Operations of a step.
pub fn step(cell: &Cell, config: &LlamaConfig) -> f64 {
    let (n, m) = sizes(cell);
    of_step(cell).operations(config, n + m)
}

/// Operations of a cell.
pub fn work(cell: &Cell, config: &LlamaConfig) -> f64 {
    let (n, m) = sizes(cell);
    of_cell(cell).operations(config, n + m)
}

fn of_step(cell: &Cell) -> Work {
    let (n, m) = sizes(cell);
    match &cell.method_settings() {
        MethodSettings::Relaxed(row) => relaxed(row, n, m),
        MethodSettings::Search(search) => candidates(search, n, m),
        MethodSettings::Pez(_) => Work::forced(1.0, n, m) * 2.0 + Work { rows: n, ..Work::default() },
        MethodSettings::Adc(adc) => {
            let starts = adc.samples as f64;
            Work::forced(starts, n, m) * 3.0 + Work { rows: starts * (2.0 * n + m), distributions: starts * n, ..Work::default() }
        }
        // An echo is next to nothing, but a rate is of something.
        MethodSettings::Control(_) => Work::forced(1.0, n, m),
    }
}

/// The steps with a look at the hard prompt after each, the scores, and what is measured at the end.
fn of_cell(cell: &Cell) -> Work {
    if let Some((_, protocol)) = cell.measured {
        return of_measured(cell, protocol);
    }
    let ((n, m), options) = (sizes(cell), &cell.options);
    let steps = total_steps(cell);
    let hard = Work::forced(1.0, n, m) + Work::free(1.0, n, m);
    let (look, scores) = match options.method_settings() {
        MethodSettings::Relaxed(row) => {
            (Work::forced(1.0, n, m) + Work { distributions: n, ..Work::default() }, hard + soft_scores(row, n, m))
        }
        // A search knows what its prompt is worth.
        MethodSettings::Search(_) | MethodSettings::Adc(_) | MethodSettings::Pez(_) | MethodSettings::Control(_) => (Work::default(), hard),
    };
    of_step(cell) * steps
        + others_at_start(cell) * f64::from(1 + options.restarts)
        + look * steps
        + scores * (steps / options.eval_every as f64)
        + hard * 3.0
}

/// Prompts that are looked at in place of the candidates of a first step.
fn others_at_start(cell: &Cell) -> Work {
    let (n, m) = sizes(cell);
    match cell.method_settings() {
        MethodSettings::Search(search) => Work::forced(search.start.others_count() as f64, n, m),
        _ => Work::default(),
    }
}

/// The steps up to the last measurement, and the gradients of all of them: the estimator's own, and those of two references.
fn of_measured(cell: &Cell, protocol: Protocol) -> Work {
    let ((n, m), points) = (sizes(cell), protocol.points(cell.options.steps.unwrap_or(0)));
    let reinforce = Compared::Reinforce.row(&cell.options).expect("REINFORCE goes with every feeding");
    let reference = TableRow { samples: REFERENCE_PROMPTS as usize, ..reinforce };
    let draws = f64::from(protocol.draws);
    let references = relaxed(&reinforce, n, m) * draws + relaxed(&reference, n, m) * f64::from(protocol.reference_gradients());
    let biases = points.iter().filter(|&&step| protocol.bias_is_due(step)).count();
    of_step(cell) * (points.last().copied().unwrap_or(0) as f64 + draws * points.len() as f64) + references * biases as f64
}

/// N and M.
fn sizes(cell: &Cell) -> (f64, f64) {
    (cell.options.prompt_tokens as f64, cell.target_tokens() as f64)
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
    let (prompts, written) = (s * n, s * (m - 1.0));
    let fed_back = Work { rows: 2.0 * written, distributions: written, ..Work::default() };
    let there = match row.feeding {
        Feeding::Forced => Work::forced(s, n, m),
        Feeding::Free(Feedback::Hard) if gradient => Work::free(s, n, m) + Work::forced(s, n, m),
        Feeding::Free(Feedback::Hard) => Work::free(s, n, m),
        Feeding::Free(_) => Work::free(s, n, m) + fed_back,
    };
    let back = match row.feeding {
        _ if !gradient => Work::default(),
        Feeding::Forced | Feeding::Free(Feedback::Hard) => Work { positions: prompts + written, ..Work::default() },
        Feeding::Free(_) => Work { positions: prompts, graph: written, ..Work::default() },
    };
    there + back
}

/// The scores of the relaxed prompt.
fn soft_scores(row: &TableRow, n: f64, m: f64) -> Work {
    if !row.estimator.is_soft() {
        return Work::default();
    }
    let s = row.samples as f64;
    Work::forced(s, n, m) + Work::free(s, n, m) + Work { rows: s * n, distributions: s * n, ..Work::default() }
}

/// A batch of single-token swaps, half of the prompt and the target each, sets of them, and the gradient that proposes them.
fn candidates(search: &Search, n: f64, m: f64) -> Work {
    let batch = search.schedule.batch as f64 * if matches!(search.proposal, Proposal::Top { .. }) { SURVIVING } else { SCORED };
    // The first of the swaps of a set is nearer to the start.
    let sets = search.sets.map_or(0, |sets| sets.count(batch.round() as usize)) as f64;
    let scored = Work { positions: batch * (n / 2.0 + m) + sets * (n * 0.75 + m), rows: (batch + sets) * m, ..Work::default() };
    let gradients = |prompts: f64| Work::forced(prompts, n, m) * 2.0;
    match search.proposal {
        Proposal::Uniform => scored,
        Proposal::Gradient { .. } => scored + gradients(1.0) + Work { rows: 2.0 * n, distributions: n, ..Work::default() },
        Proposal::Top { .. } => scored + gradients(1.0) + Work { rows: n, distributions: n, ..Work::default() },
        Proposal::Best { averaged, .. } => {
            let prompts = if averaged { search.schedule.batch as f64 } else { 1.0 };
            scored + gradients(prompts) + Work { rows: 1.0, distributions: 1.0, ..Work::default() }
        }
    }
}

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

/// Steps of a cell, all starts together.
fn total_steps(cell: &Cell) -> f64 {
    let Options { steps, max_positions, restarts, .. } = &cell.options;
    let in_steps = steps.map_or(f64::INFINITY, |steps| steps as f64 * f64::from(1 + restarts));
    let left = |limit: u64| (limit as f64 - positions(others_at_start(cell))).max(0.0) / positions(of_step(cell));
    in_steps.min(max_positions.map_or(f64::INFINITY, left))
}

/// What a budget in positions counts.
fn positions(Work { positions, decoded, graph, .. }: Work) -> f64 {
    positions + decoded + graph
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
    let (mut number, mut seconds) = (0, f64::INFINITY);
    if others_at_start(cell).positions > 0.0 {
        // The first step is another one.
        method.step(subject, problem, at(number))?;
        number += 1;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invert::Task;
    use crate::source::hub::SILENT;
    use crate::testing::one_at_a_time;

    /// Of the rivals `arca` alone: what the others are asked depends on how many of their prompts are new and can be typed, and with this
    /// tokenizer's bytes few can. `snap` without sets: at a random model's prompts there are not always as many as it would try.
    const METHODS: &str = r#"["dlmi", "dlmi-tf", "reinforce", "soda", "stgs", "rebar", { name = "snap", sets = 0 }, "random", "arca"]"#;

    fn study() -> Study {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        let text = format!(
            "models = [\"tests/golden/tiny/gqa3-tied\"]\nmethods = {METHODS}\ntargets = {{ texts = [\"the quick brown fox\"] }}\n\
             steps = [8]\nprompt_tokens = [6]\n[settings]\neval_every = 4\nbackend = \"flex\"\n"
        );
        std::fs::write(&path, text).unwrap();
        Study::open(&path, true, SILENT).unwrap()
    }

    /// What a cell really asks of the model, in positions.
    fn asked(study: &mut Study, place: usize) -> f64 {
        let cell = study.cells[place].clone();
        let model = &mut study.models[cell.model];
        let problem = model.problem_of(cell.target.target.clone(), &cell.options).unwrap();
        let cost = Task::new(model, problem, cell.options.clone()).unwrap().run(&mut ()).unwrap().cost;
        (cost.forward_tokens + cost.backward_tokens) as f64
    }

    #[test]
    fn positions_are_those_that_a_cell_asks_for() {
        let _alone = one_at_a_time();
        let mut study = study();
        for place in 0..study.cells.len() {
            let Work { positions, decoded, graph, .. } = of_cell(&study.cells[place]);
            let (predicted, asked) = (positions + decoded + graph, asked(&mut study, place));
            // What the plain path is asked at the end is not counted, nor every look at a hard prompt needed.
            assert!((predicted / asked - 1.0).abs() < 0.2, "{}: {predicted} for {asked}", study.cells[place]);
        }
    }

    #[test]
    fn rates_are_measured_where_no_cell_is_finished() {
        let _alone = one_at_a_time();
        let mut study = study();
        let cells: Vec<usize> = (0..study.cells.len()).collect();
        let mut rates = Rates::default();
        assert_eq!(rates.missing(&study, &cells).len(), cells.len());
        let choice = study.device(None, None).unwrap();
        fn clock() -> f64 {
            thread_local!(static TIME: std::cell::Cell<f64> = const { std::cell::Cell::new(0.0) });
            TIME.replace(TIME.get() + 1.0)
        }
        let measured = measure(&mut study, &choice, &cells[..2], clock).unwrap();
        rates.add(&study, &measured);
        let mut missing = rates.missing(&study, &cells);
        missing.sort_unstable();
        assert_eq!(missing, cells[2..]);
        let expected = measured[1].1 * study.work(1) / study.step(1);
        assert!((rates.seconds(&study, 1) / expected - 1.0).abs() < 1e-9);
    }
}
