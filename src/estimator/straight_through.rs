//! The straight-through Gumbel-softmax estimator (Jang et al. 2017; the paper's appendix A): the model is shown tokens, argmax (Z + g), and
//! the gradient at them goes on as if they were softmax((Z + g)/τ). Biased: for a loss that is linear in the prompt it is Gumbel-softmax,
//! whose bias goes with τ; for any other, the slope at a token is not the difference to another one, whatever τ.

use burn::tensor::Tensor;

use super::gumbel_softmax::backward;
use super::{Estimate, Estimator, Noise, Relaxation};
use crate::ops::{Gumbel, Kernels, Matrix, Plain, SoftPrompt, TrackedBackend};

/// The estimator, which has nothing to learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StraightThrough {
    /// Uniform draws are rescaled to end here before they become noise, see [`crate::noise::Rescale::to`].
    pub largest_uniform: Option<f64>,
    /// Whether the tokens are drawn again, from the soft sample, as the code of the paper's authors does.
    pub draw_again: bool,
}

impl<B: TrackedBackend> Estimator<B> for StraightThrough {
    fn estimate(&mut self, at: &Relaxation<B>, noise: &Noise<Plain<B>>) -> Estimate<Plain<B>> {
        let prompt = noise.prompt(self.largest_uniform);
        let soft = at.soft_prompt(prompt.clone());
        let tokens = if self.draw_again { drawn_again(&soft, &noise.second()) } else { Plain::<B>::draw(&soft) };
        let fed = at.feeding.fed(noise.feedback(self.largest_uniform));
        backward(at, prompt, |soft| at.subject.value_and_gradient(shown(at, &tokens, &soft), at.problem, at.objective, &fed))
    }
}

/// Embeddings of the tokens, `[S·N, D]`, in the type of the soft ones.
fn shown<B: TrackedBackend>(at: &Relaxation<B>, tokens: &[Vec<u32>], soft: &Matrix<B>) -> Matrix<B> {
    at.subject.embed(tokens).reshape(soft.dims()).cast(soft.dtype())
}

/// Tokens from softmax((Z + g)/τ), `[S][N]`; a sample at a time, as each is as large as Z.
fn drawn_again<B: Kernels>(soft: &SoftPrompt<B>, noise: &Gumbel<B>) -> Vec<Vec<u32>> {
    let options = (&soft.logits.device(), soft.logits.dtype());
    let of_sample = |sample: usize| {
        let noise = noise.of_samples(sample..sample + 1, soft.logits.dims(), options).map_or(Gumbel::Silent, Gumbel::Given);
        let logits = soft.scaled(sample, 1);
        let temperature = Tensor::ones_like(&soft.temperature);
        B::draw(&SoftPrompt { logits, temperature, embedding: soft.embedding.clone(), mask: None, noise, samples: 1 }).remove(0)
    };
    (0..soft.samples).map(of_sample).collect()
}
