//! The relaxed prompt of Algorithm 1, as the blocks take it: logits Z, temperatures τ and Gumbel noise g of S samples.

use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};

use super::{CHUNK, Kernels, concat};
use crate::noise::Stream;

/// Gumbel noise g of the samples.
#[derive(Debug, Clone)]
pub enum Gumbel<B: Backend> {
    /// Drawn from the stream, sample by sample.
    Drawn {
        /// Where the draws come from.
        stream: Stream,
        /// Uniform draws are rescaled to end here before they become noise; see [`crate::noise::Rescale::to`].
        largest: Option<f64>,
    },
    /// Given from outside, `[S·N, V]`.
    Given(Tensor<B, 2>),
    /// No noise: the plain softmax.
    Silent,
}

impl<B: Backend> Gumbel<B> {
    /// Drawn, from uniform draws as they are.
    pub fn drawn(stream: Stream) -> Self {
        Self::Drawn { stream, largest: None }
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

impl<B: Kernels> Gumbel<B> {
    /// g of some samples, `[count·N, V]`, for a matrix `[N, V]` of each; nothing where there is no noise.
    pub(crate) fn of_samples(&self, samples: Range<usize>, [n, v]: [usize; 2], options: (&B::Device, DType)) -> Option<Tensor<B, 2>> {
        match self {
            Self::Drawn { stream, largest } => Some(B::gumbel(*stream, *largest, samples, [n, v], options)),
            Self::Given(noise) => Some(noise.clone().narrow(0, samples.start * n, samples.len() * n)),
            Self::Silent => None,
        }
    }
}

/// See [`Kernels::gumbel`]: drawn on the CPU.
pub(super) fn gumbel<B: Backend>(
    stream: Stream,
    largest: Option<f64>,
    samples: Range<usize>,
    [n, v]: [usize; 2],
    options: (&B::Device, DType),
) -> Tensor<B, 2> {
    let shape = [samples.len() * n, v];
    let values: Vec<f32> = samples.flat_map(|sample| stream.sample(sample as u32).gumbel(n, v, largest)).collect();
    Tensor::from_data(TensorData::new(values, shape), options)
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
}

impl<B: Kernels> SoftPrompt<B> {
    /// Z + g of some samples, `[count·N, V]`.
    pub(crate) fn noisy(&self, first: usize, count: usize) -> Tensor<B, 2> {
        let logits = stack(self.masked(), count);
        match self.noise.of_samples(first..first + count, self.logits.dims(), (&logits.device(), logits.dtype())) {
            Some(noise) => logits + noise,
            None => logits,
        }
    }

    /// (Z + g) / τ of some samples, `[count·N, V]`.
    pub(crate) fn scaled(&self, first: usize, count: usize) -> Tensor<B, 2> {
        self.noisy(first, count) / stack(self.temperature.clone(), count)
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
pub(crate) fn stack<B: Backend>(x: Tensor<B, 2>, count: usize) -> Tensor<B, 2> {
    concat(vec![x; count], 0)
}

#[cfg(test)]
mod tests {
    //! Noise of rescaled uniform draws, as the paper's authors draw it.

    use burn::backend::Flex;

    use super::*;
    use crate::noise::Purpose;
    use crate::ops::reference::soft_embedding::{draw, forward};
    use crate::tensor::host;

    const V: usize = 49_152;
    const SAMPLES: usize = 32;
    const LARGEST: Option<f64> = Some(0.999);

    fn stream() -> Stream {
        Stream::new(0, 0, 0, Purpose::PromptNoise, 0)
    }

    /// A row of each sample, one after another.
    fn noise() -> Vec<f32> {
        host(Flex::gumbel(stream(), LARGEST, 0..SAMPLES, [1, V], (&Default::default(), DType::F32)))
    }

    /// PyTorch's `-log(-log(rand * (0.999 - 1e-12) + 1e-12))`, its logarithms in f64: the largest of a row stays below 6.91, and no other
    /// ties with it.
    #[test]
    fn rescaled_noise_is_that_of_the_authors() {
        let noise = noise();
        for (sample, row) in noise.chunks_exact(V).enumerate() {
            let mut ordered = row.to_vec();
            ordered.sort_unstable_by(|a, b| b.total_cmp(a));
            assert!(ordered[0] > ordered[1] && ordered[0] < 6.91, "{:?}", &ordered[..2]);
            for (column, g) in row.iter().enumerate() {
                let u = stream().sample(sample as u32).uniform(0, column as u32) * 0.999f32 + 1e-12f32;
                let expected = -(-f64::from(u).ln()).ln();
                assert!((f64::from(*g) - expected).abs() < 1e-5 * expected.abs().max(1.0), "{g}, expected {expected}");
            }
        }
    }

    /// Flex's kernels draw what plain Burn draws.
    #[test]
    fn rescaled_noise_is_the_same_on_flex() {
        let options = &Default::default();
        let prompt = SoftPrompt::<Flex> {
            logits: Tensor::zeros([1, V], options),
            temperature: Tensor::ones([1, 1], options),
            embedding: Tensor::ones([V, 1], options),
            mask: None,
            noise: Gumbel::Drawn { stream: stream(), largest: LARGEST },
            samples: SAMPLES,
        };
        assert_eq!(Flex::draw(&prompt), draw(&prompt));
        let (ours, theirs) = (host(Flex::soft_embedding(&prompt).largest), host(forward(&prompt).largest));
        let noise = noise();
        for ((ours, theirs), row) in ours.iter().zip(&theirs).zip(noise.chunks_exact(V)) {
            assert_eq!(*theirs, row.iter().copied().fold(f32::MIN, f32::max));
            assert!((ours - theirs).abs() < 1e-5, "{ours} {theirs}");
        }
    }
}
