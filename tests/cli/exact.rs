//! What is never called exact, by any verb, and what a result must say beside it.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// The program on a model in a folder.
fn on(model: &TempDir, arguments: &[&str]) -> Value {
    let ran = run(dlmi([Path::new("--model"), model.path()]).args(["--backend", "flex", "--json"]).args(arguments));
    assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
    ran.json()
}

/// A tiny model stored in f32, its last norm so large that logits overflow.
fn overflowing() -> TempDir {
    let model = folder();
    let source = Path::new("tests/golden/tiny/gqa1-tied");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(source.join(name), model.path().join(name)).expect("a copy");
    }
    edit_tensor(model.path().join("model.safetensors"), "model.norm.weight", |bytes| {
        bytes.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&f32::MAX.to_le_bytes()));
    });
    model
}

#[test]
fn logits_that_are_no_numbers_are_never_exact() {
    let model = overflowing();
    let written = on(&model, &["complete", "he", "--tokens", "1"]);
    let target = listed(&written["completion_ids"]);
    let score = on(&model, &["score", "he", "--target-ids", &target]);
    assert_eq!(
        (&score["exact"], &score["min_margin"], &score["completion_ids"]),
        (&json!(false), &Value::Null, &written["completion_ids"])
    );
    assert!(score["notes"].to_string().contains("overflow"), "{score}");
    let text = written["completion_text"].as_str().unwrap();
    for method in ["snap", "dlmi", "echo"] {
        let arguments = ["invert", text, "--allow-special", "--allow-target-tokens", "--method", method];
        let found = on(&model, &[&arguments[..], &["--prompt-tokens", "3", "--steps", "3"]].concat());
        assert_eq!((&found["exact"], &found["min_margin"]), (&json!(false), &Value::Null), "{method}: {found}");
        assert_ne!(found["stopped"], "exact", "{method}");
    }
    for (method, advice) in [("snap", "another model"), ("dlmi", "learning_rate")] {
        let mut command = dlmi([Path::new("--model"), model.path()]);
        let arguments = ["--backend", "flex", "invert", text, "--allow-special", "--allow-target-tokens", "--method", method];
        let ran = run(command.args(arguments).args(["--prompt-tokens", "3", "--steps", "3"]));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.out.contains("not a number any more") && ran.out.contains(advice), "{method}: {ran:?}");
    }
}

/// As far as it may be set: what a run makes of it is finite all the same, and a result.
#[test]
fn the_largest_learning_rate_ends_in_a_result() {
    for method in ["dlmi", "gbda", "reinforce", "soda", "relax"] {
        let set = format!("{method}.learning_rate=1e9");
        let flags = ["--method", method, "--steps", "5", "--prompt-tokens", "3", "--set", &set];
        let found = inversion(tiny(["invert", "he is"]).args(flags));
        for key in ["/best/hard_free", "/target_perplexity", "/min_margin"] {
            assert!(found.pointer(key).unwrap().is_number(), "{method} {key}: {found}");
        }
        assert_eq!(found["lcs"]["relaxed_forced"].is_number(), !["reinforce", "relax"].contains(&method), "{found}");
        assert_eq!((&found["stopped"], &found["steps"]), (&json!("budget"), &json!(5)), "{method}");
    }
    refuses(&mut tiny(["invert", "x", "--method", "dlmi", "--set", "dlmi.learning_rate=inf"]), 2, &["dlmi.learning_rate", "inf"]);
}

/// Two tokens with the same embedding row have the same logit: nobody knows which of them a decoder writes.
#[test]
fn a_tie_is_never_exact() {
    let model = tiny_copy();
    let written = on(&model, &["complete", "in the sand", "--tokens", "1"]);
    let (id, twin) = (ids(&written["completion_ids"])[0] as usize, 287);
    let width = 48 * 2;
    edit_tensor(model.path().join("model.safetensors"), "model.embed_tokens.weight", |bytes| {
        let row = bytes[id * width..][..width].to_vec();
        bytes[twin * width..][..width].copy_from_slice(&row);
    });
    let target = id.to_string();
    let score = on(&model, &["score", "in the sand", "--target-ids", &target]);
    assert_eq!((&score["completion_ids"], &score["min_margin"]), (&json!([id]), &json!(0.0)));
    assert_eq!(score["exact"], false);
    let notes = score["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains("two tokens tie")), "{score}");
    let text = written["completion_text"].as_str().unwrap();
    let found = on(&model, &["invert", text, "--prompt-tokens", "4", "--steps", "40"]);
    assert!(found["exact"] == false || found["min_margin"].as_f64().unwrap() > 0.0, "{found}");
}

#[test]
fn an_end_of_sequence_token_inside_a_target_is_refused_with_a_word() {
    let target = "the<|endoftext|>end";
    refuses(&mut tiny(["invert", target, "--steps", "1"]), 2, &["--allow-special", "`<|endoftext|>`", "stop"]);
    let allowed = inversion(&mut tiny(["invert", target, "--steps", "1", "--prompt-tokens", "3", "--allow-special"]));
    assert_eq!(allowed["target_text"], target);
}

#[test]
fn a_result_says_what_its_printed_text_does_not_show() {
    let readable = |flags: &[&str]| run(tiny(["invert", "he is", "--steps", "2", "--prompt-tokens", "3"]).args(flags)).out;
    let plain = run(&mut tiny(["invert", OUT_OF_REACH, "--steps", "2", "--prompt-tokens", "3"])).out;
    assert!(plain.contains("not exact") && !plain.contains("note "), "{plain}");
    assert!(readable(&["--bos"]).contains("beginning-of-sequence"), "{}", readable(&["--bos"]));
    let suffixed = run(&mut tiny(["invert", "he is here", "--steps", "2", "--prompt-tokens", "3", "--suffix", " HERE"])).out;
    assert!(suffixed.contains("the suffix holds words of the target"), "{suffixed}");
    let echo = ["invert", "he is here", "--method", "echo", "--allow-target-tokens", "--steps", "2", "--prompt-tokens", "10"];
    let echo = run(&mut tiny(echo)).out;
    assert!(echo.contains("repeats much of the target"), "{echo}");
    let json = inversion(&mut tiny(["invert", "he is", "--steps", "2", "--prompt-tokens", "3", "--bos"]));
    assert!(json["notes"][0].as_str().unwrap().contains("beginning-of-sequence"), "{json}");
}

/// Scores say which prompt and which step they are of.
#[test]
fn scores_name_their_prompt_and_step() {
    let found = inversion(&mut tiny(["invert", OUT_OF_REACH, "--method", "dlmi", "--steps", "5", "--prompt-tokens", "4"]));
    assert_eq!((&found["lcs"]["step"], &found["best"]["prompt_ids"]), (&json!(5), &found["prompt_ids"]));
    assert_eq!(ids(&found["lcs"]["prompt_ids"]).len(), 4);
    assert!(found["best"]["step"].as_u64().unwrap() <= 5);
}
