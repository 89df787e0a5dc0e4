//! Every kernel against its definition in plain Burn.

use burn::tensor::TensorData;

use super::vector::{exp, ln};
use super::*;
use crate::noise::{Purpose, Stream};
use crate::ops::reference::{layer as plain, soft_embedding, target_loss};
use crate::ops::{Gumbel, adam};
use crate::tensor::host;
use crate::testing::largest_difference;
use proptest::prelude::*;

fn random<const R: usize>(sample: u32, shape: [usize; R]) -> Tensor<Flex, R> {
    let count = shape.iter().product();
    tensor(Stream::new(5, 0, 0, Purpose::InitialLogits, sample).normal(1, count), shape)
}

fn close<const R: usize>(a: Tensor<Flex, R>, b: Tensor<Flex, R>) {
    close_to(2e-6, a, b);
}

fn close_to<const R: usize>(tolerance: f32, a: Tensor<Flex, R>, b: Tensor<Flex, R>) {
    let difference = largest_difference(&host(a), &host(b));
    assert!(difference < tolerance, "{difference}");
}

#[test]
fn layers_blocks_agree_with_their_definitions() {
    // Rows enough for several tasks, and a view that begins inside a buffer.
    let x = random(0, [701, 64]).narrow(0, 1, 700);
    let (weight, gate, up) = (random(1, [64]), random(2, [700, 64]), random(3, [64, 700]).transpose());
    let output = random(4, [64, 700]).transpose();
    close(Flex::rms_norm(x.clone(), weight.clone(), 1e-5), plain::rms_norm(x.clone(), weight.clone(), 1e-5));
    close(
        Flex::rms_norm_backward(x.clone(), weight.clone(), 1e-5, output.clone()),
        plain::rms_norm_backward(x.clone(), weight, 1e-5, output.clone()),
    );
    close(Flex::swiglu(gate.clone(), up.clone()), plain::swiglu(gate.clone(), up.clone()));
    let (ours, theirs) =
        (Flex::swiglu_backward(gate.clone(), up.clone(), output.clone()), plain::swiglu_backward(gate, up, output.clone()));
    close(ours.0, theirs.0);
    close(ours.1, theirs.1);
    let (cos, sin) = (random(4, [7, 16]), random(5, [7, 16]));
    close(Flex::rotate(x.clone(), cos.clone(), sin.clone()), plain::rotate(x, cos, sin));
}

#[test]
fn attention_agrees_with_its_definition() {
    // Head widths that are whole vectors, some, and none; beginnings, continuations and single queries.
    for (t, past, d) in
        [(7, 0, 16), (1, 5, 64), (3, 4, 88), (5, 20, 4), (40, 0, 16), (32, 0, 20), (7, 60, 16), (3, 270, 16), (100, 0, 64), (13, 120, 96)]
    {
        let all = t + past;
        let q = random(6, [2, t, 6, d]).swap_dims(1, 2);
        let k = random(7, [2, all, 2, d]).swap_dims(1, 2);
        let v = random(8, [2, 2, all, d]);
        let output = random(9, [2 * t, 6 * d]);
        let mask: Vec<f32> = (0..t).flat_map(|i| (0..all).map(move |j| if j <= past + i { 0.0 } else { -1e30 })).collect();
        let mask = tensor(mask, [1, t * all]);
        let all = || (q.clone(), k.clone(), v.clone(), mask.clone());
        let (ours, theirs) = {
            let ((q, k, v, mask), (q2, k2, v2, mask2)) = (all(), all());
            (Flex::causal_attention(q, k, v, mask), plain::attention(q2, k2, v2, mask2))
        };
        close(ours, theirs);
        let (ours, theirs) = {
            let ((q, k, v, mask), (q2, k2, v2, mask2)) = (all(), all());
            let ours = Flex::causal_attention_backward(q, k, v, mask, output.clone());
            (ours, plain::attention_backward(q2, k2, v2, mask2, output.clone()))
        };
        ours.into_iter().zip(theirs).for_each(|(ours, theirs)| close_to(1e-5, ours, theirs));
    }
}

/// A product that is the same to the bit with any of these numbers of threads.
fn product_by_threads(
    product: fn(Tensor<Flex, 2>, Tensor<Flex, 2>) -> Tensor<Flex, 2>,
    x: &Tensor<Flex, 2>,
    w: &Tensor<Flex, 2>,
) -> Vec<f32> {
    let by = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| host(product(x.clone(), w.clone())))
    };
    let one = by(1);
    assert!([2, 3, 4, 16].into_iter().all(|threads| by(threads) == one), "{:?} {:?}", x.dims(), w.dims());
    one
}

#[test]
fn products_are_the_same_bytes_with_any_number_of_threads() {
    for (r, k, n) in [
        (20, 576, 192),
        (2, 640, 256),
        (1, 576, 1536),
        (40, 1536, 576),
        (60, 640, 256),
        (17, 100, 1000),
        (6, 300, 700),
        (9, 133, 1003),
        (16, 576, 1536),
        (19, 1003, 75),
        (23, 515, 200),
        (21, 5, 70),
        (27, 1024, 128),
        (18, 3, 7),
    ] {
        for transposed in [false, true] {
            let x = random(1, [r, k]);
            let w = if transposed { random(2, [n, k]).transpose() } else { random(2, [k, n]) };
            assert!(largest_difference(&product_by_threads(Flex::matmul, &x, &w), &host(x.matmul(w))) < 1e-3);
        }
    }
}

/// As they are where rough products are full ones.
fn rounded(x: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
    let shape = x.dims();
    let round = |x: f32| if Flex::has_rough_products() { half::bf16::from_f32(x).to_f32() } else { x };
    tensor(host(x).into_iter().map(round).collect(), shape)
}

/// Odd depths, ragged columns, and every number of rows behind the last whole strip.
#[test]
fn rough_products_are_those_of_rounded_factors() {
    for (r, k, n) in [(4, 576, 70), (5, 1, 3), (6, 5, 64), (7, 300, 700), (20, 513, 130), (23, 515, 200), (40, 1536, 576)] {
        for transposed in [false, true] {
            let x = random(1, [r, k]);
            let w = if transposed { random(2, [n, k]).transpose() } else { random(2, [k, n]) };
            let product = product_by_threads(Flex::rough_matmul, &x, &w);
            let difference = largest_difference(&product, &host(rounded(x).matmul(rounded(w))));
            assert!(difference < 1e-3, "{r} {k} {n}: {difference}");
        }
    }
}

/// A row's product, to the bit, among others or in other company.
#[test]
fn products_do_not_depend_on_other_rows() {
    let (x, w) = (random(1, [40, 700]), random(2, [700, 130]));
    let all = host(Flex::matmul(x.clone(), w.clone()));
    for (first, rows) in [(0, 4), (3, 17), (21, 19)] {
        assert_eq!(host(Flex::matmul(x.clone().narrow(0, first, rows), w.clone())), all[first * 130..(first + rows) * 130]);
    }
}

#[test]
fn products_take_views() {
    let x = random(1, [30, 96]);
    let same = |w: Tensor<Flex, 2>| {
        let copy = tensor(host(w.clone()), w.dims());
        close_to(1e-5, Flex::matmul(x.clone(), w), Flex::matmul(x.clone(), copy));
    };
    same(random(2, [100, 80]).narrow(0, 3, 96));
    same(random(2, [96, 80]).narrow(1, 5, 70));
    same(random(2, [80, 96]).narrow(0, 7, 70).transpose());
    same(random(2, [80, 100]).narrow(1, 2, 96).transpose());
}

#[test]
fn products_of_nothing_are_zero() {
    for r in [0, 4, 20] {
        assert_eq!(host(Flex::matmul(tensor(vec![], [r, 0]), tensor(vec![], [0, 70]))), vec![0.0; r * 70]);
    }
}

/// Vocabularies of several blocks, the last of them ragged.
const V: usize = 2500;

fn soft_prompt(noise: Gumbel<Flex>, tau: f32) -> SoftPrompt<Flex> {
    let mask: Vec<f32> = (0..V).map(|id| if id % 7 == 3 || id < 600 { -1e30 } else { 0.0 }).collect();
    SoftPrompt {
        logits: random(0, [50, V]),
        temperature: tensor(vec![tau; 50], [50, 1]) + random(1, [50, 1]).abs() * tau,
        embedding: random(2, [V, 24]),
        mask: Some(tensor(mask, [1, V])),
        noise,
        samples: 2,
    }
}

#[test]
fn soft_embeddings_agree_with_their_definition() {
    let stream = Stream::new(3, 0, 5, Purpose::PromptNoise, 0);
    let (drawn, rescaled) = (Gumbel::drawn(stream), Gumbel::Drawn { stream, largest: Some(0.999) });
    for (noise, tau) in
        [(drawn.clone(), 1.0), (drawn, 0.05), (rescaled, 0.5), (Gumbel::Given(random(3, [100, V])), 3.0), (Gumbel::Silent, 100.0)]
    {
        let (prompt, output) = (soft_prompt(noise, tau), random(4, [100, 24]));
        let (ours, theirs) = (Flex::soft_embedding(&prompt), soft_embedding::forward(&prompt));
        // An exponent y of some hundreds has an ulp of 3e-5.
        close_to(1e-4, ours.embeddings.clone(), theirs.embeddings.clone());
        assert_eq!(Flex::draw(&prompt), soft_embedding::draw(&prompt));
        let entropies = [Flex::entropy(&prompt), soft_embedding::entropy(&prompt)];
        assert!(largest_difference(&entropies[0], &entropies[1]) < 1e-4);
        let ours = Flex::soft_embedding_backward(&prompt, ours, output.clone());
        let theirs = soft_embedding::backward(&prompt, theirs, output);
        for (ours, theirs) in [(ours.0, theirs.0), (ours.1, theirs.1)] {
            let scale = theirs.clone().abs().max().into_scalar();
            // Two units in the last place of g = 15 are another 4e-5 of y where τ = 0.05; p and the mean of dp are both off by that.
            // Processors with and without AVX-512 round otherwise.
            close_to(3e-4, ours / scale, theirs / scale);
        }
    }
}

#[test]
fn objectives_agree_with_their_definitions() {
    let (hidden, head) = (random(5, [110, 24]), random(6, [V, 24]));
    let targets = Tensor::<Flex, 1, Int>::from_data(
        TensorData::new((0..110i64).map(|row| row * 977 % V as i64).collect::<Vec<_>>(), [110]),
        &Default::default(),
    );
    for objective in [Objective::CrossEntropy, Objective::Hinge { margin: 0.3 }, Objective::LogProbDifference] {
        let ours = Flex::target_loss(hidden.clone(), head.clone(), targets.clone(), objective);
        let theirs = target_loss::forward(hidden.clone(), head.clone(), targets.clone(), objective);
        close_to(2e-5, ours.losses, theirs.losses);
        close_to(2e-5, ours.hidden, theirs.hidden);
    }
    close_to(
        2e-5,
        Flex::margins(hidden.clone(), head.clone(), targets.clone()),
        target_loss::margins(hidden.clone(), head.clone(), targets.clone()),
    );
    let [(margins, losses), (expected, expected_losses)] = [
        Flex::margins_and_cross_entropies(hidden.clone(), head.clone(), targets.clone()),
        target_loss::margins_and_cross_entropies(hidden.clone(), head.clone(), targets.clone()),
    ];
    close_to(2e-5, margins, expected);
    close_to(2e-5, losses, expected_losses);
    let rough = Flex::rough_margins(hidden.clone(), head.clone(), targets.clone());
    close_to(2e-5, rough, target_loss::margins(rounded(hidden), rounded(head), targets));
}

#[test]
fn adam_agrees_with_its_definition() {
    let moments = || Moments { first: random(1, [300, 70]), second: random(2, [300, 70]).abs() };
    let step = AdamStep { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, bias_correction: (0.271, 0.003) };
    let (mut a, mut b) = (moments(), moments());
    let (value, gradient) = (random(3, [300, 70]), random(4, [300, 70]));
    close_to(1e-5, Flex::adam(step, value.clone(), gradient.clone(), &mut a), adam(step, value, gradient, &mut b));
    close(a.first, b.first);
    close(a.second, b.second);
}

#[test]
fn exp_keeps_its_ends() {
    assert!(exp(f32::NEG_INFINITY) == 0.0 && exp(-1e30) == 0.0 && exp(f32::NAN).is_nan());
    assert!(exp(1e30) > 1e38 && exp(1e30).is_finite());
    assert_eq!(exp(0.0), 1.0);
}

proptest! {
    #[test]
    fn exp_is_exp(x in -87f32..88.0) {
        prop_assert!((exp(x) / x.exp() - 1.0).abs() < 3e-7, "{} {}", exp(x), x.exp());
    }

    #[test]
    fn ln_is_ln(x in prop_oneof![1e-30f32..1e30, 0.5f32..2.0, 0.999f32..1.001]) {
        let expected = f64::from(x).ln();
        prop_assert!((f64::from(ln(x)) - expected).abs() <= 3e-7 * expected.abs(), "{} {}", ln(x), expected);
    }
}
