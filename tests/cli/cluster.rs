//! Studies in pieces for an engine that schedules them: lists of ids, batch scripts, warnings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::study::*;
use crate::support::*;

fn ids_of(arguments: &[&str]) -> Vec<String> {
    let ran = run(&mut dlmi(["study", "cells", "--ids"].iter().chain(arguments)));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    ran.out.lines().map(str::to_owned).collect()
}

#[test]
fn cells_are_computed_by_their_ids() {
    let (folder, file) = study_of(4, "");
    let (out, list) = (out(&folder, "out"), out(&folder, "list"));
    let all = ids_of(&[&file]);
    let listed = lines(&run(&mut dlmi(["study", "cells", &file, "--json"])).out);
    assert_eq!(all, listed.iter().map(|cell| cell["id"].as_str().unwrap()).collect::<Vec<_>>());

    let two = computed(&[&file, "--out", &out, "--cell", &all[7], "--cell", &all[3], "--cell", &all[7]]);
    assert_eq!((&two["run"]["done"], &two["study"]["cells"]), (&2.into(), &2.into()), "{two}");
    let mut pending = all.clone();
    pending.retain(|id| ![&all[3], &all[7]].contains(&id));
    assert_eq!(ids_of(&[&file, "--pending", "--out", &out]), pending);
    let table = run(&mut dlmi(["study", "cells", &file, "--pending", "--out", &out])).out;
    assert!(table.contains("16") && !table.contains("18"), "{table}");

    fs::write(&list, pending[..5].join("\n")).unwrap();
    let five = computed(&[&file, "--out", &out, "--cells", &list]);
    assert_eq!((&five["run"]["done"], &five["study"]["done"]), (&5.into(), &5.into()), "{five}");
    assert_eq!(counted(&file, &out), [7, 0, 0, CELLS as u64 - 7]);
}

/// The parts that a script's lists make of the cells.
fn parts(script: &str) -> Vec<Vec<String>> {
    let (_, rest) = script.split_once("--cells '").unwrap();
    let folder = rest.split_once("'/\"$SLURM_ARRAY_TASK_ID\"").unwrap().0;
    let list = |number: usize| fs::read_to_string(Path::new(folder).join(number.to_string())).unwrap();
    let count = fs::read_dir(folder).unwrap().count();
    (1..=count).map(|number| list(number).lines().map(str::to_owned).collect()).collect()
}

#[test]
fn a_batch_script_has_the_pending_cells_in_equal_parts() {
    let (folder, file) = study_of(4, "");
    let out = out(&folder, "all of it");
    let script = |arguments: &[&str]| {
        let ran = run(&mut dlmi(["study", "slurm", &file, "--out", &out].iter().chain(arguments)));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
        ran.out
    };
    let text = script(&["--tasks", "4"]);
    for line in ["--array=1-4\n", "--time=04:00:00\n", "--signal=USR1@120\n", "--requeue\n", "--cpus-per-task=1 --mem=1025M\n"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("gres") && !text.contains("TASK_COUNT"), "{text}");
    assert!(text.starts_with("#!/bin/bash\n#SBATCH "), "{text}");
    let mut cells = parts(&text);
    assert_eq!(cells.len(), 4);
    assert!(cells.iter().all(|part| (3..=6).contains(&part.len())), "{cells:?}");
    let mut all = ids_of(&[&file]);
    assert_eq!(cells.iter().flatten().count(), all.len());
    let mut together = cells.concat();
    together.sort();
    all.sort();
    assert_eq!(together, all);
    assert_eq!(script(&["--tasks", "4"]), text, "the same lists in the same place");

    // What is done is in no list, and a list that waits stays as it is.
    let done = cells.remove(0);
    let arguments = done.iter().flat_map(|id| ["--cell", id]);
    computed(&[&file, "--out", &out].into_iter().chain(arguments).collect::<Vec<_>>());
    let rest = script(&["--tasks", "50", "--workers", "3", "--offline", "--time", "1-12:00:00"]);
    for word in ["--array=1-", "--cpus-per-task=3 --mem=3075M\n", "--workers 3 ", "--offline", "--time=1-12:00:00\n"] {
        assert!(rest.contains(word), "{word}: {rest}");
    }
    assert_eq!(parts(&rest).concat().len(), CELLS - done.len());
    // GPUs for what the study has on the CPU, or wherever there is one, would be wasted.
    let gpus = |file: &str, backend: &str| dlmi(["study", "slurm", file, "--out", &out, "--tasks", "2", "--gpus", "--backend", backend]);
    refuses(&mut gpus(&file, "flex"), 2, &["--gpus", "--backend cuda"]);
    refuses(&mut gpus(&file, "cuda"), 2, &["--backend", "flex"]);
    let anywhere = fs::read_to_string(&file).unwrap().replace("backend = \"flex\"\n", "");
    let file = folder.path().join("anywhere.toml").display().to_string();
    fs::write(&file, anywhere).unwrap();
    refuses(&mut gpus(&file, "auto"), 2, &["--gpus", "--backend cuda"]);
    let script = run(&mut gpus(&file, "cuda")).out;
    for word in ["--gres=gpu:1\n", "--cpus-per-task=4 --mem=1025M\n", "--backend 'cuda'"] {
        assert!(script.contains(word), "{word}: {script}");
    }
    assert_eq!(parts(&text)[0], done);
}

#[test]
fn nothing_is_submitted_when_nothing_is_pending() {
    let (folder, file) = study_of(1, "");
    let out = out(&folder, "out");
    computed(&[&file, "--out", &out]);
    let ran = run(&mut dlmi(["study", "slurm", &file, "--out", &out, "--tasks", "2"]));
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""));
    assert!(ran.err.contains("nothing to submit"), "{}", ran.err);
}

/// As schedulers do, the workers get the signal too.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_ends_a_run_and_its_workers_cleanly() {
    for (name, code, workers) in [("TERM", 143, "1"), ("TERM", 143, "2"), ("USR1", 138, "1"), ("USR1", 138, "2")] {
        let (folder, file) = study_of(100_000, "");
        let out = out(&folder, "out");
        let arguments = ["study", "run", &file, "--out", &out, "--workers", workers, "--json"];
        let parent = child(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until_counted("cells are running", &file, &out, |counts| counts[2].to_string() == workers);
        // Before its first scores are taken, a cell has nothing to go on from.
        let begun =
            || fs::read_dir(Path::new(&out).join("work")).map_or(Vec::new(), |cells| cells.map(|cell| cell.unwrap().path()).collect());
        let has_saved = |cell: &PathBuf| cell.join("checkpoint.safetensors").exists();
        until("all can go on", || begun().len().to_string() == workers && begun().iter().all(has_saved));
        let all = workers_at(&out).into_iter().chain([parent.id()]).map(|id| id.to_string());
        assert!(std::process::Command::new("kill").arg(format!("-{name}")).args(all).status().unwrap().success());
        let output = parent.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&summary["study"]["pending"], &summary["study"]["failed"]), (&(CELLS as u64).into(), &0.into()));
        for cell in begun() {
            assert!(cell.join("checkpoint.safetensors").exists(), "{cell:?}");
        }
        until("no worker is left", || workers_at(&out).is_empty());
    }
}

#[test]
fn what_is_no_cell_is_refused() {
    let (folder, file) = study_of(4, "");
    let (out, list) = (out(&folder, "out"), out(&folder, "list"));
    refuses(&mut dlmi(["study", "run", &file, "--out", &out, "--cell", "abc"]), 2, &["no cell", "abc", "--ids"]);
    fs::write(&list, "0123456789abcdef\n").unwrap();
    refuses(&mut dlmi(["study", "run", &file, "--out", &out, "--cells", &list]), 2, &["no cell", "0123456789abcdef"]);
    refuses(&mut dlmi(["study", "run", &file, "--out", &out, "--cells", "/nonexistent"]), 2, &["/nonexistent"]);
    refuses(&mut dlmi(["study", "run", &file, "--out", &out, "--cell", "a", "--shard", "1/2"]), 2, &["--cell", "--shard"]);
    refuses(&mut dlmi(["study", "cells", &file, "--pending"]), 2, &["--out"]);
    refuses(&mut dlmi(["study", "slurm", &file, "--out", &out, "--tasks", "0"]), 2, &["--tasks"]);
    let slurm = |time: &str| dlmi(["study", "slurm", &file, "--out", &out, "--tasks", "2", "--time", time]);
    for time in ["1 hour", "4h", "1-", "1:2:3:4", "1-2:3:4:5", ":", "+5"] {
        refuses(&mut slurm(time), 2, &["--time", "04:00:00"]);
    }
    for time in ["2", "00:01:00", "0-0:2", "2:00"] {
        refuses(&mut slurm(time), 2, &["--time", "warned 120 seconds"]);
    }
    for time in ["3", "2:01", "1:00:00", "1-0", "1-12:30", "99:99:99"] {
        assert!(run(&mut slurm(time)).out.contains(&format!("--time={time}\n")), "{time}");
    }
}
