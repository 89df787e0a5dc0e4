//! Other people's models: families, spellings and leftovers, each read as transformers reads it.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// One of `tests/golden/cases` in a folder of its own.
fn case(name: &str) -> TempDir {
    let (copy, cases) = (folder(), Path::new("tests/golden/cases"));
    for file in fs::read_dir(cases.join(name)).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    fs::copy(cases.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    copy
}

/// What transformers makes of it: `tests/golden/cases.py`.
fn expected(name: &str) -> Value {
    let all: Value = serde_json::from_slice(&fs::read("tests/golden/cases/expected.json").unwrap()).unwrap();
    all[name].clone()
}

fn on(model: &Path, arguments: &[&str]) -> Command {
    let mut command = dlmi(["--backend", "flex", "--model"]);
    command.arg(model).args(arguments);
    command
}

/// What a model writes after a prompt.
fn written(model: &Path, prompt: &str) -> Vec<u32> {
    ids(&answer(&mut on(model, &["complete", prompt, "--tokens", "12", "--json"]))["completion_ids"])
}

const FAMILIES: [(&str, &str); 5] = [
    ("llama32", "LlamaForCausalLM"),
    ("tinyllama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
];

#[test]
fn a_family_is_one_model_as_a_folder_and_as_a_gguf() {
    let golden = Path::new("tests/golden");
    for (name, architecture) in FAMILIES {
        let (folder, gguf) = (golden.join("tiny").join(name), golden.join(format!("tiny_gguf/{name}.bf16.gguf")));
        let text = "DON'T 12345 thé\n";
        assert_eq!(written(&folder, text), written(&gguf, text), "{name}");
        let shown = answer(&mut on(&folder, &["models", "show", "--json"]));
        assert_eq!(shown["architecture"], architecture);
        let step = ["bench", "step", "--method", "dlmi", "--prompt-tokens", "4", "--target-tokens", "3", "--samples", "2", "--json"];
        assert_eq!(answer(&mut on(&folder, &step))["model_digest"], shown["digest"], "{name}");
        for method in ["snap", "dlmi", "reinforce"] {
            let flags = ["invert", "the quick brown", "--prompt-tokens", "4", "--steps", "2", "--method", method];
            let found = inversion(&mut on(&folder, &flags));
            assert_eq!((found["steps"].clone(), ids(&found["search_ids"]).len()), (json!(2), 4), "{name} {method}");
        }
    }
}

#[test]
fn a_sliding_window_is_refused_only_where_it_bites() {
    let mistral = Path::new("tests/golden/tiny/mistral");
    let shown = answer(&mut on(mistral, &["models", "show", "--json"]));
    assert_eq!((shown["context"].clone(), shown["sliding_window"].clone()), (json!(256), json!(32)));
    assert_eq!(ids(&answer(&mut on(mistral, &["complete", "x", "--tokens", "31", "--json"]))["completion_ids"]).len(), 31);
    refuses(&mut on(mistral, &["complete", "x", "--tokens", "32"]), 2, &["33 positions", "sliding window", "holds 32"]);
    refuses(&mut on(mistral, &["invert", "x", "--prompt-tokens", "32"]), 2, &["sliding window", "32"]);
}

#[test]
fn bos_is_the_models_own() {
    let yi = case("yi-bos");
    let theirs = expected("yi-bos");
    let ours = answer(&mut on(yi.path(), &["complete", "the king", "--bos", "--tokens", "40", "--json"]));
    assert_eq!((&ours["prompt_ids"], &ours["completion_ids"]), (&theirs["prompt_ids"], &theirs["whole"]));
    let start = |flags: &[&str]| {
        let made = run(on(yi.path(), &["targets", "--k", "1", "--per-k", "1", "--tokens", "2"]).args(flags)).out;
        serde_json::from_str::<Value>(&made).unwrap()["bos"].clone()
    };
    assert_eq!((start(&[]), start(&["--bos-token", "<|im_end|>"])), (json!(700), json!(702)));
}

#[test]
fn every_stop_token_of_the_generation_config_stops() {
    let (model, theirs) = (case("generation-eos"), expected("generation-eos"));
    let prompt = theirs["prompt"].as_str().unwrap();
    let complete = |flags: &[&str]| {
        let command = on(model.path(), &["complete", prompt, "--tokens", "40", "--json"]);
        answer({ command }.args(flags))["completion_ids"].clone()
    };
    assert_eq!(complete(&[]), theirs["whole"]);
    assert_eq!(complete(&["--stop-at-eos"]), theirs["stopped"]);
    assert_eq!(ids(&theirs["stopped"]).last(), Some(&652));
    // Nor may a target hold one: 652 is an end here, and is none for the config alone.
    refuses(&mut on(model.path(), &["invert", "--target-ids", "5,652,7"]), 2, &["end-of-sequence", "--allow-special"]);
    fs::remove_file(model.path().join("generation_config.json")).unwrap();
    let found = inversion(&mut on(model.path(), &["invert", "--target-ids", "5,652,7", "--prompt-tokens", "3", "--steps", "1"]));
    assert_eq!(found["steps"], 1);
}

#[test]
fn a_token_without_an_embedding_is_never_proposed_nor_accepted() {
    let model = case("pad-token-past-embeddings");
    assert_eq!(answer(&mut on(model.path(), &["models", "show", "--json"]))["tokenizer_size"], 704);
    let theirs = expected("pad-token-past-embeddings");
    let ours = answer(&mut on(model.path(), &["complete", "the king", "--tokens", "40", "--json"]));
    assert_eq!((&ours["prompt_ids"], &ours["completion_ids"]), (&theirs["prompt_ids"], &theirs["whole"]));
    let past = ["703", "702"];
    for arguments in [
        &["complete", "the <pad> king"][..],
        &["complete", "--ids", "5,703"],
        &["score", "the king", "is <pad>"],
        &["score", "<pad>", "is"],
        &["invert", "is <pad>", "--steps", "1"],
        &["invert", "is", "--prefix", "<pad>", "--steps", "1"],
        &["invert", "is", "--suffix", " <pad>", "--steps", "1"],
    ] {
        refuses(&mut on(model.path(), arguments), 2, &past);
    }
    let list = model.path().join("targets.jsonl");
    fs::write(&list, r#"{"text": "a <pad>"}"#).unwrap();
    refuses(&mut on(model.path(), &["invert", "--targets", list.to_str().unwrap()]), 2, &past);
    // The whole vocabulary is that of the embeddings.
    for method in ["snap", "dlmi", "random"] {
        let flags = ["invert", "the king is", "--allow-special", "--set", "all_tokens=true", "--method", method, "--steps", "3"];
        let found = inversion(&mut on(model.path(), &flags));
        assert!(ids(&found["search_ids"]).iter().all(|id| *id < 703), "{found}");
    }
}

/// The tiny model as one shard with an index that lists what is not there.
#[test]
fn an_index_may_list_a_tied_head() {
    let model = tiny_copy();
    let (file, shard) = (model.path().join("model.safetensors"), "model-00001-of-00001.safetensors");
    let bytes = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk::<8>().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let mut places: serde_json::Map<String, Value> =
        header.as_object().unwrap().keys().filter(|name| *name != "__metadata__").map(|name| (name.clone(), json!(shard))).collect();
    places.insert("lm_head.weight".into(), json!(shard));
    fs::write(model.path().join("model.safetensors.index.json"), json!({ "weight_map": places }).to_string()).unwrap();
    fs::rename(&file, model.path().join(shard)).unwrap();
    assert_eq!(written(model.path(), "hello and then"), written(Path::new(TINY), "hello and then"));
    // A config that does not tie needs what is missing.
    edit(model.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    refuses(&mut on(model.path(), &["complete", "x"]), 2, &["missing", "lm_head.weight"]);
}

#[cfg(unix)]
#[test]
fn shards_may_be_links() {
    let model = folder();
    for file in fs::read_dir("tests/golden/tiny/sharded").unwrap().map(Result::unwrap) {
        std::os::unix::fs::symlink(fs::canonicalize(file.path()).unwrap(), model.path().join(file.file_name())).unwrap();
    }
    assert_eq!(written(model.path(), "hello and then"), written(Path::new("tests/golden/tiny/sharded"), "hello and then"));
}

#[test]
fn a_config_in_other_words() {
    let model = tiny_copy();
    let path = model.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"silu\"", "\"swish\"");
    fs::write(&path, format!("\u{feff}{}", text.replacen('{', "{\"time_step_limit\": [0.0, Infinity], \"x\": NaN,", 1))).unwrap();
    assert_eq!(written(model.path(), "hello and then"), written(Path::new(TINY), "hello and then"));
}

/// Another tokenizer beside a GGUF is named and left aside.
#[test]
fn a_foreign_tokenizer_beside_a_gguf_is_left_aside() {
    let model = folder();
    let gguf = model.path().join("model.gguf");
    fs::copy("tests/golden/tiny_gguf/gqa3-tied.f32.gguf", &gguf).unwrap();
    let tokenizer = model.path().join("tokenizer.json");
    fs::copy("tests/golden/cases/yi-bos/tokenizer.json", &tokenizer).unwrap();
    let complete = |model: &Path| run(&mut on(model, &["complete", "hello and then", "--json", "--tokens", "12"]));
    let ran = complete(&gguf);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("tokenizer.json") && ran.err.contains("left aside") && ran.err.lines().count() == 1, "{ran:?}");
    let found: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(ids(&found["completion_ids"]), written(Path::new(TINY), "hello and then"));
    // Its own is used without a word; a folder with nothing else is this model too.
    fs::copy(Path::new(TINY).join("tokenizer.json"), &tokenizer).unwrap();
    for model in [gguf.as_path(), model.path()] {
        assert_eq!(written(model, "hello and then"), written(Path::new(TINY), "hello and then"));
    }
}

#[test]
fn what_is_no_model_is_said_at_once() {
    let broken = |change: &dyn Fn(&Path), parts: &[&str]| {
        let model = tiny_copy();
        change(model.path());
        refuses(&mut on(model.path(), &["complete", "x"]), 2, parts);
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n";
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        broken(&|model| fs::write(model.join(name), pointer).unwrap(), &[name, "Git LFS pointer", "git lfs pull"]);
    }
    let only_sentencepiece = |model: &Path| fs::rename(model.join("tokenizer.json"), model.join("tokenizer.model")).unwrap();
    broken(&only_sentencepiece, &["no `", "tokenizer.json`", "`tokenizer.model`", "save_pretrained"]);

    let gguf = |change: &dyn Fn(&mut Vec<u8>)| -> (TempDir, PathBuf) {
        let model = folder();
        let (path, mut bytes) = (model.path().join("model.gguf"), fs::read("tests/golden/tiny_gguf/kquants.gguf").unwrap());
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        (model, path)
    };
    let (_model, path) = gguf(&|bytes| bytes[4..8].reverse());
    refuses(&mut on(&path, &["complete", "x"]), 2, &["model.gguf", "big-endian"]);
    let (_model, path) = gguf(&|bytes| *bytes = pointer.into());
    refuses(&mut on(&path, &["complete", "x"]), 2, &["model.gguf", "Git LFS pointer"]);
    let (model, path) = gguf(&|_| ());
    fs::copy(&path, model.path().join("other.gguf")).unwrap();
    refuses(&mut on(model.path(), &["complete", "x"]), 2, &["2 GGUF files", "model.gguf"]);
    // One of the two shows pictures to the other, whose name is in capitals.
    fs::rename(model.path().join("other.gguf"), model.path().join("mmproj-f16.gguf")).unwrap();
    fs::rename(&path, model.path().join("MODEL.GGUF")).unwrap();
    let written = run(&mut on(model.path(), &["complete", "x", "--tokens", "2"]));
    assert_eq!(written.code, Some(0), "{written:?}");

    // A folder that is here, and a name in it that is not; with a revision it is one on the hub.
    refuses(&mut dlmi(["--model", "tests/gloden", "complete", "x"]), 2, &["`tests/gloden`", "`tests`", "`gloden`", "@main"]);
    refuses(&mut dlmi(["--model", "tests/gloden@main", "complete", "x"]), 3, &["HF_HUB_OFFLINE"]);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_target() {
    let folder = folder();
    let (lines, text, settings) = (folder.path().join("t.jsonl"), folder.path().join("t.txt"), folder.path().join("s.toml"));
    fs::write(&lines, "\u{feff}{\"id\": \"a\", \"text\": \"in the\"}\n").unwrap();
    fs::write(&text, "\u{feff}in the\n").unwrap();
    fs::write(&settings, "\u{feff}steps = 1\n").unwrap();
    let labelled = run(tiny(["targets", "--label"]).arg(&lines)).out;
    assert_eq!(serde_json::from_str::<Value>(&labelled).unwrap()["text"], "in the");
    let found = inversion(tiny(["invert", "--prompt-tokens", "3", "--file"]).arg(&text).arg("-c").arg(&settings));
    assert_eq!((found["target_text"].clone(), found["settings"]["steps"].clone()), (json!("in the"), json!(1)));
}
