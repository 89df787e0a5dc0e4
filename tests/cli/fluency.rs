//! `invert --fluency`: prompts that the model itself finds likely.

use serde_json::{Value, json};

use crate::support::*;

/// Some steps on bard for a text that it does not say so soon.
fn found(method: &str, more: &[&str]) -> Value {
    let few = ["--backend", "flex", "invert", "the quick brown fox jumps", "--method", method, "--prompt-tokens", "8", "--steps", "24"];
    inversion(dlmi(few).args(more))
}

#[test]
fn what_it_weighs_shows_in_the_prompt() {
    for (method, batch) in
        [("snap", "snap.batch=24"), ("gcg", "gcg.batch=32"), ("autoprompt", "autoprompt.batch=10"), ("random", "random.batch=24")]
    {
        let batch = ["--set", batch];
        let (with, without) = (found(method, &[&batch[..], &["--fluency", "8"]].concat()), found(method, &batch));
        assert_eq!((&with["settings"][method]["fluency"], &without["settings"][method]["fluency"]), (&json!(8.0), &Value::Null));
        let perplexity = |record: &Value| record["prompt_perplexity"].as_f64().unwrap();
        assert!(perplexity(&with) < 0.7 * perplexity(&without), "{method}: {with} {without}");
    }
}

#[test]
fn none_of_it_is_as_if_there_were_none() {
    let off = found("snap", &["--fluency", "0"]);
    let bare = |mut record: Value| {
        record["settings"]["snap"]["fluency"] = Value::Null;
        untimed(&record)
    };
    assert_eq!(bare(off), bare(found("snap", &[])));
}

#[test]
fn a_run_with_it_goes_on_as_if_never_interrupted() {
    let run = |steps: &str, more: &[&str]| {
        let flags = ["invert", OUT_OF_REACH, "--prompt-tokens", "6", "--prefix", "so", "--fluency", "1.5", "--steps", steps];
        untimed(&inversion(tiny(flags).args(more)))
    };
    let (folder, whole) = (folder(), run("30", &[]));
    let out = folder.path().display().to_string();
    run("7", &["--out", &out]);
    assert_eq!(run("30", &["--out", &out, "--resume"]), whole);
}

#[test]
fn it_is_for_searches_on_whole_tokens() {
    for method in ["dlmi", "soda", "reinforce", "pez", "adc", "echo"] {
        refuses(&mut tiny(["invert", "x", "--fluency", "1", "--method", method]), 2, &["`--fluency` is not for", method]);
    }
    refuses(&mut tiny(["invert", "x", "--fluency", "-1"]), 2, &["--fluency", "from 0 to 1000"]);
}
