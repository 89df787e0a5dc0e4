//! The relaxed prompt of Algorithm 1, as the blocks take it: logits Z, temperatures τ and Gumbel noise g of S samples.

use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

use super::CHUNK;
use crate::noise::Stream;

/// Gumbel noise g of the samples.
#[derive(Debug, Clone)]
pub enum Gumbel<B: Backend> {
    /// Drawn from the stream, sample by sample.
    Drawn {
        /// Where the draws come from.
        stream: Stream,
        /// Larger draws are clipped to this; infinite for none.
        largest: f32,
    },
    /// Given from outside, `[S·N, V]`.
    Given(Tensor<B, 2>),
    /// No noise: the plain softmax.
    Silent,
}

impl<B: Backend> Gumbel<B> {
    /// Drawn, and none clipped.
    pub fn drawn(stream: Stream) -> Self {
        Self::Drawn { stream, largest: f32::INFINITY }
    }

    /// The same on the backend with gradients.
    pub fn tracked<T: AutodiffBackend<InnerBackend = B>>(self) -> Gumbel<T> {
        match self {
            Self::Drawn { stream, largest } => Gumbel::Drawn { stream, largest },
            Self::Given(noise) => Gumbel::Given(Tensor::from_inner(noise)),
            Self::Silent => Gumbel::Silent,
        }
    }
}

/// Noise of some samples from `stream`, clipped to `largest`: a matrix of this shape for each of them, row-major.
pub(crate) fn gumbel(stream: Stream, largest: f32, samples: Range<usize>, [rows, columns]: [usize; 2]) -> Vec<f32> {
    samples.flat_map(|sample| stream.sample(sample as u32).gumbel(rows, columns)).map(|g| g.min(largest)).collect()
}

/// Everything that the soft embeddings are made of.
#[derive(Debug, Clone)]
pub struct SoftPrompt<B: Backend> {
    /// Z, `[N, V]`.
    pub logits: Tensor<B, 2>,
    /// τ, `[N, 1]`.
    pub temperature: Tensor<B, 2>,
    /// W_E, `[V, D]`, stored in the model's type; all else is in that of Z.
    pub embedding: Tensor<B, 2>,
    /// Added to Z: 0 for tokens of the search vocabulary and −1e30 for the others, `[1, V]`.
    pub mask: Option<Tensor<B, 2>>,
    /// g.
    pub noise: Gumbel<B>,
    /// S.
    pub samples: usize,
}

impl<B: Backend> SoftPrompt<B> {
    /// Groups of samples `(first, count)` whose V-wide buffers stay within [`CHUNK`].
    pub(super) fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<B> {
        let [n, v] = self.logits.dims();
        let (samples, size) = (self.samples, (CHUNK / (n * v)).clamp(1, self.samples));
        (0..samples).step_by(size).map(move |first| (first, size.min(samples - first)))
    }

    /// The same on the backend with gradients, which reach Z and τ.
    pub fn tracked<T: AutodiffBackend<InnerBackend = B>>(self, logits: Tensor<T, 2>, temperature: Tensor<T, 2>) -> SoftPrompt<T> {
        let Self { embedding, mask, noise, samples, .. } = self;
        let (embedding, mask) = (Tensor::from_inner(embedding), mask.map(Tensor::from_inner));
        SoftPrompt { logits, temperature, embedding, mask, noise: noise.tracked(), samples }
    }

    /// Z with the mask added, `[N, V]`.
    pub fn masked(&self) -> Tensor<B, 2> {
        match &self.mask {
            Some(mask) => self.logits.clone() + mask.clone(),
            None => self.logits.clone(),
        }
    }

    /// (Z + g) / τ of some samples, `[count·N, V]`.
    pub(super) fn scaled(&self, first: usize, count: usize) -> Tensor<B, 2> {
        let [n, v] = self.logits.dims();
        let logits = stack(self.masked(), count);
        let noisy = match &self.noise {
            Gumbel::Drawn { stream, largest } => {
                let values = gumbel(*stream, *largest, first..first + count, [n, v]);
                let options = (&logits.device(), logits.dtype());
                logits + Tensor::from_data(TensorData::new(values, [count * n, v]), options)
            }
            Gumbel::Given(noise) => logits + noise.clone().narrow(0, first * n, count * n),
            Gumbel::Silent => logits,
        };
        noisy / stack(self.temperature.clone(), count)
    }
}

/// e and what the backward pass needs to compute p again.
#[derive(Debug, Clone)]
pub struct SoftEmbeddings<B: Backend> {
    /// e, `[S·N, D]`.
    pub embeddings: Tensor<B, 2>,
    /// The largest y of each row, `[S·N, 1]`.
    pub largest: Tensor<B, 2>,
    /// Σ exp(y − largest) of each row, `[S·N, 1]`. Kept apart from `largest`: for a tiny τ the logarithm of the sum
    /// would be lost in the rounding of y.
    pub sums: Tensor<B, 2>,
}

/// `count` copies of the rows of `x`, one after another.
pub(super) fn stack<B: Backend>(x: Tensor<B, 2>, count: usize) -> Tensor<B, 2> {
    if count == 1 { x } else { Tensor::cat(vec![x; count], 0) }
}
