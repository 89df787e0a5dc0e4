//! The architecture, as the model code uses it.

/// Resolved architecture of a Llama-style model: every default of `config.json` filled in and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// `LlamaForCausalLM` or `SmolLM3ForCausalLM`.
    pub architecture: String,
    /// V, rows of the embedding matrix.
    pub vocab_size: usize,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// ε inside the root of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether layer i rotates queries and keys (SmolLM3 leaves some layers without RoPE).
    pub rope_layers: Vec<bool>,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// q, k, v and o projections carry a bias.
    pub attention_bias: bool,
    /// gate, up and down projections carry a bias.
    pub mlp_bias: bool,
    /// Token that starts a text, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// Stretching of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a smooth blend between.
    Llama3 {
        /// Division of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context of the original training.
        original_max_position_embeddings: f64,
    },
    /// A divisor for each frequency, `[head_dim / 2]`, as GGUF stores it in `rope_freqs.weight`.
    Factors(Vec<f64>),
}
