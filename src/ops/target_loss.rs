//! The LM head and the objective at the target positions. Only here do hidden states meet the vocabulary.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind, unary},
};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorPrimitive, activation::log_softmax, backend::Backend, ops::FloatTensor};

use super::{CHUNK, Kernels};
use crate::objective::Objective;

/// Losses of R rows and what the backward pass needs of them.
#[derive(Debug, Clone)]
pub struct TargetLoss<B: Backend> {
    /// `[R]`.
    pub losses: Tensor<B, 1>,
    /// Gradient of each row's loss with respect to its hidden state, `[R, D]`.
    pub hidden: Tensor<B, 2>,
}

/// Margin of the target token over the best other one, and that other one: (`[R, 1]`, `[R, 1]`).
fn runner_up<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> (Tensor<B, 2>, Tensor<B, 2, Int>) {
    let at_target = logits.clone().gather(1, targets.clone());
    let hide = at_target.zeros_like() - 1e30;
    let (best, runner) = logits.scatter(1, targets, hide, IndexingUpdateOp::Add).max_dim_with_indices(1);
    (at_target - best, runner)
}

/// ℓ_y − max_{v≠y} ℓ_v of every row; some rows at a time, so that no more than 64 MiB of logits are alive.
pub(super) fn margins<B: Backend>(hidden: Tensor<B, 2>, head: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let (rows, head, targets) = (hidden.dims()[0], head.transpose(), targets.unsqueeze_dim::<2>(1));
    let size = (CHUNK / head.dims()[1]).clamp(1, rows);
    let parts = (0..rows).step_by(size).map(|first| {
        let count = size.min(rows - first);
        let logits = hidden.clone().narrow(0, first, count).matmul(head.clone());
        runner_up(logits, targets.clone().narrow(0, first, count)).0.squeeze_dim(1)
    });
    Tensor::cat(parts.collect(), 0)
}

pub(super) fn forward<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    objective: Objective,
) -> TargetLoss<B> {
    let logits = hidden.matmul(head.clone().transpose());
    let at_target = head.clone().select(0, targets.clone());
    let column = targets.unsqueeze_dim(1);
    match objective {
        Objective::CrossEntropy => {
            let log_p = log_softmax(logits, 1);
            let losses = log_p.clone().gather(1, column).neg().squeeze_dim(1);
            TargetLoss { losses, hidden: log_p.exp().matmul(head) - at_target }
        }
        Objective::Hinge { margin } => {
            let (margins, runner) = runner_up(logits, column);
            let losses = (margins.neg() + margin).clamp_min(0.0);
            let active = losses.clone().greater_elem(0.0).float().cast(losses.dtype());
            let hidden = (head.select(0, runner.squeeze_dim(1)) - at_target) * active;
            TargetLoss { losses: losses.squeeze_dim(1), hidden }
        }
    }
}

/// The definition, for tests: Burn's own operations on the full logits, differentiable on any autodiff backend. `[R]`.
pub fn reference<B: Backend>(hidden: Tensor<B, 2>, head: Tensor<B, 2>, targets: Tensor<B, 1, Int>, objective: Objective) -> Tensor<B, 1> {
    let logits = hidden.matmul(head.transpose());
    let column: Tensor<B, 2, Int> = targets.unsqueeze_dim(1);
    match objective {
        Objective::CrossEntropy => log_softmax(logits, 1).gather(1, column).neg().squeeze_dim(1),
        Objective::Hinge { margin } => {
            let at_target = logits.clone().gather(1, column.clone());
            let hidden = logits.scatter(1, column, at_target.zeros_like() - 1e30, IndexingUpdateOp::Add);
            (hidden.max_dim(1) - at_target + margin).clamp_min(0.0).squeeze_dim(1)
        }
    }
}

#[derive(Debug)]
struct SummedLoss;

impl<B: Backend> Backward<B, 1> for SummedLoss {
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |output| {
            let output: Tensor<B, 1> = Tensor::from_primitive(TensorPrimitive::Float(output));
            (ops.state * output.unsqueeze::<2>()).into_primitive().tensor()
        });
    }
}

pub(super) fn tracked<B: Kernels, C: CheckpointStrategy>(
    hidden: FloatTensor<burn::backend::Autodiff<B, C>>,
    head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    objective: Objective,
) -> (FloatTensor<burn::backend::Autodiff<B, C>>, Tensor<B, 1>) {
    let rows = Tensor::from_primitive(TensorPrimitive::Float(hidden.primitive));
    let TargetLoss { losses, hidden: gradient } = B::target_loss(rows, head, targets, objective);
    let total = losses.clone().sum().into_primitive().tensor();
    let output = match SummedLoss.prepare::<C>([hidden.node]).compute_bound().stateful() {
        OpsKind::Tracked(op) => op.finish(gradient, total),
        OpsKind::UnTracked(op) => op.finish(total),
    };
    (output, losses)
}
