//! Blocks with gradients: one node of the graph each, which keeps the block's inputs and computes all else again.

use std::fmt::Debug;

use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::tensor::{Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

use super::reference::layer;
use super::{Gumbel, Kernels, Parallel, SoftEmbeddings, SoftPrompt};

/// Turns what was saved and the output's gradient into gradients of N inputs.
type Pull<B, S, const N: usize> = fn(S, FloatTensor<B>) -> [Option<FloatTensor<B>>; N];

#[derive(Debug)]
struct ByHand<B: Backend, S, const N: usize>(Pull<B, S, N>);

impl<B: Backend, S: Clone + Send + Debug + 'static, const N: usize> Backward<B, N> for ByHand<B, S, N> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output = grads.consume::<B>(&ops.node);
        for (parent, gradient) in ops.parents.into_iter().zip(self.0(ops.state, output)) {
            if let (Some(node), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// One node: `forward` gives the output of the inputs and what `pull` needs to go back.
fn by_hand<B: Backend, C: CheckpointStrategy, S: Clone + Send + Debug + 'static, const N: usize, const R: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    forward: impl FnOnce([FloatTensor<B>; N]) -> (Tensor<B, R>, S),
    pull: Pull<B, S, N>,
) -> Tensor<Autodiff<B, C>, R> {
    let nodes = std::array::from_fn(|i| inputs[i].node.clone());
    let (output, saved) = forward(inputs.map(|input| input.primitive));
    let output = match ByHand(pull).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(op) => op.finish(saved, unwrap(output)),
        OpsKind::UnTracked(op) => op.finish(unwrap(output)),
    };
    wrap(output)
}

fn wrap<B: Backend, const R: usize>(x: FloatTensor<B>) -> Tensor<B, R> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

fn unwrap<B: Backend, const R: usize>(x: Tensor<B, R>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// See [`super::TrackedBackend::track_loss`].
pub(super) fn loss<B: Kernels, C: CheckpointStrategy>(
    input: Tensor<Autodiff<B, C>, 2>,
    value: f64,
    gradient: Tensor<B, 2>,
) -> Tensor<Autodiff<B, C>, 1> {
    let value = Tensor::from_data([value], (&gradient.device(), gradient.dtype()));
    by_hand::<B, C, _, 1, 1>(
        [unwrap(input)],
        |_| (value, gradient),
        |gradient, output| {
            let output: Tensor<B, 1> = wrap(output);
            [Some(unwrap(gradient * output.unsqueeze::<2>()))]
        },
    )
}

/// The same, without gradients.
fn inner<B: Backend, C: CheckpointStrategy>(prompt: &SoftPrompt<Autodiff<B, C>>) -> SoftPrompt<B> {
    let SoftPrompt { logits, temperature, embedding, mask, noise, samples } = prompt.clone();
    let noise = match noise {
        Gumbel::Drawn { stream, largest } => Gumbel::Drawn { stream, largest },
        Gumbel::Given(noise) => Gumbel::Given(noise.inner()),
        Gumbel::Silent => Gumbel::Silent,
    };
    let [logits, temperature, embedding] = [logits, temperature, embedding].map(Tensor::inner);
    SoftPrompt { logits, temperature, embedding, mask: mask.map(Tensor::inner), noise, samples }
}

impl<B: Kernels, C: CheckpointStrategy> Parallel for Autodiff<B, C> {}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    /// Differentiable in Z and τ. The backward pass computes p again, so nothing V-wide but Z stays alive.
    fn soft_embedding(prompt: &SoftPrompt<Self>) -> SoftEmbeddings<Self> {
        let (parents, prompt) = ([&prompt.logits, &prompt.temperature].map(|x| unwrap(x.clone())), inner(prompt));
        let result = B::soft_embedding(&prompt);
        let [largest, sums] = [&result.largest, &result.sums].map(|x| Tensor::from_inner(x.clone()));
        let embeddings = by_hand::<B, C, _, 2, 2>(
            parents,
            |_| (result.embeddings.clone(), (prompt, result)),
            |(prompt, result), output| {
                let (logits, temperature) = B::soft_embedding_backward(&prompt, result, wrap(output));
                [Some(unwrap(logits)), Some(unwrap(temperature))]
            },
        );
        SoftEmbeddings { embeddings, largest, sums }
    }

    fn matmul(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (x, weight) = (unwrap(x), unwrap(weight));
        let (trained, tracked) = (weight.is_tracked(), x.is_tracked());
        by_hand::<B, C, _, 2, 2>(
            [x, weight],
            |[x, weight]| {
                let (x, weight): (Tensor<B, 2>, Tensor<B, 2>) = (wrap(x), wrap(weight));
                // Only a weight that learns needs to know its input.
                (B::matmul(x.clone(), weight.clone()), (trained.then_some(x), tracked.then_some(weight)))
            },
            |(x, weight), output| {
                let output: Tensor<B, 2> = wrap(output);
                let of_x = weight.map(|weight| unwrap(B::matmul(output.clone(), weight.transpose())));
                [of_x, x.map(|x| unwrap(B::matmul(x.transpose(), output)))]
            },
        )
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        let (x, weight) = (unwrap(x), unwrap(weight));
        let trained = weight.is_tracked();
        by_hand::<B, C, _, 2, 2>(
            [x, weight],
            |[x, weight]| {
                let (x, weight): (Tensor<B, 2>, Tensor<B, 1>) = (wrap(x), wrap(weight));
                (B::rms_norm(x.clone(), weight.clone(), epsilon), (x, weight, epsilon, trained))
            },
            |(x, weight, epsilon, trained), output| {
                let output: Tensor<B, 2> = wrap(output);
                let of_weight = trained.then(|| unwrap(layer::rms_norm_weight(x.clone(), epsilon, output.clone())));
                [Some(unwrap(B::rms_norm_backward(x, weight, epsilon, output))), of_weight]
            },
        )
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        by_hand::<B, C, _, 2, 2>(
            [unwrap(gate), unwrap(up)],
            |[gate, up]| {
                let (gate, up): (Tensor<B, 2>, Tensor<B, 2>) = (wrap(gate), wrap(up));
                (B::swiglu(gate.clone(), up.clone()), (gate, up))
            },
            |(gate, up), output| {
                let (gate, up) = B::swiglu_backward(gate, up, wrap(output));
                [Some(unwrap(gate)), Some(unwrap(up))]
            },
        )
    }

    fn rotate(x: Tensor<Self, 2>, cos: Tensor<Self, 2>, sin: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (cos, sin) = (cos.inner(), sin.inner());
        by_hand::<B, C, _, 1, 2>(
            [unwrap(x)],
            |[x]| (B::rotate(wrap(x), cos.clone(), sin.clone()), (cos, sin)),
            // The inverse of a rotation is the one by the opposite angle.
            |(cos, sin), output| [Some(unwrap(B::rotate(wrap(output), cos, sin.neg())))],
        )
    }

    fn causal_attention(q: Tensor<Self, 4>, k: Tensor<Self, 4>, v: Tensor<Self, 4>, mask: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let mask = mask.inner();
        by_hand::<B, C, _, 3, 2>(
            [unwrap(q), unwrap(k), unwrap(v)],
            |inputs| {
                let [q, k, v]: [Tensor<B, 4>; 3] = inputs.map(wrap);
                (B::causal_attention(q.clone(), k.clone(), v.clone(), mask.clone()), (q, k, v, mask))
            },
            |(q, k, v, mask), output| B::causal_attention_backward(q, k, v, mask, wrap(output)).map(|x| Some(unwrap(x))),
        )
    }
}
