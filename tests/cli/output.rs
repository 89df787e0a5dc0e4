//! What is printed where, and what never reaches a terminal.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use predicates::prelude::*;

use crate::support::*;

const QUICK: &[&str] = &["--steps", "2", "--prompt-tokens", "4"];

/// Nothing that a terminal would act on.
#[track_caller]
fn is_harmless(text: &str) {
    let hides = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let acts = |c: char| c != '\n' && c != '\t' && (c.is_control() || hides(c));
    assert!(!text.contains(acts), "{text:?}");
}

#[test]
fn an_inexact_run_says_how_far_it_came_and_what_to_try() {
    let ran = run(tiny(["invert", OUT_OF_REACH]).args(QUICK));
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    for part in ["prompt ", "writes ", "target ", "not exact", "0 of 37 tokens", "try ", "--prompt-tokens", "--steps", "--model"] {
        assert!(ran.out.contains(part), "`{part}`: {}", ran.out);
    }
}

#[test]
fn an_exact_run_says_what_was_verified() {
    let ran = run(&mut tiny(["invert", " and", "--steps", "300", "--prompt-tokens", "8"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    for part in ["exact", "CPU", "f32", "writes the token of the target", " tokens of prompt, found in "] {
        assert!(ran.out.contains(part), "`{part}`: {}", ran.out);
    }
    assert!(!ran.out.contains("not exact"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for (arguments, code) in [
        (&["completions", "bash"][..], 0),
        (&["config", "show"], 0),
        (&["doctor"], 0),
        (&["models", "list"], 0),
        (&["complete", "x", "--json"], 0),
        (&["score", "x", "y"], 0),
        (&["invert", OUT_OF_REACH, "--steps", "2"], 1),
    ] {
        let mut child = child(["--model", TINY, "--backend", "flex"].iter().chain(arguments))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(code), ""), "{arguments:?}");
    }
}

/// A disk that is full behind a redirection; a terminal that is gone.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_printed_is_said_where_it_can() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let on_tiny = |verb: &[&str]| child(["--model", TINY, "--backend", "flex"].iter().chain(verb));
    for verb in [&["complete", "x", "--json"][..], &["invert", OUT_OF_REACH, "--steps", "2"], &["models", "list"]] {
        let output = on_tiny(verb).stdout(full()).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{verb:?}: {said}");
        assert!(said.starts_with("error: cannot write the result to standard output: No space left"), "{verb:?}: {said}");
    }
    let output = child(["--help"]).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.code() == Some(3) && output.stderr.starts_with(b"error: cannot write the result"), "{output:?}");
    // Of errors and progress nobody needs to hear.
    let output = on_tiny(&["-v", "invert", OUT_OF_REACH, "--steps", "2"]).stderr(full()).stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.code() == Some(1) && output.stdout.starts_with(b"prompt "), "{output:?}");
    let closed = format!("'{}' --model '{TINY}' --backend flex -v complete x 2>&-", env!("CARGO_BIN_EXE_dlmi"));
    let output = std::process::Command::new("sh").args(["-c", &closed]).output().unwrap();
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
}

/// What is kept between runs is a convenience.
#[cfg(unix)]
#[test]
fn a_home_that_is_missing_or_cannot_be_written_is_no_error() {
    let wanted = run(&mut tiny(["-q", "complete", "x"])).out;
    for home in [None, Some("/nonexistent"), Some("/dev/null"), Some("")] {
        let mut command = tiny(["-q", "complete", "x"]);
        for name in ["HOME", "HF_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        home.map(|home| command.env("HOME", home));
        let ran = run(&mut command);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), wanted.as_str(), ""), "{home:?}");
    }
}

#[test]
fn texts_are_shown_not_acted_on() {
    let hostile = "a\u{1b}[31mb\u{7}\r\u{9b}2J\u{202e}c";
    let ran = run(tiny(["invert", hostile, "--prefix", hostile]).args(QUICK));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    is_harmless(&ran.out);
    assert!(ran.out.contains("a␛[31mb␇␍\\u{9b}2J\\u{202e}c"), "{}", ran.out);
    is_harmless(&run(&mut tiny(["score", hostile, hostile])).out);
    is_harmless(&run(&mut tiny(["config", "show", "--set", &format!("prefix={hostile}")])).out);
    // JSON is as harmless, and keeps the text.
    let ran = run(tiny(["invert", hostile, "--json"]).args(QUICK));
    is_harmless(&ran.out);
    assert_eq!(record(ran)["target_text"], hostile);
    for arguments in [
        &["complete", hostile, "--tokens", "200"][..],
        &["score", hostile, hostile],
        &["config", "show", "--set", &format!("prefix={hostile}")],
    ] {
        let ran = run(tiny(arguments).arg("--json"));
        is_harmless(&ran.out);
        ran.json();
    }

    let folder = folder();
    let model = folder.path().join("odd\u{1b}[31m\u{9b}2J");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(Path::new(TINY).join(name), model.join(name)).unwrap();
    }
    is_harmless(&run(dlmi(["models", "show"]).arg(&model)).out);
    fs::remove_file(model.join("config.json")).unwrap();
    refuses(dlmi(["models", "show"]).arg(&model), 2, &["config.json"]);
}

/// What is kept may be shown too: by `cat`, say.
#[test]
fn files_of_results_are_as_harmless_as_what_is_printed() {
    let hostile = "a\u{1b}[31mb\u{9b}2J\u{202e}c\u{200b}";
    let (folder, list) = (folder(), folder());
    let targets = list.path().join("targets.jsonl");
    fs::write(&targets, format!("{}\n", serde_json::json!({ "id": hostile, "text": hostile }))).unwrap();
    let (run_folder, list_folder) = (folder.path().join("run"), folder.path().join("list"));
    tiny(["invert", hostile, "--out"]).arg(&run_folder).args(QUICK).assert().code(1);
    let harmless = |path: &Path| is_harmless(&fs::read_to_string(path).unwrap());
    harmless(&run_folder.join("result.json"));
    harmless(&run_folder.join("events.jsonl"));
    let mut command = tiny(["invert", "--targets"]);
    command.arg(&targets).arg("--out").arg(&list_folder).args(QUICK);
    let (shown, csv) = (run(command.arg("--json")), run(tiny(["invert", "--csv", "--targets"]).arg(&targets).args(QUICK)));
    is_harmless(&shown.out);
    is_harmless(&csv.out);
    for cell in fs::read_dir(list_folder.join("cells")).unwrap() {
        harmless(&cell.unwrap().path());
    }
}

#[test]
fn colour_is_used_where_asked_for() {
    let coloured = predicate::str::contains("\u{1b}[");
    let command = |when: &str| {
        let mut command = tiny(["invert", OUT_OF_REACH, "--color", when]);
        command.args(QUICK);
        command
    };
    command("always").assert().code(1).stdout(coloured.clone());
    command("never").assert().code(1).stdout(coloured.clone().not());
    command("auto").assert().code(1).stdout(coloured.clone().not());
    command("always").arg("--json").assert().code(1).stdout(coloured.clone().not());
    // The flag is stronger than the environment.
    command("always").env("NO_COLOR", "1").assert().code(1).stdout(coloured.clone());
    tiny(["invert", "", "--color", "always"]).assert().code(2).stdout("").stderr(predicate::str::starts_with("\u{1b}[31merror:\u{1b}[0m "));
    tiny(["invert", "", "--color", "never"]).assert().code(2).stdout("").stderr(predicate::str::starts_with("error: "));
}

#[test]
fn verbosity_is_for_stderr_alone() {
    tiny(["complete", "x", "--json", "-v"])
        .assert()
        .code(0)
        .stderr(predicate::str::contains("info: running on"))
        .stdout(predicate::str::starts_with("{"));
    tiny(["complete", "x", "--json", "-q"]).assert().code(0).stderr("");
    // -q hides no error.
    refuses(&mut tiny(["invert", "", "-q"]), 2, &["target"]);
}

/// Exit code and all that the tiny model's program shows on a terminal, which `script` lends; nothing where that is not installed.
#[cfg(target_os = "linux")]
fn on_terminal(arguments: &str) -> Option<(Option<i32>, String)> {
    if std::process::Command::new("script").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no `script`");
        return None;
    }
    let line = format!("'{}' --model '{TINY}' --backend flex {arguments}", env!("CARGO_BIN_EXE_dlmi"));
    let mut script = std::process::Command::new("script");
    for (name, value) in child([""; 0]).get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let output = script.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::null()).output().expect("script");
    Some((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// On a terminal there is a live line, which is gone at the end; `-q` shows none.
#[cfg(target_os = "linux")]
#[test]
fn progress_is_a_live_line_on_a_terminal() {
    let invert = |flags: &str| on_terminal(&format!("invert '{OUT_OF_REACH}' --steps 60 {flags}"));
    let Some((code, shown)) = invert("") else { return };
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("inverting 37 tokens") && shown.contains("step "), "{shown:?}");
    assert!(shown.contains("\u{1b}[1m"), "colour by itself: {shown:?}");
    let (code, shown) = invert("-q --color never").unwrap();
    assert_eq!(code, Some(1), "{shown}");
    assert!(!shown.contains("inverting") && !shown.contains('\u{1b}'), "{shown:?}");
}

/// A random model writes every kind of byte. What is piped on is what it wrote, to the byte.
#[test]
fn a_completion_is_itself_in_a_pipe_and_harmless_on_a_terminal() {
    let mut odd = 0;
    for prompt in ["on", "hello and then", "p\u{1b}", "in the sand", "so", "12 ing"] {
        let flags = ["complete", prompt, "--tokens", "200"];
        let text = answer(tiny(flags).arg("--json"))["completion_text"].as_str().unwrap().to_owned();
        let piped = run(&mut tiny(flags)).out;
        assert_eq!(piped, if text.ends_with('\r') { text.clone() } else { format!("{text}\n") }, "{prompt:?}");
        odd += usize::from(text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')));
        #[cfg(target_os = "linux")]
        if let Some((_, shown)) = on_terminal(&format!("-q complete '{}' --tokens 200", prompt)) {
            is_harmless(&shown.replace("\r\n", "\n"));
        }
    }
    assert!(odd > 0, "no completion holds what a terminal would act on");
}

/// `complete | score`: the target is the completion, whatever characters it has.
#[test]
fn what_is_completed_in_a_pipe_is_scored_as_it_is() {
    for prompt in ["on", "in the sand", "p\u{1b}", "hello and then"] {
        let flags = ["-q", "complete", prompt, "--tokens", "60"];
        let text = answer(tiny(flags).arg("--json"))["completion_text"].clone();
        let score = answer(tiny(["score", "--json", prompt, "-"]).write_stdin(run(&mut tiny(flags)).out));
        assert_eq!(score["target_text"], text);
    }
}

/// Alone, to the byte, for a pipe; what a reader must know besides goes to stderr.
#[test]
fn a_found_prompt_goes_through_a_pipe() {
    let arguments = ["invert", "ing", "--backend", "flex", "--steps", "100", "--prompt-tokens", "8"];
    let record = inversion(&mut tiny(arguments));
    let printed = run(tiny(arguments).args(["--print", "prompt"]));
    assert_eq!((printed.code, printed.err.as_str()), (Some(0), ""));
    assert_eq!(printed.out, format!("{}\n", record["prompt_text"].as_str().unwrap()));
    let m = record["target_ids"].as_array().unwrap().len().to_string();
    assert_eq!(run(tiny(["complete", "-", "--tokens", &m]).write_stdin(printed.out)).out, "ing\n");

    let missed = run(tiny(["invert", " zounds", "--steps", "1", "--prompt-tokens", "3", "--prefix", "Say:\n", "--print", "prompt"])
        .args(["--suffix", "\n"]));
    assert_eq!(missed.code, Some(1), "{missed:?}");
    assert!(missed.out.starts_with("Say:\n") && missed.out.ends_with("\n\n"), "{missed:?}");
    assert!(missed.err.contains("not exact after") && missed.err.lines().count() == 1, "{missed:?}");

    for other in [&["--json"][..], &["--targets", "x"], &["--count", "2"]] {
        refuses(tiny(["invert", "--print", "prompt"]).args(other), 2, &["--print", other[0]]);
    }
    refuses(&mut tiny(["invert", "--print", "target"]), 2, &["target", "prompt"]);
}
