//! The frozen model as the methods see it. It counts every position that it is asked for.

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::ops::Range;

use burn::backend::Flex;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::model::generate::{argmax, host, ids_tensor};
use crate::model::{Cache, Generation, Llama, LlamaConfig, greedy};
use crate::objective::Objective;
use crate::ops::{Kernels, TrackedBackend};
use crate::prompt::Prompt;
use crate::target::Target;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What was asked of the model, in positions: padding counted, cached ones not.
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
    cache: Cache<B>,
}

/// Neighbours of a group: enough rows for a matrix product, and the same number whatever the number of threads.
const GROUP: usize = 12;

impl<B: TrackedBackend> Neighbours<'_, B> {
    /// How far each of the next `count` target tokens is ahead of the best other one, `[swaps][count]`, the target's own tokens fed.
    pub fn margins(&mut self, count: usize) -> Vec<Vec<f32>> {
        let (prompt, target, scored) = (self.prompt, self.target, self.scored);
        let jobs = self.groups.iter_mut().map(|group| move || group.margins(prompt, target, scored..scored + count));
        let (mut all, mut pushed) = (Vec::new(), 0);
        for (rows, margins) in Plain::<B>::side_by_side(jobs.collect()) {
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
            ids.extend(&prompt[..trunk]);
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

type Plain<B> = <B as burn::tensor::backend::AutodiffBackend>::InnerBackend;

/// The frozen model with its tokenizer.
pub struct Subject<B: TrackedBackend> {
    /// Shares storage with `plain`; no weight is tracked.
    tracked: Llama<B>,
    plain: Llama<Plain<B>>,
    tokenizer: Tokenizer,
    /// ‖E_v‖², `[1, V]`, once it was asked for.
    norms: OnceCell<Tensor<Plain<B>, 2>>,
    cost: Cell<Cost>,
}

impl<B: TrackedBackend> Subject<B> {
    /// Takes a loaded model.
    pub fn new(plain: Llama<Plain<B>>, tokenizer: Tokenizer) -> Self {
        use burn::module::Module;
        // `from_inner` switches gradient tracking of parameters back on.
        let tracked = <Llama<B> as AutodiffModule<B>>::from_inner(plain.clone()).no_grad();
        Self { tracked, plain, tokenizer, norms: OnceCell::new(), cost: Cell::default() }
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

    /// Embeddings of hard prompts of equal length, `[S, T, D]`.
    pub fn embed(&self, prompts: &[impl AsRef<[u32]>]) -> Tensor<Plain<B>, 3> {
        self.plain.embed(ids_tensor(prompts, &self.device()))
    }

    /// `[S, T, D]` prompts followed by the target's first M − 1 tokens.
    fn with_target<K: Backend<Device = B::Device>>(model: &Llama<K>, prompts: Tensor<K, 3>, target: &[u32]) -> Tensor<K, 3> {
        let [samples, _, d] = prompts.dims();
        if target.len() == 1 {
            return prompts;
        }
        let fed = model.embed(ids_tensor(&[&target[..target.len() - 1]], &model.device()));
        Tensor::cat(vec![prompts, fed.expand([samples, target.len() - 1, d])], 1)
    }

    /// Normalised hidden states `[S·M, D]` that predict the target after `prompts` `[S, T, D]`, the target's own tokens fed.
    fn target_states(&self, prompts: Tensor<Plain<B>, 3>, target: &[u32]) -> Tensor<Plain<B>, 2> {
        let [samples, t, _] = prompts.dims();
        let rows = target.len();
        self.charge(samples * (t + rows - 1), 0, samples * rows);
        self.plain.hidden(Self::with_target(&self.plain, prompts, target), rows)
    }

    /// How far each target token is ahead of the best other one, `[S][M]`, the target's own tokens fed.
    pub fn margins(&self, prompts: &[impl AsRef<[u32]>], target: &[u32]) -> Vec<Vec<f32>> {
        let hidden = self.target_states(self.embed(prompts), target);
        let targets = repeat::<Plain<B>>(target, prompts.len(), &self.device());
        let margins = host(Plain::<B>::margins(hidden, self.plain.head(), targets));
        margins.chunks_exact(target.len()).map(<[f32]>::to_vec).collect()
    }

    /// `prompt` with one token swapped at a time, to be scored along `target`.
    pub fn neighbours<'a>(&'a self, prompt: &'a [u32], swaps: &[Swap], target: &'a [u32]) -> Neighbours<'a, B> {
        // Dealt by position, so that the groups have about the same number of rows.
        let mut order: Vec<(usize, Swap)> = swaps.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, swap)| swap.position);
        let count = swaps.len().div_ceil(GROUP);
        let groups = (0..count).map(|first| {
            let swaps: Vec<(usize, Swap)> = order.iter().copied().skip(first).step_by(count).collect();
            let starts: Vec<usize> = swaps.iter().map(|(_, swap)| swap.position).collect();
            Group { model: self.plain.clone(), swaps, cache: Cache::leaving(self.plain.config().num_hidden_layers, &starts) }
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
    pub fn assemble<K: Backend<Device = B::Device>>(model: &Llama<K>, free: Tensor<K, 2>, prompt: &Prompt) -> Tensor<K, 3> {
        let [rows, d] = free.dims();
        let samples = rows / prompt.tokens();
        let fixed = |ids: &[u32]| {
            let part = model.embed(ids_tensor(&[ids], &model.device()));
            part.expand([samples, ids.len(), d])
        };
        let mut parts = vec![free.reshape([samples, prompt.tokens(), d])];
        if !prompt.head().is_empty() {
            parts.insert(0, fixed(prompt.head()));
        }
        if !prompt.tail().is_empty() {
            parts.push(fixed(prompt.tail()));
        }
        Tensor::cat(parts, 1)
    }

    /// The same, on the backend without gradients.
    pub fn relaxed_prompts(&self, free: Tensor<Plain<B>, 2>, prompt: &Prompt) -> Tensor<Plain<B>, 3> {
        Self::assemble(&self.plain, free, prompt)
    }

    /// The objective of a batch of free parts `[S·N, D]` under teacher forcing, averaged over the samples and ready for
    /// `backward`, and its value.
    pub fn loss(&self, free: Tensor<B, 2>, problem: &Problem, objective: Objective) -> (Tensor<B, 1>, f32) {
        let target = &problem.target.ids;
        let samples = free.dims()[0] / problem.prompt.tokens();
        let prompts = Self::assemble(&self.tracked, free, &problem.prompt);
        let t = prompts.dims()[1];
        let positions = samples * (t + target.len() - 1);
        self.charge(positions, positions, samples * target.len());
        let input = Self::with_target(&self.tracked, prompts, target);
        let hidden = self.tracked.hidden(input, target.len());
        let targets = repeat::<Plain<B>>(target, samples, &self.device());
        let (total, losses) = B::track_target_loss(hidden, self.plain.head(), targets, objective);
        let weight = objective.weight(target.len()) / samples as f64;
        (total * weight, host(losses.sum())[0] * weight as f32)
    }

    /// The objective at one hard prompt and its gradient with respect to the embeddings of the free part, `[N, D]`.
    pub fn gradient(&self, free: &[u32], problem: &Problem, objective: Objective) -> (f32, Tensor<Plain<B>, 2>) {
        let d = self.plain.config().hidden_size;
        let leaf = Tensor::<B, 2>::from_inner(self.embed(&[free]).reshape([free.len(), d])).require_grad();
        let (loss, value) = self.loss(leaf.clone(), problem, objective);
        let gradient = leaf.grad(&loss.backward()).expect("the free part is tracked");
        (value, gradient)
    }

    /// How promising each swap of one free token is, `[N, V]`, lowest first: the change predicted by the gradient `[N, D]` over
    /// the squared length of the jump, g·(E_v − E_x) / ‖E_v − E_x‖².
    pub fn swap_order(&self, free: &[u32], gradient: Tensor<Plain<B>, 2>) -> Vec<f32> {
        let embedding = self.plain.embed_tokens.val();
        let current = self.embed(&[free]).reshape([free.len(), self.plain.config().hidden_size]);
        let change = gradient.clone().matmul(embedding.clone().transpose()) - (gradient * current.clone()).sum_dim(1);
        let norms = self.norms.get_or_init(|| embedding.clone().powi_scalar(2).sum_dim(1).transpose()).clone();
        let own = current.clone().powi_scalar(2).sum_dim(1);
        let distance = current.matmul(embedding.transpose()) * -2.0 + norms + own;
        host(change / distance.clamp_min(1e-3))
    }
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
