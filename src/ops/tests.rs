//! Every block against its definition in plain Burn, and against central differences in f64.

use burn::backend::{Autodiff, Flex};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{DType, IndexingUpdateOp, TensorData};

use super::soft_prompt::stack;
use super::*;
use crate::noise::{Purpose, Stream};
use crate::objective::RowLoss;
use crate::testing::{each_tracked_cpu_backend, one_at_a_time};

const N: usize = 3;
const V: usize = 17;
const D: usize = 5;
const S: usize = 2;

const OBJECTIVES: [Objective; 4] =
    [Objective::CrossEntropy, Objective::Hinge { margin: 0.3 }, Objective::LogProbDifference, Objective::Mellowmax];

fn matrix<B: Backend>(sample: u32, rows: usize, columns: usize, dtype: DType) -> Tensor<B, 2> {
    let values = Stream::new(11, 0, 0, Purpose::InitialLogits, sample).normal(rows, columns);
    Tensor::from_data(TensorData::new(values, [rows, columns]), (&B::Device::default(), dtype))
}

fn soft_prompt<B: Backend>(logits: Tensor<B, 2>, temperature: Tensor<B, 2>, dtype: DType) -> SoftPrompt<B> {
    SoftPrompt {
        logits,
        temperature,
        embedding: matrix(2, V, D, dtype),
        mask: None,
        noise: Gumbel::Given(matrix(3, S * N, V, dtype)),
        samples: S,
    }
}

fn temperature<B: Backend>(dtype: DType) -> Tensor<B, 2> {
    matrix::<B>(1, N, 1, dtype).exp() + 0.3
}

fn targets<B: Backend>() -> Tensor<B, 1, Int> {
    Tensor::from_data([3, 16, 0, 5, 5, 9], &B::Device::default())
}

/// Within 1e-5 of the larger one, element by element.
fn close<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) {
    let (a, b) = (crate::tensor::host(a), crate::tensor::host(b));
    let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs() / (1.0 + a.abs().max(b.abs()))).fold(0.0, f32::max);
    assert!(difference < 1e-5, "{difference}: {a:?} {b:?}");
}

/// The definition of the soft embeddings: Burn's own softmax and product over all samples at once, differentiable by Burn.
fn whole_soft_embedding<B: Backend>(
    logits: Tensor<B, 2>,
    temperature: Tensor<B, 2>,
    noise: Tensor<B, 2>,
    embedding: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let samples = noise.dims()[0] / logits.dims()[0];
    softmax((stack(logits, samples) + noise) / stack(temperature, samples), 1).matmul(embedding)
}

/// The definition of the losses, `[R]`: Burn's own operations on the full logits, differentiable by Burn.
fn whole_target_loss<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    objective: Objective,
) -> Tensor<B, 1> {
    let logits = hidden.matmul(head.transpose());
    let column: Tensor<B, 2, Int> = targets.unsqueeze_dim(1);
    match objective.of_row() {
        RowLoss::Logit => logits.gather(1, column).neg().squeeze_dim(1),
        RowLoss::Nll => log_softmax(logits, 1).gather(1, column).neg().squeeze_dim(1),
        RowLoss::Hinge(margin) => {
            let at_target = logits.clone().gather(1, column.clone());
            let hidden = logits.scatter(1, column, at_target.zeros_like() - 1e30, IndexingUpdateOp::Add);
            (hidden.max_dim(1) - at_target + margin).clamp_min(0.0).squeeze_dim(1)
        }
    }
}

fn soft_embedding_agrees_with_its_definition<B: TrackedBackend>() {
    let leaf = |x: Tensor<B::InnerBackend, 2>| Tensor::<B, 2>::from_inner(x).require_grad();
    let (z, tau, weight) = (matrix(0, N, V, DType::F32), temperature(DType::F32), matrix::<B>(4, S * N, D, DType::F32));
    let (z1, tau1, z2, tau2) = (leaf(z.clone()), leaf(tau.clone()), leaf(z), leaf(tau));
    let prompt = soft_prompt(z1.clone(), tau1.clone(), DType::F32);
    let Gumbel::Given(noise) = prompt.noise.clone() else { unreachable!() };
    let ours = B::soft_embedding(&prompt).embeddings;
    let theirs = whole_soft_embedding(z2.clone(), tau2.clone(), noise, prompt.embedding);
    close(ours.clone().inner(), theirs.clone().inner());
    let (g1, g2) = ((ours * weight.clone()).sum().backward(), (theirs * weight).sum().backward());
    close(z1.grad(&g1).unwrap(), z2.grad(&g2).unwrap());
    close(tau1.grad(&g1).unwrap(), tau2.grad(&g2).unwrap());
}

fn target_loss_agrees_with_its_definition<B: TrackedBackend>() {
    for objective in OBJECTIVES {
        let hidden = matrix::<B::InnerBackend>(5, S * N, D, DType::F32);
        let head = matrix::<B::InnerBackend>(2, V, D, DType::F32);
        let leaf = || Tensor::<B, 2>::from_inner(hidden.clone()).require_grad();
        let (h1, h2) = (leaf(), leaf());
        let TargetLoss { losses, hidden: gradient } = B::InnerBackend::target_loss(hidden.clone(), head.clone(), targets(), objective);
        let ours = B::track_loss(h1.clone(), crate::tensor::host(losses.clone().sum())[0].into(), gradient);
        let theirs = whole_target_loss(h2.clone(), Tensor::from_inner(head), targets::<B>(), objective);
        close(losses.unsqueeze(), theirs.clone().inner().unsqueeze());
        let (g1, g2) = (ours.backward(), theirs.sum().backward());
        close(h1.grad(&g1).unwrap(), h2.grad(&g2).unwrap());
    }
}

/// A layer's block with our backward pass, and by Burn's own differentiation of its definition.
fn layers_blocks_agree_with_their_definitions<B: TrackedBackend>() {
    let leaf = |sample, rows, columns| Tensor::<B, 2>::from_inner(matrix(sample, rows, columns, DType::F32)).require_grad();
    let compare = |rows: [usize; 3], columns, ours: Block<B>, theirs: Block<B>| {
        let inputs: [Tensor<B, 2>; 3] = std::array::from_fn(|i| leaf(i as u32, rows[i], columns));
        let gradients = |block: Block<B>| {
            let [x, y, z] = inputs.clone();
            let out = block(x, y, z);
            let [r, c] = out.dims();
            let gradients = (out * Tensor::from_inner(matrix(9, r, c, DType::F32))).sum().backward();
            inputs.clone().map(|input| input.grad(&gradients))
        };
        for (ours, theirs) in gradients(ours).into_iter().zip(gradients(theirs)) {
            assert_eq!(ours.is_some(), theirs.is_some());
            ours.into_iter().zip(theirs).for_each(|(ours, theirs)| close(ours, theirs));
        }
    };
    compare(
        [6, 1, 1],
        8,
        |x, w, _| B::rms_norm(x, w.squeeze_dim(0), 1e-5),
        |x, w, _| reference::layer::rms_norm(x, w.squeeze_dim(0), 1e-5),
    );
    compare([6, 6, 1], 8, |gate, up, _| B::swiglu(gate, up), |gate, up, _| reference::layer::swiglu(gate, up));
    compare([6, 1, 1], 8, |x, _, _| rotated(x, B::rotate), |x, _, _| rotated(x, reference::layer::rotate));
    // Two samples of three queries behind two known positions, four heads to two.
    compare([24, 20, 20], 4, |q, k, v| attended(q, k, v, B::causal_attention), |q, k, v| attended(q, k, v, reference::layer::attention));
}

type Block<B> = fn(Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>;

type Rotate<B> = fn(Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>;

fn rotated<B: TrackedBackend>(x: Tensor<B, 2>, rotate: Rotate<B>) -> Tensor<B, 2> {
    // Three positions, two heads of four: two samples.
    let angle: Vec<f32> = (0..12).map(|i| (i / 4 + i % 2) as f32 * 0.7).collect();
    let table = |f: fn(f32, usize) -> f32| {
        let values: Vec<f32> = angle.iter().enumerate().map(|(i, &x)| f(x, i)).collect();
        Tensor::from_data(TensorData::new(values, [3, 4]), &B::Device::default())
    };
    rotate(x, table(|x, _| x.cos()), table(|x, i| if i % 4 < 2 { -x.sin() } else { x.sin() }))
}

type Attention<B> = fn(Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 2>) -> Tensor<B, 2>;

fn attended<B: TrackedBackend>(q: Tensor<B, 2>, k: Tensor<B, 2>, v: Tensor<B, 2>, attention: Attention<B>) -> Tensor<B, 2> {
    let heads = |x: Tensor<B, 2>, t, heads| x.reshape([2, t, heads, 4]).swap_dims(1, 2);
    let mask: Vec<f32> = (0..3).flat_map(|i| (0..5).map(move |j| if j <= 2 + i { 0.0 } else { -1e30 })).collect();
    let mask = Tensor::from_data(TensorData::new(mask, [1, 15]), &B::Device::default());
    attention(heads(q, 3, 4), heads(k, 5, 2), heads(v, 5, 2), mask)
}

each_tracked_cpu_backend!(
    soft_embedding_agrees_with_its_definition,
    target_loss_agrees_with_its_definition,
    layers_blocks_agree_with_their_definitions
);

type Tracked = Autodiff<Flex>;

fn f64s(tensor: Tensor<Flex, 2>) -> Vec<f64> {
    tensor.into_data().into_vec().unwrap()
}

/// The gradient of `f` at `x`, against central differences of step 1e-6.
fn check_gradient(x: Tensor<Flex, 2>, f: impl Fn(Tensor<Tracked, 2>) -> Tensor<Tracked, 1>) {
    let leaf = Tensor::<Tracked, 2>::from_inner(x.clone()).require_grad();
    let gradient = f64s(leaf.grad(&f(leaf.clone()).backward()).unwrap());
    let (values, shape) = (f64s(x), leaf.dims());
    let at = |i: usize, shift: f64| {
        let mut moved = values.clone();
        moved[i] += shift;
        let moved = Tensor::from_inner(Tensor::from_data(TensorData::new(moved, shape), (&Default::default(), DType::F64)));
        f64s(f(moved).inner().unsqueeze())[0]
    };
    for (i, found) in gradient.iter().enumerate() {
        let expected = (at(i, 1e-6) - at(i, -1e-6)) / 2e-6;
        assert!((found - expected).abs() < 1e-7 * (1.0 + expected.abs()), "element {i}: {found}, by differences {expected}");
    }
}

#[test]
fn soft_embedding_agrees_with_central_differences() {
    let _guard = one_at_a_time();
    let (z, tau) = (matrix::<Flex>(0, N, V, DType::F64), temperature::<Flex>(DType::F64));
    let weight = || Tensor::from_inner(matrix::<Flex>(4, S * N, D, DType::F64));
    let f = |z: Tensor<Tracked, 2>, tau: Tensor<Tracked, 2>| {
        (Tracked::soft_embedding(&soft_prompt(z, tau, DType::F64)).embeddings * weight()).sum()
    };
    check_gradient(z.clone(), |z| f(z, Tensor::from_inner(tau.clone())));
    check_gradient(tau.clone(), |tau| f(Tensor::from_inner(z.clone()), tau));
}

#[test]
fn layers_blocks_agree_with_central_differences() {
    let _guard = one_at_a_time();
    let x = |sample, rows| matrix::<Flex>(sample, rows, 4, DType::F64);
    let fixed = |sample, rows| Tensor::<Tracked, 2>::from_inner(x(sample, rows));
    let weigh = |out: Tensor<Tracked, 2>| {
        let [rows, columns] = out.dims();
        (out * Tensor::from_inner(matrix::<Flex>(9, rows, columns, DType::F64))).sum()
    };
    check_gradient(x(0, 6), |x| weigh(Tracked::rms_norm(x, fixed(1, 1).squeeze_dim(0), 1e-5)));
    check_gradient(x(0, 6), |gate| weigh(Tracked::swiglu(gate, fixed(1, 6))));
    check_gradient(x(1, 6), |up| weigh(Tracked::swiglu(fixed(0, 6), up)));
    let attention =
        |q, k, v| weigh(attended::<Tracked>(q, k, v, |q, k, v, mask| Tracked::causal_attention(q, k, v, mask.cast(DType::F64))));
    check_gradient(x(0, 24), |q| attention(q, fixed(1, 20), fixed(2, 20)));
    check_gradient(x(1, 20), |k| attention(fixed(0, 24), k, fixed(2, 20)));
    check_gradient(x(2, 20), |v| attention(fixed(0, 24), fixed(1, 20), v));
}

#[test]
fn target_loss_agrees_with_central_differences() {
    let _guard = one_at_a_time();
    for objective in OBJECTIVES {
        let head = matrix::<Flex>(2, V, D, DType::F64);
        let loss = |h: Tensor<Flex, 2>| Flex::target_loss(h, head.clone(), targets(), objective);
        let hidden = matrix::<Flex>(5, S * N, D, DType::F64);
        let gradient = f64s(loss(hidden.clone()).hidden);
        let at = |i: usize, shift: f64| {
            let mut moved = f64s(hidden.clone());
            moved[i] += shift;
            let moved = Tensor::from_data(TensorData::new(moved, hidden.dims()), (&Default::default(), DType::F64));
            f64s(loss(moved).losses.sum().unsqueeze())[0]
        };
        for (i, found) in gradient.iter().enumerate() {
            let expected = (at(i, 1e-6) - at(i, -1e-6)) / 2e-6;
            assert!((found - expected).abs() < 1e-7 * (1.0 + expected.abs()), "element {i}: {found}, by differences {expected}");
        }
    }
}

#[test]
fn drawn_noise_is_the_same_in_chunks() {
    let stream = Stream::new(3, 0, 5, Purpose::PromptNoise, 0);
    let given: Vec<f32> = (0..S as u32).flat_map(|sample| stream.sample(sample).gumbel(N, V, None)).collect();
    let mut prompt = soft_prompt::<Flex>(matrix(0, N, V, DType::F32), temperature(DType::F32), DType::F32);
    prompt.noise = Gumbel::Given(Tensor::from_data(TensorData::new(given, [S * N, V]), &Default::default()));
    let expected = Flex::soft_embedding(&prompt).embeddings;
    prompt.noise = Gumbel::drawn(stream);
    close(Flex::soft_embedding(&prompt).embeddings, expected);
}
