//! The model, read bottom-up: norm, MLP, layer, stack. Hugging Face's `modeling_llama.py` names throughout.

use burn::module::{Module, Param, ParamId};
use burn::nn::Linear;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::attention::{Asking, LlamaAttention, Pass, linear};
use super::cache::{Cache, Paths, picked};
use super::config::LlamaConfig;
use super::rope::{RotaryEmbedding, Rotation};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::Kernels;

/// Where weights come from: a checkpoint, or an initialiser.
pub trait WeightSource {
    /// Values of the tensor with this Hugging Face name and shape, row-major.
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;
}

/// x / √(mean(x²) + ε) · weight.
#[derive(Module, Debug)]
pub struct LlamaRMSNorm<B: Backend> {
    /// `[D]`.
    pub weight: Param<Tensor<B, 1>>,
    #[module(skip)]
    epsilon: f64,
}

impl<B: Kernels> LlamaRMSNorm<B> {
    /// Normalises every row of `x` `[rows, D]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::rms_norm(x, self.weight.val(), self.epsilon)
    }
}

/// Keys and values of one layer's rows, once there are some.
type KeysAndValues<B> = Option<(Tensor<B, 2>, Tensor<B, 2>)>;

/// SwiGLU: down(silu(gate(x)) · up(x)).
#[derive(Module, Debug)]
pub struct LlamaMLP<B: Backend> {
    /// D → intermediate.
    pub gate_proj: Linear<B>,
    /// D → intermediate.
    pub up_proj: Linear<B>,
    /// intermediate → D.
    pub down_proj: Linear<B>,
}

impl<B: Kernels> LlamaMLP<B> {
    /// `[rows, D]` → `[rows, D]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let gate = linear(&self.gate_proj, x.clone());
        linear(&self.down_proj, B::swiglu(gate, linear(&self.up_proj, x)))
    }
}

/// Attention and MLP, each normalised before and added after.
#[derive(Module, Debug)]
pub struct LlamaDecoderLayer<B: Backend> {
    /// Grouped-query attention.
    pub self_attn: LlamaAttention<B>,
    /// SwiGLU.
    pub mlp: LlamaMLP<B>,
    /// Before attention.
    pub input_layernorm: LlamaRMSNorm<B>,
    /// Before the MLP.
    pub post_attention_layernorm: LlamaRMSNorm<B>,
}

impl<B: Kernels> LlamaDecoderLayer<B> {
    /// The rows that ask, `[R', D]`.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        asking: &Asking<B>,
        past: Option<&mut Option<(Tensor<B, 2>, Tensor<B, 2>)>>,
    ) -> Tensor<B, 2> {
        let mixed = self.self_attn.forward(self.input_layernorm.forward(x.clone()), pass, asking, past);
        let x = asking.of(x) + mixed;
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}

/// A frozen causal language model.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// W_E, `[V, D]`.
    pub embed_tokens: Param<Tensor<B, 2>>,
    /// The decoder layers.
    pub layers: Vec<LlamaDecoderLayer<B>>,
    /// Before the head.
    pub norm: LlamaRMSNorm<B>,
    /// The head `[V, D]`, where it is not the embedding matrix.
    pub lm_head: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    rotary_emb: RotaryEmbedding,
    #[module(skip)]
    config: LlamaConfig,
}

impl<B: Backend> Llama<B> {
    /// Builds the model from `weights`, stored on `device` as `dtype`. No weight tracks gradients.
    pub fn load(config: &LlamaConfig, weights: &mut dyn WeightSource, device: &B::Device, dtype: DType) -> Result<Self> {
        let mut loader = Loader { weights, device, dtype };
        let (v, d) = (config.vocab_size, config.hidden_size);
        Ok(Self {
            embed_tokens: loader.matrix("model.embed_tokens.weight", [v, d])?,
            layers: (0..config.num_hidden_layers).map(|i| loader.layer(config, i)).collect::<Result<_>>()?,
            norm: loader.norm(config, "model.norm")?,
            lm_head: (!config.tie_word_embeddings).then(|| loader.matrix("lm_head.weight", [v, d])).transpose()?,
            rotary_emb: RotaryEmbedding::new(config),
            config: config.clone(),
        })
    }

    /// The architecture.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where the model lives.
    pub fn device(&self) -> B::Device {
        self.embed_tokens.val().device()
    }

    /// Element type of the weights.
    pub fn dtype(&self) -> DType {
        self.embed_tokens.val().dtype()
    }

    /// Embeddings of token ids: `[S, T]` → `[S, T, D]`.
    pub fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [s, t] = ids.dims();
        let rows = self.embed_tokens.val().select(0, ids.reshape([s * t]));
        rows.reshape([s, t, self.config.hidden_size])
    }

    /// W of the head, `[V, D]`.
    pub fn head(&self) -> Tensor<B, 2> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).val()
    }
}

impl<B: Kernels> Llama<B> {
    /// Normalised hidden states at the last `asked` positions of the sequences `x` `[S, T, D]`: `[S·asked, D]`.
    pub fn hidden(&self, x: Tensor<B, 3>, asked: usize) -> Tensor<B, 2> {
        let [s, t, d] = x.dims();
        let mut cache = Cache::<B>::new(0, s);
        cache.grow(t);
        self.norm.forward(self.layers(x.reshape([s * t, d]), cache.paths(), None, asked))
    }

    /// Normalised hidden states at the last `asked` positions, `[S·asked, D]`, from the rows `x` `[R, D]` that `cache` was just grown
    /// by, of which they must be some.
    pub fn hidden_cached(&self, x: Tensor<B, 2>, cache: &mut Cache<B>, asked: usize) -> Tensor<B, 2> {
        let paths = cache.paths().clone();
        let hidden = self.norm.forward(self.layers(x, &paths, Some(&mut cache.layers), asked));
        cache.computed();
        hidden
    }

    /// The rows `x` `[R, D]` through all layers, the last of which computes only the last `asked` positions of every sequence.
    fn layers(&self, mut x: Tensor<B, 2>, paths: &Paths, mut past: Option<&mut Vec<KeysAndValues<B>>>, asked: usize) -> Tensor<B, 2> {
        let pass = self.pass(paths, asked, x.dtype());
        for (i, layer) in self.layers.iter().enumerate() {
            let asking = if i + 1 == self.layers.len() { &pass.last } else { &pass.all };
            x = layer.forward(x, &pass, asking, past.as_mut().map(|past| &mut past[i]));
        }
        x
    }

    fn pass(&self, paths: &Paths, asked: usize, dtype: DType) -> Pass<B> {
        let (device, samples, len, fresh) = (self.device(), paths.sequences(), paths.len(), paths.fresh_positions());
        let places = paths.places(fresh);
        let positions: Vec<usize> = places.iter().map(|place| place.0).collect();
        let at_end: Vec<usize> = paths.fresh_ends(asked).collect();
        let asked_positions: Vec<usize> = at_end.iter().map(|&row| positions[row]).collect();
        let heads = self.config.num_attention_heads;
        Pass {
            samples,
            len,
            rotate_k: self.rotation(&positions, self.config.num_key_value_heads, dtype),
            keys: picked(paths.ends(len), paths.count(), &device),
            all: Asking {
                len: fresh,
                rows: None,
                rotate: self.rotation(&positions, heads, dtype),
                spread: picked(paths.fresh_ends(fresh), places.len(), &device),
                gather: picked(places.iter().map(|place| place.1), samples * fresh, &device),
                mask: self.causal_mask(fresh, len, dtype),
            },
            last: Asking {
                len: asked,
                rotate: self.rotation(&asked_positions, heads, dtype),
                rows: picked(at_end.into_iter(), places.len(), &device),
                spread: None,
                gather: None,
                mask: self.causal_mask(asked, len, dtype),
            },
        }
    }

    /// Logits of normalised hidden states: `[rows, D]` → `[rows, V]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        B::matmul(hidden, self.head().transpose())
    }

    fn rotation(&self, positions: &[usize], heads: usize, dtype: DType) -> Rotation<B> {
        self.rotary_emb.rotation(positions, heads, &self.device(), dtype)
    }

    /// What the last `asking` of `len` positions may look at, `[1, asking·len]`.
    fn causal_mask(&self, asking: usize, len: usize, dtype: DType) -> Tensor<B, 2> {
        let row = |t| (0..len).map(move |j| if j <= len - asking + t { 0.0f32 } else { -1e30 });
        let mask: Vec<f32> = (0..asking).flat_map(row).collect();
        Tensor::from_data(TensorData::new(mask, [1, asking * len]), (&self.device(), dtype))
    }
}

/// Turns named values into parameters.
struct Loader<'a, B: Backend> {
    weights: &'a mut dyn WeightSource,
    device: &'a B::Device,
    dtype: DType,
}

impl<B: Backend> Loader<'_, B> {
    fn tensor<const R: usize>(&mut self, name: &str, shape: [usize; R]) -> Result<Tensor<B, R>> {
        let values = self.weights.read(name, &shape)?;
        let data = TensorData::new(values, shape);
        let options = (self.device, self.dtype);
        // Weights live as long as the process: exact pages instead of slices of a pool.
        Ok(B::memory_persistent_allocations(self.device, data, |data| Tensor::from_data(data, options)))
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Param<Tensor<B, 2>>> {
        Ok(Param::initialized(ParamId::new(), self.tensor(name, shape)?))
    }

    /// Burn keeps `[in, out]`, Hugging Face `[out, in]`.
    fn linear(&mut self, name: &str, input: usize, output: usize, bias: bool) -> Result<Linear<B>> {
        let values = self.weights.read(&format!("{name}.weight"), &[output, input])?;
        let data = TensorData::new(transpose(&values, output, input), [input, output]);
        let options = (self.device, self.dtype);
        let weight = B::memory_persistent_allocations(self.device, data, |data| Tensor::from_data(data, options));
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), [output])).transpose()?;
        Ok(Linear { weight: Param::initialized(ParamId::new(), weight), bias: bias.map(|bias| Param::initialized(ParamId::new(), bias)) })
    }

    fn norm(&mut self, config: &LlamaConfig, name: &str) -> Result<LlamaRMSNorm<B>> {
        let weight = self.tensor(&format!("{name}.weight"), [config.hidden_size])?;
        Ok(LlamaRMSNorm { weight: Param::initialized(ParamId::new(), weight), epsilon: config.rms_norm_eps })
    }

    fn layer(&mut self, config: &LlamaConfig, index: usize) -> Result<LlamaDecoderLayer<B>> {
        let name = format!("model.layers.{index}");
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        Ok(LlamaDecoderLayer {
            self_attn: LlamaAttention {
                q_proj: self.linear(&format!("{name}.self_attn.q_proj"), d, queries, config.attention_bias)?,
                k_proj: self.linear(&format!("{name}.self_attn.k_proj"), d, keys, config.attention_bias)?,
                v_proj: self.linear(&format!("{name}.self_attn.v_proj"), d, keys, config.attention_bias)?,
                o_proj: self.linear(&format!("{name}.self_attn.o_proj"), queries, d, config.attention_bias)?,
                head_dim: config.head_dim,
                use_rope: config.rope_layers[index],
            },
            mlp: LlamaMLP {
                gate_proj: self.linear(&format!("{name}.mlp.gate_proj"), d, inner, config.mlp_bias)?,
                up_proj: self.linear(&format!("{name}.mlp.up_proj"), d, inner, config.mlp_bias)?,
                down_proj: self.linear(&format!("{name}.mlp.down_proj"), inner, d, config.mlp_bias)?,
            },
            input_layernorm: self.norm(config, &format!("{name}.input_layernorm"))?,
            post_attention_layernorm: self.norm(config, &format!("{name}.post_attention_layernorm"))?,
        })
    }
}

/// Transposes a row-major `[rows, cols]` matrix.
pub fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for col in 0..cols {
        out.extend((0..rows).map(|row| values[row * cols + col]));
    }
    out
}

impl WeightSource for Checkpoint {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Checkpoint::read(self, name, shape)
    }
}
