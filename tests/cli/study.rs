//! Studies: cells, runs that are killed, shards, workers, merging.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// A study on the tiny model with so many steps a cell: 3 targets, 3 methods, 2 prompt lengths.
pub fn study_of(steps: usize, rest: &str) -> (TempDir, String) {
    let folder = folder();
    let targets: String = (1..=3).map(|k| format!("{{\"id\": \"t{k}\", \"ids\": [{}, 30, 41, 52], \"k\": {k}}}\n", 20 + k)).collect();
    fs::write(folder.path().join("targets.jsonl"), targets).unwrap();
    let file = folder.path().join("study.toml");
    let text = format!(
        "models = [\"{TINY}\"]\nmethods = [\"dlmi\", \"reinforce\", \"snap\"]\nprompt_tokens = [4, 9]\nsteps = [{steps}]\n\
         targets = {{ file = \"targets.jsonl\" }}\n{rest}[settings]\neval_every = 4\nbackend = \"flex\"\n"
    );
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    (folder, file)
}

pub const CELLS: usize = 18;

pub fn out(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

pub fn merged(file: &str, folders: &[&str]) -> String {
    let outs = folders.iter().flat_map(|folder| ["--out", *folder]);
    let ran = run(dlmi(["study", "merge", file, "--science"].into_iter().chain(outs)).timeout(Duration::from_secs(60)));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    ran.out
}

/// Counts of a folder: done, failed, running, pending.
pub fn counted(file: &str, out: &str) -> [u64; 4] {
    let status = answer(&mut dlmi(["study", "status", file, "--out", out, "--json"]));
    ["done", "failed", "running", "pending"].map(|key| status[key].as_u64().unwrap())
}

pub fn computed(arguments: &[&str]) -> Value {
    answer(&mut dlmi(["study", "run", "--json"].iter().chain(arguments)))
}

pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every study of `configs/study/` says what it would compute, whether its weights and targets are here or not.
#[test]
fn the_studies_that_come_along_are_sound() {
    let gguf = std::env::var_os("SMOLLM2_GGUF").filter(|path| Path::new(path).exists());
    let cells = |name: &str| -> HashSet<String> {
        let path = format!("configs/study/{name}.toml");
        let text = fs::read_to_string(&path).unwrap();
        let stand_in: Vec<&OsStr> = match (text.contains("models = [\"bard\"]"), name) {
            (true, _) => vec![],
            // Its targets are token ids.
            (_, "race-smollm2") => vec!["--stand-in".as_ref(), gguf.as_ref().unwrap()],
            // bard's tokenizer cuts the authors' targets into more tokens, but into as many targets.
            _ => vec!["--stand-in".as_ref(), "bard".as_ref()],
        };
        let ran = run(dlmi(["study", "cells", &path, "--json"]).args(&stand_in));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{name}: {ran:?}");
        let ids: HashSet<String> = lines(&ran.out).iter().map(|cell| cell["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids.len(), ran.out.lines().count(), "{name}");
        ids
    };
    let mut names: Vec<String> = ["", "small/", "race/"].iter().flat_map(|folder| studies(folder)).collect();
    names.sort();
    if gguf.is_none() {
        eprintln!("SKIPPED: race-smollm2.toml needs SMOLLM2_GGUF (scripts/fetch_smollm2.sh)");
        names.retain(|name| name != "race-smollm2");
    }
    let all: BTreeMap<String, HashSet<String>> = names.into_iter().map(|name| (name.clone(), cells(&name))).collect();
    let counts: Vec<(&str, usize)> = all.iter().map(|(name, ids)| (name.as_str(), ids.len())).collect();
    let expected = [
        ("figure2", 2000),
        ("figure2-smollm3", 2000),
        ("figure3", 2000),
        ("figure3-smollm3", 2000),
        ("figure4", 625),
        ("figure5", 1250),
        ("race-bard", 1330),
        ("race-smollm2", 2470),
        ("race/ablation-bard", 576),
        ("race/ablation-smollm2", 84),
        ("race/trials-bard", 720),
        ("small/figure2", 240),
        ("small/figure3", 240),
        ("small/figure4", 150),
        ("small/figure5", 60),
        ("smoke", 48),
        ("table1-smollm2", 300),
        ("table3", 25),
        ("table4", 25),
    ];
    let expected: Vec<(&str, usize)> = expected.into_iter().filter(|(name, _)| all.contains_key(*name)).collect();
    assert_eq!(counts, expected);
    for (part, whole) in [("figure4", "figure2"), ("small/figure4", "small/figure2"), ("table3", "figure3"), ("table4", "figure3-smollm3")]
    {
        assert!(all[part].is_subset(&all[whole]), "the cells of {part} are of {whole} too");
    }
}

#[test]
fn targets_that_are_yet_to_be_drawn_are_asked_for() {
    let (folder, file) = study_of(4, "");
    fs::remove_file(folder.path().join("targets.jsonl")).unwrap();
    refuses(&mut dlmi(["study", "cells", &file]), 2, &["targets.jsonl", "`dlmi targets`"]);
}

/// What is no file is written into, and the study is not lost to a slip.
#[cfg(unix)]
#[test]
fn what_is_merged_goes_where_it_was_asked_to() {
    let (folder, file) = study_of(4, "");
    let (out, link, to) = (out(&folder, "out"), out(&folder, "link"), out(&folder, "merged.jsonl"));
    computed(&[&file, "--out", &out]);
    std::os::unix::fs::symlink(&to, &link).unwrap();
    fs::write(&to, "before").unwrap();
    for path in [&link, "/dev/null"] {
        dlmi(["study", "merge", &file, "--out", &out, "-o", path]).assert().code(0).stdout("");
    }
    assert_eq!(fs::read_to_string(&to).unwrap().lines().count(), CELLS);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && !fs::metadata("/dev/null").unwrap().is_file());
    refuses(&mut dlmi(["study", "merge", &file, "--out", &out, "-o", &file]), 2, &["the study itself"]);
}

#[test]
fn hours_are_said_whatever_the_speed() {
    let (_folder, file) = study_of(4, "");
    let cells = |flags: &[&str]| dlmi(["study", "cells", &file, "--cost"].iter().chain(flags));
    let said = answer(&mut cells(&["--speed-up", "2", "--json"]));
    let [here, there] = ["hours_here", "hours_on_gpu"].map(|key| said[key].as_f64().unwrap());
    assert!(here > 0.0 && (here / there / 2.0 - 1.0).abs() < 1e-9, "{said}");
    // More hours than a number can hold.
    let ran = run(&mut cells(&["--speed-up", "5e-324"]));
    assert!(ran.code == Some(0) && ran.out.contains("more than can be said at"), "{ran:?}");
}

/// The studies in a folder of `configs/study/`.
fn studies(folder: &str) -> Vec<String> {
    let files = fs::read_dir(Path::new("configs/study").join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let studies = files.filter(|file| file.extension().is_some_and(|extension| extension == "toml"));
    studies.map(|file| format!("{folder}{}", file.file_stem().unwrap().to_str().unwrap())).collect()
}

/// Figure 5 as a study: each run of an estimator is a cell, goes on from its last measurement, and is reported.
#[test]
fn runs_of_estimators_are_measured_cell_by_cell() {
    let folder = folder();
    let file = folder.path().join("study.toml");
    let text = "models = [\"bard\"]\nestimators = [\"reinforce\", \"gs-tau1\"]\nprompt_tokens = [4]\nsteps = [5]\nseeds = [1, 2]\n\
                targets = { texts = [\"the king\"] }\n[gradients]\nevery = 2\nbias_every = 4\ndraws = 2\nreference_samples = 32\n\
                [settings]\nbackend = \"flex\"\n";
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let (whole, begun, report) = (out(&folder, "whole"), out(&folder, "begun"), out(&folder, "report"));
    let ran = run(&mut dlmi(["study", "run", &file, "--out", &whole, "--workers", "2"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(ran.out.trim_end(), "4 of 4 cells done, 0 failed, 0 running, 0 pending; this run: 4 done");
    let science = merged(&file, &[&whole]);
    let records = lines(&science);
    assert_eq!(records.len(), 4);
    for record in &records {
        let steps: Vec<u64> = record["gradients"].as_array().unwrap().iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert_eq!((steps, &record["gradients"][0]["unit"]), (vec![0, 2, 4], &record["cell"]["id"]));
        assert!(record.get("seconds").is_none() && record["gradients"][0].get("seconds").is_none());
    }
    // One line is there, and the beginning of the next: what is there is taken as it is.
    let id = records[0]["cell"]["id"].as_str().unwrap();
    let mut line = records[0]["gradients"][0].clone();
    (line["seconds"], line["objective"]) = (1.5.into(), 123.0.into());
    let work = Path::new(&begun).join("work").join(id);
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("gradients.flex.jsonl"), format!("{line}\n{}", &line.to_string()[..50])).unwrap();
    computed(&[&file, "--out", &begun]);
    let mut resumed = lines(&merged(&file, &[&begun]));
    assert_eq!(resumed[0]["gradients"][0]["objective"], 123.0);
    resumed[0]["gradients"][0] = records[0]["gradients"][0].clone();
    assert_eq!(resumed, records);
    // A file that was damaged is begun again, and what another backend measured is its own.
    let damaged = out(&folder, "damaged");
    let work = Path::new(&damaged).join("work").join(id);
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("gradients.flex.jsonl"), format!("{{\"schema\": \"none\"}}\n{line}\n")).unwrap();
    fs::write(work.join("gradients.ndarray.jsonl"), format!("{line}\n")).unwrap();
    let ran = run(&mut dlmi(["study", "run", &file, "--out", &damaged]));
    assert!(ran.code == Some(0) && ran.err.contains("the cell is begun again"), "{ran:?}");
    assert_eq!(lines(&merged(&file, &[&damaged])), records);
    let made = answer(&mut dlmi(["report", "--json", &whole, &begun, "-o", &report]));
    assert_eq!((&made["cells"], &made["figures"]), (&0.into(), &1.into()), "{made}");
    // The report counts no measurement twice.
    let csv = fs::read_dir(&report).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some_and(|it| it == "csv"));
    let csv = fs::read_to_string(csv.unwrap()).unwrap();
    assert!(csv.contains("variance,\"\"\"reinforce\"\"\",6,"), "{csv}");

    let other = |from: &str, to: &str, parts: &[&str]| {
        fs::write(&file, text.replace(from, to)).unwrap();
        refuses(&mut dlmi(["study", "cells", &file]), 2, parts);
    };
    other("estimators = [\"reinforce\"", "estimators = [\"gumbel\"", &["line 2", "`gumbel`", "gs-tau100"]);
    other("draws = 2", "draws = 1", &["draws", "from 2"]);
    other("reference_samples = 32", "reference_samples = 31", &["reference_samples", "from 32"]);
    other("draws = 2", "draws = -2", &["line 10", "`draws`", "whole number"]);
    other("every = 2\n", "step = 2\n", &["line 8", "`step`", "bias_every"]);
    other("steps = [5]", "positions = [500]", &["steps"]);
    other("estimators = [", "methods = [\"dlmi\"]\nestimators = [", &["line 3", "one of them"]);
    other("estimators = [\"reinforce\", \"gs-tau1\"]", "methods = [\"dlmi\"]", &["`[gradients]`", "`methods`"]);
}

#[test]
fn cells_are_listed_without_a_folder_and_always_the_same() {
    let (_folder, file) = study_of(8, "");
    let list = || run(&mut dlmi(["study", "cells", &file, "--json"])).out;
    let cells = lines(&list());
    assert_eq!((cells.len(), list()), (CELLS, list()));
    let methods: Vec<&str> = cells[..3].iter().map(|cell| cell["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["dlmi", "reinforce", "snap"]);
    assert_eq!(ids(&cells[0]["target_ids"]), [21, 30, 41, 52]);
    let table = run(&mut dlmi(["study", "cells", &file]));
    assert_eq!(table.code, Some(0));
    assert!(table.out.contains("method") && table.out.contains("reinforce"), "{}", table.out);
}

#[test]
fn a_run_leaves_a_record_for_each_cell_and_a_second_one_does_nothing() {
    let (folder, file) = study_of(8, "");
    let out = out(&folder, "out");
    let first = computed(&[&file, "--out", &out]);
    assert_eq!((&first["run"]["done"], &first["study"]["done"]), (&CELLS.into(), &CELLS.into()), "{first}");
    assert_eq!(counted(&file, &out), [CELLS as u64, 0, 0, 0]);
    let before = merged(&file, &[&out]);
    let second = computed(&[&file, "--out", &out]);
    assert_eq!(second["run"]["done"], 0);
    assert_eq!(merged(&file, &[&out]), before);
    let records = lines(&before);
    let record = &records[0];
    assert_eq!(record["inversion"]["schema"], "dlmi.inversion/1");
    assert_eq!(record["inversion"]["target_ids"], record["cell"]["target_ids"]);
    assert_eq!(record["trace"].as_array().unwrap().len(), 2, "one for each time it was scored");
    let temperature = record["temperature"].as_array().unwrap();
    assert_eq!((temperature.len(), &temperature[7]), (8, &record["trace"][1]["temperature"]["mean"]));
    assert!(records.iter().all(|record| record.get("temperature").is_some() == (record["cell"]["method"] == "dlmi")));
    assert!(
        !before.contains("\"seconds") && !before.contains("load_seconds") && !before.contains(TINY) && !before.contains("flex"),
        "{}",
        &before[..2000]
    );
    assert!(fs::read_dir(Path::new(&out).join("work")).unwrap().next().is_none(), "no run folder is left");
}

/// What a cell comes to is what `invert` says.
#[test]
fn a_cell_is_an_inversion() {
    let (folder, file) = study_of(8, "");
    let out = out(&folder, "out");
    computed_in_part(&file, &out, 1);
    let cell = &lines(&run(&mut dlmi(["study", "cells", &file, "--json"])).out)[0];
    let path = Path::new(&out).join("cells").join(format!("{}.json", cell["id"].as_str().unwrap()));
    let record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let inversion = &record["inversion"];
    let text = inversion["target_text"].as_str().unwrap();
    let arguments = ["--preset", "paper", "--set", "eval_every=4", "invert", text, "--prompt-tokens", "4", "--steps", "8"];
    let direct = inversion_of(tiny(arguments).arg("--json"));
    // Only where its text gives the same tokens is it the same problem.
    if direct["target_ids"] == inversion["target_ids"] {
        assert_eq!((&direct["lcs"], &direct["best"], &direct["cost"]), (&inversion["lcs"], &inversion["best"], &inversion["cost"]));
    }
}

fn inversion_of(command: &mut assert_cmd::Command) -> Value {
    record(run(command))
}

fn computed_in_part(file: &str, out: &str, limit: u32) {
    let ran = run(&mut dlmi(["study", "run", file, "--out", out, "--json", "--limit", &limit.to_string()]));
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(ran.json()["run"]["done"], limit);
}

#[test]
fn three_shards_merged_are_one_run() {
    let (folder, file) = study_of(8, "");
    let (one, shards) = (out(&folder, "one"), ["a", "b", "c"].map(|name| out(&folder, name)));
    computed(&[&file, "--out", &one]);
    for (number, shard) in (1..).zip(&shards) {
        let ran = computed(&[&file, "--out", shard, "--shard", &format!("{number}/3")]);
        assert_eq!(ran["run"]["done"], (CELLS / 3) as u64);
    }
    let part = run(&mut dlmi(["study", "merge", &file, "--out", &shards[0]]));
    assert_eq!((part.code, part.out.lines().count()), (Some(4), CELLS / 3));
    assert!(part.err.contains("12 of 18 cells are missing"), "{}", part.err);
    assert_eq!(merged(&file, &[&shards[2], &shards[0], &shards[1]]), merged(&file, &[&one]));
}

/// Twenty numbers in 0..1 that look random and are the same each time.
fn moments() -> impl Iterator<Item = f64> {
    let step = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(19), step).skip(1).take(20).map(|state| f64::from(state) / f64::from(u32::MAX))
}

#[test]
fn killed_at_twenty_random_moments_it_ends_as_if_never_interrupted() {
    let (folder, file) = study_of(40, "");
    let (whole, killed) = (out(&folder, "whole"), out(&folder, "killed"));
    let began = Instant::now();
    computed(&[&file, "--out", &whole]);
    let took = began.elapsed();
    let mut done = Vec::new();
    for (kill, moment) in moments().enumerate() {
        let workers = ["1", "2"][kill % 2];
        let arguments = ["study", "run", &file, "--out", &killed, "--workers", workers, "-q"];
        let mut child = child(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(took.mul_f64(0.2 * moment));
        _ = child.kill();
        child.wait().unwrap();
        done.push(fs::read_dir(Path::new(&killed).join("cells")).map_or(0, Iterator::count));
    }
    assert!(done[0] < CELLS, "the first kill came when all was over: {done:?}");
    until("the last run's workers have ended", || counted(&file, &killed)[2] == 0);
    let rest = computed(&[&file, "--out", &killed]);
    assert_eq!(rest["study"]["done"], CELLS as u64);
    assert_eq!(counted(&file, &killed), [CELLS as u64, 0, 0, 0]);
    assert_eq!(merged(&file, &[&killed]), merged(&file, &[&whole]));
}

/// A cell that was under way goes on from its checkpoint, it does not begin again.
#[test]
fn a_cell_goes_on_from_its_checkpoint() {
    let (folder, file) = study_of(4000, "");
    let out = out(&folder, "out");
    let mut child = child(["study", "run", &file, "--out", &out, "--limit", "1"]).stdout(Stdio::null()).spawn().unwrap();
    let work = Path::new(&out).join("work");
    let checkpoint = || -> Option<PathBuf> {
        let cell = fs::read_dir(&work).ok()?.next()?.ok()?.path();
        Some(cell.join("checkpoint.safetensors")).filter(|path| path.exists())
    };
    until("a checkpoint is there", || checkpoint().is_some());
    assert_eq!(counted(&file, &out)[2], 1, "it is running");
    child.kill().unwrap();
    child.wait().unwrap();
    // The worker ends when it hears nothing more of its parent.
    until("a dead run's claim is free", || counted(&file, &out) == [0, 0, 0, CELLS as u64]);
    let steps = |path: &Path| fs::read_to_string(path.with_file_name("events.jsonl")).unwrap().lines().count();
    let path = checkpoint().unwrap();
    let made = steps(&path);
    let mut child = crate::support::child(["study", "run", &file, "--out", &out, "--limit", "1"]).stdout(Stdio::null()).spawn().unwrap();
    until("it goes on", || steps(&path) > made + 4);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn two_workers_are_one() {
    let (folder, file) = study_of(8, "");
    let (one, two) = (out(&folder, "one"), out(&folder, "two"));
    computed(&[&file, "--out", &one]);
    let ran = computed(&[&file, "--out", &two, "--workers", "2"]);
    assert_eq!(ran["run"]["done"], CELLS as u64);
    assert_eq!(merged(&file, &[&two]), merged(&file, &[&one]));
}

/// The processes that have `folder` in their command line, workers first.
#[cfg(target_os = "linux")]
pub fn workers_at(folder: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let line = |id: &u32| String::from_utf8_lossy(&fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default()).replace('\0', " ");
    processes.filter(|id| line(id).contains("study worker") && line(id).contains(folder)).collect()
}

/// Waits until a folder's counts are as wanted; a run makes the folder a moment after its start.
#[cfg(target_os = "linux")]
pub fn until_counted(what: &str, file: &str, out: &str, are: impl Fn([u64; 4]) -> bool) {
    until(what, || Path::new(out).join("locks").is_dir() && are(counted(file, out)));
}

#[cfg(target_os = "linux")]
#[test]
fn workers_die_with_their_parent_and_a_worker_costs_its_cell_only() {
    let (folder, file) = study_of(400, "");
    let out = out(&folder, "out");
    let arguments = ["study", "run", &file, "--out", &out, "--workers", "2", "-q"];
    let start = || child(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut parent = start();
    until_counted("two cells are running", &file, &out, |counts| counts[2] == 2);
    let workers = workers_at(&out);
    assert_eq!(workers.len(), 2);
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("workers die with their parent", || workers_at(&out).is_empty());
    assert_eq!(counted(&file, &out)[2], 0);

    let mut parent = start();
    until_counted("a cell is done", &file, &out, |counts| counts[0] > 1);
    let victim = workers_at(&out)[0].to_string();
    let signal = |what: &str| assert!(std::process::Command::new("kill").args([what, &victim]).status().unwrap().success());
    // Between two cells its death costs nothing: it is stopped, and dies with a cell in its hands.
    until("a stopped worker has a cell", || {
        signal("-STOP");
        let has = counted(&file, &out)[2] == 2;
        if !has {
            signal("-CONT");
        }
        has
    });
    signal("-9");
    assert_eq!(parent.wait().unwrap().code(), Some(1));
    assert_eq!(counted(&file, &out), [CELLS as u64 - 1, 1, 0, 0]);
    let failed = fs::read_dir(Path::new(&out).join("failed")).unwrap().next().unwrap().unwrap().path();
    let record: Value = serde_json::from_slice(&fs::read(failed).unwrap()).unwrap();
    assert!(record["failed"].as_str().unwrap().contains("signal: 9"), "{record}");
    let again = computed(&[&file, "--out", &out, "--retry"]);
    assert_eq!((&again["run"]["done"], &again["study"]["failed"]), (&1.into(), &0.into()));
}

/// 300 tokens do not fit into the tiny model's context.
#[test]
fn a_cell_that_fails_costs_itself_only() {
    let (folder, file) = study_of(4, "");
    let text = fs::read_to_string(&file).unwrap().replace("[4, 9]", "[4, 300]");
    fs::write(&file, text).unwrap();
    for workers in ["1", "2"] {
        let out = out(&folder, workers);
        let ran = run(&mut dlmi(["study", "run", &file, "--out", &out, "--json", "--workers", workers]));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert_eq!(counted(&file, &out), [9, 9, 0, 0]);
        assert!(ran.err.contains("failed: ") && ran.err.contains("context holds 256"), "{}", ran.err);
        let records = lines(&merged(&file, &[&out]));
        assert_eq!(records.iter().filter(|record| record.get("failed").is_some()).count(), 9);
        let listed = |flags: &[&str]| {
            let ran = run(&mut dlmi(["study", "cells", &file, "--ids", "--pending", "--out", &out].iter().chain(flags)));
            ran.out.lines().count()
        };
        assert_eq!((listed(&[]), listed(&["--retry"])), (0, 9));
        let slurm = |flags: &[&str]| run(&mut dlmi(["study", "slurm", &file, "--out", &out, "--tasks", "2"].iter().chain(flags)));
        assert!(slurm(&[]).err.contains("--retry") && slurm(&["--retry"]).out.contains(" --retry\n"));
    }
}

/// A batch of long prompts asks for more than there is; what asks for less goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_cell_that_is_too_large_costs_itself_only() {
    let (folder, file) = study_of(4, "");
    let text = fs::read_to_string(&file).unwrap().replace("[4, 9]", "[4, 240]") + "dlmi.samples = 1024\n";
    fs::write(&file, text).unwrap();
    for workers in ["1", "2"] {
        let out = out(&folder, workers);
        let ran = run(&mut limited("-v 400000", ["study", "run", &file, "--out", &out, "--json", "--workers", workers]));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert_eq!(counted(&file, &out), [15, 3, 0, 0]);
        assert!(ran.err.contains("a step on this prompt needs ") && ran.err.contains("MiB of memory"), "{}", ran.err);
    }
}

#[test]
fn two_runs_on_one_folder_share_the_cells() {
    let (folder, file) = study_of(40, "");
    let out = out(&folder, "out");
    let start = || child(["study", "run", &file, "--out", &out, "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let both = [start(), start()].map(|child| {
        let output = child.wait_with_output().unwrap();
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        summary["run"]["done"].as_u64().unwrap()
    });
    assert_eq!(both.iter().sum::<u64>(), CELLS as u64, "{both:?}");
}

#[test]
fn what_is_wrong_is_refused_in_a_sentence() {
    let (folder, file) = study_of(4, "");
    let out = out(&folder, "out");
    refuses(&mut dlmi(["study", "run", &file, "--out", &out, "--set", "steps=5"]), 2, &["--set", "its file"]);
    refuses(&mut dlmi(["--seed", "3", "study", "cells", &file]), 2, &["--seed"]);
    refuses(&mut dlmi(["study", "run", &file, "--out", &out, "--shard", "3/2"]), 2, &["--shard", "2/8"]);
    refuses(&mut dlmi(["study", "status", &file, "--out", &out]), 2, &[&out, "no folder of a study"]);
    refuses(&mut dlmi(["study", "cells", "/nonexistent.toml"]), 2, &["/nonexistent.toml"]);
    let bad = folder.path().join("bad.toml");
    fs::write(&bad, "methods = [\"dlmi\"]\ntargets = { bundled = true }\nstep\u{1b}s = 4\n").unwrap();
    refuses(&mut dlmi(["study", "cells", &bad.display().to_string()]), 2, &["bad.toml`, line 3", "TOML"]);
    #[cfg(feature = "ndarray")]
    refuses(&mut dlmi(["study", "run", &file, "--out", &out, "--backend", "ndarray"]), 2, &["--backend", "flex"]);
    computed_in_part(&file, &out, 1);
    let record = fs::read_dir(Path::new(&out).join("cells")).unwrap().next().unwrap().unwrap().path();
    fs::write(&record, "{}").unwrap();
    refuses(&mut dlmi(["study", "merge", &file, "--out", &out]), 2, &["no record of this cell"]);
    fs::write(&record, "{\"schema\": \"dlmi.cell/0\"}").unwrap();
    refuses(&mut dlmi(["study", "merge", &file, "--out", &out]), 2, &["`dlmi.cell/0`", "dlmi.cell/1", "run the study again"]);
    let bad = folder.path().join("shortest.toml");
    fs::write(&bad, "methods = [\"dlmi\"]\nsteps = [4]\ntargets = { bundled = true }\n[settings]\nshortest = true\n").unwrap();
    refuses(&mut dlmi(["study", "cells", &bad.display().to_string()]), 2, &["dlmi: ", "shortest", "snap"]);
}

/// What a machine leaves that went down as a record was written: the cell is not done.
#[test]
fn a_record_without_content_is_none() {
    let (folder, file) = study_of(4, "");
    let out = out(&folder, "out");
    computed_in_part(&file, &out, 2);
    let record = fs::read_dir(Path::new(&out).join("cells")).unwrap().next().unwrap().unwrap().path();
    fs::write(&record, "").unwrap();
    assert_eq!(counted(&file, &out), [1, 0, 0, CELLS as u64 - 1]);
    refuses(&mut dlmi(["report", &out]), 2, &["holds no record", "run the study again"]);
}
