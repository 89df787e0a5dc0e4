//! Every block of the CPU backend next to its plain-Burn definition, at the sizes of SmolLM2-135M: `cargo bench --no-default-features`.

use std::hint::black_box;
use std::time::Duration;

use burn::backend::Flex;
use burn::tensor::{Int, Tensor, TensorData};
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use dlmi::noise::{Purpose, Stream};
use dlmi::objective::Objective;
use dlmi::ops::reference::{layer as plain, soft_embedding, target_loss};
use dlmi::ops::{AdamStep, Gumbel, Kernels, Moments, SoftPrompt, adam};

/// D, intermediate size, V, query and key heads and their width.
const D: usize = 576;
const F: usize = 1536;
const V: usize = 49152;
const HEADS: [usize; 3] = [9, 3, 64];

/// S samples of T positions, M of which are the target: a DLMI step at N = 10.
const S: usize = 8;
const T: usize = 29;
const M: usize = 20;

fn random<const R: usize>(sample: u32, shape: [usize; R]) -> Tensor<Flex, R> {
    let values = Stream::new(1, 0, 0, Purpose::InitialLogits, sample).normal(1, shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

/// Ours and the definition, under one name.
fn compare<T, U>(group: &mut BenchmarkGroup<WallTime>, name: &str, ours: impl Fn() -> T, definition: impl Fn() -> U) {
    group.bench_function(format!("{name}/ours"), |b| b.iter(|| black_box(ours())));
    group.bench_function(format!("{name}/plain"), |b| b.iter(|| black_box(definition())));
}

fn layer(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer");
    let (rows, [h, kv, d]) = (S * T, HEADS);
    let (x, w, dx) = (random(0, [rows, D]), random(1, [D]), random(2, [rows, D]));
    compare(&mut group, "rms_norm", || Flex::rms_norm(x.clone(), w.clone(), 1e-5), || plain::rms_norm(x.clone(), w.clone(), 1e-5));
    compare(
        &mut group,
        "rms_norm_backward",
        || Flex::rms_norm_backward(x.clone(), w.clone(), 1e-5, dx.clone()),
        || plain::rms_norm_backward(x.clone(), w.clone(), 1e-5, dx.clone()),
    );
    let [gate, up, dy] = [3, 4, 5].map(|sample| random(sample, [rows, F]));
    compare(&mut group, "swiglu", || Flex::swiglu(gate.clone(), up.clone()), || plain::swiglu(gate.clone(), up.clone()));
    compare(
        &mut group,
        "swiglu_backward",
        || Flex::swiglu_backward(gate.clone(), up.clone(), dy.clone()),
        || plain::swiglu_backward(gate.clone(), up.clone(), dy.clone()),
    );
    let (q, cos, sin) = (random(6, [rows, h * d]), random(7, [rows, d]), random(8, [rows, d]));
    compare(
        &mut group,
        "rotate",
        || Flex::rotate(q.clone(), cos.clone(), sin.clone()),
        || plain::rotate(q.clone(), cos.clone(), sin.clone()),
    );
    let heads = |sample, heads| random(sample, [S, T, heads, d]).swap_dims(1, 2);
    let (q, k, v) = (heads(9, h), heads(10, kv), heads(11, kv));
    let mask: Vec<f32> = (0..T).flat_map(|i| (0..T).map(move |j| if j <= i { 0.0 } else { -1e30 })).collect();
    let mask = Tensor::<Flex, 2>::from_data(TensorData::new(mask, [1, T * T]), &Default::default());
    let all = || (q.clone(), k.clone(), v.clone(), mask.clone());
    compare(
        &mut group,
        "attention",
        || {
            let (q, k, v, mask) = all();
            Flex::causal_attention(q, k, v, mask)
        },
        || {
            let (q, k, v, mask) = all();
            plain::attention(q, k, v, mask)
        },
    );
    let dout = random(12, [rows, h * d]);
    compare(
        &mut group,
        "attention_backward",
        || {
            let (q, k, v, mask) = all();
            Flex::causal_attention_backward(q, k, v, mask, dout.clone())
        },
        || {
            let (q, k, v, mask) = all();
            plain::attention_backward(q, k, v, mask, dout.clone())
        },
    );
    let weight = random(13, [D, F]);
    compare(&mut group, "matmul", || Flex::matmul(x.clone(), weight.clone()), || x.clone().matmul(weight.clone()));
    compare(
        &mut group,
        "matmul_backward",
        || Flex::matmul(gate.clone(), weight.clone().transpose()),
        || gate.clone().matmul(weight.clone().transpose()),
    );
    group.finish();
}

fn vocabulary(c: &mut Criterion) {
    let mut group = c.benchmark_group("vocabulary");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    let n = T + 1 - M;
    let prompt = SoftPrompt::<Flex> {
        logits: random(0, [n, V]),
        temperature: random(1, [n, 1]).abs() * 30.0 + 1.0,
        embedding: random(2, [V, D]),
        mask: None,
        noise: Gumbel::drawn(Stream::new(1, 0, 0, Purpose::PromptNoise, 0)),
        samples: S,
    };
    compare(&mut group, "soft_embedding", || Flex::soft_embedding(&prompt), || soft_embedding::forward(&prompt));
    let (result, output) = (Flex::soft_embedding(&prompt), random(3, [S * n, D]));
    compare(
        &mut group,
        "soft_embedding_backward",
        || Flex::soft_embedding_backward(&prompt, result.clone(), output.clone()),
        || soft_embedding::backward(&prompt, result.clone(), output.clone()),
    );
    let (hidden, head) = (random(4, [S * M, D]), prompt.embedding.clone());
    let targets: Vec<i64> = (0..(S * M) as i64).map(|row| row * 37 % V as i64).collect();
    let targets = Tensor::<Flex, 1, Int>::from_data(TensorData::new(targets, [S * M]), &Default::default());
    for (name, objective) in [("cross_entropy", Objective::CrossEntropy), ("hinge", Objective::Hinge { margin: 0.3 })] {
        compare(
            &mut group,
            name,
            || Flex::target_loss(hidden.clone(), head.clone(), targets.clone(), objective),
            || target_loss::forward(hidden.clone(), head.clone(), targets.clone(), objective),
        );
    }
    compare(
        &mut group,
        "margins",
        || Flex::margins(hidden.clone(), head.clone(), targets.clone()),
        || target_loss::margins(hidden.clone(), head.clone(), targets.clone()),
    );
    let step = AdamStep { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, bias_correction: (0.1, 0.001) };
    let gradient = random(5, [n, V]);
    let moments = || Moments { first: gradient.clone(), second: gradient.clone().abs() };
    compare(
        &mut group,
        "adam",
        || Flex::adam(step, prompt.logits.clone(), gradient.clone(), &mut moments()),
        || adam(step, prompt.logits.clone(), gradient.clone(), &mut moments()),
    );
    group.finish();
}

criterion_group! {
    name = blocks;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3)).without_plots();
    targets = layer, vocabulary
}
criterion_main!(blocks);
