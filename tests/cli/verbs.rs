//! The other verbs: complete, score, models, doctor, completions, help.

use std::fs;
use std::path::Path;

use predicates::prelude::*;
use serde_json::{Value, json};

use crate::support::*;

#[test]
fn complete_writes_as_many_tokens_as_asked() {
    for tokens in ["1", "7", "20"] {
        let written = answer(&mut tiny(["complete", "in the sand", "--json", "--tokens", tokens]));
        assert_eq!(ids(&written["completion_ids"]).len().to_string(), tokens);
        assert!(written["seconds"].is_number());
    }
    let all = answer(&mut tiny(["complete", "in the sand", "--json"]));
    assert_eq!(ids(&all["completion_ids"]).len(), 20);
    let some = answer(&mut tiny(["complete", "in the sand", "--json", "--tokens", "5"]));
    assert_eq!(ids(&all["completion_ids"])[..5], ids(&some["completion_ids"]));
    let piped = answer(tiny(["complete", "-", "--json"]).write_stdin("in the sand\n"));
    assert_eq!(piped["completion_ids"], all["completion_ids"]);
    // Special tokens written in a text are tokens.
    let special = answer(&mut tiny(["complete", "<|endoftext|>in", "--json", "--tokens", "1"]));
    assert_eq!(ids(&special["prompt_ids"]), [0, 259]);
}

#[test]
fn complete_ends_at_eos_only_where_asked_to() {
    let written = ids(&answer(&mut tiny(["complete", "on", "--json", "--tokens", "8"]))["completion_ids"]);
    let model = tiny_copy();
    // The third token that it writes now ends a text.
    edit(model.path().join("config.json"), |config| config["eos_token_id"] = json!([287, written[2]]));
    let first = written.iter().position(|id| *id == written[2]).unwrap();
    let complete = |flags: &[&str]| {
        let mut command = dlmi(["complete", "on", "--json", "--tokens", "8", "--backend", "flex", "--model"]);
        ids(&answer(command.arg(model.path()).args(flags))["completion_ids"])
    };
    assert_eq!(complete(&[]), written);
    assert_eq!(complete(&["--stop-at-eos"]), written[..=first]);
}

/// A line on stderr each, which is a note in JSON and where `score` speaks too.
#[test]
fn complete_says_what_its_text_does_not_show() {
    let model = tiny_copy();
    let written = ids(&answer(&mut tiny(["complete", "on", "--json", "--tokens", "8"]))["completion_ids"]);
    edit(model.path().join("config.json"), |config| config["eos_token_id"] = json!(written[2]));
    let dated = "{% for m in messages %}{{ strftime_now('%Y') }}{{ m.content }}{% endfor %}";
    fs::write(model.path().join("chat_template.jinja"), dated).unwrap();
    let on = |verb: &[&str]| {
        let mut command = dlmi([Path::new("--backend"), Path::new("flex"), Path::new("--model"), model.path()]);
        command.args(verb);
        command
    };
    let notes = |verb: &[&str]| answer(on(verb).arg("--json"))["notes"].to_string();
    for (flags, part) in [
        (&["<|endoftext|>on"][..], "the prompt holds `<|endoftext|>`, which is one special token"),
        (&["on", "--bos"], "a beginning-of-sequence token stands before the prompt"),
        (&["on", "--chat"], "writes today's date into the prompt"),
    ] {
        let [complete, score] = [&["complete", "--tokens", "1"][..], &["score"]].map(|verb| [verb, flags].concat());
        assert!(notes(&complete).contains(part), "{}", notes(&complete));
        let said = run(&mut on(&complete));
        assert!(said.err.starts_with("warning: ") && said.err.contains(part), "{said:?}");
        assert!(notes(&[&score[..], &[" and"]].concat()).contains(part));
    }
    let ended = notes(&["complete", "on", "--tokens", "8"]);
    assert!(ended.contains("the model ends its text after ") && ended.contains("--stop-at-eos"), "{ended}");
    assert!(!notes(&["complete", "on", "--tokens", "8", "--stop-at-eos"]).contains("ends its text"));
    // Half a character, sooner or later.
    let texts = (1..60).map(|tokens| answer(&mut tiny(["complete", "hello and then", "--json", "--tokens", &tokens.to_string()])));
    let half = texts.into_iter().find(|written| written["completion_text"].as_str().unwrap().ends_with('\u{fffd}')).expect("a broken text");
    assert!(half["notes"].to_string().contains("half a character, shown as"), "{half}");
}

#[test]
fn backends_complete_alike() {
    for prompt in ["Once", "hello and then", "12 ing"] {
        let written = |backend: &&str| {
            answer(&mut dlmi(["--model", TINY, "--backend", backend, "complete", prompt, "--json"]))["completion_ids"].clone()
        };
        let all: Vec<Value> = CPU_BACKENDS.iter().map(written).collect();
        assert!(all.iter().all(|ids| *ids == all[0]), "{all:?}");
    }
}

/// A folder, its weight file, shards and a GGUF with everything inside are all models.
#[test]
fn every_form_of_a_model_is_read() {
    let written = |model: &Path| {
        let mut command = dlmi([Path::new("--model"), model]);
        answer(command.args(["--backend", "flex", "complete", "hello and then", "--json", "--tokens", "12"]))["completion_ids"].clone()
    };
    let golden = Path::new("tests/golden");
    let folder = written(Path::new(TINY));
    assert_eq!(written(&Path::new(TINY).join("model.safetensors")), folder);
    assert_eq!(written(&golden.join("tiny_gguf/gqa3-tied.f32.gguf")), folder);
    assert_eq!(ids(&written(&golden.join("tiny/sharded"))).len(), 12);
    assert_eq!(ids(&written(&golden.join("tiny_gguf/gqa4-untied-llama3.q4_1.gguf"))).len(), 12);
}

#[test]
fn score_takes_texts_and_ids_alike() {
    let score = |arguments: &[&str]| answer(tiny(["score", "--json"]).args(arguments));
    let texts = score(&["in the sand", " and then"]);
    let (prompt, target) = (listed(&texts["prompt_ids"]), listed(&texts["target_ids"]));
    for same in [
        score(&["--prompt-ids", &prompt, "--target-ids", &target]),
        score(&["--prompt-ids", &prompt, " and then"]),
        score(&["in the sand", "--target-ids", &target]),
    ] {
        assert_eq!(same, texts);
    }
    assert_eq!((texts["prompt_text"].clone(), texts["target_text"].clone()), (json!("in the sand"), json!(" and then")));
    assert_eq!(texts["exact"], false);
    // What the model writes scores full marks.
    let bard = |arguments: &[&str]| answer(dlmi(["--backend", "flex", "--json"]).args(arguments));
    let written = bard(&["complete", "in the sand", "--tokens", "6"]);
    let full = bard(&["score", "in the sand", "--target-ids", &listed(&written["completion_ids"])]);
    for key in ["hard_forced", "hard_free"] {
        assert_eq!(full[key], 1.0);
    }
    assert_eq!(
        (full["exact"].clone(), full["matched_prefix"].clone(), full["completion_ids"].clone()),
        (json!(true), json!(6), written["completion_ids"].clone())
    );
    let other = bard(&["score", "in the sand", " and then"]);
    assert!(full["target_perplexity"].as_f64() < other["target_perplexity"].as_f64());
    tiny(["score", "in the sand", " and then"]).assert().code(0).stderr("").stdout(predicate::str::contains("hard_free"));
}

#[test]
fn models_are_listed_and_described() {
    dlmi(["models", "list"]).assert().code(0).stderr("").stdout(predicate::str::starts_with("bard"));
    assert_eq!(answer(&mut dlmi(["models", "list", "--json"]))["bundled"], json!(["bard"]));
    let shown = answer(&mut dlmi(["models", "show", TINY, "--json"]));
    for (key, value) in [
        ("architecture", json!("LlamaForCausalLM")),
        ("vocab_size", json!(288)),
        ("tokenizer_size", json!(282)),
        ("hidden_size", json!(48)),
        ("layers", json!(2)),
        ("attention_heads", json!(6)),
        ("key_value_heads", json!(2)),
        ("context", json!(TINY_CONTEXT)),
        ("tied_embeddings", json!(true)),
        ("chat_template", json!(false)),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }
    assert_eq!(shown["digest"], answer(&mut tiny(["models", "show", "--json"]))["digest"]);
    let model = tiny_copy();
    edit(model.path().join("config.json"), |config| (config["bos_token_id"], config["eos_token_id"]) = (json!(0), json!([0, 261])));
    fs::write(model.path().join("chat_template.jinja"), "x").unwrap();
    let show = |flags: &[&str]| {
        let mut command = dlmi(["models", "show"]);
        command.arg(model.path()).args(flags);
        command
    };
    let shown = answer(&mut show(&["--json"]));
    let end = json!({"id": 0, "text": "<|endoftext|>"});
    assert_eq!((&shown["chat_template"], &shown["start_token"], &shown["stop_tokens"][0]), (&json!(true), &end, &end));
    let lines = run(&mut show(&[])).out;
    assert!(lines.contains("start_token          <|endoftext|> (0)\n") && lines.contains("<|endoftext|> (0), "), "{lines}");
    dlmi(["models", "show"]).assert().code(0).stderr("").stdout(predicate::str::contains("bard").and(predicate::str::contains("digest")));
}

#[test]
fn doctor_lists_flex_and_every_other_backend() {
    // Drivers of GPUs may speak on stderr.
    let report: Value = serde_json::from_str(&run(&mut dlmi(["doctor", "--json"])).out).unwrap();
    assert_eq!((report["devices"][0]["backend"].clone(), report["devices"][0]["row"].clone()), (json!("flex"), json!(0)));
    assert_eq!(report["devices"][0]["dtypes"], json!(["f32"]));
    for device in report["devices"].as_array().unwrap().iter().filter(|device| device["backend"] == "wgpu" && device["kind"] == "software")
    {
        assert_eq!(device["dtypes"], json!(["f32", "f16"]), "{device}");
    }
    assert!(report["auto"]["row"].is_u64() && report["auto"]["reason"].is_string(), "{report}");
    let ran = run(&mut dlmi(["doctor"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for backend in ["flex", "ndarray", "cuda", "wgpu"] {
        assert!(ran.out.contains(backend), "{backend}: {}", ran.out);
    }
    // The row that it prints is the number for --device.
    let by_row = answer(&mut dlmi(["--model", TINY, "--device", "0", "complete", "on", "--json"]));
    assert_eq!(by_row["completion_ids"], answer(&mut tiny(["complete", "on", "--json"]))["completion_ids"]);
}

#[test]
fn completions_and_help_come_on_stdout() {
    for shell in ["bash", "zsh", "fish"] {
        dlmi(["completions", shell]).assert().code(0).stderr("").stdout(predicate::str::contains("prompt-tokens"));
    }
    for arguments in [&["--help"][..], &["invert", "--help"], &["help", "invert"], &["-h"]] {
        dlmi(arguments).assert().code(0).stderr("").stdout(predicate::str::contains("Usage: dlmi"));
    }
    dlmi(["--version"]).assert().code(0).stderr("").stdout(format!("dlmi {}\n", env!("CARGO_PKG_VERSION")));
    // No verb: the help, as a mistake.
    dlmi([""; 0]).assert().code(2).stdout("").stderr(predicate::str::contains("Usage: dlmi"));
}

#[test]
fn global_options_go_before_or_after_the_verb() {
    let before = answer(&mut dlmi(["--json", "--model", TINY, "--backend", "flex", "complete", "on"]));
    let after = answer(&mut dlmi(["complete", "on", "--backend", "flex", "--model", TINY, "--json"]));
    assert_eq!(before["completion_ids"], after["completion_ids"]);
}
