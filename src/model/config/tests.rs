//! What a `config.json` may say, and what is refused.

use super::*;
use crate::testing::tiny_config;
use proptest::prelude::*;
use serde_json::json;

fn parse(config: &Value) -> Result<LlamaConfig> {
    LlamaConfig::from_json(&config.to_string(), "config.json")
}

fn with(key: &str, value: Value) -> Value {
    let mut config = tiny_config();
    config[key] = value;
    config
}

fn smollm3(extra: Value) -> Value {
    let mut config = with("architectures", json!(["SmolLM3ForCausalLM"]));
    config.as_object_mut().unwrap().remove("tie_word_embeddings");
    config["num_hidden_layers"] = 6.into();
    for (key, value) in extra.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn both_forms_of_the_config_are_one_config() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let mut old = with("rope_scaling", scaling.clone());
    old["rope_theta"] = 5e5.into();
    old["torch_dtype"] = "bfloat16".into();
    let mut new = with("rope_parameters", scaling);
    new.as_object_mut().unwrap().remove("rope_theta");
    new["rope_parameters"]["rope_theta"] = 5e5.into();
    new["dtype"] = "bfloat16".into();
    let (old, new) = (parse(&old).unwrap(), parse(&new).unwrap());
    assert_eq!(old, new);
    assert_eq!(old.rope_theta, 5e5);
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 64.0 };
    assert_eq!(old.rope_scaling, Some(llama3));
}

#[test]
fn what_a_config_leaves_out_is_what_transformers_assumes() {
    let llama = parse(&json!({"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "rope_scaling": null, "head_dim": null}));
    let llama = llama.unwrap();
    assert_eq!((llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings), (2, 4, 2048));
    assert_eq!((llama.rope_theta, llama.rms_norm_eps, llama.tie_word_embeddings), (1e4, 1e-6, false));
    assert_eq!((llama.bos_token_id, llama.eos_token_ids.len()), (None, 0));
    let smollm3 = parse(&smollm3(json!({"rope_theta": null, "num_key_value_heads": null}))).unwrap();
    assert_eq!((smollm3.rope_theta, smollm3.num_key_value_heads, smollm3.tie_word_embeddings), (2e6, 4, true));
}

#[test]
fn smollm3_layers_with_a_one_use_rope() {
    let every = |extra| parse(&smollm3(extra)).unwrap().rope_layers;
    assert_eq!(every(json!({})), [true, true, true, false, true, true]);
    assert_eq!(every(json!({"no_rope_layer_interval": 2})), [true, false, true, false, true, false]);
    let listed = json!({"no_rope_layers": [0, 1, 1, 0, 1, 0], "no_rope_layer_interval": 2});
    assert_eq!(every(listed), [false, true, true, false, true, false]);
    // For Llama the list means nothing.
    assert_eq!(parse(&with("no_rope_layers", json!([0, 0]))).unwrap().rope_layers, [true, true]);
}

/// A config of another architecture, of 32 heads, that says as little as it may.
fn silent(architecture: &str, extra: Value) -> Result<LlamaConfig> {
    let mut config = json!({"architectures": [architecture], "vocab_size": 10, "hidden_size": 64, "intermediate_size": 8,
        "num_hidden_layers": 30, "num_attention_heads": 32});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    parse(&config)
}

#[test]
fn every_architecture_has_its_own_defaults() {
    let mistral = silent("MistralForCausalLM", json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert_eq!((mistral.num_key_value_heads, mistral.head_dim, mistral.max_position_embeddings), (8, 2, 131_072));
    assert!(!mistral.attention_bias && !mistral.attention_output_bias && !mistral.mlp_bias && !mistral.query_key_norm);
    let qwen2 = silent("Qwen2ForCausalLM", json!({"attention_bias": false})).unwrap();
    assert_eq!((qwen2.num_key_value_heads, qwen2.head_dim, qwen2.max_position_embeddings), (32, 2, 32_768));
    assert!(qwen2.attention_bias && !qwen2.attention_output_bias && !qwen2.query_key_norm);
    let qwen3 = silent("Qwen3ForCausalLM", json!({"attention_bias": true})).unwrap();
    assert_eq!((qwen3.num_key_value_heads, qwen3.head_dim, qwen3.rope_theta), (32, 128, 1e4));
    assert!(qwen3.attention_bias && qwen3.attention_output_bias && qwen3.query_key_norm && !qwen3.tie_word_embeddings);
    let named = parse(&json!({"model_type": "qwen3", "vocab_size": 10, "hidden_size": 64, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 32}));
    assert_eq!(named.unwrap().architecture, "Qwen3ForCausalLM");
}

#[test]
fn a_sliding_window_caps_the_context() {
    let window = |architecture: &str, extra| silent(architecture, extra).unwrap().sliding_window;
    let mistral = |extra| window("MistralForCausalLM", extra);
    assert_eq!(mistral(json!({})), Some(4096));
    assert_eq!(mistral(json!({"sliding_window": null})), None);
    assert_eq!(mistral(json!({"sliding_window": 7})), Some(7));
    let short = silent("MistralForCausalLM", json!({"max_position_embeddings": 5})).unwrap();
    assert_eq!((short.context(), silent("MistralForCausalLM", json!({})).unwrap().context()), (5, 4096));
    for qwen in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        let full = vec!["full_attention"; 30];
        let one = [vec!["full_attention"; 29], vec!["sliding_attention"]].concat();
        assert_eq!(window(qwen, json!({"sliding_window": 7})), None);
        assert_eq!(window(qwen, json!({"sliding_window": 7, "use_sliding_window": true})), Some(7));
        assert_eq!(window(qwen, json!({"sliding_window": null, "use_sliding_window": true})), None);
        assert_eq!(window(qwen, json!({"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 30})), None);
        assert_eq!(window(qwen, json!({"sliding_window": 7, "use_sliding_window": true, "layer_types": full})), None);
        assert_eq!(window(qwen, json!({"use_sliding_window": true, "layer_types": one})), Some(4096));
        assert!(silent(qwen, json!({"layer_types": one})).unwrap_err().to_string().contains("layer_types"));
    }
    // A Llama has none, whatever a field that it does not read says.
    assert_eq!(window("LlamaForCausalLM", json!({"sliding_window": 0})), None);
}

#[test]
fn other_words_for_the_same_are_understood() {
    let plain = parse(&tiny_config()).unwrap();
    for (key, value) in [
        ("hidden_act", json!("swish")),
        ("rope_scaling", json!({"type": "linear", "factor": 1.0})),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 1})),
    ] {
        assert_eq!(parse(&with(key, value)).unwrap(), plain);
    }
}

#[test]
fn numbers_as_python_writes_them_hurt_only_where_they_are_read() {
    let text = tiny_config().to_string();
    let beside = |field: &str| LlamaConfig::from_json(&text.replacen('{', &format!("{{{field}, "), 1), "config.json");
    let plain = LlamaConfig::from_json(&text, "config.json").unwrap();
    for field in [r#""limit": [0.0, Infinity]"#, r#""x": -Infinity"#, r#""NaN": "\\\"NaN, Infinity", "y":NaN"#] {
        assert_eq!(beside(field).unwrap(), plain, "{field}");
    }
    assert!(beside(r#""initial": Infinity, "x"#).unwrap_err().to_string().contains("not valid JSON"));
    let wild = with("rms_norm_eps", json!(0.25)).to_string().replace("0.25", "NaN");
    assert!(LlamaConfig::from_json(&wild, "config.json").unwrap_err().to_string().contains("`rms_norm_eps` must be a number"));
}

#[test]
fn tensors_have_the_names_and_shapes_of_transformers() {
    let mut config = with("head_dim", 20.into());
    config["attention_bias"] = true.into();
    config["mlp_bias"] = true.into();
    config["tie_word_embeddings"] = false.into();
    let config = parse(&config).unwrap();
    let tensors: std::collections::HashMap<_, _> = config.tensors().into_iter().collect();
    let shape = |name: &str| tensors[name].as_slice();
    assert_eq!(tensors.len(), 3 + 2 * (7 + 7 + 2));
    assert_eq!(shape("model.embed_tokens.weight"), [264, 64]);
    assert_eq!(shape("lm_head.weight"), [264, 64]);
    assert_eq!(shape("model.layers.0.self_attn.q_proj.weight"), [80, 64]);
    assert_eq!(shape("model.layers.1.self_attn.k_proj.bias"), [40]);
    assert_eq!(shape("model.layers.1.self_attn.o_proj.weight"), [64, 80]);
    assert_eq!(shape("model.layers.1.self_attn.o_proj.bias"), [64]);
    assert_eq!(shape("model.layers.1.mlp.down_proj.weight"), [64, 96]);
    assert_eq!(shape("model.layers.1.mlp.gate_proj.bias"), [96]);
    assert_eq!(shape("model.layers.1.post_attention_layernorm.weight"), [64]);
    let qwen = |architecture: &str| {
        let mut config = with("head_dim", 20.into());
        config["architectures"] = json!([architecture]);
        parse(&config).unwrap().tensors().into_iter().collect::<std::collections::HashMap<_, _>>()
    };
    let (qwen2, qwen3) = (qwen("Qwen2ForCausalLM"), qwen("Qwen3ForCausalLM"));
    assert_eq!((qwen2.len(), qwen3.len()), (2 + 2 * (7 + 3 + 2), 2 + 2 * (7 + 2 + 2)));
    assert_eq!(qwen2["model.layers.0.self_attn.v_proj.bias"], [40]);
    assert_eq!(qwen3["model.layers.0.self_attn.q_norm.weight"], [20]);
    assert_eq!(config.parameters(), tensors.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>());
}

#[test]
fn what_is_refused_is_named_with_what_is_accepted() {
    let cases = [
        ("architectures", json!(["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        ("architectures", json!(["LlamaForCausalLM", "X"]), "a list of one name"),
        ("hidden_act", json!("gelu"), "`silu`"),
        ("rope_interleaved", json!(true), "rope_interleaved"),
        ("use_sliding_window", json!(true), "use_sliding_window"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "layer_types"),
        ("quantization_config", json!({"quant_method": "awq"}), "quantization_config"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "yarn"),
        ("rope_scaling", json!({"type": "linear", "factor": 4.0}), "`rope_scaling.factor` must be 1, where the scaling is linear"),
        ("rope_scaling", json!({"type": "llama3", "factor": 4.0}), "`rope_scaling.low_freq_factor` is missing"),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "each layer type"),
        ("rope_theta", json!(-1), "a number above 0"),
        ("hidden_size", json!(0), "from 1 to 65536, found `0`"),
        ("hidden_size", json!(-576), "found `-576`"),
        ("hidden_size", json!(576.5), "found `576.5`"),
        ("hidden_size", json!("576"), "a whole number"),
        ("hidden_size", json!(1u64 << 63), "a whole number from 1 to 65536"),
        ("hidden_size", json!(66), "not divisible by `num_attention_heads`"),
        ("hidden_size", json!(null), "`hidden_size` is missing"),
        ("num_key_value_heads", json!(3), "not divisible by `num_key_value_heads`"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_hidden_layers", json!(1e18), "num_hidden_layers"),
        ("head_dim", json!(17), "must be even"),
        ("vocab_size", json!(1u64 << 40), "vocab_size"),
        ("rms_norm_eps", json!("1e-5"), "rms_norm_eps"),
        ("tie_word_embeddings", json!(1), "true or false"),
        ("eos_token_id", json!("</s>"), "eos_token_id"),
    ];
    for (key, value, expected) in cases {
        let error = parse(&with(key, value.clone())).expect_err(&format!("{key}: {value}"));
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("config.json"), "{key}: {value}: {text}");
    }
    for text in ["", "[]", "{", "\u{1b}[31m"] {
        assert!(LlamaConfig::from_json(text, "config.json").is_err());
    }
}

#[test]
fn ids_outside_the_vocabulary_are_dropped() {
    let config = parse(&with("eos_token_id", json!([2, 128_009, -1, 3]))).unwrap();
    assert_eq!(config.eos_token_ids, [2, 3]);
    assert_eq!(parse(&with("bos_token_id", json!(128_000))).unwrap().bos_token_id, None);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0i64..4096).prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| {
        let object = proptest::collection::vec(("[a-z_]{0,12}", inner.clone()), 0..4);
        prop_oneof![proptest::collection::vec(inner, 0..4).prop_map(Value::from), object.prop_map(|fields| fields.into_iter().collect()),]
    })
}

proptest! {
    /// Whatever a config says, reading it neither panics nor takes much memory, and what is accepted is sound.
    #[test]
    fn any_config_is_read_or_refused(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any_value()), 0..6),
        arch in proptest::sample::select(LlamaConfig::architectures().collect::<Vec<_>>()),
    ) {
        let mut config = with("architectures", json!([arch]));
        let extra = ["head_dim", "rope_scaling", "rope_parameters", "no_rope_layers", "no_rope_layer_interval",
            "attention_bias", "mlp_bias", "layer_types", "partial_rotary_factor", "sliding_window", "use_sliding_window", "max_window_layers"];
        for (index, value) in edits {
            let own: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
            let keys: Vec<&str> = own.iter().map(String::as_str).chain(extra).collect();
            config[*index.get(&keys)] = value;
        }
        if let Ok(config) = parse(&config) {
            prop_assert_eq!(config.rope_layers.len(), config.num_hidden_layers);
            prop_assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
            prop_assert_eq!(config.head_dim % 2, 0);
            let sizes = config.tensors().into_iter().map(|(_, shape)| {
                shape.into_iter().try_fold(1usize, |product, dim| product.checked_mul(dim))
            });
            let total = sizes.into_iter().try_fold(0usize, |sum, size| sum.checked_add(size?));
            prop_assert!(total.is_some_and(|total| total.checked_mul(4).is_some()));
        }
    }
}
