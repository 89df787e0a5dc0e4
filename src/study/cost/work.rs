//! What a cell asks of a model, in weighted operations.

use std::ops::{Add, Mul};

use crate::estimator::EstimatorKind;
use crate::gradients::{Compared, Protocol, REFERENCE_PROMPTS};
use crate::method::registry::MethodSettings;
use crate::method::relaxed::TableRow;
use crate::method::search::{Proposal, Search};
use crate::model::LlamaConfig;
use crate::settings::Options;
use crate::study::Cell;
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
pub(super) struct Work {
    /// Positions through the layers, many at once, either way.
    pub(super) positions: f64,
    /// Positions that are decoded one after another.
    pub(super) decoded: f64,
    /// Positions of a backward pass at which distributions were fed back.
    pub(super) graph: f64,
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
        let products = (positions + DECODED * decoded + GRAPH * graph) * (config.layer_weights() as f64 + attention)
            + rows * config.head_weights() as f64;
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
pub(super) fn of_cell(cell: &Cell) -> Work {
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

/// Steps of a cell, all starts together: one at least, as a budget ends a run after a step.
pub(super) fn total_steps(cell: &Cell) -> f64 {
    let Options { steps, max_positions, restarts, .. } = &cell.options;
    let in_steps = steps.map_or(f64::INFINITY, |steps| steps as f64 * f64::from(1 + restarts));
    let left = |limit: u64| (limit as f64 - positions(others_at_start(cell))).max(0.0) / positions(of_step(cell));
    in_steps.min(max_positions.map_or(f64::INFINITY, left)).max(1.0)
}

/// What a budget in positions counts.
fn positions(Work { positions, decoded, graph, .. }: Work) -> f64 {
    positions + decoded + graph
}
