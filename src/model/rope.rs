//! Rotary position embedding in Hugging Face's half-split layout: pairs (i, i + head_dim/2).

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::config::{LlamaConfig, RopeScaling};
use crate::ops::Kernels;

/// Rotation speeds, `[head_dim / 2]`, in radians per position.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inverse_frequencies: Vec<f64>,
}

/// Sine and cosine of the rows of a pass, `[R, head_dim]`.
#[derive(Debug, Clone)]
pub struct Rotation<B: Backend> {
    cos: Tensor<B, 2>,
    /// The sign of the rotated half is folded in.
    sin: Tensor<B, 2>,
}

impl RotaryEmbedding {
    /// Speeds θ^(−2i/head_dim), stretched as the config says (Llama 3, or a divisor per frequency).
    pub fn new(config: &LlamaConfig) -> Self {
        let half = config.head_dim / 2;
        let plain = (0..half).map(|i| config.rope_theta.powf(-(i as f64) / half as f64));
        let inverse_frequencies = match &config.rope_scaling {
            None => plain.collect(),
            Some(RopeScaling::Factors(factors)) => plain.zip(factors).map(|(f, by)| f / by).collect(),
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => plain
                .map(|f| {
                    let turns = original_max_position_embeddings * f / (2.0 * std::f64::consts::PI);
                    let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    f * (keep + (1.0 - keep) / factor)
                })
                .collect(),
        };
        Self { inverse_frequencies }
    }

    /// Tables for `positions`. What is computed here, and brought to the device, is a row for each position from the first to the last of
    /// them, since many rows of a pass stand at the same.
    pub fn rotation<B: Backend>(&self, positions: &[usize], device: &B::Device, dtype: DType) -> Rotation<B> {
        let first = positions.iter().min().copied().unwrap_or(0);
        let past = positions.iter().max().map_or(0, |last| last + 1);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in first..past {
            let (s, c): (Vec<f64>, Vec<f64>) = self.inverse_frequencies.iter().map(|f| (position as f64 * f).sin_cos()).unzip();
            cos.extend(c.iter().chain(&c));
            sin.extend(s.iter().map(|s| -s));
            sin.extend(&s);
        }
        let places: Vec<i64> = positions.iter().map(|position| (position - first) as i64).collect();
        let places = Tensor::<B, 1, Int>::from_data(TensorData::new(places, [positions.len()]), device);
        let table = |values: Vec<f64>| {
            let shape = [past - first, 2 * self.inverse_frequencies.len()];
            Tensor::<B, 2>::from_data(TensorData::new(values, shape), (device, dtype)).select(0, places.clone())
        };
        Rotation { cos: table(cos), sin: table(sin) }
    }
}

impl<B: Kernels> Rotation<B> {
    /// Rotates `x` `[R, heads·head_dim]`; the result has the same shape.
    pub fn apply(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::rotate(x, self.cos.clone(), self.sin.clone())
    }

    /// By the opposite angles: the inverse, and its backward pass.
    pub fn inverse(self) -> Self {
        Self { cos: self.cos, sin: self.sin.neg() }
    }
}
