//! The architectures that are computed, and what each of them is where its `config.json` is silent, as in transformers.

/// What tells an architecture from the others.
#[derive(Debug)]
pub(super) struct Family {
    /// In `architectures`.
    pub name: &'static str,
    /// In `model_type`.
    pub model_type: &'static str,
    /// Key and value heads; none: as many as query heads.
    pub key_value_heads: Option<usize>,
    /// Width of a head; none: an equal share of the model's width.
    pub head_dim: Option<usize>,
    /// Longest context.
    pub positions: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// Every n-th layer goes without RoPE.
    pub no_rope_interval: Option<usize>,
    /// Which projections carry a bias.
    pub biases: Biases,
    /// Queries and keys are normalised, head by head.
    pub query_key_norm: bool,
    /// How far back layers may look.
    pub window: Window,
}

/// Which projections carry a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Biases {
    /// None, whatever the config says.
    None,
    /// Those of queries, keys and values, whatever the config says.
    QueryKeyValue,
    /// All of attention as `attention_bias` says.
    Attention,
    /// All of attention as `attention_bias` says, all of the MLP as `mlp_bias` says.
    AttentionAndMlp,
}

/// How far back layers may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// To the beginning; a config that says otherwise is refused.
    Whole,
    /// `sliding_window` positions, 4096 where it is not named, all where it is `null`.
    Sliding,
    /// `sliding_window` positions where `use_sliding_window` says so, in the layers from `max_window_layers` on or in those of
    /// `layer_types`.
    Switched,
}

const LLAMA: Family = Family {
    name: "LlamaForCausalLM",
    model_type: "llama",
    key_value_heads: None,
    head_dim: None,
    positions: 2048,
    rope_theta: 10_000.0,
    tied: false,
    no_rope_interval: None,
    biases: Biases::AttentionAndMlp,
    query_key_norm: false,
    window: Window::Whole,
};

/// All of them.
pub(super) const FAMILIES: [Family; 5] = [
    LLAMA,
    Family {
        name: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        key_value_heads: Some(4),
        positions: 32_768,
        rope_theta: 2_000_000.0,
        tied: true,
        no_rope_interval: Some(4),
        ..LLAMA
    },
    Family {
        name: "MistralForCausalLM",
        model_type: "mistral",
        key_value_heads: Some(8),
        positions: 131_072,
        biases: Biases::None,
        window: Window::Sliding,
        ..LLAMA
    },
    Family {
        name: "Qwen2ForCausalLM",
        model_type: "qwen2",
        key_value_heads: Some(32),
        positions: 32_768,
        biases: Biases::QueryKeyValue,
        window: Window::Switched,
        ..LLAMA
    },
    Family {
        name: "Qwen3ForCausalLM",
        model_type: "qwen3",
        key_value_heads: Some(32),
        head_dim: Some(128),
        positions: 32_768,
        biases: Biases::Attention,
        query_key_norm: true,
        window: Window::Switched,
        ..LLAMA
    },
];
