//! What meets the vocabulary: soft embeddings and the objective, some of the V columns at a time.

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{Int, Tensor};
use pulp::Simd;
use rayon::prelude::*;

use super::matmul::matmul;
use super::vector::{dot, exp, largest, ln, sum};
use super::{Dense, tensor};
use crate::noise::{Rescale, Stream};
use crate::objective::{Objective, RowLoss};
use crate::ops::reference::target_loss::target_logit;
use crate::ops::{Gumbel, Products, SoftEmbeddings, SoftPrompt, TargetLoss};
use crate::tensor::host;

type Matrix = Tensor<Flex, 2>;

/// Columns of a block: a few hundred rows of them stay in the cache. The same for any number of rows, so that sums are formed alike
/// however the rows are divided among threads.
const WIDTH: usize = 2048;

/// All columns, block after block.
fn blocks(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns).step_by(WIDTH).map(move |first| first..(first + WIDTH).min(columns))
}

/// Columns of W_E or the head, `[columns, D]`.
fn columns(matrix: &Matrix, of: &Range<usize>) -> Matrix {
    matrix.clone().narrow(0, of.start, of.len())
}

/// Everything of a [`SoftPrompt`] at hand as slices.
struct Inputs {
    n: usize,
    v: usize,
    z: Dense,
    tau: Dense,
    mask: Option<Dense>,
    noise: Noise,
}

enum Noise {
    Drawn(Stream, Rescale),
    Given(Dense),
    Silent,
}

impl Inputs {
    fn of(prompt: &SoftPrompt<Flex>) -> Self {
        let [n, v] = prompt.logits.dims();
        let noise = match &prompt.noise {
            Gumbel::Drawn { stream, largest } => Noise::Drawn(*stream, Rescale::to(*largest)),
            Gumbel::Given(noise) => Noise::Given(Dense::of(noise)),
            Gumbel::Silent => Noise::Silent,
        };
        Self { n, v, z: Dense::of(&prompt.logits), tau: Dense::of(&prompt.temperature), mask: prompt.mask.as_ref().map(Dense::of), noise }
    }

    /// y = (Z + g)/τ of one row of a sample, at some columns.
    #[inline(always)]
    fn scaled(&self, row: usize, at: &Range<usize>, out: &mut [f32]) {
        let position = row % self.n;
        match &self.noise {
            Noise::Drawn(stream, rescale) => {
                stream.sample((row / self.n) as u32).fill_uniform(position as u32, at.start, out);
                // Not `for_each`, whose closure would not be compiled for vectors.
                for x in out.iter_mut() {
                    *x = -ln(-ln(rescale.of(*x)));
                }
            }
            Noise::Given(noise) => out.copy_from_slice(&noise[row * self.v..][at.clone()]),
            Noise::Silent => out.fill(0.0),
        }
        let tau = self.tau[position];
        let z = &self.z[position * self.v..][at.clone()];
        match &self.mask {
            Some(mask) => {
                for ((out, z), mask) in out.iter_mut().zip(z).zip(&mask[at.clone()]) {
                    *out = (*out + z + mask) / tau;
                }
            }
            None => {
                for (out, z) in out.iter_mut().zip(z) {
                    *out = (*out + z) / tau;
                }
            }
        }
    }
}

/// A running softmax of one row: what it has seen is in units of exp(largest).
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    sum: f32,
    /// What the sums of earlier blocks must be multiplied by.
    rescale: f32,
}

impl Running {
    const NOTHING: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0, rescale: 0.0 };

    /// Takes a block of exponents, which become weights.
    #[inline(always)]
    fn take(&mut self, block: &mut [f32]) {
        let top = largest(block).max(self.largest);
        self.rescale = exp(self.largest - top);
        for x in block.iter_mut() {
            *x = exp(*x - top);
        }
        (self.largest, self.sum) = (top, self.sum * self.rescale + sum(block));
    }
}

#[pulp::with_simd(run = pulp::Arch::new())]
#[inline(always)]
fn run_on<S: Simd>(_: S, running: &mut Running, block: &mut [f32]) {
    running.take(block);
}

#[pulp::with_simd(largest_of = pulp::Arch::new())]
#[inline(always)]
fn largest_of_on<S: Simd>(_: S, values: &[f32]) -> f32 {
    largest(values)
}

/// Adds `block` to `sums` `[rows, D]`, each row of which is rescaled first.
fn accumulate(sums: &mut [f32], running: &[Running], block: Matrix) {
    let d = block.dims()[1];
    let block = Dense::of(&block);
    sums.par_chunks_mut(d).zip(block.par_chunks(d)).zip(running).for_each(|((sums, block), running)| {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum = *sum * running.rescale + x;
        }
    });
}

/// See [`crate::ops::reference::soft_embedding::forward`].
pub fn soft_embedding(prompt: &SoftPrompt<Flex>) -> SoftEmbeddings<Flex> {
    let inputs = Inputs::of(prompt);
    let (rows, d) = (prompt.samples * inputs.n, prompt.embedding.dims()[1]);
    let (mut running, mut sums) = (vec![Running::NOTHING; rows], vec![0.0f32; rows * d]);
    for at in blocks(inputs.v) {
        let mut p = vec![0.0f32; rows * at.len()];
        p.par_chunks_mut(at.len()).zip(&mut running).enumerate().for_each(|(row, (p, running))| {
            weigh(&inputs, row, &at, p, running);
        });
        let product = matmul(Products::Full, tensor(p, [rows, at.len()]), columns(&prompt.embedding, &at));
        accumulate(&mut sums, &running, product);
    }
    for (sums, running) in sums.chunks_exact_mut(d).zip(&running) {
        sums.iter_mut().for_each(|sum| *sum /= running.sum);
    }
    let of = |field: fn(&Running) -> f32| tensor(running.iter().map(field).collect(), [rows, 1]);
    SoftEmbeddings { embeddings: tensor(sums, [rows, d]), largest: of(|r| r.largest), sums: of(|r| r.sum) }
}

/// A row's weights at some columns, in units of its running softmax.
#[pulp::with_simd(weigh = pulp::Arch::new())]
#[inline(always)]
fn weigh_on<S: Simd>(_: S, inputs: &Inputs, row: usize, at: &Range<usize>, p: &mut [f32], running: &mut Running) {
    inputs.scaled(row, at, p);
    running.take(p);
}

/// See [`crate::ops::reference::soft_embedding::backward`]; some samples at a time, a row of V columns after the other. Σ dp ⊙ p could be had without
/// them, as de·e, but where one p is nearly 1 that sum must cancel against dp to the last digits.
pub fn soft_embedding_backward(prompt: &SoftPrompt<Flex>, result: SoftEmbeddings<Flex>, output: Matrix) -> (Matrix, Matrix) {
    let inputs = Inputs::of(prompt);
    let (n, v) = (inputs.n, inputs.v);
    let (tops, sums) = (Dense::of(&result.largest), Dense::of(&result.sums));
    let (mut dz, mut dtau) = (vec![0.0f32; n * v], vec![0.0f32; n]);
    for (first, count) in prompt.chunks() {
        let rows = first * n..(first + count) * n;
        let dp = Dense::of(&matmul(Products::Full, output.clone().narrow(0, rows.start, rows.len()), prompt.embedding.clone().transpose()));
        dz.par_chunks_mut(v).zip(&mut dtau).enumerate().for_each(|(position, (dz, dtau))| {
            let (mut y, mut ds) = (vec![0.0f32; v], vec![0.0f32; v]);
            for (row, dp) in rows.clone().zip(dp.chunks_exact(v)).skip(position).step_by(n) {
                pull(&inputs, row, (tops[row], sums[row]), dp, &mut y, &mut ds, dz, dtau);
            }
        });
    }
    (tensor(dz, [n, v]), tensor(dtau, [n, 1]))
}

/// Adds what a row's gradient `dp` `[V]` means for its Z `[V]` and τ; `y` and `ds` are room to work in.
#[pulp::with_simd(pull = pulp::Arch::new())]
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn pull_on<S: Simd>(
    _: S,
    inputs: &Inputs,
    row: usize,
    (top, sum): (f32, f32),
    dp: &[f32],
    y: &mut [f32],
    ds: &mut [f32],
    dz: &mut [f32],
    dtau: &mut f32,
) {
    inputs.scaled(row, &(0..inputs.v), y);
    for (p, y) in ds.iter_mut().zip(&*y) {
        *p = exp(y - top) / sum;
    }
    let (mean, tau) = (dot(dp, ds), inputs.tau[row % inputs.n]);
    for ((ds, dp), dz) in ds.iter_mut().zip(dp).zip(dz) {
        *ds *= (dp - mean) / tau;
        *dz += *ds;
    }
    *dtau -= dot(ds, y);
}

/// See [`crate::ops::Kernels::draw`].
pub fn draw(prompt: &SoftPrompt<Flex>) -> Vec<Vec<u32>> {
    let inputs = Inputs::of(prompt);
    let tokens: Vec<u32> = (0..prompt.samples * inputs.n).into_par_iter().map(|row| row_draw(&inputs, row)).collect();
    tokens.chunks_exact(inputs.n).map(<[u32]>::to_vec).collect()
}

/// The position of the largest (Z + g)/τ of a row.
#[pulp::with_simd(row_draw = pulp::Arch::new())]
#[inline(always)]
fn row_draw_on<S: Simd>(_: S, inputs: &Inputs, row: usize) -> u32 {
    let mut y = vec![0.0f32; inputs.v];
    inputs.scaled(row, &(0..inputs.v), &mut y);
    let top = largest(&y);
    y.iter().position(|x| *x == top).unwrap_or(0) as u32
}

/// See [`crate::ops::Kernels::entropy`].
pub fn entropy(prompt: &SoftPrompt<Flex>) -> Vec<f32> {
    let inputs = Inputs::of(prompt);
    (0..inputs.n).into_par_iter().map(|row| row_entropy(&inputs, row)).collect()
}

/// ln Σ exp(y) − Σ p·y of one row, y in units of its largest.
#[pulp::with_simd(row_entropy = pulp::Arch::new())]
#[inline(always)]
fn row_entropy_on<S: Simd>(_: S, inputs: &Inputs, row: usize) -> f32 {
    let (mut y, mut weights) = (vec![0.0f32; inputs.v], vec![0.0f32; inputs.v]);
    inputs.scaled(row, &(0..inputs.v), &mut y);
    let top = largest(&y);
    for (weight, y) in weights.iter_mut().zip(&mut y) {
        *y -= top;
        *weight = exp(*y);
    }
    let total = sum(&weights);
    ln(total) - dot(&weights, &y) / total
}

/// Applies `take` to the state of every row of hidden states `[R, D]`, the columns of a block and the row's logits there. What it
/// leaves of the logits, `[R, columns]`, goes to `then`.
fn each_block<T: Send>(
    products: Products,
    hidden: &Matrix,
    head: &Matrix,
    rows: &mut [T],
    take: impl Fn(&mut T, &Range<usize>, &mut [f32]) + Sync,
    mut then: impl FnMut(&[T], &Range<usize>, Matrix),
) {
    for at in blocks(head.dims()[0]) {
        let shape = [rows.len(), at.len()];
        let mut logits = host(matmul(products, hidden.clone(), columns(head, &at).transpose()));
        logits.par_chunks_mut(at.len()).zip(&mut *rows).for_each(|(logits, row)| take(row, &at, logits));
        then(rows, &at, tensor(logits, shape));
    }
}

/// The target's logit, and the best other one.
#[derive(Clone, Copy)]
struct RunnerUp {
    target: usize,
    at_target: f32,
    best: f32,
    id: usize,
}

impl RunnerUp {
    fn of(target: usize) -> Self {
        Self { target, at_target: f32::NAN, best: f32::NEG_INFINITY, id: 0 }
    }

    /// Takes a block of logits, in which the target's becomes −∞.
    fn take(&mut self, at: &Range<usize>, logits: &mut [f32]) {
        if at.contains(&self.target) {
            self.at_target = std::mem::replace(&mut logits[self.target - at.start], f32::NEG_INFINITY);
        }
        let top = largest_of(logits);
        if top > self.best {
            self.best = top;
            self.id = at.start + logits.iter().position(|x| *x == top).expect("it was found there");
        }
    }

    fn margin(&self) -> f32 {
        self.at_target - self.best
    }
}

/// The row's margin and runner-up, one for each of the targets.
fn runners_up(products: Products, hidden: &Matrix, head: &Matrix, targets: Tensor<Flex, 1, Int>) -> Vec<RunnerUp> {
    let mut rows: Vec<RunnerUp> = ids(targets).into_iter().map(RunnerUp::of).collect();
    each_block(products, hidden, head, &mut rows, RunnerUp::take, |_, _, _| ());
    rows
}

fn ids(targets: Tensor<Flex, 1, Int>) -> Vec<usize> {
    targets.into_data().iter::<i64>().map(|id| id as usize).collect()
}

/// See [`crate::ops::Kernels::margins`].
pub fn margins(products: Products, hidden: Matrix, head: Matrix, targets: Tensor<Flex, 1, Int>) -> Tensor<Flex, 1> {
    let rows = runners_up(products, &hidden, &head, targets);
    tensor(rows.iter().map(RunnerUp::margin).collect(), [rows.len()])
}

/// See [`crate::ops::Kernels::margins_and_cross_entropies`].
pub fn margins_and_cross_entropies(hidden: Matrix, head: Matrix, targets: Tensor<Flex, 1, Int>) -> (Tensor<Flex, 1>, Tensor<Flex, 1>) {
    let mut rows: Vec<(RunnerUp, Running)> = ids(targets).into_iter().map(|target| (RunnerUp::of(target), Running::NOTHING)).collect();
    // The softmax is over all but the target, which is added at the end.
    let take = |(runner, others): &mut (RunnerUp, Running), at: &Range<usize>, logits: &mut [f32]| {
        runner.take(at, logits);
        run(others, logits);
    };
    each_block(Products::Full, &hidden, &head, &mut rows, take, |_, _, _| ());
    let loss = |(runner, others): &(RunnerUp, Running)| {
        let top = runner.at_target.max(others.largest);
        top - runner.at_target + ((runner.at_target - top).exp() + others.sum * (others.largest - top).exp()).ln()
    };
    let of = |field: &dyn Fn(&(RunnerUp, Running)) -> f32| tensor(rows.iter().map(field).collect(), [rows.len()]);
    (of(&|(runner, _)| runner.margin()), of(&loss))
}

/// See [`crate::ops::Kernels::target_loss`].
pub fn target_loss(hidden: Matrix, head: Matrix, targets: Tensor<Flex, 1, Int>, objective: Objective) -> TargetLoss<Flex> {
    match objective.of_row() {
        RowLoss::Nll => cross_entropy(hidden, head, targets),
        RowLoss::Hinge(margin) => hinge(margin, hidden, head, targets),
        RowLoss::Logit => target_logit(hidden, head, targets),
    }
}

/// −ln p_y; its gradient is Σ_v p_v·head_v − head_y.
fn cross_entropy(hidden: Matrix, head: Matrix, targets: Tensor<Flex, 1, Int>) -> TargetLoss<Flex> {
    struct Row {
        target: usize,
        at_target: f32,
        running: Running,
    }
    let [r, d] = hidden.dims();
    let row = |target| Row { target, at_target: f32::NAN, running: Running::NOTHING };
    let mut rows: Vec<Row> = ids(targets.clone()).into_iter().map(row).collect();
    let mut sums = vec![0.0f32; r * d];
    let take = |row: &mut Row, at: &Range<usize>, logits: &mut [f32]| {
        if at.contains(&row.target) {
            row.at_target = logits[row.target - at.start];
        }
        run(&mut row.running, logits);
    };
    each_block(Products::Full, &hidden, &head, &mut rows, take, |rows, at, weights| {
        let running: Vec<Running> = rows.iter().map(|row| row.running).collect();
        accumulate(&mut sums, &running, matmul(Products::Full, weights, columns(&head, at)));
    });
    for (sums, row) in sums.chunks_exact_mut(d).zip(&rows) {
        sums.iter_mut().for_each(|sum| *sum /= row.running.sum);
    }
    let losses = rows.iter().map(|row| row.running.largest - row.at_target + row.running.sum.ln()).collect();
    TargetLoss { losses: tensor(losses, [r]), hidden: tensor(sums, [r, d]) - head.select(0, targets) }
}

/// max(0, κ − margin); its gradient is head_runner − head_y where it is not 0.
fn hinge(margin: f32, hidden: Matrix, head: Matrix, targets: Tensor<Flex, 1, Int>) -> TargetLoss<Flex> {
    let [r, d] = hidden.dims();
    let rows = runners_up(Products::Full, &hidden, &head, targets);
    let head = Dense::of(&head);
    let mut losses = Vec::with_capacity(r);
    let mut gradient = vec![0.0f32; r * d];
    for (row, gradient) in rows.iter().zip(gradient.chunks_exact_mut(d)) {
        let loss = margin - row.margin();
        losses.push(if loss <= 0.0 { 0.0 } else { loss });
        if loss > 0.0 {
            let (runner, target) = (&head[row.id * d..][..d], &head[row.target * d..][..d]);
            gradient.iter_mut().zip(runner.iter().zip(target)).for_each(|(out, (runner, target))| *out = runner - target);
        }
    }
    TargetLoss { losses: tensor(losses, [r]), hidden: tensor(gradient, [r, d]) }
}
