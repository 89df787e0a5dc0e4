//! The objective of a batch of prompts, and its gradient with respect to their embeddings.

use std::ops::Range;

use burn::module::{AutodiffModule, Module};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor, TensorData};

use super::{Subject, assemble, repeat, with_fed};
use crate::model::{Cache, Llama};
use crate::objective::Objective;
use crate::ops::{Kernels, Matrix, Parallel, Plain, Products, TargetLoss, TrackedBackend};
use crate::problem::{Example, Problem};
use crate::subject::feeding::{Fed, Output, free_running};
use crate::tensor::{data, host, ids_tensor};

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

/// What passes there and back are asked for.
#[derive(Clone, Copy)]
struct Ask<'a> {
    objective: Objective,
    /// What each target position counts for in the gradient besides its weight, where the targets' own are fed: of all examples `[Σ M]`, of
    /// one `[M]`.
    emphasis: Option<&'a [f32]>,
    /// By which products, but for distributions that are fed back.
    products: Products,
    /// How far target tokens are ahead, where the targets' own are fed.
    margins: bool,
}

impl Ask<'_> {
    /// The objective by full products, without margins.
    fn plain(objective: Objective) -> Self {
        Self { objective, emphasis: None, products: Products::Full, margins: false }
    }
}

/// What a pass there and back brought of some samples on one example.
struct Passed<B: Kernels> {
    /// Of the target positions, sample by sample, `[S·M]`.
    losses: Vec<f64>,
    /// How far their tokens are ahead, `[S·M]`, where that is asked.
    margins: Vec<f32>,
    /// Of the example's objective with its emphasis, the mean over all samples of the pass, with respect to the free parts, `[S·N, D]`.
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
}

/// What passes there and back brought of S samples on all examples.
struct Passes<B: Kernels> {
    objective: Objective,
    samples: usize,
    of_examples: Vec<Passed<B>>,
}

impl<B: Kernels> Passes<B> {
    /// The objective, its mean over samples and examples.
    fn value(&self) -> f64 {
        self.values().iter().sum::<f64>() / self.samples as f64
    }

    /// The objective of each sample, its mean over the examples, `[S]`.
    fn values(&self) -> Vec<f64> {
        let of_example = |losses: &[f64], sample| self.objective.of_target(of_sample(losses, sample, self.samples));
        let of_examples = |sample| self.of_examples.iter().map(|passed| of_example(&passed.losses, sample)).sum::<f64>();
        (0..self.samples).map(|sample| of_examples(sample) / self.of_examples.len() as f64).collect()
    }

    /// How far each target token is ahead, `[S][Σ M]`, the examples' one after another.
    fn margins(&self) -> Vec<Vec<f32>> {
        let of_examples = |sample| self.of_examples.iter().flat_map(move |passed| of_sample(&passed.margins, sample, self.samples));
        (0..self.samples).map(|sample| of_examples(sample).copied().collect()).collect()
    }

    /// The gradient of [`Self::value`] with the emphasis that was asked for, `[S·N, D]`.
    fn gradient(self) -> Tensor<B, 2> {
        let examples = self.of_examples.len();
        let sum = self.of_examples.into_iter().map(|passed| passed.gradient).reduce(|a, b| a + b).expect("a problem has an example");
        if examples == 1 { sum } else { sum / examples as f64 }
    }
}

/// The numbers of one of S samples.
fn of_sample<T>(numbers: &[T], sample: usize, samples: usize) -> &[T] {
    let m = numbers.len() / samples;
    &numbers[sample * m..(sample + 1) * m]
}

impl<B: TrackedBackend> Subject<B> {
    /// The objective of free parts `[S·N, D]`, its mean over samples and examples, and its gradient with respect to them, `[S·N, D]`. No
    /// gradient of a weight is computed.
    pub fn value_and_gradient(&self, free: Matrix<B>, problem: &Problem, objective: Objective, fed: &Fed<Plain<B>>) -> (f64, Matrix<B>) {
        let passes = self.passes(Ask::plain(objective), free, problem, fed);
        (passes.value(), passes.gradient())
    }

    /// The same gradient, and the objective of each sample in place of their mean, `[S]`.
    pub fn values_and_gradient(
        &self,
        free: Matrix<B>,
        problem: &Problem,
        objective: Objective,
        fed: &Fed<Plain<B>>,
    ) -> (Vec<f64>, Matrix<B>) {
        let passes = self.passes(Ask::plain(objective), free, problem, fed);
        (passes.values(), passes.gradient())
    }

    /// The targets' own tokens fed: how far each target token is ahead of the best other one behind each free part of `[S·N, D]`,
    /// `[S][Σ M]`, the examples' one after another; the mean objective, and its gradient.
    pub fn margins_and_gradient(&self, free: Matrix<B>, problem: &Problem, objective: Objective) -> (Vec<Vec<f32>>, f64, Matrix<B>) {
        let passes = self.passes(Ask { margins: true, ..Ask::plain(objective) }, free, problem, &Fed::Target);
        (passes.margins(), passes.value(), passes.gradient())
    }

    /// The gradient of the objective at one hard prompt under teacher forcing with respect to the embeddings of the free part, `[N, D]`, by
    /// such products; each target position counts for its emphasis, `[Σ M]`, where it has one.
    pub fn gradient(
        &self,
        free: &[u32],
        problem: &Problem,
        objective: Objective,
        emphasis: Option<&[f32]>,
        products: Products,
    ) -> Matrix<B> {
        let embedded = self.embed(&[free]).reshape([free.len(), self.plain.config().hidden_size]);
        self.passes(Ask { emphasis, products, ..Ask::plain(objective) }, embedded, problem, &Fed::Target).gradient()
    }

    /// A pass there and back for each example.
    fn passes(&self, ask: Ask, free: Matrix<B>, problem: &Problem, fed: &Fed<Plain<B>>) -> Passes<Plain<B>> {
        let (n, mut emphasis) = (problem.prompt.tokens(), ask.emphasis);
        let pass = |example: &Example| {
            let m = example.target.ids.len();
            let own = emphasis.as_mut().map(|rest| rest.split_off(..m).expect("each target position has an emphasis"));
            self.pass(Ask { emphasis: own, ..ask }, free.clone(), n, example, fed)
        };
        let of_examples = problem.examples.iter().map(pass).collect();
        Passes { objective: ask.objective, samples: free.dims()[0] / n, of_examples }
    }

    fn pass(&self, ask: Ask, free: Matrix<B>, n: usize, example: &Example, fed: &Fed<Plain<B>>) -> Passed<Plain<B>> {
        match fed {
            Fed::Target => self.forced_pass(ask, free, n, example, std::slice::from_ref(&example.target.ids)),
            // The gradient does not pass through a token: that of a pass which is fed what the model wrote is the same.
            Fed::Own(Output::Argmax) => {
                let prompts = self.relaxed_prompts(free.clone(), n, example);
                let written = self.free(prompts, example.target.ids.len());
                self.forced_pass(ask, free, n, example, &written)
            }
            Fed::Own(output) => self.fed_back_pass(ask.objective, free, n, example, output),
        }
    }

    /// Fed these tokens, one sequence for all samples or one for each: the model's own backward pass, groups of samples side by side.
    fn forced_pass(&self, ask: Ask, free: Matrix<B>, n: usize, example: &Example, fed: &[Vec<u32>]) -> Passed<Plain<B>> {
        let Samples { count, positions, weight, prefix } = self.samples(free.dims()[0] / n, example, ask.objective);
        self.charge(count * positions, count * positions, count * example.target.ids.len() * (1 + usize::from(ask.margins)));
        let ((groups, at_once), d) = (self.groups(count, positions), free.dims()[1]);
        let model = self.plain.by(ask.products);
        let jobs = groups.into_iter().map(|samples| {
            let (model, prefix, free) = (model.clone(), prefix.clone(), free.clone().narrow(0, samples.start * n, samples.len() * n));
            let fed = if fed.len() == 1 { fed } else { &fed[samples.clone()] };
            move || group_pass(&model, &prefix, free.reshape([samples.len(), n, d]), example, ask, weight, fed)
        });
        Passed::joined(Plain::<B>::side_by_side(jobs.collect(), at_once))
    }

    /// Fed what the model writes, as a distribution: Burn's graph, through every token that was fed back.
    fn fed_back_pass(
        &self,
        objective: Objective,
        free: Matrix<B>,
        n: usize,
        example: &Example,
        output: &Output<Plain<B>>,
    ) -> Passed<Plain<B>> {
        let m = example.target.ids.len();
        let Samples { count, positions, weight, prefix } = self.samples(free.dims()[0] / n, example, objective);
        self.charge(count * positions, count * positions, count * (2 * m - 1));
        let model = <Llama<B> as AutodiffModule<B>>::from_inner(self.plain.clone()).no_grad();
        let of_samples = |samples: Range<usize>| {
            let leaf = Tensor::<B, 2>::from_inner(free.clone().narrow(0, samples.start * n, samples.len() * n)).require_grad();
            let d = leaf.dims()[1];
            let prompts = assemble(&model, leaf.clone().reshape([samples.len(), n, d]), &[], example.tail());
            let cache = Cache::<B>::from_inner(prefix.repeated(samples.len()));
            let output = output.of_samples(samples.clone(), m - 1, &self.plain).tracked::<B>();
            let hidden = free_running(&model, prompts, cache, m, &output);
            let targets = repeat::<Plain<B>>(&example.target.ids, samples.len(), &self.device());
            let TargetLoss { losses, hidden: of_loss } =
                Plain::<B>::target_loss(hidden.clone().inner(), self.plain.head(), targets, objective);
            let (slope, scale) = slope(by_share(of_loss, &losses, objective, samples.len()), weight, self.plain.dtype());
            let mut graph = B::track_loss(hidden, 0.0, slope).backward();
            let gradient = leaf.grad_remove(&mut graph).expect("the prompt is tracked") / scale;
            Passed { losses: data(losses).iter().collect(), margins: Vec::new(), gradient }
        };
        Passed::joined(together(count).map(of_samples).collect())
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
            let (model, cache) = (self.plain.clone(), prefix.repeated(samples.len()));
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
        losses.into_iter().flatten().collect()
    }

    /// Groups of samples of so many positions to be computed side by side, and how many of them at once.
    pub(super) fn groups(&self, count: usize, positions: usize) -> (Vec<Range<usize>>, usize) {
        let groups = group_count::<Plain<B>>(count, positions, self.max_rows);
        let samples = (0..groups).map(|group| group * count / groups..(group + 1) * count / groups);
        (samples.collect(), self.max_rows / (count.div_ceil(groups) * positions))
    }

    /// What a pass over `count` samples has in common.
    fn samples(&self, count: usize, example: &Example, objective: Objective) -> Samples<Plain<B>> {
        let m = example.target.ids.len();
        Samples {
            count,
            positions: example.positions_behind_head(),
            weight: objective.weight(m) / count as f64,
            prefix: self.prefix(example.head()),
        }
    }
}

/// Groups that samples of so many positions are divided into; none has more than `max_rows` rows, if one sample has not.
pub(super) fn group_count<B: Parallel>(samples: usize, positions: usize, max_rows: usize) -> usize {
    let whole_samples = (max_rows / positions).max(1) * positions;
    B::groups(samples * positions, SAMPLE_ROWS, whole_samples).min(samples)
}

/// Samples that are decoded token by token at once. Reading the weights takes longest then, so they share that; a fixed number, so that
/// results do not depend on the memory there is.
pub(super) const TOGETHER: usize = 8;

/// The samples in parts of so many.
pub(super) fn together(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(TOGETHER).map(move |first| first..(first + TOGETHER).min(count))
}

/// A pass there and back of some samples by their free parts `[S, N, D]`; the gradient is that of the weighted sum of the losses.
fn group_pass<B: Kernels>(
    model: &Llama<B>,
    prefix: &Cache<B>,
    free: Tensor<B, 3>,
    example: &Example,
    ask: Ask,
    weight: f64,
    fed: &[Vec<u32>],
) -> Passed<B> {
    let ([samples, n, d], target) = (free.dims(), &example.target.ids);
    let input = with_fed(model, assemble(model, free, &[], example.tail()), fed);
    let positions = input.dims()[1];
    let (hidden, trace) = model.trace(input, prefix, target.len());
    let targets = repeat::<B>(target, samples, &model.device());
    let margins = if ask.margins { host(model.margins(hidden.clone(), targets.clone())) } else { Vec::new() };
    let TargetLoss { losses, hidden } = B::target_loss(hidden, model.head(), targets, ask.objective);
    let hidden = by_share(hidden, &losses, ask.objective, samples);
    let hidden = match ask.emphasis {
        Some(emphasis) => emphasised(hidden, emphasis, samples),
        None => hidden,
    };
    let (slope, scale) = slope(hidden, weight, model.dtype());
    let gradient = model.backward(slope, trace).reshape([samples, positions, d]);
    let gradient = gradient.narrow(1, 0, n).reshape([samples * n, d]).cast(losses.dtype()) / scale;
    Passed { losses: data(losses).iter().collect(), margins, gradient }
}

/// The gradient of the hidden states `[S·M, D]` of S samples with these losses at their target positions, `[S·M]`, each counting for its share
/// in the objective of its sample, 1 on the average.
fn by_share<B: Kernels>(hidden: Tensor<B, 2>, losses: &Tensor<B, 1>, objective: Objective, samples: usize) -> Tensor<B, 2> {
    if objective.adds_up() {
        return hidden;
    }
    let [rows] = losses.dims();
    let m = rows / samples;
    let shares = softmax(losses.clone().reshape([samples, m]), 1) * m as f64;
    hidden * shares.reshape([rows, 1])
}

/// The gradient of the hidden states `[S·M, D]` of S samples, each target position counting for its emphasis, `[M]`.
fn emphasised<B: Kernels>(hidden: Tensor<B, 2>, emphasis: &[f32], samples: usize) -> Tensor<B, 2> {
    let rows = emphasis.repeat(samples);
    let like = (&hidden.device(), hidden.dtype());
    let rows = Tensor::from_data(TensorData::new(rows, [samples * emphasis.len(), 1]), like);
    hidden * rows
}

/// The gradient of hidden states, weighted, in the model's type, and what the gradient of the prompt must be divided by: those of a mean
/// may be too small for half precision. A power of two changes nothing else.
pub(super) fn slope<B: Kernels>(hidden: Tensor<B, 2>, weight: f64, dtype: DType) -> (Tensor<B, 2>, f64) {
    let scale = weight.recip().log2().floor().exp2();
    ((hidden * (weight * scale)).cast(dtype), scale)
}

/// The objective of each sample on one example, `[S]`, behind `prompts` `[S, T, D]`, before which `cache` stands.
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
    let losses: Vec<f64> = data(losses).iter().collect();
    losses.chunks_exact(target.len()).map(|losses| objective.of_target(losses)).collect()
}

#[cfg(test)]
mod tests {
    //! A step of DLMI in half precision, against f32.

    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;
    use crate::ops::{Gumbel, SoftPrompt};
    use crate::testing::{Golden, TABLE_1, loaded, table_1_problem, tiny};

    const N: usize = 3;

    /// The gradients of Z and τ of one step, the model being of type `dtype`.
    fn gradients<B: Kernels>(dtype: DType, tau: f32, objective: Objective) -> [Vec<f32>; 2] {
        let (golden, problem) = (Golden::open(TABLE_1), table_1_problem(N, ""));
        let model = loaded::<B>(&mut tiny(), dtype);
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
        let prefix = Cache::new(model.config().num_hidden_layers, 1);
        let Passed { gradient, .. } = group_pass(
            &model,
            &prefix,
            soft.embeddings.clone().reshape([samples, N, model.config().hidden_size]),
            problem.first(),
            Ask::plain(objective),
            weight,
            std::slice::from_ref(&problem.first().target.ids),
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
