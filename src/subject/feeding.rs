//! What the model is fed behind the prompt while it is asked for the target: Table 1's column TF.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::model::{Cache, Llama};
use crate::ops::{Gumbel, Kernels, SoftPrompt, wide};
use crate::setting::Choice;
use crate::tensor::ids_tensor;

/// Whose tokens the model is fed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Feeding {
    /// The target's own: teacher forcing.
    Forced,
    /// What it writes itself.
    Free(Feedback),
}

/// In which form a free-running model is fed what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// The distribution, softmax(logits) W_E, gradient and all: the paper's section 3.4
    Soft,
    /// The most likely token, through which no gradient passes: what the paper's authors ran
    Hard,
    /// A Gumbel-softmax sample of it at temperature 1, gradient and all: the paper's section 3.2
    Gumbel,
}

impl Choice for Feedback {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Soft, "soft", "The distribution, softmax(logits) W_E, gradient and all: the paper's section 3.4"),
        (Self::Hard, "hard", "The most likely token, through which no gradient passes: what the paper's authors ran"),
        (Self::Gumbel, "gumbel", "A Gumbel-softmax sample of it at temperature 1, gradient and all: the paper's section 3.2"),
    ];
}

impl Feeding {
    /// What a step feeds whose feedback noise comes from `noise`.
    pub fn fed<B: Backend>(self, noise: Gumbel<B>) -> Fed<B> {
        match self {
            Self::Forced => Fed::Target,
            Self::Free(Feedback::Hard) => Fed::Own(Output::Argmax),
            Self::Free(Feedback::Soft) => Fed::Own(Output::Distribution(Gumbel::Silent)),
            Self::Free(Feedback::Gumbel) => Fed::Own(Output::Distribution(noise)),
        }
    }
}

/// What one step feeds.
#[derive(Debug, Clone)]
pub enum Fed<B: Backend> {
    /// The target's tokens.
    Target,
    /// The model's own output.
    Own(Output<B>),
}

/// A token of the model's own.
#[derive(Debug, Clone)]
pub enum Output<B: Backend> {
    /// The embedding of argmax ℓ.
    Argmax,
    /// softmax(ℓ + g)·W_E. Given noise is `[S·(M − 1), V]`, that of a sample together.
    Distribution(Gumbel<B>),
}

impl<B: Backend> Output<B> {
    /// The same on a backend with gradients, which do not reach the noise.
    pub fn tracked<T: AutodiffBackend<InnerBackend = B>>(self) -> Output<T> {
        match self {
            Self::Argmax => Output::Argmax,
            Self::Distribution(noise) => Output::Distribution(noise.tracked()),
        }
    }
}

impl<B: Kernels> Output<B> {
    /// The same for some of the samples, with noise drawn for `tokens` fed-back tokens.
    pub fn of_samples(&self, samples: Range<usize>, tokens: usize, model: &Llama<B>) -> Self {
        let Self::Distribution(noise) = self else { return Self::Argmax };
        let options = (&model.device(), wide(model.dtype()));
        let noise = noise.of_samples(samples, [tokens, model.config().vocab_size], options);
        Self::Distribution(noise.map_or(Gumbel::Silent, Gumbel::Given))
    }

    /// What is fed behind the normalised hidden states `hidden` `[S, D]` that predict token `t`, `[S, D]`. Noise must be given.
    fn token(&self, model: &Llama<B>, hidden: Tensor<B, 2>, t: usize) -> Tensor<B, 2> {
        let [samples, d] = hidden.dims();
        let logits = model.logits(hidden);
        let v = logits.dims()[1];
        let Self::Distribution(noise) = self else {
            return model.embed(ids_tensor(&[B::argmax_rows(logits)], &model.device())).reshape([samples, d]);
        };
        let noise = match noise {
            Gumbel::Given(noise) => {
                let tokens = noise.dims()[0] / samples;
                Gumbel::Given(noise.clone().reshape([samples, tokens, v]).narrow(1, t, 1).reshape([samples, v]))
            }
            Gumbel::Silent => Gumbel::Silent,
            Gumbel::Drawn { .. } => unreachable!("noise is drawn for all tokens at once"),
        };
        let (logits, embedding) = (logits.cast(wide(model.dtype())), model.embed_tokens.val());
        let temperature = Tensor::ones([samples, 1], (&model.device(), logits.dtype()));
        let prompt = SoftPrompt { logits, temperature, embedding, mask: None, noise, samples: 1 };
        B::soft_embedding(&prompt).embeddings.cast(model.dtype())
    }
}

/// Normalised hidden states that predict `tokens` tokens behind `prompts` `[S, T, D]`, the model's own output fed:
/// `[S·tokens, D]`, those of a sample together. `cache` holds what stands before the prompts. On a backend with gradients they flow
/// through every token that was fed back; the keys and values of each layer are then kept once for each of them.
pub(crate) fn free_running<B: Kernels>(
    model: &Llama<B>,
    prompts: Tensor<B, 3>,
    mut cache: Cache<B>,
    tokens: usize,
    output: &Output<B>,
) -> Tensor<B, 2> {
    let [samples, _, d] = prompts.dims();
    let (mut input, mut states) = (prompts, Vec::with_capacity(tokens));
    for t in 0..tokens {
        let len = input.dims()[1];
        cache.grow(cache.len() + len);
        let hidden = model.hidden_cached(input.clone().reshape([samples * len, d]), &mut cache, 1);
        states.push(hidden.clone().reshape([samples, 1, d]));
        if t + 1 < tokens {
            input = output.token(model, hidden, t).reshape([samples, 1, d]);
        }
    }
    Tensor::cat(states, 1).reshape([samples * tokens, d])
}
