//! Parity with transformers on tiny random models; `tests/golden/tiny_models.py` made the expected values.

use std::path::Path;

use burn::module::{AutodiffModule, Module};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::*;
use crate::ops::{Kernels, TrackedBackend};
use crate::tensor::{argmax, host, ids_tensor};
use crate::testing::{Golden, each_cpu_backend, each_tracked_cpu_backend, golden, loaded, real_smollm2};

fn load<B: Backend>(path: &Path) -> Llama<B> {
    load_as(path, DType::F32)
}

fn load_as<B: Backend>(path: &Path, dtype: DType) -> Llama<B> {
    loaded(&mut Checkpoint::open(path).unwrap(), dtype)
}

/// Largest difference to the expected logits over all positions and the whole vocabulary, and the greedy tokens.
fn compare<B: Kernels>(model: &str, expected: &str, tolerance: f32) {
    let llama = load::<B>(&golden(model));
    let golden = Golden::open(expected);
    let ids = golden.ids("input_ids");
    let embedded = llama.embed(ids_tensor(&ids, &llama.device()));
    let [_, t, _] = embedded.dims();
    let logits = host(llama.logits(llama.hidden(embedded.clone(), t)));
    let difference = golden.largest_difference("logits", &logits);
    assert!(difference < tolerance, "{model}: logits differ by {difference}");
    let written = golden.ids("greedy");
    assert_eq!(greedy(&llama, embedded, written[0].len(), &[]).ids, written, "{model}");
}

const TINY: [&str; 14] = [
    "gqa1-tied",
    "gqa3-tied",
    "gqa4-untied-llama3",
    "head-dim-llama3",
    "biases",
    "sharded",
    "smollm3-list",
    "smollm3-interval",
    "llama32",
    "tinyllama",
    "mistral",
    "qwen2",
    "qwen3",
    "tied-other-head",
];

/// Every stored type and every architecture; `tests/golden/tiny_gguf.py` made the expected values from the dequantised weights.
const GGUF: [&str; 15] = [
    "gqa3-tied.f32",
    "gqa4-untied-llama3.f32",
    "gqa4-untied-llama3.f16",
    "gqa4-untied-llama3.bf16",
    "gqa4-untied-llama3.q8_0",
    "gqa4-untied-llama3.q4_0",
    "gqa4-untied-llama3.q4_1",
    "gqa4-untied-llama3.q5_0",
    "gqa4-untied-llama3.q5_1",
    "kquants",
    "llama32.bf16",
    "tinyllama.bf16",
    "mistral.bf16",
    "qwen2.bf16",
    "qwen3.bf16",
];

fn tiny_models<B: Kernels>() {
    for name in TINY {
        compare::<B>(&format!("tiny/{name}"), &format!("tiny/{name}/expected.safetensors"), 1e-4);
    }
}

fn gguf_files<B: Kernels>() {
    for name in GGUF {
        compare::<B>(&format!("tiny_gguf/{name}.gguf"), &format!("tiny_gguf/{name}.expected.safetensors"), 1e-4);
    }
}

/// The real SmolLM2-135M-Instruct, dequantised: logits at all positions, a slice of the vocabulary one by one and the whole
/// of it by its largest value and its log-sum-exp.
fn real_model<B: Kernels>() {
    let Some(path) = real_smollm2("real_model") else { return };
    let (llama, expected) = (load::<B>(&path), Golden::open("smollm2/logits.safetensors"));
    let vocabulary = expected.ids("vocabulary").remove(0);
    for prompt in ["0", "1"] {
        let ids = expected.ids(&format!("{prompt}.input_ids"));
        let embedded = llama.embed(ids_tensor(&ids, &llama.device()));
        let logits = host(llama.logits(llama.hidden(embedded, ids[0].len())));
        let rows = logits.chunks_exact(llama.config().vocab_size);
        let slice: Vec<f32> = rows.clone().flat_map(|row| vocabulary.iter().map(|&id| row[id as usize])).collect();
        let difference = expected.largest_difference(&format!("{prompt}.logits"), &slice);
        assert!(difference < 1e-3, "logits differ by {difference}");
        let best: Vec<u32> = rows.clone().map(|row| argmax(row).0).collect();
        assert_eq!(best, expected.ids(&format!("{prompt}.argmax")).concat());
        let sums = rows.map(|row| row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln());
        for (found, expected) in sums.zip(expected.doubles(&format!("{prompt}.log_sum_exp"))) {
            assert!((found - expected).abs() < 1e-3, "log-sum-exp {found}, expected {expected}");
        }
    }
}

/// Beginnings and ends in separate passes, and sequences that leave a trunk, give the states of whole sequences in one pass.
fn cached_passes<B: Kernels>() {
    let llama = load::<B>(&golden("tiny/gqa3-tied"));
    let ids = Golden::open("tiny/gqa3-tied/expected.safetensors").ids("input_ids");
    let whole = llama.embed(ids_tensor(&ids, &llama.device()));
    let [s, t, d] = whole.dims();
    let all = llama.hidden(whole.clone(), t).reshape([s, t, d]);
    let mut cache = Cache::new(llama.config().num_hidden_layers, s);
    let mut pass = |from: usize, to: usize, count| {
        cache.grow(to);
        let rows = whole.clone().narrow(1, from, to - from).reshape([s * (to - from), d]);
        llama.hidden_cached(rows, &mut cache, count).reshape([s, count, d])
    };
    let parts = vec![pass(0, 5, 5), pass(5, t - 1, t - 6), pass(t - 1, t, 1)];
    let difference = host((Tensor::cat(parts, 1) - all.clone()).abs().max())[0];
    assert!(difference < 1e-5, "{difference}");
    assert_eq!(cache.len(), t);

    // Three sequences leave the first one after 1, 4 and 2 of its positions, with the rest of it as their own; one is dropped.
    let row = |from: usize, to: usize| whole.clone().slice([0..1, from..to]).reshape([to - from, d]);
    let mut cache = Cache::new(llama.config().num_hidden_layers, 1).fork(&[1, 4, 2]);
    cache.grow(6);
    let first = Tensor::cat(vec![row(0, 4), row(1, 6), row(4, 6), row(2, 6)], 0);
    let first = llama.hidden_cached(first, &mut cache, 2).reshape([3, 2, d]);
    cache.retain(&[true, false, true]);
    cache.grow(t);
    let second = Tensor::cat(vec![row(6, t), row(6, t)], 0);
    let second = llama.hidden_cached(second, &mut cache, t - 6).reshape([2, t - 6, d]);
    let expected = |from: usize, to: usize| all.clone().slice([0..1, from..to]);
    let difference = host((first - expected(4, 6)).abs().max())[0].max(host((second - expected(6, t)).abs().max())[0]);
    assert!(difference < 1e-5, "{difference}");
}

each_cpu_backend!(tiny_models, gguf_files, cached_passes, real_model);

/// In half precision, on any backend: the largest logit error over the largest logit is within `bound`.
fn half<B: Kernels>(dtype: DType, bound: f32) {
    for name in TINY {
        let llama = load_as::<B>(&golden(&format!("tiny/{name}")), dtype);
        let golden = Golden::open(&format!("tiny/{name}/expected.safetensors"));
        let embedded = llama.embed(ids_tensor(&golden.ids("input_ids"), &llama.device()));
        let count = embedded.dims()[1];
        let hidden = llama.hidden(embedded, count);
        assert_eq!(hidden.dtype(), dtype);
        let largest = golden.floats("logits").iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let error = golden.largest_difference("logits", &host(llama.logits(hidden))) / largest;
        assert!(0.0 < error && error < bound, "{name}: {error} in {dtype:?}");
    }
}

#[test]
fn half_precision() {
    half::<burn::backend::Flex>(DType::F16, F16);
    half::<burn::backend::Flex>(DType::BF16, BF16);
}

/// Bounds of [`half`]. The largest errors found were 5e-3 and 3.6e-2; transformers has 4.3e-3 and 3e-2 on these models.
const F16: f32 = 1e-2;
const BF16: f32 = 6e-2;

mod backward {
    use super::*;

    /// The model's own backward pass is what Burn's autodiff finds for the same pass, with and without a known prefix, which both
    /// sequences share.
    fn backward_passes<B: TrackedBackend>() {
        for name in TINY {
            let plain = load::<B::InnerBackend>(&golden(&format!("tiny/{name}")));
            let mut ids = Golden::open(&format!("tiny/{name}/expected.safetensors")).ids("input_ids");
            let shared = ids[0][..3].to_vec();
            ids[1][..3].copy_from_slice(&shared);
            let x = plain.embed(ids_tensor(&ids, &plain.device()));
            for (known, count) in [(0, x.dims()[1]), (0, 3), (3, 3), (3, x.dims()[1] - 3)] {
                backward_pass::<B>(&plain, x.clone(), known, count).unwrap_or_else(|error| panic!("{name}, {known} known: {error}"));
            }
        }
    }

    fn backward_pass<B: TrackedBackend>(
        plain: &Llama<B::InnerBackend>,
        x: Tensor<B::InnerBackend, 3>,
        known: usize,
        count: usize,
    ) -> Result<(), String> {
        let [s, t, d] = x.dims();
        let mut prefix = Cache::new(plain.config().num_hidden_layers, 1);
        if known > 0 {
            prefix.grow(known);
            plain.hidden_cached(x.clone().slice([0..1, 0..known]).reshape([known, d]), &mut prefix, 1);
        }
        let own = |x: Tensor<B::InnerBackend, 3>| host(x.narrow(1, known, t - known));
        let (hidden, trace) = plain.trace(x.clone().narrow(1, known, t - known), &prefix, count);
        let tracked = <Llama<B> as AutodiffModule<B>>::from_inner(plain.clone()).no_grad();
        let leaf = Tensor::<B, 3>::from_inner(x).require_grad();
        let output = tracked.hidden(leaf.clone(), count);
        let gradients = output.clone().powi_scalar(3).sum().backward();
        let found = plain.backward(hidden.clone().powi_scalar(2) * 3.0, trace);
        for (expected, found) in [(host(output.inner()), host(hidden)), (own(leaf.grad(&gradients).unwrap()), host(found))] {
            let scale = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            let difference = crate::testing::largest_difference(&expected, &found);
            if expected.len() != found.len() || difference > 1e-5 * scale {
                return Err(format!("{difference} of {scale} in {s} sequences"));
            }
        }
        Ok(())
    }

    each_tracked_cpu_backend!(backward_passes);
}
