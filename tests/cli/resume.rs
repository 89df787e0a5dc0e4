//! Runs that are interrupted, and go on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::board::{Record, board};
use crate::support::*;

/// Steps that take long enough to be interrupted between them; scores and a fresh start fall due in between.
const SLOW: &[&str] = &["--prompt-tokens", "60", "--set", "eval_every=16", "--restarts", "1"];

/// `invert` of a target out of reach, in a run folder.
fn arguments(method: &str, steps: u64, out: &Path) -> Vec<String> {
    let fixed = ["--model", TINY, "--backend", "flex", "invert", OUT_OF_REACH, "--method", method, "--json", "--out"];
    let steps = ["--steps".to_owned(), steps.to_string()];
    fixed.iter().map(ToString::to_string).chain([out.display().to_string()]).chain(steps).collect()
}

fn slow(method: &str, steps: u64, out: &Path) -> Vec<String> {
    arguments(method, steps, out).into_iter().chain(SLOW.iter().map(ToString::to_string)).collect()
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}

/// Starts the program and waits until it has made some steps.
fn under_way(arguments: &[String], out: &Path, steps: usize) -> Child {
    let mut child = child(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let began = Instant::now();
    while lines(&out.join("events.jsonl")) < steps {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(120), "it made no {steps} steps");
        sleep(Duration::from_millis(2));
    }
    child
}

/// Interrupts a run and returns its exit code and record.
fn interrupted(signal: &str, arguments: &[String], out: &Path) -> (Option<i32>, Value) {
    let child = under_way(arguments, out, 20);
    send(signal, &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code(), serde_json::from_slice(&output.stdout).expect("the result so far"))
}

/// What a run leaves: its record, its events and what TensorBoard reads, without what the clock says.
fn left(record: &Value, out: &Path) -> (Value, Vec<Value>, Vec<Record>) {
    let mut events = events(out);
    events.iter_mut().for_each(|event| event["seconds"] = Value::Null);
    let board = board(out).into_iter().map(|record| Record { wall_time: 0.0, ..record });
    (untimed(record), events, board.collect())
}

/// What the uninterrupted run leaves, the folder it was made in left out.
fn whole(method: &str, steps: u64) -> (Value, Vec<Value>, Vec<Record>) {
    let folder = folder();
    left(&run(&mut dlmi(slow(method, steps, folder.path()))).json(), folder.path())
}

/// One event for each step, in the order of time.
fn goes_on(out: &Path, steps: u64) {
    let numbers: Vec<u64> = events(out).iter().map(|event| event["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=steps).collect::<Vec<_>>());
    let seconds: Vec<f64> = events(out).iter().map(|event| event["seconds"].as_f64().unwrap()).collect();
    assert!(seconds.is_sorted(), "{seconds:?}");
    assert!(board(out).is_sorted_by_key(|record| record.wall_time));
}

fn ends_as_if_never_interrupted(method: &str, steps: u64) {
    let folder = folder();
    let out = folder.path();
    let arguments = slow(method, steps, out);
    let (code, record) = interrupted("INT", &arguments, out);
    assert_eq!((code, &record["stopped"], &record["exact"]), (Some(130), &json!("signal"), &json!(false)));
    let made = record["steps"].as_u64().unwrap();
    assert!((20..2 * steps).contains(&made), "{made}");
    goes_on(out, made);
    assert_eq!(events(out).last().unwrap()["scores"]["hard_free"], record["lcs"]["hard_free"], "an interrupted run ends with scores");
    let kept: Value = serde_json::from_slice(&fs::read(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(kept, record, "the folder holds the result so far");

    let resumed = run(dlmi(&arguments).arg("--resume")).json();
    assert_eq!(left(&resumed, out), whole(method, steps));
    assert!(resumed["seconds"].as_f64() > record["seconds"].as_f64(), "the time of both parts");
    goes_on(out, 2 * steps);
}

#[test]
fn snap_interrupted_and_resumed_ends_as_if_never_interrupted() {
    ends_as_if_never_interrupted("snap", 80);
}

#[test]
fn dlmi_interrupted_and_resumed_ends_as_if_never_interrupted() {
    ends_as_if_never_interrupted("dlmi", 80);
}

/// No signal handler helps against this one: the run goes on from its last checkpoint, and makes the events after it again.
#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let steps = 50;
    for method in ["snap", "dlmi", "gbda", "reinforce", "soda", "stgs", "rebar", "relax"] {
        let folder = folder();
        let out = folder.path();
        let arguments = slow(method, steps, out);
        let mut child = under_way(&arguments, out, 20);
        send("KILL", &child);
        child.wait().unwrap();
        assert!(!out.join("result.json").exists());
        // The last line was being written.
        let path = out.join("events.jsonl");
        let torn = fs::read_to_string(&path).unwrap() + "{\"step\":21,\"obj";
        fs::write(&path, torn).unwrap();

        let ran = run(dlmi(&arguments).arg("--resume"));
        // On a busy machine there is a line of progress too.
        let warnings: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(matches!(warnings[..], [warning] if warning.contains("going on from the last step that was saved; ")), "{ran:?}");
        let resumed = Ran { err: String::new(), ..ran }.json();
        assert_eq!(left(&resumed, out), whole(method, steps), "{method}");
        goes_on(out, 2 * steps);
    }
}

#[test]
fn a_folder_in_use_is_refused_and_sigterm_ends_a_run_with_143() {
    let folder = folder();
    let out = folder.path();
    let arguments = arguments("snap", 1_000_000, out);
    let child = under_way(&arguments, out, 1);
    refuses(dlmi(&arguments).arg("--resume"), 3, &[&out.display().to_string(), "in use", &child.id().to_string()]);
    send("TERM", &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["stopped"], "signal");
}

/// What a scheduler sends before a job's time is up, and what comes when a terminal is closed.
#[test]
fn a_warning_ends_a_run_and_it_goes_on() {
    // Under `nohup` the program would rightly go on.
    let hangup = (!ignores_hangup()).then_some(("HUP", 129));
    for (signal, code) in [("USR1", 138)].into_iter().chain(hangup) {
        let folder = folder();
        let out = folder.path();
        let child = under_way(&arguments("dlmi", 1_000_000, out), out, 3);
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let record: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(record["stopped"], "signal");
        let made = record["steps"].as_u64().unwrap();
        let more = run(dlmi(arguments("dlmi", made + 2, out)).arg("--resume")).json();
        assert_eq!(more["steps"], made + 2);
    }
}

/// Whether these tests were started under `nohup`, or something like it.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|signals| signals & 1 == 1)
}

/// Under `nohup` a closed terminal is nothing.
#[test]
fn a_hangup_that_was_ignored_stays_so() {
    let folder = folder();
    let out = folder.path();
    let program = env!("CARGO_BIN_EXE_dlmi");
    let arguments = arguments("dlmi", 40, out).join("' '");
    let script = format!("trap '' HUP; '{program}' '{arguments}' & child=$!; sleep 0.2; kill -HUP $child; wait $child");
    let output = Command::new("sh").args(["-c", &script]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn a_damaged_checkpoint_is_not_gone_on_from() {
    let folder = folder();
    let out = folder.path();
    run(&mut dlmi(slow("dlmi", 20, out)));
    let path = out.join("checkpoint.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    refuses(dlmi(slow("dlmi", 22, out)).arg("--resume"), 2, &["checkpoint.safetensors", "damaged", "checksum"]);
}

#[cfg(unix)]
#[test]
fn links_and_pipes_in_a_run_folder_are_not_followed() {
    let outside = folder();
    let victim = outside.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    for name in ["events.jsonl", "lock", "checkpoint.safetensors", "result.json", "events.out.tfevents.dlmi"] {
        for pipe in [false, true] {
            let folder = folder();
            let planted = folder.path().join(name);
            if pipe {
                assert!(Command::new("mkfifo").arg(&planted).status().unwrap().success());
            } else {
                std::os::unix::fs::symlink(&victim, &planted).unwrap();
            }
            refuses(&mut dlmi(arguments("random", 1, folder.path())), 2, &[name, "is no file", "another folder"]);
            assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        }
    }
}

#[test]
fn a_failed_start_leaves_nothing_that_blocks_the_next() {
    let folder = folder();
    let out = folder.path();
    // What a start leaves that failed before its first step.
    fs::write(out.join("events.jsonl"), "").unwrap();
    record(run(&mut dlmi(arguments("random", 1, out))));
    refuses(&mut dlmi(arguments("random", 1, out)), 2, &["already holds a run"]);
}

#[test]
fn a_missing_checkpoint_is_said_to_be() {
    let folder = folder();
    let out = folder.path();
    run(&mut dlmi(arguments("random", 3, out)));
    fs::remove_file(out.join("checkpoint.safetensors")).unwrap();
    let again = run(dlmi(arguments("random", 3, out)).arg("--resume"));
    let warning =
        "warning: --resume: that folder has no checkpoint, so the run starts at its beginning, without the 3 lines of events.jsonl\n";
    assert_eq!(again.err, warning);
    goes_on(out, 3);
}

/// Nothing is kept then, but what was found is printed.
#[test]
fn ctrl_c_without_a_folder_ends_with_the_result_so_far() {
    let command = ["--model", TINY, "--backend", "flex", "-v", "invert", OUT_OF_REACH, "--method", "dlmi", "--steps", "1000000"];
    let mut child = child(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("running on")));
    // The run begins right after this line.
    sleep(Duration::from_secs(1));
    send("INT", &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("not exact") && shown.contains("--out"), "{shown}");
}

/// It took hours, say: what was found is not lost with its file.
#[test]
fn a_result_that_cannot_be_kept_is_printed() {
    let folder = folder();
    let out = folder.path();
    let child = under_way(&arguments("snap", 1_000_000, out), out, 3);
    fs::create_dir(out.join("result.json")).unwrap();
    send("INT", &child);
    let output = child.wait_with_output().unwrap();
    let record: Value = serde_json::from_slice(&output.stdout).expect("the result");
    assert_eq!(record["stopped"], "signal");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.starts_with("error: cannot write `") && said.contains("result.json`") && said.lines().count() == 1, "{said}");
}

/// No file may grow past a limit, as on a disk that is full: by itself the system would end the program without a word.
#[cfg(unix)]
#[test]
fn a_full_disk_costs_nothing_that_was_saved() {
    let folder = folder();
    let out = folder.path();
    let arguments = slow("dlmi", 80, out);
    let sentence = refusal(&mut limited("-f 16", &arguments), 3);
    assert!(sentence.starts_with(&format!("cannot write `{}", out.display())), "{sentence}");
    assert!(events(out).len() < 160, "it came to its end");
    let ran = run(dlmi(&arguments).arg("--resume"));
    let resumed = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(left(&resumed, out), whole("dlmi", 80));
}

/// The first one ends the run; here nobody reads what it found, and the second one does not wait for that.
#[cfg(unix)]
#[test]
fn a_second_ctrl_c_ends_at_once() {
    use std::io::Write;

    let folder = folder();
    let out = folder.path();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    std::thread::spawn(move || filler.write_all(&vec![b'\n'; 4 << 20]));
    let mut child = child(arguments("snap", 1_000_000, out)).stdout(writer).spawn().unwrap();
    until("it has made steps", || lines(&out.join("events.jsonl")) > 2);
    send("INT", &child);
    until("the result is kept", || out.join("result.json").exists());
    assert!(child.try_wait().unwrap().is_none(), "it waits for its reader");
    send("INT", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(reader);
}

#[test]
fn a_budget_may_grow() {
    let (short, long) = (["--steps", "8", "--restarts", "0"], ["--steps", "15", "--restarts", "0"]);
    let again = ["--steps", "8", "--restarts", "1"];
    for (method, larger) in [("snap", long), ("dlmi", long), ("snap", again), ("dlmi", again)] {
        let folder = folder();
        let (parts, whole) = (folder.path().join("parts"), folder.path().join("whole"));
        let run = |budget: [&str; 4], out: &Path, flags: &[&str]| {
            let mut command = tiny(["invert", OUT_OF_REACH, "--method", method, "--prompt-tokens", "6", "--set", "eval_every=4", "--out"]);
            left(&inversion(command.arg(out).args(budget).args(flags)), out)
        };
        run(short, &parts, &[]);
        assert_eq!(run(larger, &parts, &["--resume"]), run(larger, &whole, &[]), "{method} {larger:?}");
    }
}

/// A setting is the same setting after a way through the checkpoint's text, to the last bit.
#[test]
fn awkward_numbers_are_not_other_settings() {
    for tau0 in ["3.8064001756786245", "0.30000000000000004", "100"] {
        let folder = folder();
        let set = format!("dlmi.tau0={tau0}");
        let out = folder.path().to_str().unwrap();
        let arguments = ["invert", "x", "--method", "dlmi", "--steps", "1", "--prompt-tokens", "3", "--set", &set, "--out", out];
        inversion(&mut tiny(arguments));
        inversion(tiny(arguments).arg("--resume"));
    }
}

/// Resuming a run that is over brings its result again.
#[test]
fn a_finished_run_is_finished() {
    for (method, target, steps) in [("snap", OUT_OF_REACH, "8"), ("dlmi", OUT_OF_REACH, "7"), ("snap", " and", "300")] {
        let folder = folder();
        let mut arguments =
            vec!["invert", target, "--method", method, "--steps", steps, "--prompt-tokens", "8", "--set", "eval_every=4", "--out"];
        arguments.push(folder.path().to_str().unwrap());
        let first = left(&inversion(&mut tiny(&arguments)), folder.path());
        let again = left(&inversion(tiny(&arguments).arg("--resume")), folder.path());
        assert_eq!(again, first, "{method} on {target}");
    }
}

#[test]
fn other_settings_are_refused_by_the_first_that_differs() {
    let folder = folder();
    let out = folder.path().to_str().unwrap();
    let base = ["--prompt-tokens", "4", "--out", out];
    let (two, three) = (["--steps", "2"], ["--steps", "3"]);
    let command = |target: &str, flags: &[&str]| {
        let mut command = tiny(["invert", target]);
        command.args(base).args(flags);
        command
    };
    inversion(&mut command(OUT_OF_REACH, &two));
    let differs = |flags: &[&str], parts: &[&str]| {
        refuses(&mut command(OUT_OF_REACH, &[&["--resume"], &two[..], flags].concat()), 2, &[&[out], parts].concat());
    };
    refuses(&mut command(OUT_OF_REACH, &two), 2, &[out, "--resume"]);
    differs(&["--seed", "3"], &["seed", "0", "3"]);
    differs(&["--seed", "3", "--set", "eval_every=9"], &["eval_every", "32", "9"]);
    differs(&["--seed", "3", "--set", "snap.momentum=0.5"], &["seed", "0", "3"]);
    differs(&["--method", "dlmi"], &["method", "snap", "dlmi"]);
    differs(&["--prefix", "so "], &["prefix", "so "]);
    differs(&["--allow-target-tokens"], &["allow_target_tokens"]);
    differs(&["--set", "snap.momentum=0.5"], &["snap.momentum", "0.6", "0.5"]);
    refuses(&mut command("another target", &["--resume"]), 2, &[out, "target"]);
    // What was refused has changed nothing.
    assert_eq!(events(folder.path()).len(), 2);
    assert_eq!(inversion(&mut command(OUT_OF_REACH, &[&["--resume"], &three[..]].concat()))["steps"], 3);
}

#[test]
fn a_model_that_has_changed_is_refused() {
    let (folder, model) = (folder(), tiny_copy());
    let command = || {
        let mut command = dlmi([Path::new("--model"), model.path()]);
        command.args(["--backend", "flex", "invert", OUT_OF_REACH, "--steps", "2", "--prompt-tokens", "4", "--out"]).arg(folder.path());
        command
    };
    inversion(&mut command());
    let weights = model.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    refuses(command().arg("--resume"), 2, &["model_digest"]);
}

/// A template that writes the second, which is another one when the run goes on.
#[test]
fn a_run_whose_template_writes_the_date_goes_on_with_that_date() {
    let (model, folder) = (tiny_copy(), folder());
    let dated = "{% for m in messages %}{{ strftime_now('%S') }}: {{ m.content }}{% endfor %}";
    fs::write(model.path().join("chat_template.jinja"), dated).unwrap();
    let invert = |steps: &str| {
        let mut command = dlmi(["-q", "--backend", "flex", "--model"]);
        let flags = ["invert", OUT_OF_REACH, "--chat", "--resume", "--steps", steps, "--prompt-tokens", "4", "--out"];
        command.arg(model.path()).args(flags).arg(folder.path());
        inversion(&mut command)
    };
    let second = |record: &Value| record["prompt_text"].as_str().unwrap()[..2].to_owned();
    let first = invert("2");
    sleep(Duration::from_millis(1100));
    let went_on = invert("3");
    assert_eq!((second(&went_on), &went_on["steps"]), (second(&first), &json!(3)));
}

/// So does a search of a list, and one that is new has the date of its own beginning.
#[test]
#[cfg(unix)]
fn a_list_whose_template_writes_the_date_goes_on_with_that_date() {
    let (model, folder) = (tiny_copy(), folder());
    let dated = "{% for m in messages %}{{ strftime_now('%S') }}: {{ m.content }}{% endfor %}";
    fs::write(model.path().join("chat_template.jinja"), dated).unwrap();
    let (targets, out) = (folder.path().join("targets.txt"), folder.path().join("out"));
    fs::write(&targets, OUT_OF_REACH).unwrap();
    let flags = ["--chat", "--json", "--steps", "1000000", "--prompt-tokens", "4", "--targets"];
    let interrupted = || {
        let before = events_under_way(&out);
        let mut command = child(["--backend", "flex", "--model"]);
        command.arg(model.path()).arg("invert").args(flags).arg(&targets).arg("--out").arg(&out);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        until("a step is made", || events_under_way(&out) > before);
        send("INT", &child);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("begun again"), "{said}");
        let record: Value = serde_json::from_slice(&output.stdout).unwrap();
        (record["prompt_text"].as_str().unwrap()[..2].to_owned(), record["steps"].as_u64().unwrap())
    };
    let (second, steps) = interrupted();
    sleep(Duration::from_millis(1100));
    let (same, more) = interrupted();
    assert!(same == second && more > steps, "{second} {same} {steps} {more}");
}

/// The tokens are the model's as much as its weights are; and a template may write the date.
#[test]
fn another_tokenizer_or_text_of_the_template_is_refused_in_words() {
    let (model, folder) = (tiny_copy(), folder());
    let template = model.path().join("chat_template.jinja");
    fs::write(&template, "{% for m in messages %}On Monday: {{ m.content }}{% endfor %}").unwrap();
    let invert = |steps: &str| {
        let mut command = dlmi(["--backend", "flex", "--model"]);
        command.arg(model.path()).args(["invert", OUT_OF_REACH, "--chat", "--resume", "--steps", steps, "--out"]).arg(folder.path());
        command
    };
    invert("2").assert().code(1);
    invert("3").assert().code(1);
    fs::write(&template, "{% for m in messages %}On Tuesday: {{ m.content }}{% endfor %}").unwrap();
    refuses(&mut invert("4"), 2, &["the model's chat template gives another text than when the run in", "another folder"]);
    edit(model.path().join("tokenizer.json"), |tokenizer| tokenizer["normalizer"] = json!({"type": "Lowercase"}));
    refuses(&mut invert("4"), 2, &["the model's tokenizer is another one than when the run in", "another folder"]);
}

#[test]
fn a_checkpoint_that_is_none_is_refused() {
    let folder = folder();
    let command =
        || tiny(["invert", OUT_OF_REACH, "--steps", "2", "--prompt-tokens", "4", "--resume", "--out", folder.path().to_str().unwrap()]);
    // Nothing to go on from: the run begins, and says so.
    let began = run(command().arg("--json"));
    assert!(began.out.contains("\"steps\":2,") && began.err.contains("nothing to go on with"), "{began:?}");
    let checkpoint = folder.path().join("checkpoint.safetensors");
    let whole = fs::read(&checkpoint).unwrap();
    for (what, bytes) in [("cut", &whole[..whole.len() - 3]), ("empty", &[]), ("text", b"not a checkpoint at all")] {
        fs::write(&checkpoint, bytes).unwrap();
        let sentence = refusal(&mut command(), 2);
        assert!(sentence.contains("checkpoint.safetensors"), "{what}: {sentence}");
    }
    let refused = |change: fn(&mut Value), part: &str| {
        fs::write(&checkpoint, &whole).unwrap();
        edit_header(checkpoint.clone(), change);
        refuses(
            &mut tiny([
                "invert",
                OUT_OF_REACH,
                "--steps",
                "3",
                "--prompt-tokens",
                "4",
                "--resume",
                "--out",
                folder.path().to_str().unwrap(),
            ]),
            2,
            &[part],
        );
    };
    refused(
        |header| header["__metadata__"]["schema"] = "dlmi.checkpoint/9".into(),
        "schema dlmi.checkpoint/9, this dlmi reads dlmi.checkpoint/4",
    );
    refused(|header| header["__metadata__"]["schema"] = "dlmi.checkpoint/3".into(), "dlmi.checkpoint/3");
    refused(|header| header["__metadata__"]["event"] = "{}".into(), "checkpoint.safetensors");
    refused(|header| header["__metadata__"]["fields"] = "{}".into(), "checkpoint");
    refused(|header| header["__metadata__"]["run"] = "[]".into(), "checkpoint.safetensors");
}
