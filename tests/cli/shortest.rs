//! `invert --shortest`: fewer and fewer tokens that still do.

use std::fs;

use serde_json::{Value, json};

use crate::support::*;

/// Steps of a whole run.
const STEPS: &str = "120";

/// The tiny model, from eight tokens on.
fn shortest(steps: &str, more: &[&str]) -> Ran {
    run(tiny(["-q", "invert", " and", "--shortest", "--prompt-tokens", "8", "--json", "--steps", steps]).args(more))
}

fn tokens(record: &Value) -> usize {
    record["prompt_tokens"].as_u64().unwrap_or_else(|| panic!("{record}")) as usize
}

#[test]
fn the_shortest_prompt_that_was_found_is_the_answer() {
    for more in [&[][..], &["--method", "random"], &["--ascii", "--min-margin", "0.2", "--prefix", "so", "--suffix", " the"]] {
        let ran = shortest(STEPS, more);
        let found = ran.json();
        assert_eq!((ran.code, &found["exact"], &found["solved"]), (Some(0), &json!(true), &json!(true)), "{found}");
        assert!((1..8).contains(&tokens(&found)), "{found}");
        assert_eq!((&found["settings"]["prompt_tokens"], &found["settings"]["shortest"]), (&json!(8), &json!(true)));
        // One that was found is gone on from, so the run ends with its budget, or where nothing is shorter.
        let ended = (&found["stopped"], &found["steps"]) == (&json!("budget"), &json!(STEPS.parse::<u64>().unwrap()));
        assert!(ended || (found["stopped"] == "exact" && tokens(&found) == 1), "{found}");
        let fewer = tokens(&found) - 1;
        let next = format!("no prompt of {fewer} free token{} was found", if fewer == 1 { "" } else { "s" });
        assert_eq!(found["notes"].to_string().contains(&next), ended, "{found}");
        assert!(found["seconds_to_exact"].as_f64() <= found["seconds"].as_f64(), "{found}");

        let prompt = found["prompt_text"].as_str().unwrap();
        let score = answer(&mut tiny(["score", "--json", "--", prompt, " and"]));
        assert_eq!((&score["exact"], &score["prompt_ids"]), (&json!(true), &found["prompt_ids"]));
        let lead = more.contains(&"--min-margin").then_some(0.2);
        assert!(found["min_margin"].as_f64() >= lead);
        assert!(lead.is_none() || found["free_text"].as_str().unwrap().bytes().all(|b| (b' '..=b'~').contains(&b)), "{found}");
    }
    // Without it the search is over with the first.
    let first = inversion(&mut tiny(["invert", " and", "--prompt-tokens", "8", "--steps", STEPS]));
    assert_eq!((tokens(&first), &first["stopped"], &first["settings"]["shortest"]), (8, &json!("exact"), &json!(false)));
}

#[test]
fn the_readable_answer_tells_its_length_and_what_was_not_found() {
    let found = shortest(STEPS, &[]).json();
    let shown = run(&mut tiny(["invert", " and", "--shortest", "--prompt-tokens", "8", "--steps", STEPS]));
    let counted = |count: u64, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    assert!(shown.out.contains(&format!("; {} of prompt, found in ", counted(tokens(&found) as u64, "token"))), "{shown:?}");
    assert!(shown.out.contains(&format!(" after {}", counted(found["best"]["step"].as_u64().unwrap(), "step"))), "{shown:?}");
    let note = "\nnote     no prompt of ";
    assert_eq!((shown.code, shown.out.contains(note)), (Some(0), found["stopped"] == "budget"), "{shown:?}");
}

/// The run in a folder goes on where it was, at the length that it had come to.
#[test]
fn a_resumed_run_ends_as_if_never_interrupted() {
    let whole = untimed(&shortest(STEPS, &[]).json());
    for steps in ["1", "6", "40"] {
        let folder = folder();
        let out = folder.path().display().to_string();
        let first = shortest(steps, &["--out", &out]);
        assert!(tokens(&first.json()) >= tokens(&whole), "{first:?}");
        assert_eq!(untimed(&shortest(STEPS, &["--out", &out, "--resume"]).json()), whole, "after {steps} steps");
        let lengths: Vec<u64> = events(folder.path()).iter().map(|event| event["prompt_tokens"].as_u64().unwrap()).collect();
        assert!(lengths[0] == 8 && lengths.is_sorted_by(|a, b| a == b || *a == b + 1), "{lengths:?}");
        refuses(&mut tiny(["invert", " and", "--prompt-tokens", "8", "--resume", "--out", &out]), 2, &["shortest = true"]);
    }
}

/// Each of several searches looks for its own.
#[test]
fn lists_and_counts_have_their_shortest_too() {
    let folder = folder();
    let list = folder.path().join("list.txt");
    fs::write(&list, " and\n").unwrap();
    // Before they have found the one token that does it, two seeds are at different prompts.
    let flags = ["--shortest", "--prompt-tokens", "8", "--steps", "10", "--set", "snap.starts=1", "--json"];
    let lines = |ran: Ran| ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let counted = lines(run(tiny(["-q", "invert", " and", "--count", "2"]).args(flags)));
    let listed = lines(run(tiny(["-q", "invert", "--targets", list.to_str().unwrap()]).args(flags)));
    assert_eq!((counted.len(), listed.len()), (2, 1));
    for found in counted.iter().chain(&listed) {
        assert!(found["solved"] == true && tokens(found) < 8, "{found}");
    }
    assert_eq!(listed[0]["prompt_ids"], counted[0]["prompt_ids"], "the same search");
    let table = run(tiny(["-q", "invert", "--targets", list.to_str().unwrap()]).args(&flags[..flags.len() - 1]));
    let cells: Vec<Vec<&str>> = table.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((cells[0][9], cells[1][7]), ("N", tokens(&listed[0]).to_string().as_str()), "{table:?}");
    for verb in [vec![" and", "--count", "2"], vec!["--targets", list.to_str().unwrap()]] {
        refuses(tiny(["invert", "--method", "pez", "--shortest"]).args(verb), 2, &["--shortest", "pez"]);
    }
}

#[test]
fn what_cannot_go_on_from_a_prompt_refuses() {
    for method in ["dlmi", "reinforce", "soda", "pez", "adc", "echo", "floor"] {
        refuses(&mut tiny(["invert", "x", "--shortest", "--method", method]), 2, &["--shortest: ", method, "whole tokens", "snap"]);
    }
    refuses(&mut tiny(["invert", "x", "--shortest", "--preset", "paper", "--method", "snap"]), 2, &["--shortest: ", "early_stop"]);
}
