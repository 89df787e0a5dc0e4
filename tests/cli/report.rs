//! `dlmi report`: the numbers, the files, and the page in a real browser.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{answer, dlmi, folder, refuses, run};

/// A study of bard: 6 methods, 3 targets, 2 seeds (`tests/cli/report/study.toml`).
const STUDY: &str = "tests/cli/report/study.jsonl";

fn records() -> Vec<Value> {
    fs::read_to_string(STUDY).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

/// Reports on records; returns what the program says and where the report is.
fn reported(folder: &TempDir, name: &str, records: &[Value]) -> (Value, PathBuf) {
    let (file, out) = (folder.path().join(format!("{name}.jsonl")), folder.path().join(name));
    fs::write(&file, lines(records)).unwrap();
    let answer = answer(dlmi(["report", "--json", "-o"]).args([&out, &file]));
    assert_eq!(answer["page"], out.join("index.html").display().to_string());
    (answer, out)
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
}

/// A CSV file of fields without commas, by the names of its columns.
fn csv(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let split = |line: &str| line.replace("\"\"\"", "").split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = text.lines().map(split);
    let head = lines.next().unwrap();
    lines.map(|fields| head.iter().cloned().zip(fields).collect()).collect()
}

#[test]
fn a_study_has_its_figures_and_tables_and_always_the_same() {
    let (folder, records) = (folder(), records());
    let (said, out) = reported(&folder, "first", &records);
    assert_eq!((&said["cells"], &said["figures"], &said["tables"]), (&json!(36), &json!(3), &json!(5)));
    let made = files(&out);
    for name in ["lcs-bard-n5-12", "temperature-bard-n5-12", "success-bard-n5-12"] {
        assert!(made[&format!("{name}.png")].starts_with(b"\x89PNG") && made[&format!("{name}.png")].len() > 10_000, "{name}");
        assert!(made[&format!("{name}.svg")].starts_with(b"<svg xmlns"), "{name}");
        assert!(made.contains_key(&format!("{name}.csv")), "{name}");
    }
    for name in ["scores-bard-n5-12", "overlap-bard-n5-12", "differences-bard-n5-12", "prompts-bard-n5-12", "cells"] {
        assert!(made.contains_key(&format!("{name}.csv")) && made.contains_key(&format!("{name}.md")), "{name}");
    }
    let mut reversed = records;
    reversed.reverse();
    let twice = [reversed.clone(), reversed].concat();
    assert_eq!(files(&reported(&folder, "second", &twice).1), made, "neither the order nor a second copy of the records matters");
}

/// The mean of a method's scores at a k, straight from the records.
fn mean(records: &[Value], method: &str, k: u64, score: &str) -> f64 {
    let of = |record: &&Value| record["cell"]["method"] == method && record["cell"]["k"] == k;
    let values: Vec<f64> = records.iter().filter(of).map(|record| record["inversion"]["lcs"][score].as_f64().unwrap()).collect();
    assert_eq!(values.len(), 2, "{method}");
    values.iter().sum::<f64>() / 2.0
}

#[test]
fn its_numbers_are_those_of_the_records() {
    let (folder, records) = (folder(), records());
    let (_, out) = reported(&folder, "report", &records);
    let found = csv(&out.join("lcs-bard-n5-12.csv"));
    for (method, score, k) in [("dlmi", "relaxed_forced", 1), ("gbda", "hard_forced", 3), ("snap", "hard_free", 2)] {
        let row = |row: &&BTreeMap<String, String>| row["score"] == score && row["method"] == method && row["k"] == k.to_string();
        let row = found.iter().find(row).unwrap_or_else(|| panic!("{method} {score}"));
        assert!((row["mean"].parse::<f64>().unwrap() - mean(&records, method, k, score)).abs() < 1e-12, "{row:?}");
        assert_eq!((row["targets"].as_str(), row["runs"].as_str()), ("1", "2"));
    }
    let relaxed = |row: &&BTreeMap<String, String>| row["method"] == "reinforce" && row["score"].starts_with("relaxed");
    assert_eq!(found.iter().filter(relaxed).count(), 0, "REINFORCE has no relaxed prompt");
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(page.contains("stand beside no floor"), "a study without a floor says so");
    let asks = ["http:", "https:", "src=", "@import", "url("].into_iter().filter(|part| page.contains(part)).collect::<Vec<_>>();
    assert!(asks.is_empty() && page.contains("default-src 'none'"), "a page that asks for nothing: {asks:?}");
}

/// SODA draws nothing before step 1500: two seeds are one run. What failed is in the rates and scores, as nothing found.
#[test]
fn equal_runs_count_once_and_failed_ones_stay_in() {
    let (folder, mut records) = (folder(), records());
    let gbda = records.iter().position(|record| record["cell"]["method"] == "gbda").unwrap();
    records[gbda] = json!({ "schema": "dlmi.cell/1", "cell": records[gbda]["cell"], "failed": "out of memory" });
    let (_, out) = reported(&folder, "report", &records);
    let rows = csv(&out.join("scores-bard-n5-12.csv"));
    let row = |method: &str| rows.iter().find(|row| row["method"] == method).unwrap();
    let counts = |method: &str| ["targets", "runs", "failed", "exact_of"].map(|name| row(method)[name].clone());
    assert_eq!(counts("soda"), ["3", "3", "0", "3"]);
    assert_eq!(counts("gbda"), ["3", "6", "1", "6"]);
    assert_eq!(counts("dlmi"), ["3", "6", "0", "6"]);
    assert_eq!(row("gbda")["hard_free_runs"], "6");
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    for sentence in ["soda: draws nothing random in this budget", "Failed: 1.", "out of memory"] {
        assert!(page.contains(sentence), "{sentence}");
    }
}

/// A folder as `study run` leaves it, science without names and clocks, and a floor.
#[test]
fn it_reads_folders_and_science_and_draws_a_floor() {
    let folder = folder();
    let mut records = records();
    for (i, record) in records.iter_mut().enumerate() {
        let (cell, inversion) = (record["cell"].as_object_mut().unwrap().clone(), record["inversion"].as_object_mut().unwrap());
        inversion.remove("seconds");
        inversion["model"].as_object_mut().unwrap().remove("spec");
        let mut cell = cell;
        cell.remove("model");
        if cell["method"] == "snap" {
            (cell["method"], cell["steps"]) = ("floor".into(), 1.into());
        }
        record["cell"] = cell.into();
        let place = folder.path().join("cells");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(format!("{i}.json")), format!("{record}\n")).unwrap();
    }
    let ran = run(&mut dlmi(["report", &folder.path().display().to_string()]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let out = folder.path().join("report");
    assert_eq!(ran.out.trim_end(), out.join("index.html").display().to_string());
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(!page.contains("no floor") && page.contains("class=\"floor band\""));
    let names: Vec<String> = files(&out).into_keys().filter(|name| name.starts_with("lcs-") && name.ends_with(".svg")).collect();
    assert_eq!(names, ["lcs-model-4be62e1e-n5-12.svg"], "a floor has no budget of its own");
}

/// The random prompts of a long floor begin with those of a short one: they are not two runs.
#[test]
fn the_floor_is_that_of_its_own_budget_and_no_run_counts_twice_by_another_setting() {
    let (folder, mut records) = (folder(), records());
    for record in records.iter_mut().filter(|record| record["cell"]["method"] == "snap") {
        record["cell"]["method"] = "floor".into();
    }
    let floor = |record: &&Value| record["cell"]["method"] == "floor";
    let again = |steps: u64, record: &Value| {
        let mut record = record.clone();
        record["cell"]["id"] = format!("{steps}{}", &record["cell"]["id"].as_str().unwrap()[4..]).into();
        record["cell"]["steps"] = steps.into();
        record
    };
    let longer: Vec<Value> = records.iter().filter(floor).map(|record| again(2048, record)).collect();
    let (_, out) = reported(&folder, "report", &[records.clone(), longer].concat());
    let rows = csv(&out.join("scores-bard-n5-12.csv"));
    assert_eq!(rows.iter().find(|row| row["method"] == "floor").unwrap()["runs"], "6");

    let steps = records[0]["cell"]["steps"].as_u64().unwrap();
    records.push(again(steps, &records[0]));
    let file = folder.path().join("twice.jsonl");
    fs::write(&file, lines(&records)).unwrap();
    refuses(dlmi(["report"]).arg(&file), 2, &["by different settings", "labels of their own", "`study merge`"]);
}

#[test]
fn figure_5_is_drawn_from_gradients() {
    let folder = folder();
    let line = |estimator: &str, seed: usize, step: usize| {
        let of = |scale: f64| json!({ "max": scale * (1.0 + (seed * 7 + step) as f64 % 13.0), "mean": scale });
        let (max, floor) = (0.2 + seed as f64, of(0.05));
        let squares = [1.0, 2.0, 3.0];
        let bias = json!({
            "max": max, "mean": 0.1, "floor": floor, "reference_error": floor,
            "squared": squares[0], "floor_squared": squares[1], "gradient_squared": squares[2],
        });
        let (authors, bias) = if step.is_multiple_of(50) { (of(1.0), bias) } else { (Value::Null, Value::Null) };
        let variance = of(if estimator == "reinforce" { 10.0 } else { 0.01 });
        json!({
            "schema": "dlmi.gradients/1", "unit": format!("{estimator}{seed}"), "estimator": estimator, "target": "t", "k": 1, "seed": seed,
            "step": step, "steps": 256, "model": "ab12cd34ef", "prompt_tokens": 80, "vocab_size": 1536, "target_tokens": 20, "samples": 8,
            "draws": 5, "objective": 1.0, "temperature": null, "gradient": of(1.0), "variance": variance,
            "bias_authors": authors, "bias": bias,
            "reference_samples": 64, "seconds": 0.1,
        })
    };
    let steps = || (0..10).map(|i| 25 * i);
    let of = |estimator: &'static str| (0..3).flat_map(move |seed| steps().map(move |step| (estimator, seed, step)));
    let mut records: Vec<Value> =
        ["reinforce", "gs-tau1", "my own"].into_iter().flat_map(of).map(|(e, seed, step)| line(e, seed, step)).collect();
    records.push(json!({ "schema": "dlmi.gradients.summary/1" }));
    let (said, out) = reported(&folder, "report", &records);
    assert_eq!((&said["gradients"], &said["figures"], &said["tables"]), (&json!(90), &json!(1), &json!(0)));
    let table = files(&out).into_iter().find(|(name, _)| name.starts_with("gradients-") && name.ends_with(".csv")).unwrap().0;
    let rows = csv(&out.join(table));
    assert_eq!(rows.len(), 9);
    let row = rows.iter().find(|row| row["quantity"] == "variance" && row["estimator"] == "gs-tau1").unwrap();
    assert_eq!((row["values"].as_str(), row["ks_distance_to_reinforce"].as_str()), ("30", "1"));
    assert!(row["ks_p"].parse::<f64>().unwrap() < 1e-9);
    let row = rows.iter().find(|row| row["quantity"] == "bias" && row["estimator"] == "gs-tau1").unwrap();
    assert_eq!(row["floor"], "0.05", "the whole standard error");

    // A study says what it calls the model.
    let cell = |model: Value| json!({ "schema": "dlmi.cell/1", "cell": { "id": "a", "model": model, "gradients": {} }, "gradients": records[..30] });
    for (model, name) in
        [(json!("folder/own.gguf"), "gradients-owngguf-n80-256.csv"), (Value::Null, "gradients-model-ab12cd34-n80-256.csv")]
    {
        let (_, out) = reported(&folder, name, &[cell(model)]);
        assert!(out.join(name).exists(), "{name}");
    }

    // A run that failed before it was measured counts once, and only where it was not measured after all.
    let failed = |id: &str| json!({ "schema": "dlmi.cell/1", "cell": { "id": id, "gradients": {} }, "failed": "no memory" });
    let (_, out) = reported(&folder, "failed", &[records.clone(), ["gs-tau10", "x", "x"].map(failed).to_vec()].concat());
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(page.contains("could not be measured: 1."), "of two that failed one was measured");
    // Numbers at the end of what there is draw an axis.
    records[0]["variance"]["max"] = 1.7e308.into();
    reported(&folder, "huge", &records);
    // Of one run there are no two by different settings.
    let mut other = line("reinforce", 0, 0);
    other["unit"] = "another".into();
    records.push(other);
    let file = folder.path().join("two.jsonl");
    fs::write(&file, lines(&records)).unwrap();
    refuses(dlmi(["report"]).arg(&file), 2, &["reinforce, N 80, 256 steps, seed 0", "different settings", "`study merge`"]);
}

/// The stop token that `end` asks for is a token more than the record's target.
#[test]
fn a_solved_target_may_have_its_end() {
    let (folder, mut records) = (folder(), records());
    let m = records[0]["cell"]["target_ids"].as_array().unwrap().len();
    records[0]["inversion"]["settings"]["end"] = true.into();
    records[0]["inversion"]["best"]["matched_prefix"] = (m + 1).into();
    reported(&folder, "report", &records);
}

#[test]
fn what_is_no_record_is_refused_in_a_sentence() {
    let folder = folder();
    let refused = |name: &str, text: String, parts: &[&str]| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        refuses(dlmi(["report"]).arg(&path), 2, parts);
        assert!(!folder.path().join(format!("{}-report", name.trim_end_matches(".jsonl"))).exists(), "nothing is written");
    };
    let good = lines(&records()[..1]);
    refuses(&mut dlmi(["report", "x", "--seed", "3"]), 2, &["a report has no settings", "--seed"]);
    refused("empty.jsonl", String::new(), &["no record yet", "study run"]);
    refused("inversion.jsonl", "{\"schema\":\"dlmi.inversion/1\"}\n".into(), &["line 1", "invert --json", "--out DIR"]);
    refused("broken.jsonl", format!("{good}{{\n"), &["line 2", "not JSON"]);
    refused("other.jsonl", format!("{good}\n{{\"schema\":\"a\\u001b[31m\"}}\n"), &["line 3", "unknown", "dlmi.cell/1"]);
    let mut record = records()[0].clone();
    record["inversion"]["lcs"]["hard_free"] = 7.into();
    refused("share.jsonl", lines(&[record.clone()]), &["line 1", "7 is no share"]);
    record["inversion"] = Value::Null;
    refused("null.jsonl", lines(&[record]), &["line 1", "broken"]);
    refuses(dlmi(["report"]).arg(folder.path()), 2, &["no folder of a study"]);
    refuses(&mut dlmi(["report", "/nonexistent"]), 2, &["/nonexistent"]);
    refuses(&mut dlmi(["report", STUDY, "--seed", "3"]), 2, &["--seed"]);
}

/// Texts that would act on a page, hide, or break its layout.
const HOSTILE: [&str; 6] = [
    "<script>window.hacked=1</script><img src=x onerror=\"window.hacked=1\">",
    "</td></table><style>*{display:none}</style><iframe src=\"https://example.com\">",
    "\u{202e}\u{2066}evil\u{0}\u{1b}[31m\u{2028}\r\n\t\u{200b}",
    "=HYPERLINK(\"http://example.com\",\"x\")",
    "' onmouseover='window.hacked=1' \" & &lt; ]]> --> ${1} `",
    "javascript:window.hacked=1",
];

/// Loads the page in a frame as wide as a phone, uses it, and writes down what came of it.
const DRIVER: &str = include_str!("report/driver.html");

/// What the driver found in a headless Chromium, which must not say a word on its console. None where there is no Chromium, which is
/// said loudly, and under `CI=true` a failure.
fn in_chromium(test: &str, out: &Path) -> Option<Value> {
    let name =
        ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(name) = name else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test} needs Chromium");
        eprintln!("SKIPPED (there is no Chromium): {test}");
        return None;
    };
    let driver = out.join("driver.html");
    fs::write(&driver, DRIVER).unwrap();
    let profile = folder();
    let quiet =
        ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"];
    let mut command = Command::new(name);
    command.args(quiet).arg(format!("--user-data-dir={}", profile.path().display()));
    // The driver may look into its frame; time passes as fast as the page allows.
    command.args(["--allow-file-access-from-files", "--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom"]);
    let output = command.arg(format!("file://{}", driver.display())).output().unwrap();
    let (page, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!log.contains("CONSOLE"), "{log}");
    let found = page.split_once("FOUND{").and_then(|(_, rest)| Some(rest.split_once("DNUOF")?.0));
    let found = found.unwrap_or_else(|| panic!("{page}\n{log}"));
    let plain = format!("{{{found}").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    Some(serde_json::from_str(&plain).unwrap_or_else(|error| panic!("{error}: {plain}")))
}

#[test]
fn the_page_works_in_a_browser_and_hostile_texts_are_inert() {
    let (folder, mut records) = (folder(), records());
    let long = "x".repeat(20_000);
    let texts: Vec<&str> = HOSTILE.into_iter().chain([long.as_str()]).collect();
    for (i, record) in records.iter_mut().enumerate() {
        let text = |shift: usize| Value::from(texts[(i + shift) % texts.len()]);
        let inversion = record["inversion"].as_object_mut().unwrap();
        (inversion["target_text"], inversion["prompt_text"], inversion["completion_text"]) = (text(0), text(1), text(2));
        inversion["stopped"] = text(3);
        if record["cell"]["method"] == "gbda, τ 100" {
            record["cell"]["method"] = format!("{}{long}", HOSTILE[0]).into();
        }
        record["cell"]["model"] = HOSTILE[1].into();
    }
    let mut failed = json!({ "schema": "dlmi.cell/1", "cell": records[0]["cell"], "failed": HOSTILE[0] });
    failed["cell"]["id"] = "f".into();
    failed["cell"]["seed"] = 30.into();
    records.push(failed);
    let (_, out) = reported(&folder, "report", &records);
    let written = files(&out);
    for (name, bytes) in written.iter().filter(|(name, _)| !name.ends_with(".png")) {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(
            !text.contains(['\u{0}', '\u{1b}', '\u{202e}', '\r']) || name.ends_with(".csv") && !text.contains(['\u{0}', '\u{1b}', '\r']),
            "{name}"
        );
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)), "{name}");
        assert!(name.ends_with(".csv") || !text.contains("<script>window") && !text.contains("<img"), "{name}");
    }
    let test = "report::the_page_works_in_a_browser_and_hostile_texts_are_inert";
    let Some(found) = in_chromium(test, &out) else { return };
    assert_eq!(
        (&found["hacked"], &found["resources"], &found["elements"], &found["scripts"]),
        (&Value::Null, &json!([]), &json!(0), &json!(1))
    );
    assert_eq!(found["excess"], 0, "nothing is wider than a phone: {found}");
    assert_eq!(found["wide"], json!([]), "no text leaves its picture");
    assert_eq!((&found["all"], &found["searched"], &found["chosen"]), (&json!(37), &json!(2), &json!(18)));
    let numbers =
        |name: &str| -> Vec<f64> { found[name].as_array().unwrap().iter().filter_map(|text| text.as_str()?.parse().ok()).collect() };
    let (up, down) = (numbers("up"), numbers("down"));
    assert!(up.is_sorted() && up.len() == 24 && found["up"].as_array().unwrap()[24..].iter().all(|text| *text == "–"), "{found}");
    assert!(down.is_sorted_by(|a, b| a >= b) && down.len() == 24, "{found}");
    assert_eq!(found["sorted"], "ascending");
    let methods: Vec<&str> = found["methods"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert!(methods.is_sorted() && methods.len() == 37, "{methods:?}");
}
