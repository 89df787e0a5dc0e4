//! The LM head and the objective at the target positions. Only here do hidden states meet the vocabulary.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation::log_softmax, backend::Backend};

use crate::objective::{Objective, RowLoss};
use crate::ops::precision::{concat, product, wide};
use crate::ops::{CHUNK, TargetLoss};

/// Margin of the target token over the best other one, and that other one: (`[R, 1]`, `[R, 1]`).
fn runner_up<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> (Tensor<B, 2>, Tensor<B, 2, Int>) {
    let at_target = logits.clone().gather(1, targets.clone());
    let hide = at_target.zeros_like() - 1e30;
    let (best, runner) = logits.scatter(1, targets, hide, IndexingUpdateOp::Add).max_dim_with_indices(1);
    (at_target - best, runner)
}

/// The logits, computed in the model's type.
fn wide_logits<B: Backend>(hidden: Tensor<B, 2>, head: Tensor<B, 2>) -> Tensor<B, 2> {
    let logits = hidden.matmul(head.transpose());
    let dtype = wide(logits.dtype());
    logits.cast(dtype)
}

/// ℓ_y − max_{v≠y} ℓ_v of every row.
pub fn margins<B: Backend>(hidden: Tensor<B, 2>, head: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let of = |hidden, targets| runner_up(wide_logits(hidden, head.clone()), targets).0.squeeze_dim(1);
    concat(in_chunks(hidden, &head, targets, of), 0)
}

/// The [`margins`] of every row, and −log softmax(ℓ)_y.
pub fn margins_and_cross_entropies<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let both = |hidden, targets: Tensor<B, 2, Int>| {
        let logits = wide_logits(hidden, head.clone());
        let losses = log_softmax(logits.clone(), 1).gather(1, targets.clone()).neg();
        (runner_up(logits, targets).0.squeeze_dim(1), losses.squeeze_dim(1))
    };
    let (margins, losses) = in_chunks(hidden, &head, targets, both).into_iter().unzip();
    (concat(margins, 0), concat(losses, 0))
}

/// What `of` makes of some rows at a time and of their targets `[R, 1]`, so that no more than 64 MiB of logits are alive.
fn in_chunks<B: Backend, T>(
    hidden: Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    of: impl Fn(Tensor<B, 2>, Tensor<B, 2, Int>) -> T,
) -> Vec<T> {
    let (rows, targets) = (hidden.dims()[0], targets.unsqueeze_dim::<2>(1));
    let size = (CHUNK / head.dims()[0]).clamp(1, rows);
    let part = |first| {
        let count = size.min(rows - first);
        of(hidden.clone().narrow(0, first, count), targets.clone().narrow(0, first, count))
    };
    (0..rows).step_by(size).map(part).collect()
}

/// −ℓ_y, for which no other logit is needed.
pub fn target_logit<B: Backend>(hidden: Tensor<B, 2>, head: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> TargetLoss<B> {
    let dtype = wide(hidden.dtype());
    let at_target = head.select(0, targets).cast(dtype);
    let losses = (hidden.cast(dtype) * at_target.clone()).sum_dim(1).neg();
    TargetLoss { losses: losses.squeeze_dim(1), hidden: at_target.neg() }
}

/// −log p_y; its gradient is Σ_v p_v·head_v − head_y.
fn cross_entropy<B: Backend>(hidden: Tensor<B, 2>, head: &Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> TargetLoss<B> {
    let log_p = log_softmax(wide_logits(hidden, head.clone()), 1);
    let at_target = head.clone().select(0, targets.clone().squeeze_dim(1)).cast(log_p.dtype());
    let losses = log_p.clone().gather(1, targets).neg().squeeze_dim(1);
    TargetLoss { losses, hidden: product(log_p.exp(), head) - at_target }
}

/// max(0, κ − margin); its gradient is head_runner − head_y where it is not 0.
fn hinge<B: Backend>(margin: f32, hidden: Tensor<B, 2>, head: &Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> TargetLoss<B> {
    let logits = wide_logits(hidden, head.clone());
    let dtype = logits.dtype();
    let rows = |ids: Tensor<B, 2, Int>| head.clone().select(0, ids.squeeze_dim(1)).cast(dtype);
    let at_target = rows(targets.clone());
    let (margins, runner) = runner_up(logits, targets);
    let losses = margins.neg() + margin;
    // A NaN stays one, where `clamp_min` would make it 0.
    let losses = losses.clone().mask_fill(losses.lower_equal_elem(0.0), 0.0);
    let active = losses.clone().greater_elem(0.0).float().cast(losses.dtype());
    let hidden = (rows(runner) - at_target) * active;
    TargetLoss { losses: losses.squeeze_dim(1), hidden }
}

/// See [`crate::ops::Kernels::target_loss`].
pub fn forward<B: Backend>(hidden: Tensor<B, 2>, head: Tensor<B, 2>, targets: Tensor<B, 1, Int>, objective: Objective) -> TargetLoss<B> {
    let parts = match objective.of_row() {
        RowLoss::Nll => in_chunks(hidden, &head, targets, |hidden, targets| cross_entropy(hidden, &head, targets)),
        RowLoss::Hinge(margin) => in_chunks(hidden, &head, targets, |hidden, targets| hinge(margin, hidden, &head, targets)),
        RowLoss::Logit => return target_logit(hidden, head, targets),
    };
    let (losses, hidden) = parts.into_iter().map(|part| (part.losses, part.hidden)).unzip();
    TargetLoss { losses: concat(losses, 0), hidden: concat(hidden, 0) }
}
