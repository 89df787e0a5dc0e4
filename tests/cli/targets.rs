//! `targets`: drawn, reachable, labelled.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use assert_cmd::Command;
use predicates::prelude::*;
use serde_json::{Value, json};

use crate::support::*;

/// On the bundled model.
fn targets(arguments: &[&str]) -> Command {
    let mut command = dlmi(["targets"]);
    command.args(arguments);
    command
}

/// The lines that a command which does its job prints, with nothing on stderr.
#[track_caller]
fn made(command: &mut Command) -> Vec<Value> {
    let ran = run(command);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    assert!(ran.out.ends_with('\n'), "{ran:?}");
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn column(lines: &[Value], key: &str) -> Vec<Value> {
    lines.iter().map(|line| line[key].clone()).collect()
}

const FIELDS: [&str; 15] = [
    "id",
    "text",
    "ids",
    "k",
    "bos",
    "ranks",
    "probabilities",
    "perplexity",
    "bits",
    "prompt_tokens",
    "capacity_bits",
    "retokenises",
    "sigma",
    "seed",
    "model",
];

#[test]
fn by_default_they_are_the_papers() {
    let lines = made(&mut targets(&[]));
    let names: Vec<Value> = [1, 6, 11, 16, 21].iter().flat_map(|k| (0..5).map(move |i| json!(format!("k{k}_sample{i}")))).collect();
    assert_eq!(column(&lines, "id"), names);
    let digest = answer(&mut dlmi(["models", "show", "--json"]))["digest"].clone();
    for line in &lines {
        assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), FIELDS);
        let length = |key: &str| line[key].as_array().unwrap().len();
        assert_eq!((length("ids"), length("ranks"), length("probabilities")), (20, 20, 20));
        assert_eq!((line["bos"].clone(), line["sigma"].clone(), line["seed"].clone()), (json!(0), json!(1.0), json!(0)));
        assert_eq!(line["model"], digest);
        assert_eq!(line["prompt_tokens"], 20);
        assert!((line["capacity_bits"].as_f64().unwrap() - 20.0 * 1536f64.log2()).abs() < 1e-9);
        // The figures agree with each other.
        let bits = line["bits"].as_f64().unwrap();
        let product: f64 = line["probabilities"].as_array().unwrap().iter().map(|p| -p.as_f64().unwrap().log2()).sum();
        assert!((product - bits).abs() < 1e-3 * bits, "{line}");
        assert!((line["perplexity"].as_f64().unwrap() / (bits / 20.0).exp2() - 1.0).abs() < 1e-9, "{line}");
        // Ranks stay within five deviations of k, unless the end of the text is being repeated.
        let k = line["k"].as_u64().unwrap();
        let tokens = ids(&line["ids"]);
        let end = tokens.iter().position(|&id| id == 0).map_or(20, |at| at + 1);
        assert!(ids(&line["ranks"])[..end].iter().all(|&rank| u64::from(rank).abs_diff(k) <= 5), "{line}");
        assert!(tokens[end..].iter().all(|&id| id == 0), "{line}");
    }
    // Higher ranks are harder.
    let sum = |k: usize| lines[5 * k..5 * k + 5].iter().map(|line| line["bits"].as_f64().unwrap()).sum::<f64>();
    assert!(sum(0) < sum(1) && sum(1) < sum(4), "{:?}", column(&lines, "bits"));
}

#[test]
fn a_target_does_not_depend_on_the_others() {
    let all = made(&mut targets(&["--k", "1,6", "--per-k", "3", "--tokens", "8"]));
    assert_eq!(made(&mut targets(&["--k", "6,6", "--per-k", "2", "--tokens", "8"])), all[3..5]);
    // With or without --json.
    assert_eq!(made(&mut targets(&["--json", "--k", "6", "--per-k", "3", "--tokens", "8"])), all[3..]);
    let short = made(&mut targets(&["--k", "6", "--per-k", "1", "--tokens", "3"]));
    assert_eq!(ids(&short[0]["ids"]), ids(&all[3]["ids"])[..3]);
    let seeded = made(&mut targets(&["--k", "1,6", "--per-k", "3", "--tokens", "8", "--seed", "1"]));
    assert_ne!(column(&seeded, "ids"), column(&all, "ids"));
    let repeat = || run(&mut targets(&["--k", "21", "--per-k", "2"])).out;
    assert_eq!(repeat(), repeat());
}

#[test]
fn rank_one_without_noise_is_what_complete_writes() {
    let line = &made(&mut targets(&["--k", "1", "--per-k", "1", "--sigma", "0", "--tokens", "12"]))[0];
    let written = answer(&mut dlmi(["complete", "<|endoftext|>", "--backend", "flex", "--tokens", "12", "--stop-at-eos", "--json"]));
    let written = ids(&written["completion_ids"]);
    assert_eq!(ids(&line["ids"])[..written.len()], written);
}

#[test]
fn the_flags_are_the_algorithms() {
    let one = |flags: &[&str]| made(&mut targets(&[&["--k", "9", "--per-k", "1", "--tokens", "6"], flags].concat())).remove(0);
    assert_eq!(ids(&one(&["--sigma", "0"])["ranks"]), [9; 6]);
    assert!(ids(&one(&["--sigma", "50"])["ranks"]).iter().any(|rank| rank.abs_diff(9) > 15));
    let other = one(&["--bos-token", "A"]);
    let a = answer(&mut dlmi(["complete", "A", "--tokens", "1", "--json", "--backend", "flex"]));
    assert_eq!((json!([other["bos"]]), other["ids"] == one(&[])["ids"]), (a["prompt_ids"].clone(), false));
    let wide = one(&["--prompt-tokens", "40"]);
    assert_eq!((wide["prompt_tokens"].clone(), wide["ids"].clone()), (json!(40), one(&[])["ids"].clone()));
    assert_eq!(wide["capacity_bits"].as_f64().unwrap(), 2.0 * one(&[])["capacity_bits"].as_f64().unwrap());
    // Clipped: nothing has a rank above V.
    let last = made(&mut targets(&["--k", "1536", "--sigma", "50", "--per-k", "1", "--tokens", "9"]));
    assert!(ids(&last[0]["ranks"]).contains(&1536) && ids(&last[0]["ranks"]).iter().all(|rank| *rank <= 1536), "{last:?}");
}

#[test]
fn reachable_targets_are_the_models_own_and_their_prompts_are_kept_apart() {
    let folder = folder();
    let (sentences, known) = (folder.path().join("sentences.txt"), folder.path().join("known.jsonl"));
    fs::write(&sentences, "O Romeo, Romeo!\n\nthe king is\n").unwrap();
    let mut command = targets(&["--tokens", "7", "--from"]);
    let lines = made(command.arg(&sentences).arg("--prompts-out").arg(&known));
    assert_eq!((column(&lines, "id"), column(&lines, "k")), (vec![json!("line1"), json!("line3")], vec![Value::Null, Value::Null]));
    let prompts: Vec<Value> = fs::read_to_string(&known).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(column(&prompts, "text"), [json!("O Romeo, Romeo!"), json!("the king is")]);
    for (line, prompt) in lines.iter().zip(&prompts) {
        let written = answer(&mut dlmi(["complete", prompt["text"].as_str().unwrap(), "--tokens", "7", "--json", "--backend", "flex"]));
        assert_eq!((&line["ids"], &line["text"]), (&written["completion_ids"], &written["completion_text"]));
        assert_eq!((&prompt["id"], &prompt["ids"], &prompt["bos"]), (&line["id"], &written["prompt_ids"], &Value::Null));
        assert_eq!(line["known_prompt_tokens"], ids(&written["prompt_ids"]).len());
        assert!(!line.to_string().contains(prompt["text"].as_str().unwrap()), "the prompt stays out of the targets");
    }
    // What was stopped is made again; what nothing else keeps is not overwritten.
    let mut again = targets(&["--tokens", "7", "--from"]);
    assert_eq!(made(again.arg(&sentences).arg("--prompts-out").arg(&known)), lines);
    fs::write(&sentences, "O Romeo, Romeo!\n").unwrap();
    let mut other = targets(&["--from"]);
    refuses(
        other.arg(&sentences).arg("--prompts-out").arg(&known),
        2,
        &["--prompts-out", "known.jsonl", "already there; name another file"],
    );
    refuses(targets(&["--from"]).arg(&sentences).arg("--prompts-out").arg(folder.path().join("no/where")), 3, &["cannot write"]);
    // The prompts may come from standard input, and as JSON.
    let piped = folder.path().join("piped.jsonl");
    let mut command = targets(&["--from", "-", "--tokens", "7", "--prompts-out"]);
    let again = made(command.arg(&piped).write_stdin(fs::read_to_string(&known).unwrap()));
    assert_eq!((column(&again, "ids"), column(&again, "id")), (column(&lines, "ids"), column(&lines, "id")));
    assert_eq!(fs::read(&piped).unwrap(), fs::read(&known).unwrap());
}

/// A tokenizer like SentencePiece's sets a space before what is typed first, and none before a target.
#[test]
fn a_prompt_is_read_as_it_is_typed() {
    let model = ["--model", "tests/golden/tiny_gguf/pieces.f16.gguf"];
    let folder = folder();
    let known = folder.path().join("known.jsonl");
    let from = |prompts: &str| {
        let mut command = dlmi(["targets", "--tokens", "5", "--from", "-", "--prompts-out"]);
        made(command.arg(&known).args(model).write_stdin(prompts.to_owned()))
    };
    let lines = from("the king is\n");
    let written = answer(dlmi(["complete", "the king is", "--tokens", "5", "--json", "--backend", "flex"]).args(model));
    assert_eq!(lines[0]["ids"], written["completion_ids"]);
    assert_eq!(lines[0]["known_prompt_tokens"], ids(&written["prompt_ids"]).len());
    // So are the ids that it keeps.
    assert_eq!(column(&from(&fs::read_to_string(&known).unwrap()), "ids"), column(&lines, "ids"));
}

#[test]
fn labels_are_this_models() {
    let drawn = run(&mut targets(&["--k", "1,11", "--per-k", "2", "--tokens", "9"]));
    let relabelled = made(targets(&["--label", "-"]).write_stdin(drawn.out.clone()));
    let drawn: Vec<Value> = drawn.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for key in FIELDS.iter().filter(|key| !["sigma", "seed"].contains(key)) {
        assert_eq!(column(&relabelled, key), column(&drawn, key), "{key}");
    }
    // Stored ranks are another model's.
    let paper = Path::new("configs/study/targets/smollm2-135m.json");
    let stored: Value = serde_json::from_slice(&fs::read(paper).unwrap()).unwrap();
    let lines = made(targets(&["--label"]).arg(paper));
    assert_eq!(lines.len(), 25);
    for (line, stored) in lines.iter().zip(stored["samples"].as_array().unwrap()) {
        assert_eq!((&line["id"], &line["k"], &line["text"]), (&stored["id"], &stored["k_target"], &stored["text"]));
        assert_eq!((line["bos"].clone(), line["retokenises"].clone()), (json!(0), json!(true)));
        assert_ne!(line["ranks"], stored["token_ranks"]);
        let text = line["text"].as_str().unwrap();
        let score = answer(&mut dlmi(["score", "--prompt-ids", "0", "--target-ids", &listed(&line["ids"]), "--json"]));
        assert_eq!(score["target_text"], text);
        let (ours, theirs) = (line["perplexity"].as_f64().unwrap(), score["target_perplexity_bos"].as_f64().unwrap());
        assert!((ours / theirs - 1.0).abs() < 1e-3, "{ours} {theirs}");
    }
    // A start token of the command is stronger than one of the file.
    let line = r#"{"text": "the king", "bos": 5}"#;
    let bos = |flags: &[&str]| made(targets(&[&["--label", "-"], flags].concat()).write_stdin(line))[0]["bos"].clone();
    assert_eq!((bos(&[]), bos(&["--bos-token", "<|endoftext|>"])), (json!(5), json!(0)));
}

/// Ids that were made with another tokenizer are used as they are, with a word about it.
#[test]
fn ids_win_over_texts_that_they_do_not_spell() {
    let line = "{\"id\": \"a\", \"text\": \"Hello\", \"ids\": [300, 301]}\n{\"id\": \"b\", \"text\": \"x\"}\n";
    let ran = run(targets(&["--label", "-"]).write_stdin(line));
    assert_eq!((ran.code, ran.out.lines().count()), (Some(0), 2), "{ran:?}");
    assert!(ran.err.starts_with("warning: ") && ran.err.contains("1 of its targets") && ran.err.contains("`a`"), "{ran:?}");
    assert_eq!(ids(&serde_json::from_str::<Value>(ran.out.lines().next().unwrap()).unwrap()["ids"]), [300, 301]);
    targets(&["--label", "-", "-q"]).write_stdin(line).assert().code(0).stderr("");
}

#[test]
fn a_text_that_gives_other_tokens_is_marked() {
    let letter = |letter: &str| made(targets(&["--label", "-"]).write_stdin(letter))[0]["ids"][0].clone();
    let (h, e) = (letter("h"), letter("e"));
    // `he` is a token of its own.
    let lines = made(targets(&["--label", "-"]).write_stdin(format!("{{\"ids\": [{h}, {e}]}}\n{{\"text\": \"he\"}}")));
    assert_eq!(column(&lines, "text"), [json!("he"), json!("he")]);
    assert_eq!((column(&lines, "retokenises"), lines[0]["ids"].clone()), (vec![json!(false), json!(true)], json!([h, e])));
    assert_ne!(lines[0]["ids"], lines[1]["ids"]);
}

#[test]
fn what_is_wrong_is_one_sentence() {
    refuses(&mut targets(&["--k", "0"]), 2, &["--k", "0"]);
    refuses(&mut targets(&["--k", "1,x"]), 2, &["--k", "x"]);
    refuses(&mut targets(&["--k", "6,1537"]), 2, &["--k", "1537", "1536 tokens"]);
    refuses(&mut targets(&["--sigma", "-1"]), 2, &["--sigma", "-1"]);
    refuses(&mut targets(&["--tokens", "256"]), 2, &["context", "256"]);
    refuses(&mut targets(&["--bos-token", "<bos>"]), 2, &["--bos-token", "<bos>"]);
    refuses(&mut targets(&["--prompt-tokens", "0"]), 2, &["--prompt-tokens", "0"]);
    refuses(&mut targets(&["--from", "x.txt"]), 2, &["--prompts-out"]);
    refuses(&mut targets(&["--label", "x", "--k", "1"]), 2, &["--label", "--k"]);
    refuses(&mut targets(&["--label", "no-such-file"]), 2, &["cannot read", "no-such-file"]);
    let label = |text: &[u8], parts: &[&str]| refuses(targets(&["--label", "-"]).write_stdin(text), 2, parts);
    label(b"", &["no target"]);
    label(b"in th\xe9 sand", &["UTF-8", "byte 5"]);
    label(b"{\"text\": \"a\"}\nnonsense\n", &["line 2", "JSON"]);
    label(b"{\"ids\": [1536]}", &["line 1", "1536", "1535"]);
    label(b"{\"id\": \"\x1b[31m\"}", &["line 1"]);
    // Too many tokens, and too many bytes to be counted in tokens.
    label("word ".repeat(600).as_bytes(), &["line1", "context", "256"]);
    label("word ".repeat(1000).as_bytes(), &["line 1", "5000 bytes", "context", "256"]);
    let prompts = folder();
    let out = prompts.path().join("prompts");
    refuses(targets(&["--from", "-", "--prompts-out"]).arg(&out).write_stdin("word ".repeat(600)), 2, &["line1", "context"]);
    assert!(!out.exists(), "a refused command leaves nothing behind");
}

#[test]
fn a_reader_that_leaves_ends_it() {
    // So many that they would take hours.
    let mut child = child(["targets", "--k", "1", "--per-k", "100000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["id"], "k1_sample0");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_whole_lines() {
    let mut child = child(["targets", "--k", "1", "--per-k", "100000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    std::io::BufRead::read_line(&mut out, &mut text).unwrap();
    let kill = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().expect("a shell");
    assert!(kill.success());
    std::io::Read::read_to_string(&mut out, &mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text.ends_with('\n') && text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("interrupted after {} of 100000 targets", text.lines().count())), "{said}");
}

#[test]
fn the_help_shows_every_use() {
    targets(&["--help"])
        .assert()
        .code(0)
        .stdout(predicate::str::contains("--prompts-out known-prompts.jsonl").and(predicate::str::contains("--label targets.json")));
}

/// The plain path is f32, whatever a search would compute in.
#[test]
fn targets_are_made_in_f32() {
    let drawn = |dtype: &[&str]| made(targets(&["--k", "6", "--per-k", "1", "--tokens", "6"]).args(dtype));
    assert_eq!(drawn(&["--dtype", "bf16"]), drawn(&[]));
}
