//! The hub as the command line meets it: what is said, what is kept to itself.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use assert_cmd::Command;

use crate::support::*;

/// What nobody may ever see.
const SECRET: &str = "hf_marker";

/// A hub on the loopback that answers every request with this status; its address without `http://`.
fn hub(status: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    address
}

fn online<const N: usize>(arguments: [&str; N], endpoint: &str) -> Command {
    let mut command = dlmi(arguments);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", endpoint);
    command
}

/// Everything that is in the files of a folder.
fn contents(folder: &Path) -> Vec<u8> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { contents(&path) } else { fs::read(path).unwrap() }).collect()
}

#[test]
fn no_secret_is_ever_shown_or_kept() {
    let (folder, address) = (folder(), hub(404));
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    for endpoint in [format!("http://{address}"), format!("http://me:{SECRET}@{address}")] {
        for arguments in [
            vec!["models", "pull", "org/name"],
            vec!["models", "list"],
            vec!["models", "list", "--json"],
            vec!["--model", "org/name", "complete", "x"],
            vec!["--model", "org/name", "config", "show"],
            vec!["config", "show", "--json"],
            vec!["doctor"],
            vec!["doctor", "--json"],
            vec!["--model", TINY, "--backend", "flex", "invert", "x", "--steps", "2", "--prompt-tokens", "3", "--json", "--out", out],
        ] {
            let mut command = dlmi(&arguments);
            command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &endpoint).env("HF_TOKEN", SECRET);
            let ran = run(command.arg("-vvv"));
            assert!(!format!("{ran:?}").contains("marker"), "{arguments:?}: {ran:?}");
        }
        assert!(!String::from_utf8_lossy(&contents(folder.path())).contains("marker"));
        fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn what_the_hub_answers_is_said_with_its_address() {
    let address = hub(404);
    refuses(&mut online(["models", "pull", "org/name"], &format!("http://me:{SECRET}@{address}")), 3, &["404", &address, "org/name"]);
}

#[test]
fn a_malformed_variable_is_named_at_once() {
    refuses(&mut online(["models", "pull", "org/name"], &format!("me:{SECRET}@hub")), 2, &["HF_ENDPOINT", "http"]);
    let mut command = online(["models", "pull", "org/name"], "http://127.0.0.1:1");
    refuses(command.env("HF_TOKEN", format!("{SECRET} {SECRET}")), 2, &["HF_TOKEN", "character 10"]);
    let mut command = online(["models", "pull", "org/name"], "https://127.0.0.1:1");
    refuses(command.env("REQUESTS_CA_BUNDLE", "/nonexistent"), 2, &["REQUESTS_CA_BUNDLE", "/nonexistent"]);
    // Who does not ask the hub need not mend them.
    dlmi(["complete", "x", "--tokens", "1"]).env("HF_ENDPOINT", "hub").env("HF_TOKEN", "a b").assert().code(0);
}

#[test]
fn both_variables_forbid_requests() {
    let mut command = online(["models", "pull", "org/name"], "http://127.0.0.1:1");
    refuses(command.env("TRANSFORMERS_OFFLINE", "1"), 3, &["TRANSFORMERS_OFFLINE=1 forbids"]);
}

/// A wait is shown without `-v`, and `-q` is quiet about it.
#[test]
fn waits_are_shown() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, mut stream) in listener.incoming().flatten().enumerate() {
            let _ = stream.read(&mut [0; 4096]);
            let status = if number % 2 == 0 { "429 x\r\nretry-after: 0" } else { "404 x" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    let ran = run(&mut online(["models", "pull", "org/name"], &endpoint));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines.len(), 2, "{ran:?}");
    assert!(lines[0].starts_with("warning: http://127.0.0.1") && lines[0].ends_with("status 429; trying again in 0 s (2 of 5)"), "{ran:?}");
    refuses(&mut online(["-q", "models", "pull", "org/name"], &endpoint), 3, &["404"]);
}

/// Names in the cache are anybody's.
#[test]
fn hostile_names_in_the_cache_are_shown_not_acted_on() {
    let cache = folder();
    let (commit, odd) = ("0".repeat(40), "models--org--a\u{1b}[31m\u{9b}2J\u{202e}b");
    let snapshot = cache.path().join(odd).join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(snapshot.join(name), "x").unwrap();
    }
    let list = |arguments: &[&str]| run(dlmi(["models", "list"]).args(arguments).env("HF_HUB_CACHE", cache.path()));
    let ran = list(&[]);
    assert!(ran.out.contains("org/a␛[31m\\u{9b}2J\\u{202e}b@000"), "{ran:?}");
    let ran = list(&["--json"]);
    assert!(ran.out.contains("org/a\\u001b[31m\\u009b2J\\u202eb@000"), "{ran:?}");
    for ran in [ran, list(&[])] {
        assert!(!ran.out.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{ran:?}");
    }
}
