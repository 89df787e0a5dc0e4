//! `gradients`: variance and bias along the runs of the estimators.

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::support::*;

const ESTIMATORS: [&str; 10] = [
    "reinforce",
    "gs-tau1",
    "gs-tau100",
    "gs-learned-tau1",
    "gs-learned-tau100",
    "gs-decoupled-tau1",
    "gs-decoupled-tau100",
    "stgs",
    "rebar",
    "relax",
];

/// On the bundled model: N = 4, 4 steps, measured at 0 and 2, the bias at 0.
fn gradients(arguments: &[&str]) -> Command {
    let mut command = dlmi(["--backend", "flex", "gradients", "--prompt-tokens", "4", "--steps", "4", "--samples", "2", "--every", "2"]);
    command.args(["--bias-every", "4", "--draws", "2", "--reference-samples", "32"]).args(arguments);
    command
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Lines without what the clock says.
fn untimed(text: &str) -> Vec<Value> {
    let mut lines = lines(text);
    lines.iter_mut().for_each(|line| _ = line.as_object_mut().unwrap().remove("seconds").unwrap());
    lines
}

#[test]
fn every_estimator_is_measured_and_a_stopped_run_goes_on() {
    let folder = folder();
    let (targets, out) = (folder.path().join("targets.jsonl"), folder.path().join("lines.jsonl"));
    fs::write(&targets, "{\"id\": \"a\", \"ids\": [605, 706, 931], \"k\": 1}\n{\"id\": \"b\", \"ids\": [14, 418, 301]}\n").unwrap();
    let of_targets = |out: &PathBuf| {
        let mut command = gradients(&["--seed", "3", "--json", "--targets"]);
        command.arg(&targets).arg("--out").arg(out);
        command
    };
    let summary = answer(&mut of_targets(&out));
    let text = fs::read_to_string(&out).unwrap();
    let all = lines(&text);
    assert_eq!(all.len(), 2 * ESTIMATORS.len() * 2);
    let labels: Vec<&str> = all[..20].iter().step_by(2).map(|line| line["estimator"].as_str().unwrap()).collect();
    assert_eq!(labels, ESTIMATORS);
    for (line, step) in all.iter().zip([0, 2].into_iter().cycle()) {
        assert_eq!(line["schema"], "dlmi.gradients/1");
        assert_eq!((line["step"].as_u64(), line["steps"].as_u64()), (Some(step), Some(4)));
        assert_eq!(line["k"], if line["target"] == "a" { json!(1) } else { Value::Null });
        let numbers = ["prompt_tokens", "vocab_size", "target_tokens", "samples", "draws", "reference_samples"];
        assert_eq!(numbers.map(|key| line[key].as_u64().unwrap()), [4, 1536, 3, 2, 2, 32]);
        assert!(line["variance"]["max"].as_f64().unwrap() >= line["variance"]["mean"].as_f64().unwrap(), "{line}");
        assert_eq!((line["bias"].is_null(), line["bias_authors"].is_null()), (step == 2, step == 2));
        if step == 0 {
            assert!(line["bias"]["floor"]["max"].as_f64().unwrap() >= line["bias"]["reference_error"]["max"].as_f64().unwrap());
        }
    }
    // At step 0 all are where they began: the same Z, and so the same reference.
    let first = |i: usize| all[2 * i]["bias"]["gradient_squared"].clone();
    assert!(ESTIMATORS.iter().enumerate().all(|(i, _)| first(i) == first(0)));
    assert_eq!(all[4]["temperature"], json!({ "mean": 100.0, "min": 100.0, "max": 100.0 }));
    assert_eq!(summary["schema"], "dlmi.gradients.summary/1");
    assert_eq!((summary["estimators"].as_array().unwrap().len(), summary["tests"].as_array().unwrap().len()), (10, 45));
    assert_eq!(summary["estimators"][0]["variance"]["max"]["n"], 4);

    // All is there; then the end is torn off, in the middle of a line, and of a run.
    assert_eq!(answer(&mut of_targets(&out)), summary);
    assert_eq!(fs::read_to_string(&out).unwrap(), text);
    fs::write(&out, &text[..text.len() - text.lines().last().unwrap().len() / 2]).unwrap();
    assert_eq!(answer(&mut of_targets(&out)), summary);
    let again = fs::read_to_string(&out).unwrap();
    assert_eq!(untimed(&again), untimed(&text));
    assert!(again.starts_with(text.split_inclusive('\n').take(30).collect::<String>().as_str()), "what was whole is as it was");

    // Other settings, or something else: refused, and the file stays.
    let message = ["rebar, target a, seed 3", "other settings"];
    refuses(of_targets(&out).args(["--set", "dlmi-tf.objective=hinge", "--estimators", "rebar"]), 2, &message);
    refuses(&mut of_targets(&targets), 2, &["targets.jsonl`, line 1", "no measurement"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), again);
}

#[test]
fn without_a_file_lines_are_printed_and_a_summary_with_one_is_for_people() {
    let ran = run(&mut gradients(&["the king", "--estimators", "gs-tau1,stgs"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    let printed = lines(&ran.out);
    let schemas: Vec<&str> = printed.iter().map(|line| line["schema"].as_str().unwrap()).collect();
    assert_eq!(schemas, [&["dlmi.gradients/1"; 4][..], &["dlmi.gradients.summary/1"]].concat());
    assert_eq!((&printed[0]["target"], &printed[0]["seed"], &printed[2]["estimator"]), (&json!("text"), &json!(0), &json!("stgs")));
    let ran = run(gradients(&["--estimators", "stgs", "--targets", "-"]).write_stdin("{\"id\": \"piped\", \"text\": \"the king\"}\n"));
    assert_eq!((ran.code, &lines(&ran.out)[0]["target"]), (Some(0), &json!("piped")), "{ran:?}");
    let folder = folder();
    let ran = run(gradients(&["--estimators", "gs-tau1,stgs", "--out"]).arg(folder.path().join("lines.jsonl")));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    for part in ["variance", "bias, authors'", "gs-tau1, stgs", "Kolmogorov-Smirnov"] {
        assert!(ran.out.contains(part), "{}", ran.out);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |arguments: &[&str], code, parts: &[&str]| {
        refuses(dlmi(["--backend", "flex", "gradients", "--prompt-tokens", "4"]).args(arguments), code, parts);
    };
    for (option, beyond) in [("--draws", "1"), ("--draws", "1000001"), ("--reference-samples", "31"), ("--reference-samples", "1000000001")]
    {
        refused(&["the king", option, beyond], 2, &[option, "must be from", beyond]);
    }
    refused(&["the king", "--every", "0"], 2, &["--every", "1 or more"]);
    refused(&["the king", "--steps", "none"], 2, &["--steps", "needs a number"]);
    refused(&["the king", "--seeds", "x"], 2, &["--seeds"]);
    refused(&["--estimators", "gumbel"], 2, &["gumbel", "gs-tau1"]);
    refused(&["--preset", "sdlm"], 2, &["rebar", "`feedback`"]);
    refused(&["a text", "--targets", "targets.jsonl"], 2, &["cannot be used with"]);
    refused(&["--targets", "nothing.jsonl"], 2, &["nothing.jsonl"]);
    refused(&["--out", "no/such/folder.jsonl"], 3, &["no/such"]);
    let folder = folder();
    let notes = folder.path().join("notes.json").display().to_string();
    for foreign in ["{\"my\": \"only copy\"}", "words", "two\nlines"] {
        fs::write(&notes, foreign).unwrap();
        refused(&["the king", "--out", &notes], 2, &["notes.json", "no measurement of gradients", "another file"]);
        assert_eq!(fs::read_to_string(&notes).unwrap(), foreign);
    }
    refuses(tiny(["gradients"]).arg("--offline"), 2, &["a target is needed"]);
}
