//! The record of a run, step by step.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::board::board;
use crate::support::*;

/// Seven steps of `method`, of which the second, fourth, sixth and last have scores.
fn seven(method: &str, out: &Path) -> Value {
    let flags = ["--method", method, "--steps", "7", "--prompt-tokens", "5", "--set", "eval_every=2", "--out"];
    inversion(tiny(["invert", OUT_OF_REACH]).args(flags).arg(out))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

#[track_caller]
fn is_a_spread(value: &Value, within: std::ops::RangeInclusive<f64>) {
    assert_eq!(keys(value), ["mean", "min", "max"]);
    let [mean, min, max] = ["mean", "min", "max"].map(|key| value[key].as_f64().unwrap());
    // A mean of equal numbers is rounded.
    assert!(min <= mean + 1e-9 && mean <= max + 1e-9 && within.contains(&min) && within.contains(&max), "{value}");
}

#[test]
fn every_step_is_a_line_and_the_last_one_has_scores() {
    for method in ["snap", "dlmi", "random"] {
        let folder = folder();
        let record = seven(method, folder.path());
        let (events, relaxed) = (events(folder.path()), method == "dlmi");
        assert_eq!(events.len(), 7);
        for (event, step) in events.iter().zip(1..) {
            let all = ["step", "restart", "seconds", "objective", "gradient_norm", "temperature", "entropy", "best", "scores", "cost"];
            assert_eq!(keys(event), all);
            assert_eq!((&event["step"], &event["restart"]), (&json!(step), &json!(0)));
            assert!(event["objective"].is_number() && event["seconds"].is_number(), "{event}");
            assert_eq!(keys(&event["cost"]), keys(&record["cost"]));
            // The first step of snap looks at its starts.
            let has_gradient = method == "dlmi" || (method == "snap" && step > 1);
            assert_eq!(event["gradient_norm"].is_number(), has_gradient, "{event}");
            match relaxed {
                true => {
                    is_a_spread(&event["temperature"], 1e-6..=200.1);
                    is_a_spread(&event["entropy"], 0.0..=288f64.ln());
                }
                false => assert_eq!((&event["temperature"], &event["entropy"]), (&Value::Null, &Value::Null)),
            }
            let scored = step % 2 == 0 || step == 7;
            assert_eq!(event["scores"].is_object(), scored, "{event}");
            assert!(event["best"].is_object(), "every hard prompt is judged: {event}");
            if scored {
                scores(&event["scores"], relaxed);
                assert_eq!(keys(&event["best"]), ["matched_prefix", "valid", "step"]);
            }
        }
        let last = &events[6];
        for score in ["hard_forced", "hard_free"] {
            assert_eq!(last["scores"][score], record["lcs"][score], "{method}");
        }
        assert_eq!(last["scores"]["relaxed_free"]["mean"], record["lcs"]["relaxed_free"]);
        assert_eq!((&last["best"]["step"], &last["best"]["valid"]), (&record["best"]["step"], &record["best"]["valid"]));
    }
}

fn scores(scores: &Value, relaxed: bool) {
    let all = ["relaxed_forced", "relaxed_free", "hard_forced", "hard_free", "hard_forced_accuracy", "hard_free_accuracy"];
    assert_eq!(keys(scores), all);
    for score in ["relaxed_forced", "relaxed_free"] {
        if relaxed {
            is_a_spread(&scores[score], 0.0..=1.0);
        } else {
            assert_eq!(scores[score], Value::Null);
        }
    }
    // What stands in its place is part of a common subsequence.
    for score in ["hard_forced", "hard_free"] {
        let (ratio, accuracy) = (scores[score].as_f64().unwrap(), scores[&format!("{score}_accuracy")].as_f64().unwrap());
        assert!(0.0 <= accuracy && accuracy <= ratio && ratio <= 1.0, "{scores}");
    }
}

#[test]
fn an_exact_run_ends_with_full_scores() {
    let folder = folder();
    let command = ["invert", " and", "--steps", "300", "--prompt-tokens", "8", "--set", "eval_every=1000", "--out"];
    let record = inversion(tiny(command).arg(folder.path()));
    assert_eq!(record["exact"], true);
    let events = events(folder.path());
    let (last, before) = events.split_last().unwrap();
    assert!(before.iter().all(|event| event["scores"].is_null()));
    assert_eq!(last["scores"]["hard_free"], 1.0);
    assert_eq!(last["scores"]["hard_free_accuracy"], 1.0);
    assert_eq!(
        last["best"],
        json!({"matched_prefix": record["target_ids"].as_array().unwrap().len(), "valid": true, "step": last["step"]})
    );
}

/// All numbers of an event under their names in TensorBoard.
fn named(event: &Value) -> BTreeMap<String, f32> {
    let mut tags: Vec<(String, &Value)> = vec![
        ("objective".into(), &event["objective"]),
        ("gradient_norm".into(), &event["gradient_norm"]),
        ("best/matched_prefix".into(), &event["best"]["matched_prefix"]),
        ("lcs/relaxed_forced".into(), &event["scores"]["relaxed_forced"]["mean"]),
        ("lcs/relaxed_free".into(), &event["scores"]["relaxed_free"]["mean"]),
        ("lcs/hard_forced".into(), &event["scores"]["hard_forced"]),
        ("lcs/hard_free".into(), &event["scores"]["hard_free"]),
        ("accuracy/hard_forced".into(), &event["scores"]["hard_forced_accuracy"]),
        ("accuracy/hard_free".into(), &event["scores"]["hard_free_accuracy"]),
    ];
    for spread in ["temperature", "entropy"] {
        tags.extend(["mean", "min", "max"].map(|part| (format!("{spread}/{part}"), &event[spread][part])));
    }
    tags.into_iter().filter_map(|(tag, value)| Some((tag, value.as_f64()? as f32))).collect()
}

#[test]
fn tensorboard_reads_the_same_numbers() {
    for method in ["snap", "dlmi"] {
        let folder = folder();
        seven(method, folder.path());
        let (events, board) = (events(folder.path()), board(folder.path()));
        let (first, records) = board.split_first().unwrap();
        assert_eq!((first.version.as_str(), first.step, first.scalars.len()), ("brain.Event:2", 0, 0));
        assert_eq!(records.len(), events.len());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        for (record, event) in records.iter().zip(&events) {
            assert_eq!((record.step, &record.version), (event["step"].as_u64().unwrap(), &String::new()));
            assert_eq!(record.scalars, named(event));
            let since = record.wall_time - first.wall_time - event["seconds"].as_f64().unwrap();
            assert!(since.abs() < 1e-5 && (now - 3600.0..=now + 1.0).contains(&record.wall_time), "{record:?}");
        }
    }
}

/// Objective and gradient to the last bit, on one thread and on two, where gradients pass through the graph or the model's own backward pass.
#[test]
fn a_seed_decides_every_step() {
    for backend in CPU_BACKENDS {
        for method in ["dlmi", "dlmi-tf", "reinforce", "snap"] {
            let steps = |threads: &str| {
                let folder = folder();
                let flags = ["--method", method, "--steps", "6", "--prompt-tokens", "5", "--seed", "7", "--out"];
                let mut command = dlmi(["--model", TINY, "--backend", backend, "invert", OUT_OF_REACH]);
                inversion(command.args(flags).arg(folder.path()).env("RAYON_NUM_THREADS", threads));
                let events = events(folder.path()).into_iter();
                events.map(|event| (event["objective"].clone(), event["gradient_norm"].clone())).collect::<Vec<_>>()
            };
            let first = steps("1");
            assert_eq!(first, steps("2"), "{method} on {backend}: one thread and two");
            assert_eq!(first, steps("1"), "{method} on {backend}: twice");
        }
    }
}
