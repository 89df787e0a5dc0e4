//! The frozen model as the methods see it. It counts every position that it is asked for.

mod candidates;
pub mod feeding;
mod fluency;
mod gradient;
mod memory;

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::model::{Cache, Llama, LlamaConfig, greedy};
use crate::objective::Objective;
use crate::ops::{Kernels, Matrix, Plain, TrackedBackend, blocks, concat, product, wide};
use crate::problem::{Example, Problem};
use crate::source::tokenizer::Tokenizer;
use crate::tensor::{host, ids_tensor};
use crate::terminal::counted;
use crate::{Error, Result};

pub use candidates::{Candidates, TargetScores};
pub use fluency::Fluency;
pub use memory::Footprint;

use gradient::together;

/// What was asked of the model, in positions, cached ones not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Positions pushed through the layers.
    pub forward_tokens: u64,
    /// Positions of backward passes to the inputs.
    pub backward_tokens: u64,
    /// Rows multiplied by the LM head.
    pub head_rows: u64,
}

impl Cost {
    /// Positions pushed through the layers, forward and backward.
    pub fn positions(&self) -> u64 {
        self.forward_tokens + self.backward_tokens
    }
}

/// Fixed tokens, their keys and values, and the normalised hidden state of the last one, `[1, D]`.
type Prefix<B> = (Vec<u32>, Cache<Plain<B>>, Matrix<B>);

/// The frozen model with its tokenizer.
pub struct Subject<B: TrackedBackend> {
    plain: Llama<Plain<B>>,
    tokenizer: Tokenizer,
    /// ‖E_v‖², `[1, V]`, once it was asked for.
    norms: OnceCell<Matrix<B>>,
    /// Keys and values of the fixed tokens before the free ones, of every example of the problem at hand.
    prefixes: RefCell<Vec<Prefix<B>>>,
    /// Rows of a pass that may be alive at once.
    max_rows: usize,
    cost: Cell<Cost>,
}

impl<B: TrackedBackend> Subject<B> {
    /// Takes a loaded model.
    pub fn new(plain: Llama<Plain<B>>, tokenizer: Tokenizer) -> Self {
        Self { plain, tokenizer, norms: OnceCell::new(), prefixes: RefCell::default(), max_rows: usize::MAX, cost: Cell::default() }
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
        self.prefixes.borrow_mut().clear();
        problem.examples.iter().for_each(|example| drop(self.prefix(example.head())));
    }

    /// Keys and values of the fixed tokens before the free ones, computed once.
    fn prefix(&self, head: &[u32]) -> Cache<Plain<B>> {
        if head.is_empty() {
            return Cache::new(self.plain.config().num_hidden_layers, 1);
        }
        if let Some((_, cache, _)) = self.prefixes.borrow().iter().find(|(known, ..)| known == head) {
            return cache.clone();
        }
        let mut cache = Cache::new(self.plain.config().num_hidden_layers, 1);
        self.charge(head.len(), 0, 0);
        cache.grow(head.len());
        let rows = self.embed(&[head]).reshape([head.len(), self.plain.config().hidden_size]);
        let last = self.plain.hidden_cached(rows, &mut cache, 1);
        self.prefixes.borrow_mut().push((head.to_vec(), cache.clone(), last));
        cache
    }

    /// The normalised hidden state behind fixed tokens, `[1, D]`, where there are any.
    fn behind(&self, head: &[u32]) -> Option<Matrix<B>> {
        self.prefix(head);
        self.prefixes.borrow().iter().find(|(known, ..)| known == head).map(|(.., last)| last.clone())
    }

    /// Embeddings of hard prompts of equal length, `[S, T, D]`.
    pub fn embed(&self, prompts: &[impl AsRef<[u32]>]) -> Tensor<Plain<B>, 3> {
        self.plain.embed(ids_tensor(prompts, &self.device()))
    }

    /// Normalised hidden states `[S·M, D]` that predict the target after `prompts` `[S, T, D]`, the target's own tokens fed.
    fn target_states(&self, prompts: Tensor<Plain<B>, 3>, target: &[u32]) -> Matrix<B> {
        let [samples, t, _] = prompts.dims();
        let rows = target.len();
        self.charge(samples * (t + rows - 1), 0, samples * rows);
        self.plain.hidden(with_fed(&self.plain, prompts, &[target.to_vec()]), rows)
    }

    /// How far each target token is ahead of the best other one, `[S][M]`, the target's own tokens fed.
    pub fn margins(&self, prompts: &[impl AsRef<[u32]>], target: &[u32]) -> Vec<Vec<f32>> {
        let hidden = self.target_states(self.embed(prompts), target);
        let targets = repeat::<Plain<B>>(target, prompts.len(), &self.device());
        let margins = host(self.plain.margins(hidden, targets));
        margins.chunks_exact(target.len()).map(<[f32]>::to_vec).collect()
    }

    /// How far each target token of every example is ahead of the best other one, the examples' one after another: `[S][Σ M]`, the
    /// targets' own tokens fed. `free` are free parts.
    pub fn all_margins(&self, free: &[impl AsRef<[u32]>], problem: &Problem) -> Vec<Vec<f32>> {
        let scores = self.target_scores(free, problem, Objective::LogProbDifference);
        scores.into_iter().map(|scores| scores.margins).collect()
    }

    /// The model's argmax at every target position, `[S][M]`, the target's own tokens fed.
    pub fn forced(&self, prompts: Tensor<Plain<B>, 3>, target: &[u32]) -> Vec<Vec<u32>> {
        let part = |samples: Range<usize>| {
            let hidden = self.target_states(prompts.clone().narrow(0, samples.start, samples.len()), target);
            Plain::<B>::argmax_rows(self.plain.logits(hidden)).chunks_exact(target.len()).map(<[u32]>::to_vec).collect::<Vec<_>>()
        };
        together(prompts.dims()[0]).flat_map(part).collect()
    }

    /// The tokens that the model writes by itself after `prompts` `[S, T, D]`, `[S][tokens]`.
    pub fn free(&self, prompts: Tensor<Plain<B>, 3>, tokens: usize) -> Vec<Vec<u32>> {
        let [samples, t, _] = prompts.dims();
        self.charge(samples * (t + tokens - 1), 0, samples * tokens);
        let part = |samples: Range<usize>| greedy(&self.plain, prompts.clone().narrow(0, samples.start, samples.len()), tokens, &[]).ids;
        together(samples).flat_map(part).collect()
    }

    /// An example's head, free parts of N tokens each, `[S·N, D]`, and tail as one batch of prompts `[S, T, D]`.
    pub fn relaxed_prompts(&self, free: Matrix<B>, n: usize, example: &Example) -> Tensor<Plain<B>, 3> {
        let [rows, d] = free.dims();
        assemble(&self.plain, free.reshape([rows / n, n, d]), example.head(), example.tail())
    }

    /// The change that the gradient `[N, D]` predicts of each swap of one free token, g·(E_v − E_x), `[N, V]`.
    pub fn predicted_change(&self, free: &[u32], gradient: Matrix<B>) -> Matrix<B> {
        let current = self.embedded(free, gradient.dtype());
        self.times_embedding(gradient.clone()) - (gradient * current).sum_dim(1)
    }

    /// How long the jump of each swap of one free token is, ‖E_v − E_x‖², `[N, V]`, in the type in which sums are made.
    pub fn squared_distance(&self, free: &[u32]) -> Matrix<B> {
        let current = self.embedded(free, self.wide());
        let own = current.clone().powi_scalar(2).sum_dim(1);
        self.times_embedding(current) * -2.0 + self.norms() + own
    }

    /// How far rows x `[R, D]`, in the type in which sums are made, reach along every token's embedding, x·E_v / ‖E_v‖, `[R, V]`: its order
    /// within a row is that of the cosines.
    pub fn along_embeddings(&self, rows: Matrix<B>) -> Matrix<B> {
        let norms = self.norms().sqrt().clamp_min(1e-12);
        self.times_embedding(rows) / norms
    }

    /// ‖E_v‖², `[1, V]`, in the type in which sums are made.
    fn norms(&self) -> Matrix<B> {
        let of_rows = |rows: Matrix<B>| rows.powi_scalar(2).sum_dim(1).transpose();
        let norms = || concat(blocks(&self.plain.embed_tokens.val(), self.wide()).map(|(_, rows)| of_rows(rows)).collect(), 1);
        self.norms.get_or_init(norms).clone()
    }

    /// The type in which sums are made.
    fn wide(&self) -> DType {
        wide(self.plain.embed_tokens.val().dtype())
    }

    /// Embeddings of N tokens, `[N, D]`, in this type.
    pub fn embedded(&self, free: &[u32], dtype: DType) -> Matrix<B> {
        self.embed(&[free]).reshape([free.len(), self.plain.config().hidden_size]).cast(dtype)
    }

    /// Mixtures of the embeddings, p·W_E, `[R, V]` → `[R, D]`.
    pub fn mixed_embeddings(&self, weights: Matrix<B>) -> Matrix<B> {
        product(weights, &self.plain.embed_tokens.val())
    }

    /// x·W_Eᵀ, `[R, D]` → `[R, V]`.
    pub fn times_embedding(&self, x: Matrix<B>) -> Matrix<B> {
        let embedding = self.plain.embed_tokens.val();
        concat(blocks(&embedding, x.dtype()).map(|(_, rows)| Plain::<B>::matmul(x.clone(), rows.transpose())).collect(), 1)
    }
}

/// `[S, T, D]` prompts followed by all but the last of the tokens `fed`, M for each sample or the same M for all.
fn with_fed<B: Kernels>(model: &Llama<B>, prompts: Tensor<B, 3>, fed: &[Vec<u32>]) -> Tensor<B, 3> {
    let ([samples, _, d], tokens) = (prompts.dims(), fed[0].len() - 1);
    if tokens == 0 {
        return prompts;
    }
    let fed: Vec<&[u32]> = fed.iter().map(|fed| &fed[..tokens]).collect();
    let fed = model.embed(ids_tensor(&fed, &model.device()));
    Tensor::cat(vec![prompts, fed.expand([samples, tokens, d])], 1)
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

/// Refuses a prompt and target that do not fit into the model's context, or into its sliding window: what lies further apart is not
/// computed here.
pub fn check_context(config: &LlamaConfig, prompt: usize, target: usize) -> Result<()> {
    let (needed, limit) = (prompt + target, config.context());
    if needed <= limit {
        return Ok(());
    }
    let holds = holds(config);
    Err(Error::input(format!(
        "prompt ({}) and target ({}) need {needed} positions, but the model's {holds}; shorten them",
        counted(prompt as u64, "token"),
        counted(target as u64, "token")
    )))
}

/// How much fits, in words.
pub fn holds(config: &LlamaConfig) -> String {
    let limit = config.context();
    match config.sliding_window == Some(limit) {
        true => format!("sliding window, beyond which it is not computed here, holds {limit}"),
        false => format!("context holds {limit}"),
    }
}
