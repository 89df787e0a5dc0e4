//! `--robust`: whether an exact prompt is exact in other circumstances too.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::support::*;

const KEYS: [&str; 6] = ["f16", "bf16", "q8", "ndarray", "trailing_newline", "trailing_space"];

fn robust(record: &Value) -> &Map<String, Value> {
    let robust = record["robust"].as_object().unwrap_or_else(|| panic!("{record}"));
    assert_eq!(robust.keys().map(String::as_str).collect::<Vec<_>>(), KEYS);
    robust
}

/// A model that is there with its weights in 32 bits and, rounded by somebody else's program, in 8.
fn whole_and_rounded(arguments: &[&str]) -> [assert_cmd::Command; 2] {
    ["f32", "q8_0"].map(|kind| {
        let mut command = dlmi(["--backend", "flex", "--model"]);
        command.arg(Path::new("tests/golden/tiny_gguf").join(format!("gqa4-untied-llama3.{kind}.gguf"))).args(arguments);
        command
    })
}

#[test]
fn what_is_told_of_a_found_prompt_is_so() {
    let mut told = Vec::new();
    for seed in ["1", "2", "3", "4", "5", "6"] {
        let flags = ["-q", "invert", "ing", "--prompt-tokens", "8", "--steps", "300", "--seed", seed, "--robust"];
        let [mut whole, _] = whole_and_rounded(&flags);
        let found = inversion(&mut whole);
        assert_eq!(found["exact"], true, "{found}");
        let (found_robust, prompt) = (robust(&found), found["prompt_text"].as_str().unwrap());
        let exact = |[mut whole, mut rounded]: [assert_cmd::Command; 2]| {
            [answer(&mut whole), answer(&mut rounded)].map(|score| score["exact"].clone())
        };
        let typed = |prompt: &str| exact(whole_and_rounded(&["score", "--json", "--", prompt, "ing"]));
        assert_eq!(typed(prompt), [json!(true), found_robust["q8"].clone()], "{found}");
        for (slip, key) in [("\n", "trailing_newline"), (" ", "trailing_space")] {
            assert_eq!(typed(&format!("{prompt}{slip}"))[0], found_robust[key], "{key}: {found}");
        }
        assert!(KEYS[..3].iter().all(|key| found_robust[*key].is_boolean()), "{found}");
        // The backend is there or it is said that it is not.
        let note = found["notes"].to_string().contains("on ndarray could not be told");
        assert_eq!((found_robust["ndarray"].is_boolean(), note), (CPU_BACKENDS.len() == 2, CPU_BACKENDS.len() == 1), "{found}");
        // The same question about the same prompt.
        let [mut score, _] = whole_and_rounded(&["score", "--json", "--robust", "--", prompt, "ing"]);
        assert_eq!(answer(&mut score)["robust"], found["robust"]);
        told.extend(found_robust.values().map(|value| value == true));
    }
    assert!(told.contains(&true) && told.contains(&false), "it tells prompts apart: {told:?}");
}

#[test]
fn it_is_one_readable_line_and_not_asked_unless_it_is() {
    let flags = ["invert", " and", "--prompt-tokens", "8", "--steps", "300"];
    let shown = run(tiny(flags).arg("--robust")).out;
    let line = shown.lines().find(|line| line.starts_with("robust ")).unwrap_or_else(|| panic!("{shown}"));
    assert!(KEYS.iter().all(|key| line.contains(&key.replace('_', " ").replace("q8", "8-bit weights"))), "{line}");
    let found = inversion(&mut tiny(flags));
    assert!(found.get("robust").is_none(), "{found}");
    let prompt = found["prompt_text"].as_str().unwrap();
    let shown = run(&mut tiny(["score", "--robust", "--", prompt, " and"])).out;
    assert!(shown.contains(line.trim_start_matches("robust").trim_start()), "{line} {shown}");
    assert!(answer(&mut tiny(["score", "--json", "--", prompt, " and"])).get("robust").is_none());
}

/// In a chat the slip is in the user's turn, which this template trims.
#[test]
fn a_template_may_take_a_slip_away() {
    let model = tiny_copy();
    fs::write(model.path().join("chat_template.jinja"), "{% for message in messages %}<{{ message.content | trim }}>{% endfor %}").unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = dlmi(["--backend", "flex", "--model"]);
        command.arg(model.path()).args(arguments);
        command
    };
    let found = inversion(&mut ask(&["invert", " and", "--chat", "--prompt-tokens", "8", "--steps", "300", "--robust"]));
    assert_eq!((&found["exact"], &found["robust"]["trailing_newline"]), (&json!(true), &json!(true)), "{found}");
    assert_eq!(found["robust"]["trailing_space"], true, "{found}");
    let turn = found["free_text"].as_str().unwrap();
    let score = answer(&mut ask(&["score", "--json", "--robust", "--chat", "--", turn, " and"]));
    assert_eq!(score["robust"], found["robust"]);
}

#[test]
fn what_is_not_exact_is_not_asked() {
    let all_null = |record: &Value| robust(record).values().all(Value::is_null) && record["notes"].to_string().contains("not exact");
    let found = inversion(&mut tiny(["invert", OUT_OF_REACH, "--prompt-tokens", "4", "--steps", "2", "--robust"]));
    assert!(all_null(&found), "{found}");
    let score = answer(&mut tiny(["score", "--json", "--robust", "in the sand", OUT_OF_REACH]));
    assert!(all_null(&score), "{score}");
}

/// Of a list and of several prompts each is asked what it would be asked alone, whether it is found now or kept from before.
#[test]
fn each_prompt_of_many_is_asked_and_those_kept_too() {
    let folder = folder();
    let file = |name: &str| folder.path().join(name).display().to_string();
    fs::write(file("targets.txt"), format!(" and\n{OUT_OF_REACH}\n")).unwrap();
    let (targets, flags) = (file("targets.txt"), ["--prompt-tokens", "8", "--steps", "40"]);
    let run = |what: &[&str], more: &[&str]| run(tiny(["-q", "invert"]).args(what).args(flags).args(more));
    let lines = |ran: &Ran| ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    for (what, out, count) in [(&["--targets", &targets][..], file("list"), 2), (&[" and", "--count", "2"], file("count"), 2)] {
        let unasked = lines(&run(what, &["--json", "--out", &out]));
        assert!(unasked.len() == count && unasked.iter().all(|record| record.get("robust").is_none()), "{unasked:?}");
        let asked = lines(&run(what, &["--json", "--out", &out, "--robust"]));
        assert_eq!(
            lines(&run(what, &["--json", "--robust"])).iter().map(robust).collect::<Vec<_>>(),
            asked.iter().map(robust).collect::<Vec<_>>()
        );
        for (record, before) in asked.iter().zip(&unasked) {
            let seed = record["seed"].to_string();
            let alone = inversion(tiny(["invert", record["target_text"].as_str().unwrap(), "--seed", &seed, "--robust"]).args(flags));
            assert_eq!((&record["robust"], &record["notes"]), (&alone["robust"], &alone["notes"]));
            assert_eq!((&record["prompt_ids"], &record["seconds"]), (&before["prompt_ids"], &before["seconds"]), "it is the one kept");
        }
        // Once asked, the answers are kept.
        assert_eq!(lines(&run(what, &["--json", "--out", &out, "--robust"])), asked);
    }
    let (list, out) = (["--targets", &*targets], file("list"));
    let told = robust(&lines(&run(&list, &["--json", "--robust", "--out", &out]))[0]).clone();
    let yes = told.values().filter(|told| **told == true).count();
    let table = run(&list, &["--robust", "--out", &out]).out;
    assert!(table.contains(&format!(" {yes}/6 ")) && table.contains("\nrobust  f16 "), "{table}");
    let csv = run(&list, &["--robust", "--csv", "--out", &out]).out;
    let ends = KEYS.map(|key| if told[key].is_null() { String::new() } else { told[key].to_string() }).join(",");
    let rows: Vec<&str> = csv.lines().collect();
    assert!(rows[0].ends_with(&KEYS.join(",")) && rows[1].ends_with(&ends) && rows[2].ends_with(",,,,,"), "{csv}");
    let shown = run(&[" and", "--count", "2"], &["--robust", "--out", &file("count")]).out;
    assert_eq!(shown.matches("\n       robust f16 ").count(), 2, "{shown}");
}
