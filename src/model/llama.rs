//! The model, read bottom-up: norm, MLP, layer, stack. Hugging Face's `modeling_llama.py` names throughout.

use burn::module::{Module, Param, ParamId};
use burn::nn::Linear;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::attention::{AttentionTrace, LlamaAttention, Pass, Queries, linear, linear_backward};
use super::cache::{Cache, KeysAndValues, Paths, picked};
use super::config::LlamaConfig;
use super::norm::LlamaRMSNorm;
use super::rope::{RotaryEmbedding, Rotation};
use crate::Result;
use crate::interrupt;
use crate::ops::{Kernels, Products, wide};

/// Where weights come from: a checkpoint, or an initialiser.
pub trait WeightSource {
    /// Values of the tensor with this Hugging Face name and shape, row-major.
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;
}

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

/// What the MLP's backward pass needs, `[rows, intermediate]` each.
struct MlpTrace<B: Backend> {
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
}

impl<B: Kernels> LlamaMLP<B> {
    /// `[rows, D]` → `[rows, D]`.
    fn forward(&self, products: Products, x: Tensor<B, 2>) -> (Tensor<B, 2>, MlpTrace<B>) {
        let gate = linear(&self.gate_proj, products, x.clone());
        let up = linear(&self.up_proj, products, x);
        (linear(&self.down_proj, products, B::swiglu(gate.clone(), up.clone())), MlpTrace { gate, up })
    }

    fn backward(&self, products: Products, output: Tensor<B, 2>, trace: MlpTrace<B>) -> Tensor<B, 2> {
        let (gate, up) = B::swiglu_backward(trace.gate, trace.up, linear_backward(&self.down_proj, products, output));
        linear_backward(&self.gate_proj, products, gate) + linear_backward(&self.up_proj, products, up)
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

/// What a layer's backward pass needs.
struct LayerTrace<B: Backend> {
    /// `[R, D]`.
    input: Tensor<B, 2>,
    attention: AttentionTrace<B>,
    /// Between attention and MLP, `[R', D]`.
    middle: Tensor<B, 2>,
    mlp: MlpTrace<B>,
}

impl<B: Kernels> LlamaDecoderLayer<B> {
    /// The result at the query rows, `[R', D]`.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        queries: &Queries<B>,
        past: Option<&mut KeysAndValues<B>>,
    ) -> (Tensor<B, 2>, LayerTrace<B>) {
        let (mixed, attention) = self.self_attn.forward(self.input_layernorm.forward(x.clone()), pass, queries, past);
        let middle = queries.of(x.clone()) + mixed;
        let (change, mlp) = self.mlp.forward(pass.products, self.post_attention_layernorm.forward(middle.clone()));
        (middle.clone() + change, LayerTrace { input: x, attention, middle, mlp })
    }

    /// The gradient of the input `[R, D]` from that of the output `[R', D]`.
    fn backward(&self, output: Tensor<B, 2>, trace: LayerTrace<B>, pass: &Pass<B>, queries: &Queries<B>) -> Tensor<B, 2> {
        let change = self.mlp.backward(pass.products, output.clone(), trace.mlp);
        let middle = output + self.post_attention_layernorm.backward(trace.middle, change);
        let mixed = self.self_attn.backward(middle.clone(), trace.attention, pass, queries);
        queries.add_to(self.input_layernorm.backward(trace.input, mixed), middle)
    }
}

/// What [`Llama::backward`] needs of a pass.
pub struct Trace<B: Backend> {
    layers: Vec<LayerTrace<B>>,
    /// Before [`Llama::norm`].
    last: Tensor<B, 2>,
    pass: Pass<B>,
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
    products: Products,
    #[module(skip)]
    config: LlamaConfig,
}

impl<B: Backend> Llama<B> {
    /// Builds the model from `weights`, stored on `device` as `dtype`, which is then the type of its activations too. No weight tracks
    /// gradients.
    pub fn load(config: &LlamaConfig, weights: &mut dyn WeightSource, device: &B::Device, dtype: DType) -> Result<Self> {
        let mut loader = Loader { weights, device, dtype };
        let (v, d) = (config.vocab_size, config.hidden_size);
        Ok(Self {
            embed_tokens: loader.matrix("model.embed_tokens.weight", [v, d])?,
            layers: (0..config.num_hidden_layers).map(|i| loader.layer(config, i)).collect::<Result<_>>()?,
            norm: loader.norm(config, "model.norm", d)?,
            lm_head: (!config.tie_word_embeddings).then(|| loader.matrix("lm_head.weight", [v, d])).transpose()?,
            rotary_emb: RotaryEmbedding::new(config),
            products: Products::Full,
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
    /// Normalised hidden states at the last `count` positions of the sequences `x` `[S, T, D]`: `[S·count, D]`.
    pub fn hidden(&self, x: Tensor<B, 3>, count: usize) -> Tensor<B, 2> {
        let [s, t, d] = x.dims();
        let mut cache = Cache::<B>::new(0, s);
        cache.grow(t);
        let pass = self.pass(cache.paths(), count, x.dtype());
        self.norm.forward(self.layers(x.reshape([s * t, d]), &pass, None, drop))
    }

    /// Normalised hidden states at the last `count` positions, `[S·count, D]`. `x` `[R, D]` are the embeddings of the rows that `cache` was
    /// just grown by; the last `count` positions must be among them.
    pub fn hidden_cached(&self, x: Tensor<B, 2>, cache: &mut Cache<B>, count: usize) -> Tensor<B, 2> {
        let pass = self.pass(cache.paths(), count, x.dtype());
        let hidden = self.norm.forward(self.layers(x, &pass, Some(&mut cache.layers), drop));
        cache.computed();
        hidden
    }

    /// The rows `x` `[R, D]` through all layers, the last of which computes only its query rows. What each layer's backward pass would need
    /// goes to `keep`.
    fn layers(
        &self,
        mut x: Tensor<B, 2>,
        pass: &Pass<B>,
        mut past: Option<&mut Vec<KeysAndValues<B>>>,
        mut keep: impl FnMut(LayerTrace<B>),
    ) -> Tensor<B, 2> {
        for (i, layer) in self.layers.iter().enumerate() {
            interrupt::check();
            let past = past.as_mut().map(|past| &mut past[i]);
            let (next, trace) = layer.forward(x, pass, pass.queries(i, self.layers.len()), past);
            keep(trace);
            x = next;
        }
        x
    }

    /// As [`Self::hidden`], after the one sequence in `prefix`, together with what [`Self::backward`] needs: for each layer about ten times
    /// the memory of `x`.
    pub fn trace(&self, x: Tensor<B, 3>, prefix: &Cache<B>, count: usize) -> (Tensor<B, 2>, Trace<B>) {
        let [s, t, d] = x.dims();
        let mut cache = prefix.repeated(s);
        cache.grow(prefix.len() + t);
        let pass = self.pass(cache.paths(), count, x.dtype());
        let mut layers = Vec::with_capacity(self.layers.len());
        let last = self.layers(x.reshape([s * t, d]), &pass, Some(&mut cache.layers), |trace| layers.push(trace));
        (self.norm.forward(last.clone()), Trace { layers, last, pass })
    }

    /// The gradient of the input, `[S·T, D]`, from that of the result of [`Self::trace`]. No gradient of a weight is computed.
    pub fn backward(&self, output: Tensor<B, 2>, trace: Trace<B>) -> Tensor<B, 2> {
        let Trace { layers, last, pass } = trace;
        let (pass, mut x) = (pass.for_backward(), self.norm.backward(last, output));
        for (i, (layer, trace)) in self.layers.iter().zip(layers).enumerate().rev() {
            interrupt::check();
            x = layer.backward(x, trace, &pass, pass.queries(i, self.layers.len()));
        }
        x
    }

    /// A pass over the rows of `paths` that are not computed yet, of which the last `count` positions are wanted.
    fn pass(&self, paths: &Paths, count: usize, dtype: DType) -> Pass<B> {
        let (device, samples, len, new) = (self.device(), paths.sequences(), paths.len(), paths.new_positions());
        let places = paths.places(new);
        let positions: Vec<usize> = places.iter().map(|place| place.0).collect();
        let wanted: Vec<usize> = paths.new_ends(count).collect();
        let wanted_positions: Vec<usize> = wanted.iter().map(|&row| positions[row]).collect();
        Pass {
            products: self.products,
            samples,
            len,
            keys: picked(paths.ends(len), paths.count(), &device),
            all: Queries {
                len: new,
                rows: None,
                rotate: self.rotation(&positions, dtype),
                to_positions: picked(paths.new_ends(new), places.len(), &device),
                to_rows: picked(places.iter().map(|place| place.1), samples * new, &device),
                mask: self.causal_mask(new, len, dtype),
            },
            last: Queries {
                len: count,
                rotate: self.rotation(&wanted_positions, dtype),
                rows: picked(wanted.into_iter(), places.len(), &device),
                to_positions: None,
                to_rows: None,
                mask: self.causal_mask(count, len, dtype),
            },
        }
    }

    /// The same model, of the same weights, by such products.
    #[must_use]
    pub fn by(&self, products: Products) -> Self {
        Self { products, ..self.clone() }
    }

    /// How far the target `[rows]` of each of these normalised hidden states `[rows, D]` is ahead; see [`Kernels::margins`].
    pub fn margins(&self, hidden: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
        self.products.margins(hidden, self.head(), targets)
    }

    /// Logits of normalised hidden states: `[rows, D]` → `[rows, V]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        self.products.matmul(hidden, self.head().transpose())
    }

    fn rotation(&self, positions: &[usize], dtype: DType) -> Rotation<B> {
        self.rotary_emb.rotation(positions, &self.device(), dtype)
    }

    /// 0 where one of the last `count` of `len` positions may look at another, −1e30 where not: `[1, count·len]`.
    fn causal_mask(&self, count: usize, len: usize, dtype: DType) -> Tensor<B, 2> {
        let row = |t| (0..len).map(move |j| if j <= len - count + t { 0.0f32 } else { -1e30 });
        let mask: Vec<f32> = (0..count).flat_map(row).collect();
        Tensor::from_data(TensorData::new(mask, [1, count * len]), (&self.device(), wide(dtype)))
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

    fn norm(&mut self, config: &LlamaConfig, name: &str, width: usize) -> Result<LlamaRMSNorm<B>> {
        let weight = self.tensor(&format!("{name}.weight"), [width])?;
        Ok(LlamaRMSNorm { weight: Param::initialized(ParamId::new(), weight), epsilon: config.rms_norm_eps })
    }

    fn layer(&mut self, config: &LlamaConfig, index: usize) -> Result<LlamaDecoderLayer<B>> {
        let name = format!("model.layers.{index}");
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let mut head_norm = |part: &str| {
            let name = format!("{name}.self_attn.{part}");
            config.query_key_norm.then(|| self.norm(config, &name, config.head_dim)).transpose()
        };
        let (q_norm, k_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        Ok(LlamaDecoderLayer {
            self_attn: LlamaAttention {
                q_proj: self.linear(&format!("{name}.self_attn.q_proj"), d, queries, config.attention_bias)?,
                k_proj: self.linear(&format!("{name}.self_attn.k_proj"), d, keys, config.attention_bias)?,
                v_proj: self.linear(&format!("{name}.self_attn.v_proj"), d, keys, config.attention_bias)?,
                o_proj: self.linear(&format!("{name}.self_attn.o_proj"), queries, d, config.attention_output_bias)?,
                q_norm,
                k_norm,
                head_dim: config.head_dim,
                use_rope: config.rope_layers[index],
            },
            mlp: LlamaMLP {
                gate_proj: self.linear(&format!("{name}.mlp.gate_proj"), d, inner, config.mlp_bias)?,
                up_proj: self.linear(&format!("{name}.mlp.up_proj"), d, inner, config.mlp_bias)?,
                down_proj: self.linear(&format!("{name}.mlp.down_proj"), inner, d, config.mlp_bias)?,
            },
            input_layernorm: self.norm(config, &format!("{name}.input_layernorm"), d)?,
            post_attention_layernorm: self.norm(config, &format!("{name}.post_attention_layernorm"), d)?,
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
