//! The frozen model as the methods see it. It counts every position that it is asked for.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::model::generate::{argmax, host, ids_tensor};
use crate::model::{Cache, Generation, Llama, LlamaConfig, greedy};
use crate::objective::Objective;
use crate::ops::{Kernels, TargetLoss, TrackedBackend, beside, blocks};
use crate::prompt::Prompt;
use crate::target::Target;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What was asked of the model, in positions, cached ones not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Positions pushed through the layers.
    pub forward_tokens: u64,
    /// Positions through which an input gradient was pulled.
    pub backward_tokens: u64,
    /// Rows multiplied by the LM head.
    pub head_rows: u64,
}

/// A prompt to find and the target it must lead to.
#[derive(Debug, Clone)]
pub struct Problem {
    /// x: what may be varied.
    pub prompt: Prompt,
    /// y.
    pub target: Target,
}

/// One token of a prompt replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Swap {
    /// Position in the whole prompt.
    pub position: usize,
    /// What stands there instead.
    pub token: u32,
}

/// A prompt's neighbours by one swap each, scored along the target a part at a time. What they share is computed once in each group
/// of them; the groups are computed side by side.
pub struct Neighbours<'a, B: TrackedBackend> {
    subject: &'a Subject<B>,
    prompt: &'a [u32],
    target: &'a [u32],
    groups: Vec<Group<Plain<B>>>,
    /// Target tokens scored so far.
    scored: usize,
}

/// Some neighbours and their keys and values.
struct Group<B: Kernels> {
    model: Llama<B>,
    /// (number among all neighbours still kept, what it swaps).
    swaps: Vec<(usize, Swap)>,
    /// Positions of the prompt that were known before.
    known: usize,
    cache: Cache<B>,
}

impl<B: TrackedBackend> Neighbours<'_, B> {
    /// How far each of the next `count` target tokens is ahead of the best other one, `[swaps][count]`, the target's own tokens fed.
    pub fn margins(&mut self, count: usize) -> Vec<Vec<f32>> {
        let (prompt, target, scored) = (self.prompt, self.target, self.scored);
        let jobs = self.groups.iter_mut().map(|group| move || group.margins(prompt, target, scored..scored + count));
        let (mut all, mut pushed) = (Vec::new(), 0);
        for (rows, margins) in Plain::<B>::side_by_side(jobs.collect(), usize::MAX) {
            pushed += rows;
            all.extend(margins);
        }
        self.subject.charge(pushed, 0, all.len() * count);
        self.scored += count;
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, margins)| margins).collect()
    }

    /// Keeps the neighbours for which `keep` is true.
    pub fn retain(&mut self, keep: &[bool]) {
        let kept_before: Vec<usize> = keep.iter().scan(0, |kept, &keep| Some(std::mem::replace(kept, *kept + usize::from(keep)))).collect();
        for group in &mut self.groups {
            let mask: Vec<bool> = group.swaps.iter().map(|(number, _)| keep[*number]).collect();
            group.cache.retain(&mask);
            group.swaps.retain(|(number, _)| keep[*number]);
            group.swaps.iter_mut().for_each(|(number, _)| *number = kept_before[*number]);
        }
        self.groups.retain(|group| !group.swaps.is_empty());
    }
}

impl<B: Kernels> Group<B> {
    /// Rows pushed through the layers, and the margins at the target tokens `next` of each neighbour, by number.
    fn margins(&mut self, prompt: &[u32], target: &[u32], next: Range<usize>) -> (usize, Vec<(usize, Vec<f32>)>) {
        let fed = &target[next.start.saturating_sub(1)..next.end - 1];
        let mut ids = Vec::new();
        if next.start == 0 {
            let trunk = self.swaps.iter().map(|(_, swap)| swap.position).max().unwrap_or(0);
            ids.extend(&prompt[self.known..trunk]);
        }
        for (_, swap) in &self.swaps {
            if next.start == 0 {
                ids.push(swap.token);
                ids.extend(&prompt[swap.position + 1..]);
            }
            ids.extend(fed);
        }
        self.cache.grow(prompt.len() + next.end - 1);
        let device = self.model.device();
        let rows = self.model.embed(ids_tensor(&[&ids], &device)).reshape([ids.len(), self.model.config().hidden_size]);
        let hidden = self.model.hidden_cached(rows, &mut self.cache, next.len());
        let targets = repeat::<B>(&target[next.clone()], self.swaps.len(), &device);
        let margins = host(B::margins(hidden, self.model.head(), targets));
        let numbers = self.swaps.iter().map(|(number, _)| *number);
        (ids.len(), numbers.zip(margins.chunks_exact(next.len()).map(<[f32]>::to_vec)).collect())
    }
}

/// Rows of a group of samples, about: fewer are slow to multiply, more are slow to wait for.
const SAMPLE_ROWS: usize = 128;

/// Rows of a group of swaps, about: each group computes its trunk by itself.
const SWAP_ROWS: usize = 256;

type Plain<B> = <B as burn::tensor::backend::AutodiffBackend>::InnerBackend;
type Matrix<B> = Tensor<Plain<B>, 2>;

/// The frozen model with its tokenizer.
pub struct Subject<B: TrackedBackend> {
    plain: Llama<Plain<B>>,
    tokenizer: Tokenizer,
    /// ‖E_v‖², `[1, V]`, once it was asked for.
    norms: OnceCell<Tensor<Plain<B>, 2>>,
    /// Keys and values of the tokens that stood before the free ones last time.
    prefix: RefCell<(Vec<u32>, Cache<Plain<B>>)>,
    /// Rows of a pass that may be alive at once.
    most: usize,
    cost: Cell<Cost>,
}

impl<B: TrackedBackend> Subject<B> {
    /// Takes a loaded model.
    pub fn new(plain: Llama<Plain<B>>, tokenizer: Tokenizer) -> Self {
        let prefix = RefCell::new((Vec::new(), Cache::new(plain.config().num_hidden_layers, 1)));
        Self { plain, tokenizer, norms: OnceCell::new(), prefix, most: usize::MAX, cost: Cell::default() }
    }

    /// Keeps weights and a step on `problem` within `mib` MiB, by computing less at once.
    ///
    /// # Errors
    /// That is too little for a single sample.
    pub fn within(mut self, mib: Option<u64>, problem: &Problem) -> Result<Self> {
        let Some(mib) = mib else { return Ok(self) };
        let (config, positions) = (self.plain.config(), problem.prompt.len() + problem.target.ids.len());
        let width = self.plain.dtype().size();
        let row = width * trace_numbers(config);
        // Old and new Z and its moments, its gradient, and buffers as wide as the vocabulary.
        let fixed = width * config.parameters() + 4 * 7 * problem.prompt.tokens() * config.vocab_size + (128 << 20);
        let least = (fixed + SAMPLE_ROWS.max(positions) * row).div_ceil(1 << 20) as u64;
        if mib < least {
            return Err(Error::input(format!("--max-memory: {mib} MiB are too few, this model and prompt need {least}; allow more")));
        }
        self.most = (((mib << 20) as usize - fixed) / row).max(1);
        Ok(self)
    }

    /// The model on the backend without gradients.
    pub fn model(&self) -> &Llama<Plain<B>> {
        &self.plain
    }

    /// The model's own copy when it lives on the CPU backend that confirms results.
    pub fn as_flex(&self) -> Option<Llama<Flex>> {
        (&self.plain as &dyn Any).downcast_ref::<Llama<Flex>>().cloned()
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// V.
    pub fn vocab_size(&self) -> usize {
        self.plain.config().vocab_size
    }

    /// Where it lives.
    pub fn device(&self) -> B::Device {
        self.plain.device()
    }

    /// What has been asked so far.
    pub fn cost(&self) -> Cost {
        self.cost.get()
    }

    /// Sets the count, when a run goes on from a checkpoint.
    pub fn set_cost(&self, cost: Cost) {
        self.cost.set(cost);
    }

    /// Charges work that was done elsewhere on this model's behalf.
    pub fn charge(&self, forward: usize, backward: usize, head: usize) {
        let mut cost = self.cost.get();
        cost.forward_tokens += forward as u64;
        cost.backward_tokens += backward as u64;
        cost.head_rows += head as u64;
        self.cost.set(cost);
    }

    /// Computes what all steps on `problem` share.
    pub fn prepare(&self, problem: &Problem) {
        self.prefix(problem.prompt.head());
    }

    /// Keys and values of the fixed tokens before the free ones; computed when they are other than last time.
    fn prefix(&self, head: &[u32]) -> Cache<Plain<B>> {
        if head.is_empty() {
            return Cache::new(self.plain.config().num_hidden_layers, 1);
        }
        let mut known = self.prefix.borrow_mut();
        if known.0 != head {
            let mut cache = Cache::new(self.plain.config().num_hidden_layers, 1);
            self.charge(head.len(), 0, 0);
            cache.grow(head.len());
            let rows = self.embed(&[head]).reshape([head.len(), self.plain.config().hidden_size]);
            self.plain.hidden_cached(rows, &mut cache, 1);
            *known = (head.to_vec(), cache);
        }
        known.1.clone()
    }

    /// Embeddings of hard prompts of equal length, `[S, T, D]`.
    pub fn embed(&self, prompts: &[impl AsRef<[u32]>]) -> Tensor<Plain<B>, 3> {
        self.plain.embed(ids_tensor(prompts, &self.device()))
    }

    /// Normalised hidden states `[S·M, D]` that predict the target after `prompts` `[S, T, D]`, the target's own tokens fed.
    fn target_states(&self, prompts: Tensor<Plain<B>, 3>, target: &[u32]) -> Tensor<Plain<B>, 2> {
        let [samples, t, _] = prompts.dims();
        let rows = target.len();
        self.charge(samples * (t + rows - 1), 0, samples * rows);
        self.plain.hidden(with_target(&self.plain, prompts, target), rows)
    }

    /// How far each target token is ahead of the best other one, `[S][M]`, the target's own tokens fed.
    pub fn margins(&self, prompts: &[impl AsRef<[u32]>], target: &[u32]) -> Vec<Vec<f32>> {
        let hidden = self.target_states(self.embed(prompts), target);
        let targets = repeat::<Plain<B>>(target, prompts.len(), &self.device());
        let margins = host(Plain::<B>::margins(hidden, self.plain.head(), targets));
        margins.chunks_exact(target.len()).map(<[f32]>::to_vec).collect()
    }

    /// `prompt` with one token swapped at a time, behind its first `fixed` tokens, which no swap touches; to be scored along `target`.
    pub fn neighbours<'a>(&'a self, prompt: &'a [u32], fixed: usize, swaps: &[Swap], target: &'a [u32]) -> Neighbours<'a, B> {
        let prefix = self.prefix(&prompt[..fixed]);
        // Dealt by position, so that the groups have about the same number of rows.
        let mut order: Vec<(usize, Swap)> = swaps.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, swap)| swap.position);
        let rows: usize = swaps.iter().map(|swap| prompt.len() - swap.position + target.len() / 2).sum();
        let count = Plain::<B>::groups(rows, SWAP_ROWS, self.most).min(swaps.len());
        let groups = (0..count).map(|first| {
            let swaps: Vec<(usize, Swap)> = order.iter().copied().skip(first).step_by(count).collect();
            let starts: Vec<usize> = swaps.iter().map(|(_, swap)| swap.position).collect();
            Group { model: self.plain.clone(), swaps, known: fixed, cache: prefix.fork(&starts) }
        });
        Neighbours { subject: self, prompt, target, groups: groups.collect(), scored: 0 }
    }

    /// The model's argmax at every target position, `[S][M]`, the target's own tokens fed.
    pub fn forced(&self, prompts: Tensor<Plain<B>, 3>, target: &[u32]) -> Vec<Vec<u32>> {
        let hidden = self.target_states(prompts, target);
        let logits = host(self.plain.logits(hidden));
        let ids: Vec<u32> = logits.chunks_exact(self.vocab_size()).map(|row| argmax(row).0).collect();
        ids.chunks_exact(target.len()).map(<[u32]>::to_vec).collect()
    }

    /// What the model writes by itself after `prompts` `[S, T, D]`.
    pub fn free(&self, prompts: Tensor<Plain<B>, 3>, tokens: usize) -> Generation {
        let [samples, t, _] = prompts.dims();
        self.charge(samples * (t + tokens - 1), 0, samples * tokens);
        greedy(&self.plain, prompts, tokens, &[])
    }

    /// Head, free part `[S·N, D]` and tail as one batch of prompts `[S, T, D]`.
    pub fn relaxed_prompts(&self, free: Tensor<Plain<B>, 2>, prompt: &Prompt) -> Tensor<Plain<B>, 3> {
        let [rows, d] = free.dims();
        let free = free.reshape([rows / prompt.tokens(), prompt.tokens(), d]);
        assemble(&self.plain, free, prompt.head(), prompt.tail())
    }

    /// The objective of a batch of free parts `[S·N, D]` under teacher forcing, averaged over the samples and ready for
    /// `backward`, and its value.
    pub fn loss(&self, free: Tensor<B, 2>, problem: &Problem, objective: Objective) -> (Tensor<B, 1>, f64) {
        let (value, gradient) = self.value_and_gradient(free.clone().inner(), problem, objective);
        (B::track_loss(free, value, gradient), value)
    }

    /// The same objective and its gradient with respect to the free parts, `[S·N, D]`: the model's own way back, which computes no
    /// gradient of a weight, groups of samples side by side. The gradient is [`crate::ops::wide`].
    pub fn value_and_gradient(&self, free: Tensor<Plain<B>, 2>, problem: &Problem, objective: Objective) -> (f64, Tensor<Plain<B>, 2>) {
        let (prompt, target) = (&problem.prompt, &problem.target.ids);
        let (n, samples) = (prompt.tokens(), free.dims()[0] / prompt.tokens());
        let prefix = self.prefix(prompt.head());
        let positions = prompt.len() - prompt.head().len() + target.len() - 1;
        self.charge(samples * positions, samples * positions, samples * target.len());
        let weight = objective.weight(target.len()) / samples as f64;
        let groups = Plain::<B>::groups(samples * positions, SAMPLE_ROWS, self.most).min(samples);
        let at_once = self.most / (samples.div_ceil(groups) * positions);
        let jobs = (0..groups).map(|group| {
            let (first, end) = (group * samples / groups, (group + 1) * samples / groups);
            let (model, prefix, free) = (self.plain.clone(), prefix.clone(), free.clone().narrow(0, first * n, (end - first) * n));
            move || group_gradient(&model, &prefix, free, problem, objective, weight)
        });
        let (losses, gradients): (Vec<Vec<f64>>, Vec<_>) = Plain::<B>::side_by_side(jobs.collect(), at_once).into_iter().unzip();
        (losses.iter().flatten().sum::<f64>() * weight, Tensor::cat(gradients, 0))
    }

    /// The objective at one hard prompt and its gradient with respect to the embeddings of the free part, `[N, D]`.
    pub fn gradient(&self, free: &[u32], problem: &Problem, objective: Objective) -> (f64, Tensor<Plain<B>, 2>) {
        let d = self.plain.config().hidden_size;
        self.value_and_gradient(self.embed(&[free]).reshape([free.len(), d]), problem, objective)
    }

    /// How promising each swap of one free token is, `[N, V]`, lowest first: the change predicted by the gradient `[N, D]` over
    /// the squared length of the jump, g·(E_v − E_x) / ‖E_v − E_x‖².
    pub fn swap_order(&self, free: &[u32], gradient: Tensor<Plain<B>, 2>) -> Vec<f32> {
        let embedding = self.plain.embed_tokens.val();
        let dtype = gradient.dtype();
        let current = self.embed(&[free]).reshape([free.len(), self.plain.config().hidden_size]).cast(dtype);
        let all = |f: &dyn Fn(Matrix<B>) -> Matrix<B>| beside(blocks(&embedding, dtype).map(|(_, rows)| f(rows)).collect());
        let along = |x: Matrix<B>| all(&|rows| Plain::<B>::matmul(x.clone(), rows.transpose()));
        let change = along(gradient.clone()) - (gradient * current.clone()).sum_dim(1);
        let norms = self.norms.get_or_init(|| all(&|rows| rows.powi_scalar(2).sum_dim(1).transpose())).clone();
        let own = current.clone().powi_scalar(2).sum_dim(1);
        let distance = along(current) * -2.0 + norms + own;
        host(change / distance.clamp_min(1e-3))
    }
}

/// How many numbers a row of a pass keeps for the way back, in all layers.
fn trace_numbers(config: &LlamaConfig) -> usize {
    let heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim;
    config.num_hidden_layers * (2 * config.hidden_size + heads + 2 * config.intermediate_size)
}

/// The losses of some samples' target positions, and the gradient of their weighted sum with respect to the free parts.
fn group_gradient<B: Kernels>(
    model: &Llama<B>,
    prefix: &Cache<B>,
    free: Tensor<B, 2>,
    problem: &Problem,
    objective: Objective,
    weight: f64,
) -> (Vec<f64>, Tensor<B, 2>) {
    let (prompt, target) = (&problem.prompt, &problem.target.ids);
    let [rows, d] = free.dims();
    let samples = rows / prompt.tokens();
    let input = with_target(model, assemble(model, free.reshape([samples, prompt.tokens(), d]), &[], prompt.tail()), target);
    let positions = input.dims()[1];
    let (hidden, trace) = model.trace(input, prefix, target.len());
    let targets = repeat::<B>(target, samples, &model.device());
    let TargetLoss { losses, hidden } = B::target_loss(hidden, model.head(), targets, objective);
    // The gradients of a mean may be too small for a half-wide type. A power of two changes nothing else.
    let scale = weight.recip().log2().floor().exp2();
    let gradient = model.backward((hidden * (weight * scale)).cast(model.dtype()), trace).reshape([samples, positions, d]);
    let gradient = gradient.narrow(1, 0, prompt.tokens()).reshape([rows, d]).cast(losses.dtype()) / scale;
    (losses.into_data().iter().collect(), gradient)
}

/// `[S, T, D]` prompts followed by the target's first M − 1 tokens.
fn with_target<B: Kernels>(model: &Llama<B>, prompts: Tensor<B, 3>, target: &[u32]) -> Tensor<B, 3> {
    let [samples, _, d] = prompts.dims();
    if target.len() == 1 {
        return prompts;
    }
    let fed = model.embed(ids_tensor(&[&target[..target.len() - 1]], &model.device()));
    Tensor::cat(vec![prompts, fed.expand([samples, target.len() - 1, d])], 1)
}

/// Head, free part `[S, N, D]` and tail as one batch of prompts `[S, T, D]`.
fn assemble<B: Kernels>(model: &Llama<B>, free: Tensor<B, 3>, head: &[u32], tail: &[u32]) -> Tensor<B, 3> {
    let [samples, _, d] = free.dims();
    let fixed = |ids: &[u32]| {
        let part = (!ids.is_empty()).then(|| model.embed(ids_tensor(&[ids], &model.device())));
        part.map(|part| part.expand([samples, ids.len(), d]))
    };
    Tensor::cat([fixed(head), Some(free.cast(model.dtype())), fixed(tail)].into_iter().flatten().collect(), 1)
}

/// The target once for each sample, `[S·M]`.
fn repeat<B: Backend>(target: &[u32], samples: usize, device: &B::Device) -> Tensor<B, 1, burn::tensor::Int> {
    ids_tensor(&vec![target; samples], device).reshape([samples * target.len()])
}

/// Refuses a prompt and target that do not fit into the model's context.
pub fn check_context(config: &LlamaConfig, prompt: usize, target: usize) -> Result<()> {
    let (needed, limit) = (prompt + target, config.max_position_embeddings);
    if needed <= limit {
        return Ok(());
    }
    Err(Error::input(format!(
        "prompt ({prompt} tokens) and target ({target} tokens) need {needed} positions, but the model's context holds {limit}; shorten them"
    )))
}

#[cfg(test)]
mod tests {
    //! A step of DLMI in half-wide types, against f32.

    use burn::tensor::{DType, TensorData};

    use super::*;
    use crate::ops::{Gumbel, SoftPrompt};
    use crate::prompt::PromptOptions;
    use crate::testing::{Golden, tiny};

    const N: usize = 3;

    fn problem() -> Problem {
        let checkpoint = tiny();
        let ids = Golden::open("dlmi_step.safetensors").ids("target").remove(0);
        let target = Target { text: checkpoint.tokenizer.decode(&ids), ids };
        let options = PromptOptions { tokens: N, allow_everything: true, ..PromptOptions::default() };
        Problem { prompt: Prompt::new(options, &target, &checkpoint.tokenizer, checkpoint.config.vocab_size).unwrap(), target }
    }

    /// The gradients of Z and τ of one step, the model being of type `dtype`.
    fn gradients<B: Kernels>(dtype: DType, tau: f32, objective: Objective) -> [Vec<f32>; 2] {
        let (mut checkpoint, golden, problem) = (tiny(), Golden::open("dlmi_step.safetensors"), problem());
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
        let weight = 1e-6 * objective.weight(problem.target.ids.len());
        let prefix = Cache::new(config.num_hidden_layers, 1);
        let (_, gradient) = group_gradient(&model, &prefix, soft.embeddings.clone(), &problem, objective, weight);
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
    fn half_wide_gradients() {
        near::<Flex>(DType::F16, F16);
        near::<Flex>(DType::BF16, BF16);
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn half_wide_gradients_on_vulkan() {
        if crate::testing::has_vulkan("half_wide_gradients_on_vulkan") {
            near::<burn::backend::Vulkan>(DType::F16, F16);
        }
    }
}
