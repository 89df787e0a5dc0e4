//! `invert --targets` and `--target-ids`, and the floor.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

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
    let rows = table.out.lines().filter(|line| !line.starts_with("note  ")).count();
    assert_eq!((table.code, rows), (Some(1), 5), "{table:?}");
    assert!(table.out.contains("\n0 of 3 exact, "), "{table:?}");
    let noted = list(&["--prefix", "the sand "]);
    assert!(noted.out.contains("\nnote  a: the prefix holds words of the target"), "{noted:?}");
    let csv = list(&["--csv", "--out", &out]).out;
    let rows: Vec<&str> = csv.lines().collect();
    assert!(rows.len() == 4 && rows[0].starts_with("target,exact,") && rows[2].starts_with(r#""""b \""2\""""",false,"#), "{csv}");
}

#[test]
fn a_list_in_another_time_is_another_group_of_its_report() {
    let (folder, path) = lines(&["in the sand"]);
    let out = folder.path().join("out").display().to_string();
    for seconds in ["0.1", "0.2"] {
        let flags = ["--method", "random", "--prompt-tokens", "4", "--max-seconds", seconds, "--out", &out];
        assert_eq!(run(tiny(["-q", "invert", "--targets", &path]).args(flags)).code, Some(1));
    }
    let page = folder.path().join("page");
    assert_eq!(run(dlmi(["-q", "report", &out, "-o"]).arg(&page)).code, Some(0));
    let names: Vec<String> = fs::read_dir(page).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for seconds in ["0.1", "0.2"] {
        assert!(
            names.iter().any(|name| name.starts_with("scores-") && name.ends_with(&format!("-n4-256-in-{seconds}-s.csv"))),
            "{names:?}"
        );
    }
}

#[test]
fn an_exact_target_of_a_list_is_said_to_be() {
    let folder = folder();
    let path = folder.path().join("targets.txt");
    fs::write(&path, "I'll not be a king, and I am too.\n").unwrap();
    let ran = run(dlmi(["-q", "--backend", "flex", "invert", "--targets"]).arg(&path));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("\nline1   exact  12/12"), "{ran:?}");
    assert!(ran.out.contains("\n1 of 1 exact, "), "{ran:?}");
}

/// A file of targets, a line each.
fn lines(targets: &[&str]) -> (TempDir, String) {
    let folder = folder();
    let path = folder.path().join("targets.txt");
    fs::write(&path, targets.join("\n")).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

#[test]
fn what_is_wrong_with_every_search_is_refused_at_once() {
    let (_folder, path) = lines(&[" and", "in the sand"]);
    let list = |arguments: &[&str]| tiny([&["invert", "--targets", &path], arguments].concat());
    refuses(&mut list(&["--chat"]), 2, &["no chat template"]);
    refuses(&mut list(&["--prompt-tokens", "300"]), 2, &["prompt (300 tokens)", "256"]);
    refuses(&mut list(&["--seed", "7", "--steps", "2", "--json", "--csv"]), 2, &["--csv", "--json"]);
    refuses(&mut tiny(["--json", "invert", "--csv", "--targets", &path]), 2, &["--csv", "--json"]);
    refuses(&mut tiny(["invert", " and", "--csv", "--count", "2"]), 2, &["--csv", "--targets"]);
    refuses(&mut tiny(["invert", " and", "--count", "2", "--chat"]), 2, &["no chat template"]);
    refuses(&mut tiny(["invert", " and", "--count", "2", "--prompt-tokens", "300"]), 2, &["prompt (300 tokens)", "256"]);
}

#[test]
fn what_failed_is_tried_again_by_the_same_command() {
    let (folder, path) = lines(&["I'll not be a king, and I am too."]);
    let out = folder.path().join("out").display().to_string();
    let list = |more: &[&str]| run(dlmi(["-q", "--backend", "flex", "invert", "--targets", &path, "--out", &out]).args(more));
    let failed = list(&["--max-memory", "1", "--csv"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let row = failed.out.lines().nth(1).unwrap();
    assert!(row.starts_with(r#""""line1""",,,0,0,"#) && row.contains("MiB"), "{failed:?}");
    let ran = list(&["--csv"]);
    assert!(ran.code == Some(0) && ran.out.lines().nth(1).unwrap().starts_with(r#""""line1""",true,true,12,12,12,"#), "{ran:?}");
}

#[test]
fn an_exact_prompt_with_a_smaller_lead_than_asked_for_is_said_to_be_that() {
    let (_folder, path) = lines(&[" and"]);
    let flags = ["--min-margin", "100", "--prompt-tokens", "8", "--steps", "40"];
    let list = |more: &[&str]| run(tiny(["-q", "invert", "--targets", &path]).args(flags).args(more));
    let shown = list(&[]);
    assert!(shown.code == Some(1) && shown.out.contains("\nline1   narrow  1/1"), "{shown:?}");
    assert!(shown.out.contains("\n1 of 1 exact, 1 of them by a smaller lead than asked for, "), "{shown:?}");
    assert!(list(&["--csv"]).out.contains("\n\"\"\"line1\"\"\",true,false,1,1,1,"));
    let counted = run(tiny(["-q", "invert", " and", "--count", "1"]).args(flags));
    assert!(counted.code == Some(1) && counted.out.starts_with("narrow \""), "{counted:?}");
}

/// What the search at hand has come to is shown; it goes on with the next command.
#[test]
#[cfg(unix)]
fn an_interrupted_list_ends_with_what_there_is() {
    let (folder, path) = lines(&[OUT_OF_REACH, "in the sand"]);
    let out = folder.path().join("out");
    for (flags, expected) in [(&["--json"][..], "\"stopped\":\"signal\""), (&[][..], "(not begun)")] {
        let before = events_under_way(&out);
        let mut command = child(["-q", "--model", TINY, "--backend", "flex", "invert", "--targets", &path, "--steps", "1000000", "--out"]);
        let child = command.arg(&out).args(flags).stdout(Stdio::piped()).spawn().expect("the program starts");
        until("a step is made", || events_under_way(&out) > before);
        send("INT", &child);
        let output = child.wait_with_output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == Some(130) && shown.contains(expected), "{shown}");
        assert!(shown.contains("line1"), "{shown}");
    }
}

/// So does a search of a count.
#[test]
#[cfg(unix)]
fn an_interrupted_count_ends_with_what_there_is() {
    let out = folder();
    let flags = ["invert", OUT_OF_REACH, "--count", "2", "--json", "--steps", "1000000", "--out"];
    let mut command = child(["-q", "--model", TINY, "--backend", "flex"]);
    let child = command.args(flags).arg(out.path()).stdout(Stdio::piped()).spawn().expect("the program starts");
    until("a step is made", || events_under_way(out.path()) > 0);
    send("INT", &child);
    let output = child.wait_with_output().unwrap();
    let found: Vec<Value> = output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert!(output.status.code() == Some(130) && found.len() == 1, "{found:?}");
    assert_eq!((&found[0]["stopped"], &found[0]["exact"]), (&json!("signal"), &json!(false)));
}

#[test]
fn a_reader_that_leaves_ends_a_count() {
    let out = folder();
    let flags = ["invert", " and", "--count", "2000", "--json", "--prompt-tokens", "8", "--steps", "300", "--out"];
    let mut command = child(["-q", "--model", TINY, "--backend", "flex"]);
    let mut child = command.args(flags).arg(out.path()).stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with('{'), "{first}");
    until("it ends", || child.try_wait().unwrap().is_some());
    let made = fs::read_dir(out.path().join("cells")).unwrap().count();
    assert!(made < 200, "{made} searches");
}

#[test]
fn ids_that_no_text_gives_are_scored_and_never_exact() {
    // Letter by letter, which the tokenizer joins.
    let odd = "and the".chars().flat_map(|letter| tokenizer().encode(&letter.to_string())).map(|id| id.to_string()).collect::<Vec<_>>();
    let odd = odd.join(",");
    let ran = run(tiny(["invert", "--target-ids", &odd, "--json"]).args(FLAGS));
    assert!(ran.err.contains("other ids"), "it is said before the budget is spent: {ran:?}");
    let found = record(Ran { err: String::new(), ..ran });
    assert_eq!((listed(&found["target_ids"]), &found["exact"]), (odd.clone(), &json!(false)));
    let said = |notes: &Value| notes.as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains("other ids"));
    assert!(said(&found["notes"]), "{found}");
    let shown = run(tiny(["-q", "invert", "--target-ids", &odd]).args(FLAGS));
    assert!(shown.out.lines().last().unwrap().starts_with("try      the target as text"), "{shown:?}");
    let prompt = listed(&found["prompt_ids"]);
    let scored = answer(&mut tiny(["score", "--prompt-ids", &prompt, "--target-ids", &odd, "--json"]));
    assert!(said(&scored["notes"]) && scored["hard_forced"] == found["best"]["hard_forced"], "{scored}");
    // Those of a text are that text.
    let text = inversion(tiny(["invert", "in the sand"]).args(FLAGS));
    let given = inversion(tiny(["invert", "--target-ids", &listed(&text["target_ids"])]).args(FLAGS));
    assert_eq!(untimed(&given), untimed(&text));
    refuses(&mut tiny(["invert", "--target-ids", "288"]), 2, &["--target-ids", "288", "287"]);
}

#[test]
fn the_floor_is_another_random_prompt_at_every_step() {
    let folder = folder();
    let out = folder.path().join("run").display().to_string();
    let bard = |seed: &str, more: &[&str]| {
        let flags = ["--backend", "flex", "--seed", seed, "invert", "--method", "floor", "--prompt-tokens", "6", "--set", "eval_every=1"];
        inversion(dlmi(flags).args(more))
    };
    let found = bard("1", &["--steps", "5", "--out", &out]);
    assert_eq!((&found["steps"], &found["cost"]["backward_tokens"]), (&json!(5), &json!(0)));
    let events = fs::read_to_string(folder.path().join("run/events.jsonl")).unwrap();
    let scores: Vec<Value> = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["scores"].clone()).collect();
    assert!(scores.len() == 5 && scores.iter().any(|score| score["hard_forced"] != scores[0]["hard_forced"]), "{events}");
    // A seed has its own prompts.
    let of = |seed: &str| bard(seed, &["--steps", "1"])["search_ids"].clone();
    assert!(of("1") == of("1") && of("1") != of("2"));
}
