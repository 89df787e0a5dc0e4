//! `invert --targets` and `--target-ids`, and the floor.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// Three targets on the tiny model, the second one by ids that its text does not give.
fn targets() -> (TempDir, String) {
    let folder = folder();
    let path = folder.path().join("targets.jsonl");
    let lines =
        [r#"{"id": "a", "text": "in the sand", "k": 1}"#, r#"{"id": "b \"2\"", "ids": [21, 30, 41, 52]}"#, r#"{"text": " and then"}"#];
    fs::write(&path, lines.join("\n")).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

const FLAGS: [&str; 6] = ["--method", "dlmi", "--prompt-tokens", "4", "--steps", "2"];

#[test]
fn a_list_is_inverted_line_by_line_and_not_twice() {
    let (folder, path) = targets();
    let out = folder.path().join("out").display().to_string();
    let list = |more: &[&str]| run(tiny(["-q", "invert", "--targets", &path]).args(FLAGS).args(more));
    let lines = |ran: &Ran| ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let first = list(&["--json", "--out", &out]);
    assert_eq!((first.code, first.err.as_str()), (Some(1), ""), "{first:?}");
    let found = lines(&first);
    let column = |key: &str| found.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(
        (column("target"), column("k")),
        (vec![json!("a"), json!("b \"2\""), json!("line3")], vec![json!(1), json!(null), json!(null)])
    );
    assert_eq!(found[1]["target_ids"], json!([21, 30, 41, 52]));
    // Each is what the target alone gives.
    let alone = inversion(tiny(["invert", "in the sand"]).args(FLAGS));
    for key in ["prompt_ids", "lcs", "best", "cost", "steps", "exact"] {
        assert_eq!(found[0][key], alone[key], "{key}");
    }
    // The same command has nothing left to do.
    assert_eq!(lines(&list(&["--json", "--out", &out])), found);
    let table = list(&["--out", &out]);
    assert_eq!((table.code, table.out.lines().count()), (Some(1), 5), "{table:?}");
    assert!(table.out.contains("\n0 of 3 exact, "), "{table:?}");
    let csv = list(&["--csv", "--out", &out]).out;
    let rows: Vec<&str> = csv.lines().collect();
    assert!(rows.len() == 4 && rows[0].starts_with("target,exact,") && rows[2].starts_with("\"b \"\"2\"\"\",false,"), "{csv}");
}

#[test]
fn an_exact_target_of_a_list_is_said_to_be() {
    let (folder, prompt) = (folder(), "in the sand");
    let written = answer(&mut tiny(["complete", prompt, "--json", "--tokens", "1"]));
    let path = folder.path().join("t.txt");
    fs::write(&path, written["completion_text"].as_str().unwrap()).unwrap();
    let mut command = tiny(["-q", "invert", "--prompt-tokens", "6", "--steps", "200", "--targets"]);
    let ran = run(command.arg(&path));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("1 of 1 exact"), "{ran:?}");
}

#[test]
fn ids_that_no_text_gives_are_scored_and_never_exact() {
    let written = answer(&mut tiny(["complete", "in the sand", "--json", "--tokens", "3"]));
    assert_eq!(ids(&written["completion_ids"]).len(), 3);
    let odd = "21,30,41,52";
    let found = inversion(tiny(["invert", "--target-ids", odd]).args(FLAGS));
    assert_eq!((listed(&found["target_ids"]).as_str(), &found["exact"]), (odd, &json!(false)));
    let said = |notes: &Value| notes.as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains("other ids"));
    assert!(said(&found["notes"]), "{found}");
    let prompt = listed(&found["prompt_ids"]);
    let scored = answer(&mut tiny(["score", "--prompt-ids", &prompt, "--target-ids", odd, "--json"]));
    assert!(said(&scored["notes"]) && scored["hard_forced"] == found["best"]["hard_forced"], "{scored}");
    // Those of a text are that text.
    let text = inversion(tiny(["invert", "in the sand"]).args(FLAGS));
    let given = inversion(tiny(["invert", "--target-ids", &listed(&text["target_ids"])]).args(FLAGS));
    assert_eq!(untimed(&given), untimed(&text));
    refuses(&mut tiny(["invert", "--target-ids", "288"]), 2, &["--target-ids", "288", "287"]);
}

#[test]
fn the_floor_is_another_random_prompt_at_every_step() {
    let (folder, flags) = (folder(), ["--method", "floor", "--prompt-tokens", "6", "--set", "eval_every=1"]);
    let out = folder.path().join("run").display().to_string();
    let found = inversion(tiny(["invert", OUT_OF_REACH, "--steps", "5", "--out", &out]).args(flags));
    assert_eq!((&found["steps"], &found["cost"]["backward_tokens"]), (&json!(5), &json!(0)));
    let events = fs::read_to_string(folder.path().join("run/events.jsonl")).unwrap();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.len() == 5 && events.iter().all(|event| event["scores"]["hard_free"].is_number()), "{events:?}");
    // One seed has its own prompts.
    let of = |seed: &str| inversion(tiny(["--seed", seed, "invert", OUT_OF_REACH, "--steps", "1"]).args(flags))["search_ids"].clone();
    assert!(of("1") == of("1") && of("1") != of("2"));
}
