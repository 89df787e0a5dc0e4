//! Rotary position embedding in Hugging Face's half-split layout: pairs (i, i + head_dim/2).

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::config::{LlamaConfig, RopeScaling};
use crate::ops::Kernels;

/// Rotation speeds, `[head_dim / 2]`, in radians per position.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inverse_frequencies: Vec<f64>,
}

/// Sine and cosine of one forward pass, laid out for an element-wise product with `[S, T·heads·head_dim]`.
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

    /// Tables for `positions`, each repeated for `heads` heads: `[1, positions·heads·head_dim]`.
    pub fn rotation<B: Backend>(&self, positions: &[usize], heads: usize, device: &B::Device, dtype: DType) -> Rotation<B> {
        let half = self.inverse_frequencies.len();
        let mut cos = Vec::with_capacity(positions.len() * heads * half * 2);
        let mut sin = Vec::with_capacity(cos.capacity());
        for &position in positions {
            let angles = self.inverse_frequencies.iter().map(|f| (position as f64 * f).sin_cos());
            let (s, c): (Vec<f64>, Vec<f64>) = angles.unzip();
            for _ in 0..heads {
                cos.extend(c.iter().chain(&c));
                sin.extend(s.iter().map(|s| -s));
                sin.extend(&s);
            }
        }
        let table = |values: Vec<f64>| {
            let width = values.len();
            Tensor::from_data(TensorData::new(values, [1, width]), (device, dtype))
        };
        Rotation { cos: table(cos), sin: table(sin) }
    }
}

impl<B: Kernels> Rotation<B> {
    /// Rotates `x` `[S·T, heads·head_dim]`; the result has the same shape.
    pub fn apply(&self, x: Tensor<B, 2>, head_dim: usize) -> Tensor<B, 2> {
        B::rotate(x, self.cos.clone(), self.sin.clone(), head_dim)
    }

    /// By the opposite angles: the inverse, and its backward pass.
    pub fn inverse(self) -> Self {
        Self { cos: self.cos, sin: self.sin.neg() }
    }
}
