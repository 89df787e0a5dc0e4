//! What a step, a scored candidate or a written token costs on this machine, beside what its matrix products alone would cost; and how
//! far another backend or type is from the CPU in f32.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::backend::{Autodiff, Flex};
use serde::Serialize;

use crate::Result;
use crate::distribution::{quantile, sorted};
use crate::files::kilobytes;
use crate::method::registry::{MethodName, MethodSettings};
use crate::method::relaxed::TableRow;
use crate::method::{Build, Clock, Progress};
use crate::model::{Llama, LlamaConfig, greedy};
use crate::noise::{Draws, Purpose, Stream};
use crate::objective::Objective;
use crate::ops::{Kernels, Plain, Products, TrackedBackend};
use crate::problem::Problem;
use crate::problem::Prompt;
use crate::subject::feeding::{Feedback, Feeding};
use crate::subject::{Cost, Subject};
use crate::tensor::{argmax, host, ids_tensor};

/// Seconds of the rounds of one measurement, the first of which was left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Seconds {
    /// The middle one.
    pub seconds_median: f64,
    /// The fastest.
    pub seconds_min: f64,
    /// The slowest.
    pub seconds_max: f64,
}

impl Seconds {
    fn of(seconds: &[f64]) -> Self {
        let sorted = sorted(seconds);
        let at = |share| quantile(&sorted, share);
        Self { seconds_median: at(0.5), seconds_min: at(0.0), seconds_max: at(1.0) }
    }
}

/// What the matrix products of one round take, and how fast they were.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Arithmetic {
    /// Floating-point operations in products with weights; attention, norms, softmax and the ranking of swaps are not counted.
    pub flops: f64,
    /// `flops` over the median time, in 10⁹ a second.
    pub achieved_gflops: f64,
    /// What products of the model's own shapes, one after the other and nothing else, reach.
    pub ceiling_gflops: f64,
}

impl Arithmetic {
    fn of(flops: f64, seconds: Seconds, ceiling_gflops: f64) -> Self {
        Self { flops, achieved_gflops: flops / seconds.seconds_median / 1e9, ceiling_gflops }
    }
}

/// Steps of a method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepBench {
    /// Time of a step, without taking scores.
    #[serde(flatten)]
    pub seconds: Seconds,
    /// The objective of the first steps, three at most.
    pub losses: Vec<f32>,
    /// What a step multiplies.
    #[serde(flatten)]
    pub arithmetic: Arithmetic,
}

/// Times `rounds` steps of a method after a first one.
///
/// # Errors
/// Those of the method.
pub fn step<B: TrackedBackend>(
    subject: &Subject<B>,
    settings: &MethodSettings,
    problem: &Problem,
    seed: u32,
    rounds: usize,
) -> Result<StepBench> {
    let (mut method, row) = (settings.build::<B>(), settings.row());
    let clock = |step| Clock { seed, restart: 0, step };
    method.start(subject, problem, clock(0))?;
    let (mut losses, mut before) = (Vec::new(), Cost::default());
    let seconds = timed(rounds, |number| {
        if number == 1 {
            before = subject.cost();
        }
        let progress = method.step(subject, problem, clock(number as u32))?;
        losses.push(progress.objective);
        Ok(())
    })?;
    losses.truncate(3);
    let config = subject.model().config();
    let cross_entropy = row.is_some_and(|row| row.goal.objective() == Objective::CrossEntropy);
    let soft_rows = row.map_or(0, |row| soft_rows(&row, problem));
    let flops = flops(config, before, subject.cost(), cross_entropy) / rounds as f64 + 4.0 * (soft_rows * config.head_weights()) as f64;
    let rows = settings.footprint().samples * (problem.longest() - 1);
    let ceiling = ceiling(subject.model(), rows, settings.products::<Plain<B>>());
    Ok(StepBench { seconds, losses, arithmetic: Arithmetic::of(flops, seconds, ceiling) })
}

/// Rows of a step that are mixed of the whole vocabulary, there and back: relaxed prompts, and distributions that are fed back.
fn soft_rows(row: &TableRow, problem: &Problem) -> usize {
    let prompts = row.estimator.soft_embeddings() * problem.prompt.tokens();
    let passes = if row.estimator.has_control() { 3 } else { 1 };
    let fed_back =
        if matches!(row.feeding, Feeding::Free(Feedback::Soft | Feedback::Gumbel)) { problem.first().target.ids.len() - 1 } else { 0 };
    row.samples * (prompts + passes * fed_back)
}

/// Candidates of a search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreBench {
    /// Time of a batch, none of it abandoned.
    #[serde(flatten)]
    pub seconds: Seconds,
    /// Candidates over the median time.
    pub candidates_per_second: f64,
    /// Where the candidates differ from the prompt, in the order of the last batch.
    pub positions: Vec<usize>,
    /// What a batch multiplies, on average.
    #[serde(flatten)]
    pub arithmetic: Arithmetic,
}

/// Times `rounds` batches of `candidates` single-token swaps at random positions of a random prompt, after a first one.
pub fn score<B: TrackedBackend>(
    subject: &Subject<B>,
    problem: &Problem,
    seed: u32,
    rounds: usize,
    candidates: usize,
) -> Result<ScoreBench> {
    let mut draws = Draws::new(Stream::new(seed, 0, 0, Purpose::SearchDraws, 0));
    let tokens = |draws: &mut Draws, prompt: &Prompt| prompt.readable()[draws.below(prompt.readable().len())];
    let prompt: Vec<u32> = (0..problem.prompt.tokens()).map(|_| tokens(&mut draws, &problem.prompt)).collect();
    let swap = |draws: &mut Draws| (draws.below(prompt.len()), tokens(draws, &problem.prompt));
    let swaps: Vec<Vec<(usize, u32)>> = (0..=rounds).map(|_| (0..candidates).map(|_| swap(&mut draws)).collect()).collect();
    let candidate = |&(position, token): &(usize, u32)| {
        let mut free = prompt.clone();
        free[position] = token;
        free
    };
    let batches: Vec<Vec<Vec<u32>>> = swaps.iter().map(|batch| batch.iter().map(candidate).collect()).collect();
    let objective = Objective::LogProbDifference;
    let mut before = Cost::default();
    let seconds = timed(rounds, |number| {
        if number == 1 {
            before = subject.cost();
        }
        Ok(subject.candidates(&prompt, &batches[number], problem, objective).score(problem.target_tokens()))
    })?;
    let flops = flops(subject.model().config(), before, subject.cost(), false) / rounds as f64;
    let rows = candidates * (prompt.len() / 2 + problem.first().target.ids.len());
    Ok(ScoreBench {
        seconds,
        candidates_per_second: candidates as f64 / seconds.seconds_median,
        positions: swaps[rounds].iter().map(|(position, _)| *position).collect(),
        arithmetic: Arithmetic::of(flops, seconds, ceiling(subject.model(), rows, Products::Full)),
    })
}

/// Times `rounds` greedy continuations of `prompt` by `tokens` tokens, after a first one.
pub fn generate<B: Kernels>(model: &Llama<B>, prompt: &[u32], tokens: usize, rounds: usize) -> Result<Seconds> {
    timed(rounds, |_| Ok(greedy(model, model.embed(ids_tensor(&[prompt], &model.device())), tokens, &[])))
}

/// How far a model on one backend, in one type, is from the same model on flex in f32, over all positions and the whole vocabulary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Parity {
    /// Positions that were compared.
    pub positions: usize,
    /// The largest |logit| of flex.
    pub largest_logit: f32,
    /// The largest |difference| of two logits; not a number as soon as one of them is none.
    pub largest_difference: f32,
    /// `largest_difference` over `largest_logit`.
    pub relative_difference: f32,
    /// Share of the positions at which both have the same argmax.
    pub same_argmax: f64,
    /// Of the positions at which they have not, the one where flex preferred its own by most: by how many logits. 0 if there is none.
    pub widest_lost_margin: f32,
    /// Share of the tokens that both write greedily before the first that differs, mean over the prompts.
    pub greedy_agreement: f64,
}

impl Parity {
    /// Adds the logits `[positions, v]` of both.
    fn compare(&mut self, got: &[f32], expected: &[f32], v: usize) {
        // `max` would pass over NaN.
        let worse = |worst: f32, gap: f32| if gap > worst || gap.is_nan() { gap } else { worst };
        let mut same = self.same_argmax * self.positions as f64;
        for (got, expected) in got.chunks_exact(v).zip(expected.chunks_exact(v)) {
            self.positions += 1;
            self.largest_logit = expected.iter().fold(self.largest_logit, |largest, logit| largest.max(logit.abs()));
            self.largest_difference = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(self.largest_difference, worse);
            let chosen = argmax(got).0 as usize;
            if chosen == argmax(expected).0 as usize {
                same += 1.0;
            } else {
                let preferred = expected[argmax(expected).0 as usize];
                self.widest_lost_margin = self.widest_lost_margin.max(preferred - expected[chosen]);
            }
        }
        self.same_argmax = same / self.positions as f64;
        self.relative_difference = self.largest_difference / self.largest_logit;
    }
}

/// Compares `model` with `plain` on `rounds` random prompts of `prompt` tokens: what each of them writes in `tokens` tokens, and their
/// logits along the prompt and what `plain` wrote.
pub fn parity<B: Kernels>(model: &Llama<B>, plain: &Llama<Flex>, prompt: usize, tokens: usize, rounds: usize, seed: u32) -> Parity {
    let v = plain.config().vocab_size;
    let mut draws = Draws::new(Stream::new(seed, 0, 0, Purpose::SearchDraws, 0));
    let mut parity = Parity::default();
    for _ in 0..rounds {
        let prompt: Vec<u32> = (0..prompt).map(|_| draws.below(v) as u32).collect();
        let (got, expected) = (written(model, &prompt, tokens), written(plain, &prompt, tokens));
        let agreed = got.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        parity.greedy_agreement += agreed as f64 / (tokens * rounds) as f64;
        let whole = [prompt, expected].concat();
        parity.compare(&all_logits(model, &whole), &all_logits(plain, &whole), v);
    }
    parity
}

fn written<B: Kernels>(model: &Llama<B>, prompt: &[u32], tokens: usize) -> Vec<u32> {
    greedy(model, model.embed(ids_tensor(&[prompt], &model.device())), tokens, &[]).ids.remove(0)
}

/// The logits at every position of `ids`, `[T, V]`.
fn all_logits<B: Kernels>(model: &Llama<B>, ids: &[u32]) -> Vec<f32> {
    host(model.logits(model.hidden(model.embed(ids_tensor(&[ids], &model.device())), ids.len())))
}

/// How far a relaxed method's first step is from the same step on flex in f32: |difference| over flex's value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepParity {
    /// Of the objective.
    pub objective: f32,
    /// Of the length of the gradient of Z.
    pub gradient_norm: f32,
}

/// The first step of every relaxed method on both, in its own settings but for two samples, with the same noise.
///
/// # Errors
/// Those of the methods.
pub fn first_steps<B: TrackedBackend>(
    subject: &Subject<B>,
    plain: &Subject<Autodiff<Flex>>,
    problem: &Problem,
    seed: u32,
) -> Result<BTreeMap<&'static str, StepParity>> {
    let mut all = BTreeMap::new();
    for method in MethodName::all() {
        let MethodSettings::Relaxed(row) = method.registered().defaults else { continue };
        let row = TableRow { samples: row.samples.min(2), ..row };
        let (got, expected) = (first_step(subject, row, problem, seed)?, first_step(plain, row, problem, seed)?);
        let off = |figure: fn(&Progress) -> f32| (figure(&got) / figure(&expected) - 1.0).abs();
        let gradient_norm = off(|progress| progress.gradient_norm.unwrap_or(f32::NAN));
        all.insert(method.registered().name, StepParity { objective: off(|progress| progress.objective), gradient_norm });
    }
    Ok(all)
}

fn first_step<B: TrackedBackend>(subject: &Subject<B>, row: TableRow, problem: &Problem, seed: u32) -> Result<Progress> {
    let clock = Clock { seed, restart: 0, step: 0 };
    let mut method = MethodSettings::Relaxed(row).build::<B>();
    method.start(subject, problem, clock)?;
    method.step(subject, problem, clock)
}

/// Times `rounds` calls of `round`, which is told its number, after a first one with number 0. What it returns is dropped outside
/// its time.
///
/// # Errors
/// Those of `round`.
pub fn timed<T>(rounds: usize, mut round: impl FnMut(usize) -> Result<T>) -> Result<Seconds> {
    let mut seconds = Vec::with_capacity(rounds);
    for number in 0..=rounds {
        let began = Instant::now();
        let done = round(number)?;
        if number > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
        drop(done);
    }
    Ok(Seconds::of(&seconds))
}

/// Operations between two states of the account. The gradient of a cross-entropy passes the head once more; that of a hinge does not.
fn flops(config: &LlamaConfig, before: Cost, after: Cost, cross_entropy: bool) -> f64 {
    let positions = after.forward_tokens - before.forward_tokens + after.backward_tokens - before.backward_tokens;
    let rows = (after.head_rows - before.head_rows) * (1 + u64::from(cross_entropy));
    2.0 * (positions as f64 * config.layer_weights() as f64 + rows as f64 * config.head_weights() as f64)
}

/// 10⁹ operations a second of products `[rows, D]`·`[D, F]` and back with the weights of the first layer's MLP, the best of five tries.
fn ceiling<B: Kernels>(model: &Llama<B>, rows: usize, products: Products) -> f64 {
    let (config, device, mlp) = (model.config(), model.device(), &model.layers[0].mlp);
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    let rows = rows.min(4096);
    let ids = vec![0u32; rows];
    let x = model.embed(ids_tensor(&[&ids], &device)).reshape([rows, d]);
    let repeats = (2e10 / (4 * rows * d * inner) as f64).ceil().min(200.0) as usize;
    let attempt = |_| {
        let began = Instant::now();
        for _ in 0..repeats {
            products.matmul(products.matmul(x.clone(), mlp.up_proj.weight.val()), mlp.down_proj.weight.val());
        }
        // Only a GPU has something to wait for.
        B::sync(&device).ok();
        (repeats * 4 * rows * d * inner) as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(attempt).fold(0.0, f64::max)
}

/// The most memory this process ever held, in MiB; nothing where the system does not say.
pub fn peak_mib() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:").map(|bytes| bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Seconds::of(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.seconds_min, odd.seconds_median, odd.seconds_max), (1.0, 2.0, 3.0));
        assert_eq!(Seconds::of(&[4.0, 1.0, 2.0, 3.0]).seconds_median, 2.5);
    }

    #[test]
    fn differences_and_lost_choices_are_found() {
        let mut parity = Parity::default();
        parity.compare(&[1.0, 2.0, 4.0, 3.0], &[1.0, 2.5, 4.0, -8.0], 2);
        parity.compare(&[1.0, 2.0], &[3.0, 2.0], 2);
        assert_eq!((parity.positions, parity.largest_logit, parity.largest_difference), (3, 8.0, 11.0));
        assert_eq!((parity.same_argmax, parity.widest_lost_margin), (2.0 / 3.0, 1.0));
        parity.compare(&[f32::NAN, 2.0], &[3.0, 2.0], 2);
        parity.compare(&[1.0, 2.0], &[3.0, 2.0], 2);
        assert!(parity.largest_difference.is_nan());
    }

    #[test]
    fn weights_are_counted_as_the_model_has_them() {
        let checkpoint = crate::testing::tiny();
        let config = &checkpoint.config;
        // A tiny Llama of 3 query heads to 1, tied: all weights but norms and embeddings.
        let (d, f, kv) = (config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim);
        assert_eq!(config.layer_weights(), config.num_hidden_layers * (2 * d * d + 2 * d * kv + 3 * d * f));
        let (one, two) = (Cost::default(), Cost { forward_tokens: 3, backward_tokens: 2, head_rows: 1 });
        assert_eq!(flops(config, one, two, true), (2 * (5 * config.layer_weights() + 2 * config.head_weights())) as f64);
    }

    #[test]
    fn a_process_has_held_some_memory() {
        if cfg!(target_os = "linux") {
            assert!(peak_mib().unwrap() > 1);
        }
    }
}
