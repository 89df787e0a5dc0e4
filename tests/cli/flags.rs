//! Every flag of `invert`, by its effect.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use dlmi::source::tokenizer::Tokenizer;
use predicates::prelude::*;
use serde_json::{Value, json};

use crate::support::*;

/// `invert TARGET` on the tiny model with a few steps of few tokens, and more flags.
fn inverted(target: &str, flags: &[&str]) -> Value {
    inversion(tiny(["invert", target]).args(flags))
}

#[test]
fn prompt_tokens_counts_the_free_positions() {
    let record = inverted(OUT_OF_REACH, &["--prompt-tokens", "7", "--steps", "2", "--prefix", "in the", "--suffix", " end"]);
    let tokenizer = tokenizer();
    let fixed = tokenizer.encode("in the").len() + tokenizer.encode(" end").len();
    assert_eq!(ids(&record["search_ids"]).len(), 7 + fixed);
    assert_eq!(record["settings"]["prompt_tokens"], 7);
}

#[test]
fn steps_and_seconds_both_hold() {
    let ends = |flags: &[&str]| {
        let record = inverted(OUT_OF_REACH, &[&["--prompt-tokens", "4"], flags].concat());
        (record["stopped"].as_str().unwrap().to_owned(), record["steps"].as_u64().unwrap())
    };
    assert_eq!(ends(&["--steps", "5", "--max-seconds", "1000"]), ("budget".to_owned(), 5));
    let (stopped, steps) = ends(&["--steps", "1000000", "--max-seconds", "0.3"]);
    assert_eq!(stopped, "time");
    assert!(steps < 1_000_000);
    assert_eq!(ends(&["--max-seconds", "0.000001"]), ("time".to_owned(), 0), "no time at all is a result too");
}

#[test]
fn samples_are_what_a_step_costs() {
    let (n, steps) = (4, 3);
    for (method, samples) in
        [("dlmi", 1), ("dlmi", 5), ("dlmi-tf", 3), ("gbda", 3), ("reinforce", 3), ("soda", 1), ("stgs", 3), ("rebar", 2)]
    {
        let count = samples.to_string();
        // soda draws nothing, and its step is one sample.
        let flag = if method == "soda" { &[][..] } else { &["--samples", &count] };
        let record = inverted(OUT_OF_REACH, &[&["--method", method, "--prompt-tokens", "4", "--steps", "3"], flag].concat());
        let positions = n + ids(&record["target_ids"]).len() - 1;
        let gradients = match method {
            "reinforce" => 0,
            "rebar" => 2 * samples,
            _ => samples,
        };
        assert_eq!(record["cost"]["backward_tokens"], gradients * steps * positions, "{method}");
        assert!(record["cost"]["forward_tokens"].as_u64().unwrap() as usize >= samples * steps * positions, "{method}");
        assert!(method == "soda" || record["settings"][method]["samples"] == samples, "{record}");
    }
}

#[test]
fn restarts_are_fresh_starts_of_the_step_budget() {
    for method in ["snap", "dlmi"] {
        let flags = ["--method", method, "--prompt-tokens", "4", "--steps", "5"];
        let once = inverted(OUT_OF_REACH, &flags);
        let thrice = inverted(OUT_OF_REACH, &[&flags[..], &["--restarts", "2"]].concat());
        let ran = |record: &Value| (record["steps"].clone(), record["restarts"].clone(), record["stopped"].clone());
        assert_eq!(ran(&once), (json!(5), json!(0), json!("budget")));
        assert_eq!(ran(&thrice), (json!(15), json!(2), json!("budget")), "{method}");
    }
}

#[test]
fn prefix_and_suffix_stand_around_the_free_part() {
    for method in ["snap", "dlmi", "dlmi-tf", "reinforce", "soda", "gcg", "arca", "pez", "adc", "random", "echo", "floor"] {
        let flags = ["--method", method, "--prompt-tokens", "5", "--steps", "2", "--prefix", "Once, ", "--suffix", "\nAnswer:"];
        let record = inverted(OUT_OF_REACH, &flags);
        let (prompt, free) = (record["prompt_text"].as_str().unwrap(), record["free_text"].as_str().unwrap());
        assert_eq!(prompt, format!("Once, {free}\nAnswer:"));
        // The space belongs to the token that follows it.
        let (head, tail, search) = (tokenizer().encode("Once,"), tokenizer().encode("\nAnswer:"), ids(&record["search_ids"]));
        assert!(search.starts_with(&head) && search.ends_with(&tail), "{record}");
        assert_eq!(ids(&record["prompt_ids"]), tokenizer().encode(prompt));
    }
}

#[test]
fn bos_stands_before_the_prompt_and_is_not_typed() {
    let flags = ["--prompt-tokens", "5", "--steps", "2"];
    for method in ["snap", "dlmi"] {
        let with = inverted(OUT_OF_REACH, &[&flags[..], &["--method", method, "--bos"]].concat());
        assert_eq!((with["bos"].clone(), ids(&with["search_ids"])[0]), (json!(true), 0));
        assert_eq!((ids(&with["search_ids"]).len(), ids(&with["prompt_ids"])[0]), (6, 0));
        assert!(!with["prompt_text"].as_str().unwrap().contains("<|endoftext|>"));
        let without = inverted(OUT_OF_REACH, &[&flags[..], &["--method", method]].concat());
        assert_eq!((without["bos"].clone(), ids(&without["search_ids"]).len()), (json!(false), 5));
    }
    let typed = answer(&mut tiny(["complete", "--json", "--bos", "on", "--tokens", "2"]));
    let spaced = listed(&typed["prompt_ids"]).replace(',', ", ");
    let given = answer(&mut tiny(["complete", "--json", "--ids", &spaced, "--tokens", "2"]));
    refuses(&mut tiny(["complete", "--ids", "5,x"]), 2, &["--ids", "'x'", "whole number"]);
    assert_eq!(ids(&typed["prompt_ids"])[0], 0);
    assert_eq!(typed["completion_ids"], given["completion_ids"]);
}

/// Whether a token is in the target, or shares a word of three letters or more with it.
fn is_banned(id: u32, target: &str, tokenizer: &Tokenizer) -> bool {
    let token = tokenizer.decode(&[id]).trim().to_lowercase();
    let target_ids: HashSet<u32> = tokenizer.encode(target).into_iter().collect();
    let target = target.to_lowercase();
    let mut words = target.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let shares = |word: &str| word.contains(&token) || (word.chars().count() >= 3 && token.contains(word));
    target_ids.contains(&id) || (token.chars().count() >= 3 && words.any(shares))
}

/// `everything` holds the tokens `ver` and `ing`; the leading space of ` the` and ` and` does not hide them.
#[test]
fn the_target_and_its_words_are_banned_from_every_prompt() {
    let (target, tokenizer) = ("Everything and THE end", tokenizer());
    let banned: Vec<u32> = (0..282).filter(|&id| is_banned(id, target, &tokenizer)).collect();
    for token in [" the", "ing", "ver", " and", "e", "T"] {
        assert!(banned.contains(&tokenizer.encode(token)[0]), "`{token}`");
    }
    for method in ["snap", "dlmi", "random"] {
        for seed in ["1", "2"] {
            let flags = ["--method", method, "--seed", seed, "--prompt-tokens", "100", "--steps", "12", "--set", "dlmi.samples=2"];
            let record = inverted(target, &flags);
            let found = |key: &str| ids(&record[key]).into_iter().find(|id| banned.contains(id));
            assert_eq!(found("search_ids"), None, "{record}");
            if record["best"]["valid"] == true {
                assert_eq!(found("prompt_ids"), None, "{record}");
                assert_eq!((record["overlap"].clone(), record["target_hit_ratio"].clone()), (json!(0.0), json!(0.0)));
            }
            let free = inverted(target, &[&flags[..], &["--allow-target-tokens"]].concat());
            assert!(ids(&free["search_ids"]).iter().any(|id| banned.contains(id)), "{free}");
        }
    }
}

#[test]
fn a_prompt_that_repeats_the_target_counts_only_where_it_may() {
    let flags = ["--method", "echo", "--prompt-tokens", "6"];
    let record = inverted(" the and", &flags);
    assert_eq!((record["best"]["valid"].clone(), record["exact"].clone()), (json!(false), json!(false)));
    let record = inverted(" the and", &[&flags[..], &["--allow-target-tokens"]].concat());
    assert_eq!(record["best"]["valid"], true);
    assert_eq!(record["prompt_text"], " the and the and the and");
    assert_eq!((record["overlap"].clone(), record["overlap_text"].clone()), (json!(1.0), json!(1.0)));
}

/// A tokenizer of three tokens: with the target's two banned, the special one alone is left, or nothing.
#[test]
fn special_tokens_are_used_only_where_they_may() {
    let model = tiny_copy();
    edit(model.path().join("tokenizer.json"), |tokenizer| {
        tokenizer["model"]["vocab"] = json!({ "<|endoftext|>": 0, "a": 1, "b": 2 });
        tokenizer["model"]["merges"] = json!([]);
    });
    let command = |flags: &[&str]| {
        let mut command = dlmi([Path::new("--model"), model.path()]);
        command.args(["--backend", "flex", "invert", "ab", "--steps", "3", "--prompt-tokens", "2"]).args(flags);
        command
    };
    refuses(&mut command(&[]), 2, &["--allow-target-tokens", "allow_special"]);
    for method in ["snap", "dlmi", "random"] {
        let record = inversion(&mut command(&["--allow-special", "--method", method]));
        assert_eq!(record["prompt_text"], "<|endoftext|><|endoftext|>", "{method}");
        assert_eq!((ids(&record["prompt_ids"]), record["best"]["valid"].clone()), (vec![0, 0], json!(true)));
        let record = inversion(&mut command(&["--allow-target-tokens", "--method", method]));
        assert!(ids(&record["prompt_ids"]).iter().all(|id| [1, 2].contains(id)), "{record}");
    }
}

/// Unused rows of the embedding matrix and parts of characters cannot be typed.
#[test]
fn only_what_can_be_typed_is_searched() {
    let (record, tokenizer) = (inverted("x", &["--method", "dlmi", "--prompt-tokens", "150", "--steps", "1"]), tokenizer());
    assert!(ids(&record["search_ids"]).iter().all(|&id| tokenizer.is_text(id)), "{record}");
    let all = inverted("x", &["--preset", "paper", "--prompt-tokens", "150", "--steps", "1", "--samples", "1"]);
    assert_eq!((all["preset"].clone(), all["method"].clone()), (json!(["paper"]), json!("dlmi")));
    assert!(ids(&all["search_ids"]).iter().any(|&id| !tokenizer.is_text(id)), "{all}");
    // A seventh of the tiny model's tokens are controls.
    let controls = |record: &Value| record["prompt_text"].as_str().unwrap().contains(|c: char| c.is_control() && c != '\n' && c != '\t');
    for method in ["snap", "dlmi", "random"] {
        for seed in ["1", "2"] {
            let record = inverted(OUT_OF_REACH, &["--method", method, "--seed", seed, "--prompt-tokens", "60", "--steps", "40"]);
            assert!(!controls(&record), "{record}");
        }
    }
    assert!(controls(&all), "{all}");
}

#[test]
fn the_target_comes_from_an_argument_a_file_or_standard_input() {
    let quick = ["--steps", "1", "--prompt-tokens", "3"];
    let target = |record: Value| record["target_text"].as_str().unwrap().to_owned();
    // An argument is taken byte for byte, even one that looks like an option.
    assert_eq!(target(inverted(" two  lines\n\n", &quick)), " two  lines\n\n");
    assert_eq!(target(record(run(tiny(["--json", "invert"]).args(quick).args(["--", "--steps"])))), "--steps");

    let folder = folder();
    let file = folder.path().join("target.txt");
    for (written, read) in [("a\nb\n\n", "a\nb\n"), ("no newline", "no newline"), (" grüß 🙂\n", " grüß 🙂")] {
        fs::write(&file, written).unwrap();
        assert_eq!(target(inversion(tiny(["invert"]).args(quick).arg("--file").arg(&file))), read);
        for piped in [&["-"][..], &["--file", "-"]] {
            assert_eq!(target(inversion(tiny(["invert"]).args(quick).args(piped).write_stdin(written))), read, "{piped:?}");
        }
    }
    // Nothing but `-` reads standard input.
    assert_eq!(target(inversion(tiny(["invert", "x"]).args(quick).write_stdin("y"))), "x");
}

#[test]
fn out_keeps_the_result_the_events_and_a_checkpoint() {
    let folder = folder();
    let run = folder.path().join("deep/run");
    let record = inversion(tiny(["invert", OUT_OF_REACH, "--steps", "3", "--prompt-tokens", "4", "--out"]).arg(&run));
    let kept: Value = serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap();
    assert_eq!(kept, record);
    assert!(run.join("checkpoint.safetensors").exists());
    assert_eq!(fs::read_to_string(run.join("events.jsonl")).unwrap().lines().count(), 3);
    // Readable output comes with the same files.
    let run = folder.path().join("readable");
    let mut command = tiny(["invert", "er", "--steps", "200", "--prompt-tokens", "8", "--out"]);
    command.arg(&run).assert().code(0).stderr("").stdout(predicate::str::contains("exact"));
    let kept: Value = serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap();
    assert_eq!(kept["exact"], true);
}

/// Settings, flags and defaults as the record tells them.
#[test]
fn the_record_names_the_settings_in_force() {
    let set = ["--set", "dlmi.learning_rate=0.5", "--set", "steps=9", "--set", "snap.batch=7"];
    let record = inverted("x", &[&["--method", "dlmi", "--steps", "2", "--prompt-tokens", "3", "--seed", "11"], &set[..]].concat());
    let settings = &record["settings"];
    assert_eq!((record["seed"].clone(), settings["seed"].clone()), (json!(11), json!(11)));
    assert_eq!(
        (settings["steps"].clone(), settings["dlmi"]["learning_rate"].clone(), settings["dlmi"]["tau0"].clone()),
        (json!(2), json!(0.5), json!(100.0))
    );
    assert_eq!((settings["method"].clone(), settings.get("snap")), (json!("dlmi"), None));
}
