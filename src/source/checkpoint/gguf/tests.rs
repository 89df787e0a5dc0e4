//! GGUF files, whole and hostile.

use super::fixture::Gguf;
use crate::Result;
use crate::model::{Checkpoint, RopeScaling, WeightSource};
use crate::testing::{golden, real_smollm2, tiny_tokenizer};
use half::bf16;
use serde_json::{Value, json};

fn llama() -> Gguf {
    Gguf::llama("llama", |_, values| Some(values))
}

fn open(file: &Gguf) -> Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    Checkpoint::open(&file.write(folder.path()))
}

fn read(checkpoint: &mut Checkpoint, name: &str) -> Vec<f32> {
    let (name, shape) = checkpoint.config.tensors().into_iter().find(|(other, _)| other == name).unwrap();
    checkpoint.read(&name, &shape).unwrap()
}

#[test]
fn a_gguf_and_the_safetensors_it_was_made_from_are_one_model() {
    for (model, file) in [("gqa3-tied", "gqa3-tied.f32"), ("gqa4-untied-llama3", "gqa4-untied-llama3.f16")] {
        let mut gguf = Checkpoint::open(&golden(&format!("tiny_gguf/{file}.gguf"))).unwrap();
        let mut folder = Checkpoint::open(&golden(&format!("tiny/{model}"))).unwrap();
        for (name, shape) in folder.config.tensors() {
            assert_eq!(gguf.read(&name, &shape).unwrap(), folder.read(&name, &shape).unwrap(), "{model}: {name}");
        }
        // Llama 3's scaling is stored as factors; everything else is equal.
        let scaling = gguf.config.rope_scaling.take();
        assert_eq!(scaling.is_some(), folder.config.rope_scaling.take().is_some());
        if let Some(RopeScaling::Factors(factors)) = scaling {
            assert_eq!(factors.len(), folder.config.head_dim / 2);
        }
        assert_eq!(gguf.config, folder.config);
        assert_eq!(gguf.tokenizer.encode("the 12 and <|endoftext|>"), folder.tokenizer.encode("the 12 and <|endoftext|>"));
    }
}

#[test]
fn rows_of_queries_and_keys_and_their_biases_return_to_their_places() {
    // Row r of a head of four is neighbour-paired in the file: 0 2 1 3.
    let row_numbers = |name: &str, values: Vec<f32>| {
        let interleaved = name.contains("attn_q") || name.contains("attn_k");
        Some((0..values.len()).map(|i| if interleaved { (i / 8) as f32 } else { 0.0 }).collect())
    };
    let bias = |count: u8| (0..count).map(f32::from).collect::<Vec<_>>();
    let file = Gguf::llama("llama", row_numbers)
        .floats("blk.0.attn_q.bias", &[8], &bias(8))
        .floats("blk.0.attn_k.bias", &[4], &bias(4))
        .floats("blk.0.attn_v.bias", &[4], &bias(4))
        .floats("blk.0.attn_output.bias", &[8], &bias(8));
    let mut checkpoint = open(&file).unwrap();
    assert!(checkpoint.config.attention_bias && !checkpoint.config.mlp_bias);
    let mut layer = |name: &str| read(&mut checkpoint, &format!("model.layers.0.self_attn.{name}"));
    assert_eq!(layer("q_proj.bias"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(layer("k_proj.bias"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(layer("v_proj.bias"), bias(4));
    assert_eq!(layer("o_proj.bias"), bias(8));
    let first_of_rows: Vec<f32> = layer("q_proj.weight").into_iter().step_by(8).collect();
    assert_eq!(first_of_rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
}

#[test]
fn the_metadata_become_the_config() {
    let file = llama().u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 2).pair(
        "llama.rope.freq_base",
        6,
        &5e5f32.to_le_bytes(),
    );
    let config = open(&file).unwrap().config;
    assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (4, 8, 6));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (2, 1, 4));
    assert_eq!((config.rms_norm_eps, config.rope_theta, config.max_position_embeddings), (1e-5, 5e5, 16));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(0), [2, 0].as_slice()));
    assert!(config.tie_word_embeddings && !config.attention_bias && config.rope_scaling.is_none());
    let untied = open(&llama().floats("output.weight", &[8, 4], &[0.5; 32])).unwrap();
    assert!(!untied.config.tie_word_embeddings);
}

#[test]
fn smollm3_leaves_every_fourth_layer_without_rope_and_has_llama_cpps_defaults() {
    let checkpoint = open(&Gguf::llama("smollm3", |_, values| Some(values))).unwrap();
    assert_eq!(checkpoint.config.architecture, "SmolLM3ForCausalLM");
    assert_eq!((checkpoint.config.rope_layers, checkpoint.config.rope_theta), (vec![true], 10_000.0));
    let mut file = Gguf::llama("smollm3", |_, values| Some(values)).u32("smollm3.block_count", 5);
    for layer in 1..5 {
        for tensor in llama().tensors.iter().filter(|tensor| tensor.name.starts_with("blk.0.")) {
            let count = tensor.dimensions.iter().product::<u64>() as usize;
            file = file.floats(&tensor.name.replace(".0.", &format!(".{layer}.")), &tensor.dimensions, &vec![0.0; count]);
        }
    }
    assert_eq!(open(&file).unwrap().config.rope_layers, [true, true, true, false, true]);
}

#[test]
fn rope_factors_are_honoured_or_refused() {
    let with = |factors: &[f32]| open(&llama().floats("rope_freqs.weight", &[factors.len() as u64], factors));
    assert_eq!(with(&[1.0, 8.0]).unwrap().config.rope_scaling, Some(RopeScaling::Factors(vec![1.0, 8.0])));
    for factors in [[0.0, 1.0], [-1.0, 1.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
        assert!(with(&factors).err().unwrap().to_string().contains("above zero"));
    }
    assert!(with(&[1.0; 3]).err().unwrap().to_string().contains("has shape [3], expected [2]"));
    let unreadable = open(&llama().tensor("rope_freqs.weight", &[2], 28, &[0; 16]));
    assert!(unreadable.err().unwrap().to_string().contains("`rope_freqs.weight` is stored as F64"));
    let halves: Vec<u8> = [1.0, 4.0].into_iter().flat_map(|factor| bf16::from_f32(factor).to_le_bytes()).collect();
    let stored = open(&llama().tensor("rope_freqs.weight", &[2], 30, &halves)).unwrap();
    assert_eq!(stored.config.rope_scaling, Some(RopeScaling::Factors(vec![1.0, 4.0])));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let number = |key: &str, value: f32| llama().pair(key, 6, &value.to_le_bytes());
    let without = |dropped: &'static str| Gguf::llama("llama", move |name, values| (name != dropped).then_some(values));
    let cases = [
        (llama().text("general.architecture", "gemma"), "architecture `gemma` is not supported"),
        (llama().u32("llama.expert_count", 8), "`llama.expert_count` is 8"),
        (
            Gguf::llama("smollm3", |_, values| Some(values)).u32("smollm3.attention.sliding_window", 4096),
            "`use_sliding_window` must be false",
        ),
        (number("llama.logit_scale", 0.25), "`llama.logit_scale` is 0.25"),
        (number("llama.rope.scaling.attn_factor", 0.5), "`llama.rope.scaling.attn_factor` is 0.5"),
        (number("llama.rope.scaling.factor", 4.0), "`llama.rope.scaling.factor` is 4"),
        (llama().text("llama.rope.scaling.type", "yarn"), "RoPE scaling `yarn`"),
        (llama().u32("llama.rope.dimension_count", 2), "`llama.rope.dimension_count` is 2"),
        (llama().u32("llama.attention.value_length", 8), "`llama.attention.value_length` is 8"),
        (llama().u32("split.count", 2), "one of 2 parts"),
        // A later part has no other metadata.
        (Gguf::new().u32("split.no", 1).u32("split.count", 3), "part 2 is one of 3 parts"),
        (llama().array("llama.attention.head_count_kv", 4, 1, &[1, 0, 0, 0]), "must be a single value"),
        (llama().text("llama.embedding_length", "8"), "`hidden_size` must be a whole number"),
        (number("llama.attention.layer_norm_rms_epsilon", f32::NAN), "`rms_norm_eps` must be a number"),
        (llama().u32("llama.embedding_length", 16), "expected [4, 16], found [4, 8]"),
        (llama().u32("llama.vocab_size", 5), "`model.embed_tokens.weight` expected [5, 8], found [4, 8]"),
        (without("blk.0.ffn_up.weight"), "1 missing: `model.layers.0.mlp.up_proj.weight` [6, 8]"),
        (llama().floats("blk.0.attn_q_norm.weight", &[4], &[1.0; 4]), "1 unused: `blk.0.attn_q_norm.weight` [4]"),
        (without("output_norm.weight").tensor("output_norm.weight", &[8], 20, &[0; 32]), "stored as IQ4_NL"),
        (without("output_norm.weight").tensor("output_norm.weight", &[8], 77, &[0; 32]), "stored as type 77"),
        (llama().floats("model.norm.weight", &[8], &[1.0; 8]), "twice"),
    ];
    for (file, expected) in cases {
        let text = open(&file).err().expect(expected).to_string();
        assert!(text.contains(expected) && text.contains("model.gguf"), "{expected}: {text}");
    }
    let missing = Gguf { pairs: llama().pairs.into_iter().filter(|(key, _)| key != "llama.context_length").collect(), ..llama() };
    assert!(open(&missing).err().unwrap().to_string().contains("`llama.context_length` is missing"));
}

#[test]
fn values_that_are_not_finite_are_counted() {
    let file = Gguf::llama("llama", |name, mut values| {
        if name == "blk.0.ffn_up.weight" {
            (values[3], values[40]) = (f32::NAN, f32::NEG_INFINITY);
        }
        Some(values)
    });
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoint = Checkpoint::open(&file.write(folder.path())).unwrap();
    let text = checkpoint.read("model.layers.0.mlp.up_proj.weight", &[6, 8]).unwrap_err().to_string();
    assert!(text.contains("`model.layers.0.mlp.up_proj.weight`") && text.contains("2 values"), "{text}");
}

#[test]
fn a_tokenizer_json_beside_the_file_goes_first_if_it_is_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let path = llama().write(folder.path());
    let encode = |text: &str| Checkpoint::open(&path).unwrap().tokenizer.encode(text);
    assert_eq!(encode("ab"), [3]);
    // The same tokens, and no merge: whoever reads it sees two pieces.
    let mut own = tiny_tokenizer();
    own["model"]["vocab"] = json!({"<|end|>": 0, "a": 1, "b": 2, "ab": 3});
    own["model"]["merges"] = json!([]);
    own["added_tokens"] = json!([]);
    let write = |tokenizer: &Value| std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    write(&own);
    assert_eq!(encode("ab"), [1, 2]);
    // Another order is another vocabulary, and 262 tokens are another model's: the file's own are taken.
    own["model"]["vocab"] = json!({"<|end|>": 0, "b": 1, "a": 2, "ab": 3});
    write(&own);
    assert_eq!(encode("ab"), [3]);
    write(&tiny_tokenizer());
    assert_eq!(encode("ab"), [3]);
    // What the file cannot say, the neighbour may.
    let silent = Gguf { pairs: llama().pairs.into_iter().filter(|(key, _)| !key.starts_with("tokenizer")).collect(), ..llama() };
    silent.write(folder.path());
    write(&own);
    assert_eq!(encode("ab"), [2, 1]);
}

#[test]
fn a_sliding_window_is_the_context() {
    let file = llama().u32("llama.attention.sliding_window", 8).u32("llama.context_length", 32);
    let config = open(&file).unwrap().config;
    assert_eq!((config.architecture.as_str(), config.sliding_window, config.context()), ("MistralForCausalLM", Some(8), 8));
    let config = open(&llama().u32("llama.attention.sliding_window", 0)).unwrap().config;
    assert_eq!((config.architecture.as_str(), config.sliding_window, config.context()), ("LlamaForCausalLM", None, 16));
}

#[test]
fn rows_of_qwen_are_where_they_belong() {
    let row_numbers = |_: &str, values: Vec<f32>| Some((0..values.len()).map(|i| (i / 8) as f32).collect());
    let mut file = Gguf::llama("qwen2", row_numbers);
    for (part, width) in [("q", 8), ("k", 4), ("v", 4)] {
        file = file.floats(&format!("blk.0.attn_{part}.bias"), &[width], &vec![0.5; width as usize]);
    }
    let mut checkpoint = open(&file).unwrap();
    let config = &checkpoint.config;
    assert_eq!((config.architecture.as_str(), config.attention_bias, config.attention_output_bias), ("Qwen2ForCausalLM", true, false));
    let first_of_rows: Vec<f32> = read(&mut checkpoint, "model.layers.0.self_attn.q_proj.weight").into_iter().step_by(8).collect();
    assert_eq!(first_of_rows, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);

    let norms = |file: Gguf| file.floats("blk.0.attn_q_norm.weight", &[4], &[2.0; 4]).floats("blk.0.attn_k_norm.weight", &[4], &[3.0; 4]);
    let file = norms(Gguf::llama("qwen3", |_, values| Some(values)).u32("qwen3.attention.key_length", 4));
    let mut checkpoint = open(&file).unwrap();
    assert!(checkpoint.config.query_key_norm && !checkpoint.config.attention_bias);
    assert_eq!(read(&mut checkpoint, "model.layers.0.self_attn.k_norm.weight"), [3.0; 4]);
}

#[test]
fn every_token_that_ends_something_is_a_stop_token() {
    let stops = |ids: &[(&str, u32)]| {
        let file = ids.iter().fold(llama(), |file, (name, id)| file.u32(&format!("tokenizer.ggml.{name}_token_id"), *id));
        open(&file).unwrap().config.eos_token_ids
    };
    // `<|end|>`, a control token, is 0.
    assert_eq!(stops(&[("eos", 2), ("eot", 3)]), [2, 3, 0]);
    assert_eq!(stops(&[("eos", 2), ("eot", 2), ("eom", 0)]), [2, 0]);
    assert_eq!(stops(&[("eos", 2), ("unknown", 0)]), [2]);
}

/// SHA-256 pinned by `scripts/fetch_smollm2.sh`; the config of the model's repository.
#[test]
fn the_real_gguf_is_smollm2() {
    let Some(path) = real_smollm2("the_real_gguf_is_smollm2") else { return };
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.digest, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
    let config = &checkpoint.config;
    assert_eq!((config.vocab_size, config.hidden_size, config.num_hidden_layers), (49_152, 576, 30));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.rope_theta), (9, 3, 1e5));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2].as_slice()));
    assert_eq!(config.parameters(), 134_515_008);
    // A tensor of many chunks, larger than what one task decodes.
    assert_eq!(read(&mut checkpoint, "model.embed_tokens.weight").len(), 49_152 * 576);
}
