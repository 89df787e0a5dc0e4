//! The objective of a batch of prompts, and its gradient with respect to their embeddings.

use std::ops::Range;

use burn::module::{AutodiffModule, Module};
use burn::tensor::{DType, Tensor};

use super::{Plain, Subject, assemble, repeat, with_fed};
use crate::model::{Cache, Llama, LlamaConfig};
use crate::objective::Objective;
use crate::ops::{Kernels, Parallel, Products, TargetLoss, TrackedBackend};
use crate::problem::{Example, Problem};
use crate::subject::feeding::{Fed, Feedback, Feeding, Output, free_running};
use crate::tensor::{host, ids_tensor};

/// Rows of a group of samples, about: fewer are slow to multiply, more are slow to wait for.
pub(super) const SAMPLE_ROWS: usize = 128;

/// What a pass over some samples has in common.
struct Samples<B: Kernels> {
    /// S.
    count: usize,
    /// Positions of a sample that are pushed.
    positions: usize,
    /// Weight of a target position in the mean over the samples.
    weight: f64,
    /// Keys and values of the fixed tokens before the free ones.
    prefix: Cache<B>,
}

/// What a pass there and back brought of some samples.
struct Passed<B: Kernels> {
    /// Of each target position.
    losses: Vec<f64>,
    /// How far each target token is ahead, where that is asked.
    margins: Vec<f32>,
    /// With respect to the free parts, `[S·N, D]`.
    gradient: Tensor<B, 2>,
}

impl<B: Kernels> Passed<B> {
    fn joined(parts: Vec<Self>) -> Self {
        let (mut losses, mut margins, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            losses.extend(part.losses);
            margins.extend(part.margins);
            gradients.push(part.gradient);
        }
        Self { losses, margins, gradient: Tensor::cat(gradients, 0) }
    }

    /// The losses, to be summed in one part, and the gradient.
    fn summed(self) -> (Vec<Vec<f64>>, Tensor<B, 2>) {
        (vec![self.losses], self.gradient)
    }
}

impl<B: TrackedBackend> Subject<B> {
    /// The objective of a batch of free parts `[S·N, D]`, averaged over the samples and ready for `backward`, and its value.
    pub fn loss(&self, free: Tensor<B, 2>, problem: &Problem, objective: Objective, fed: &Fed<Plain<B>>) -> (Tensor<B, 1>, f64) {
        let (value, gradient) = self.value_and_gradient(free.clone().inner(), problem, objective, fed);
        (B::track_loss(free, value, gradient), value)
    }

    /// The same objective, its mean over the examples, and its gradient with respect to the free parts, `[S·N, D]`. No gradient of a weight
    /// is computed.
    pub fn value_and_gradient(
        &self,
        free: Tensor<Plain<B>, 2>,
        problem: &Problem,
        objective: Objective,
        fed: &Fed<Plain<B>>,
    ) -> (f64, Tensor<Plain<B>, 2>) {
        self.value_and_gradient_by(Products::Full, free, problem, objective, fed)
    }

    /// The same by such products, but for distributions that are fed back.
    fn value_and_gradient_by(
        &self,
        products: Products,
        free: Tensor<Plain<B>, 2>,
        problem: &Problem,
        objective: Objective,
        fed: &Fed<Plain<B>>,
    ) -> (f64, Tensor<Plain<B>, 2>) {
        let n = problem.prompt.tokens();
        let each = problem.examples.iter().map(|example| {
            let (parts, gradient) = self.of_example(products, free.clone(), n, example, objective, fed);
            let weight = objective.weight(example.target.ids.len()) / (free.dims()[0] / n) as f64;
            (parts.iter().map(|losses| losses.iter().sum::<f64>() * weight).sum::<f64>(), gradient)
        });
        let (value, gradient) = each.reduce(|a, b| (a.0 + b.0, a.1 + b.1)).expect("a problem has an example");
        match problem.examples.len() {
            1 => (value, gradient),
            many => (value / many as f64, gradient / many as f64),
        }
    }

    /// The same gradient, and the objective of each sample in place of their mean, `[S]`.
    pub fn values_and_gradient(
        &self,
        free: Tensor<Plain<B>, 2>,
        problem: &Problem,
        objective: Objective,
        fed: &Fed<Plain<B>>,
    ) -> (Vec<f64>, Tensor<Plain<B>, 2>) {
        let (n, examples) = (problem.prompt.tokens(), problem.examples.len() as f64);
        let (mut values, mut gradient) = (vec![0.0; free.dims()[0] / n], Tensor::zeros_like(&free));
        for example in &problem.examples {
            let (parts, of_example) = self.of_example(Products::Full, free.clone(), n, example, objective, fed);
            let (m, losses) = (example.target.ids.len(), parts.concat());
            for (value, losses) in values.iter_mut().zip(losses.chunks_exact(m)) {
                *value += losses.iter().sum::<f64>() * objective.weight(m) / examples;
            }
            gradient = gradient + of_example / examples;
        }
        (values, gradient)
    }

    /// The targets' own tokens fed: how far each target token is ahead of the best other one behind each free part of `[S·N, D]`,
    /// `[S][Σ M]`, the examples' one after another; the mean objective, and its gradient.
    pub fn margins_and_gradient(
        &self,
        free: Tensor<Plain<B>, 2>,
        problem: &Problem,
        objective: Objective,
    ) -> (Vec<Vec<f32>>, f64, Tensor<Plain<B>, 2>) {
        let (samples, examples) = (free.dims()[0] / problem.prompt.tokens(), problem.examples.len() as f64);
        let (mut margins, mut value, mut gradient) = (vec![Vec::new(); samples], 0.0, Tensor::zeros_like(&free));
        for example in &problem.examples {
            let m = example.target.ids.len();
            let passed = self.forced_gradient(
                Products::Full,
                free.clone(),
                problem.prompt.tokens(),
                example,
                objective,
                std::slice::from_ref(&example.target.ids),
                true,
            );
            margins.iter_mut().zip(passed.margins.chunks_exact(m)).for_each(|(all, next)| all.extend(next));
            value += passed.losses.iter().sum::<f64>() * objective.weight(m) / (samples as f64 * examples);
            gradient = gradient + passed.gradient / examples;
        }
        (margins, value, gradient)
    }

    /// The losses of all samples' target positions, in the parts in which they are summed, and the gradient of one example's objective.
    fn of_example(
        &self,
        products: Products,
        free: Tensor<Plain<B>, 2>,
        n: usize,
        example: &Example,
        objective: Objective,
        fed: &Fed<Plain<B>>,
    ) -> (Vec<Vec<f64>>, Tensor<Plain<B>, 2>) {
        match fed {
            Fed::Target => {
                self.forced_gradient(products, free, n, example, objective, std::slice::from_ref(&example.target.ids), false).summed()
            }
            // The gradient does not pass through a token: that of a pass which is fed what the model wrote is the same.
            Fed::Own(Output::Argmax) => {
                let prompts = self.relaxed_prompts(free.clone(), n, example);
                let written = self.free(prompts, example.target.ids.len());
                self.forced_gradient(products, free, n, example, objective, &written, false).summed()
            }
            Fed::Own(output) => self.fed_back_gradient(free, n, example, objective, output),
        }
    }

    /// Fed these tokens, one sequence for all samples or one for each: the model's own backward pass, groups of samples side by side.
    #[allow(clippy::too_many_arguments)]
    fn forced_gradient(
        &self,
        products: Products,
        free: Tensor<Plain<B>, 2>,
        n: usize,
        example: &Example,
        objective: Objective,
        fed: &[Vec<u32>],
        margins: bool,
    ) -> Passed<Plain<B>> {
        let Samples { count, positions, weight, prefix } = self.samples(free.dims()[0] / n, example, objective);
        self.charge(count * positions, count * positions, count * example.target.ids.len() * if margins { 2 } else { 1 });
        let ((groups, at_once), d) = (self.groups(count, positions), free.dims()[1]);
        let model = self.plain.by(products);
        let jobs = groups.into_iter().map(|samples| {
            let (model, prefix, free) = (model.clone(), prefix.clone(), free.clone().narrow(0, samples.start * n, samples.len() * n));
            let fed = if fed.len() == 1 { fed } else { &fed[samples.clone()] };
            move || group_gradient(&model, &prefix, free.reshape([samples.len(), n, d]), example, objective, weight, fed, margins)
        });
        Passed::joined(Plain::<B>::side_by_side(jobs.collect(), at_once))
    }

    /// Fed what the model writes, as a distribution: Burn's graph, through every token that was fed back.
    fn fed_back_gradient(
        &self,
        free: Tensor<Plain<B>, 2>,
        n: usize,
        example: &Example,
        objective: Objective,
        output: &Output<Plain<B>>,
    ) -> (Vec<Vec<f64>>, Tensor<Plain<B>, 2>) {
        let m = example.target.ids.len();
        let Samples { count, positions, weight, prefix } = self.samples(free.dims()[0] / n, example, objective);
        self.charge(count * positions, count * positions, count * (2 * m - 1));
        let model = <Llama<B> as AutodiffModule<B>>::from_inner(self.plain.clone()).no_grad();
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for samples in together(count) {
            let leaf = Tensor::<B, 2>::from_inner(free.clone().narrow(0, samples.start * n, samples.len() * n)).require_grad();
            let d = leaf.dims()[1];
            let prompts = assemble(&model, leaf.clone().reshape([samples.len(), n, d]), &[], example.tail());
            let cache = Cache::<B>::from_inner(prefix.fork(&vec![prefix.len(); samples.len()]));
            let output = output.of_samples(samples.clone(), m - 1, &self.plain).tracked::<B>();
            let hidden = free_running(&model, prompts, cache, m, &output);
            let targets = repeat::<Plain<B>>(&example.target.ids, samples.len(), &self.device());
            let of_loss = Plain::<B>::target_loss(hidden.clone().inner(), self.plain.head(), targets, objective);
            let (slope, scale) = slope(of_loss.hidden, weight, self.plain.dtype());
            let mut graph = B::track_loss(hidden, 0.0, slope).backward();
            losses.push(of_loss.losses.into_data().iter().collect());
            gradients.push(leaf.grad_remove(&mut graph).expect("the prompt is tracked") / scale);
        }
        (losses, Tensor::cat(gradients, 0))
    }

    /// The objective of each of some hard prompts, `[S]`, by the N free tokens of each; its mean over the examples.
    pub fn losses(&self, free: &[Vec<u32>], problem: &Problem, objective: Objective, fed: &Fed<Plain<B>>) -> Vec<f64> {
        let mut sums = vec![0.0; free.len()];
        for example in &problem.examples {
            sums.iter_mut().zip(self.example_losses(free, example, objective, fed)).for_each(|(sum, loss)| *sum += loss);
        }
        sums.into_iter().map(|sum| sum / problem.examples.len() as f64).collect()
    }

    /// [`Self::losses`] of one example.
    fn example_losses(&self, free: &[Vec<u32>], example: &Example, objective: Objective, fed: &Fed<Plain<B>>) -> Vec<f64> {
        let m = example.target.ids.len();
        let Samples { count, positions, prefix, .. } = self.samples(free.len(), example, objective);
        self.charge(count * positions, 0, count * (m + if matches!(fed, Fed::Target) { 0 } else { m - 1 }));
        let (groups, at_once) = match fed {
            Fed::Target => self.groups(count, positions),
            Fed::Own(_) => (together(count).collect(), 1),
        };
        let jobs = groups.into_iter().map(|samples| {
            let (model, cache) = (self.plain.clone(), prefix.fork(&vec![prefix.len(); samples.len()]));
            let tokens = ids_tensor(&free[samples.clone()], &self.device());
            let fed = match fed {
                Fed::Target => Fed::Target,
                Fed::Own(output) => Fed::Own(output.of_samples(samples, m - 1, &self.plain)),
            };
            move || {
                let prompts = assemble(&model, model.embed(tokens), &[], example.tail());
                group_losses(&model, prompts, cache, &example.target.ids, objective, &fed)
            }
        });
        let losses = Plain::<B>::side_by_side(jobs.collect(), at_once);
        losses.into_iter().flatten().map(|loss| loss * objective.weight(m)).collect()
    }

    /// Groups of samples of so many positions to be computed side by side, and how many of them at once.
    pub(super) fn groups(&self, count: usize, positions: usize) -> (Vec<Range<usize>>, usize) {
        let groups = Plain::<B>::groups(count * positions, SAMPLE_ROWS, self.max_rows).min(count);
        let samples = (0..groups).map(|group| group * count / groups..(group + 1) * count / groups);
        (samples.collect(), self.max_rows / (count.div_ceil(groups) * positions))
    }

    /// What a pass over `count` samples has in common.
    fn samples(&self, count: usize, example: &Example, objective: Objective) -> Samples<Plain<B>> {
        let m = example.target.ids.len();
        Samples {
            count,
            positions: example.len() - example.head().len() + m - 1,
            weight: objective.weight(m) / count as f64,
            prefix: self.prefix(example.head()),
        }
    }

    /// The objective at one hard prompt under teacher forcing, and its gradient with respect to the embeddings of the free part, `[N, D]`,
    /// by such products.
    pub fn gradient(&self, free: &[u32], problem: &Problem, objective: Objective, products: Products) -> (f64, Tensor<Plain<B>, 2>) {
        let embedded = self.embed(&[free]).reshape([free.len(), self.plain.config().hidden_size]);
        self.value_and_gradient_by(products, embedded, problem, objective, &Fed::Target)
    }
}

/// How many numbers a row of a pass keeps for the backward pass, in all layers.
pub(super) fn trace_numbers(config: &LlamaConfig) -> usize {
    let before_norm = if config.query_key_norm { config.num_attention_heads + config.num_key_value_heads } else { 0 };
    let heads = (config.num_attention_heads + 2 * config.num_key_value_heads + before_norm) * config.head_dim;
    config.num_hidden_layers * (2 * config.hidden_size + heads + 2 * config.intermediate_size)
}

/// As many rows of [`trace_numbers`] as `samples` samples keep of so many positions each, M of them the target's. Where distributions are
/// fed that is, besides the positions, the keys and values of all positions so far once for each of M tokens, in the cache and in
/// the heads that looked at them, and each token's logits and noise.
pub(super) fn rows_kept(config: &LlamaConfig, feeding: Feeding, samples: usize, positions: usize, m: usize) -> usize {
    let heads = config.num_key_value_heads * config.head_dim;
    let fed_back = m * (4 * config.num_hidden_layers * positions * heads + 2 * config.vocab_size);
    match feeding {
        Feeding::Forced => SAMPLE_ROWS.max(positions),
        Feeding::Free(Feedback::Hard) => SAMPLE_ROWS.max(TOGETHER.min(samples) * positions),
        Feeding::Free(_) => TOGETHER.min(samples) * (2 * positions + fed_back.div_ceil(trace_numbers(config))),
    }
}

/// Samples that are decoded token by token at once. Reading the weights takes longest then, so they share that; a fixed number, so that
/// results do not depend on the memory there is.
const TOGETHER: usize = 8;

/// The samples in parts of so many.
pub(super) fn together(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(TOGETHER).map(move |first| first..(first + TOGETHER).min(count))
}

/// The losses of some samples' target positions, their margins where those are asked, and the gradient of the weighted sum of the losses
/// with respect to the free parts `[S, N, D]`: `[S·N, D]`.
#[allow(clippy::too_many_arguments)]
fn group_gradient<B: Kernels>(
    model: &Llama<B>,
    prefix: &Cache<B>,
    free: Tensor<B, 3>,
    example: &Example,
    objective: Objective,
    weight: f64,
    fed: &[Vec<u32>],
    margins: bool,
) -> Passed<B> {
    let ([samples, n, d], target) = (free.dims(), &example.target.ids);
    let input = with_fed(model, assemble(model, free, &[], example.tail()), fed);
    let positions = input.dims()[1];
    let (hidden, trace) = model.trace(input, prefix, target.len());
    let targets = repeat::<B>(target, samples, &model.device());
    let margins = if margins { host(model.margins(hidden.clone(), targets.clone())) } else { Vec::new() };
    let TargetLoss { losses, hidden } = B::target_loss(hidden, model.head(), targets, objective);
    let (slope, scale) = slope(hidden, weight, model.dtype());
    let gradient = model.backward(slope, trace).reshape([samples, positions, d]);
    let gradient = gradient.narrow(1, 0, n).reshape([samples * n, d]).cast(losses.dtype()) / scale;
    Passed { losses: losses.into_data().iter().collect(), margins, gradient }
}

/// The gradient of hidden states, weighted, in the model's type, and what the gradient of the prompt must be divided by: those of a mean
/// may be too small for half precision. A power of two changes nothing else.
pub(super) fn slope<B: Kernels>(hidden: Tensor<B, 2>, weight: f64, dtype: DType) -> (Tensor<B, 2>, f64) {
    let scale = weight.recip().log2().floor().exp2();
    ((hidden * (weight * scale)).cast(dtype), scale)
}

/// Σ over the target positions of each sample's losses, `[S]`, behind `prompts` `[S, T, D]`, before which `cache` stands.
fn group_losses<B: Kernels>(
    model: &Llama<B>,
    prompts: Tensor<B, 3>,
    mut cache: Cache<B>,
    target: &[u32],
    objective: Objective,
    fed: &Fed<B>,
) -> Vec<f64> {
    let samples = prompts.dims()[0];
    let hidden = match fed {
        Fed::Target => {
            let input = with_fed(model, prompts, &[target.to_vec()]);
            let [_, len, d] = input.dims();
            cache.grow(cache.len() + len);
            model.hidden_cached(input.reshape([samples * len, d]), &mut cache, target.len())
        }
        Fed::Own(output) => free_running(model, prompts, cache, target.len(), output),
    };
    let losses = B::target_loss(hidden, model.head(), repeat::<B>(target, samples, &model.device()), objective).losses;
    let losses: Vec<f64> = losses.into_data().iter().collect();
    losses.chunks_exact(target.len()).map(|losses| losses.iter().sum()).collect()
}

#[cfg(test)]
mod tests {
    //! A step of DLMI in half precision, against f32.

    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;
    use crate::ops::{Gumbel, SoftPrompt};
    use crate::testing::{Golden, TABLE_1, table_1_problem, tiny};

    const N: usize = 3;

    /// The gradients of Z and τ of one step, the model being of type `dtype`.
    fn gradients<B: Kernels>(dtype: DType, tau: f32, objective: Objective) -> [Vec<f32>; 2] {
        let (mut checkpoint, golden, problem) = (tiny(), Golden::open(TABLE_1), table_1_problem(N, ""));
        let config = checkpoint.config.clone();
        let model = Llama::<B>::load(&config, &mut checkpoint, &B::Device::default(), dtype).unwrap();
        let [_, samples, _, v] = golden.shape("noise")[..] else { panic!("noise is [steps, S, N, V]") };
        let matrix = |values: Vec<f32>, rows, columns| Tensor::from_data(TensorData::new(values, [rows, columns]), &model.device());
        let prompt = SoftPrompt {
            logits: matrix(golden.floats("z0"), N, v),
            temperature: matrix(vec![tau; N], N, 1),
            embedding: model.embed_tokens.val(),
            mask: None,
            noise: Gumbel::Given(matrix(golden.floats("noise")[..samples * N * v].to_vec(), samples * N, v)),
            samples,
        };
        let soft = B::soft_embedding(&prompt);
        // So small that multiplied by it the gradient would vanish in f16.
        let weight = 1e-6 * objective.weight(problem.first().target.ids.len());
        let prefix = Cache::new(config.num_hidden_layers, 1);
        let Passed { gradient, .. } = group_gradient(
            &model,
            &prefix,
            soft.embeddings.clone().reshape([samples, N, config.hidden_size]),
            problem.first(),
            objective,
            weight,
            std::slice::from_ref(&problem.first().target.ids),
            false,
        );
        let (logits, temperature) = B::soft_embedding_backward(&prompt, soft, gradient);
        [host(logits), host(temperature)]
    }

    /// ‖found − expected‖ / ‖expected‖ is within `bound`, and the type shows.
    fn near<B: Kernels>(dtype: DType, bound: f64) {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        for objective in [Objective::CrossEntropy, Objective::Hinge { margin: 0.3 }] {
            for tau in [1.0, 100.0] {
                let (found, expected) = (gradients::<B>(dtype, tau, objective), gradients::<Flex>(DType::F32, tau, objective));
                for (what, (found, expected)) in ["Z", "τ"].iter().zip(found.iter().zip(&expected)) {
                    assert_eq!(found.len(), expected.len());
                    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
                    assert!(0.0 < error && error < bound, "{what} of {objective:?} at {tau}: {error} in {dtype:?}");
                }
            }
        }
    }

    /// Bounds of [`near`]. The largest errors found were 6e-3 and 3.2e-2.
    const F16: f64 = 1.5e-2;
    const BF16: f64 = 8e-2;

    #[test]
    fn half_precision_gradients() {
        near::<Flex>(DType::F16, F16);
        near::<Flex>(DType::BF16, BF16);
    }
}
