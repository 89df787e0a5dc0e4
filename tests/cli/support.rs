//! The program as a child process, a tiny model to run it on, and what to ask of its answers.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use dlmi::source::tokenizer::Tokenizer;
use serde_json::Value;
use tempfile::TempDir;

/// A random model of two layers and 288 tokens: a step takes milliseconds. Relative, as cargo runs tests in the package's root: clones
/// may share what it compiled.
pub const TINY: &str = "tests/golden/tiny/gqa3-tied";
/// Its context in tokens.
pub const TINY_CONTEXT: usize = 256;
/// A text that the tiny model cannot be made to write.
pub const OUT_OF_REACH: &str = "the quick brown fox jumps over the lazy dog";
/// The CPU backends of this build.
pub const CPU_BACKENDS: &[&str] = if cfg!(feature = "ndarray") { &["flex", "ndarray"] } else { &["flex"] };

/// The program, in an environment that says nothing about it and without a network.
pub fn dlmi<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    bounded(child(arguments))
}

/// The same under a limit of the shell's: `-v` and KiB of address space, `-f` and the size of a file.
#[cfg(unix)]
pub fn limited<A: AsRef<OsStr>>(limit: &str, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = in_isolation("bash");
    command.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "bash", env!("CARGO_BIN_EXE_dlmi")]).args(arguments);
    bounded(command)
}

/// Nothing here takes long: this only ends a test that would hang.
fn bounded(command: std::process::Command) -> Command {
    let mut command = Command::from_std(command);
    command.timeout(Duration::from_secs(300));
    command
}

/// The program on the tiny model, on flex.
pub fn tiny<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = dlmi(["--model", TINY, "--backend", "flex"]);
    command.args(arguments);
    command
}

/// As [`dlmi`], to be started and left to itself.
pub fn child<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> std::process::Command {
    let mut command = in_isolation(env!("CARGO_BIN_EXE_dlmi"));
    command.args(arguments);
    command
}

/// A program in an environment that says nothing about dlmi and without a network.
fn in_isolation(program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"DLMI_")) {
        command.env_remove(name);
    }
    let of_the_hub = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"];
    let of_others = ["TRANSFORMERS_OFFLINE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NO_COLOR", "RAYON_NUM_THREADS"];
    for name in of_the_hub.into_iter().chain(of_others) {
        command.env_remove(name);
    }
    command
        .env("HF_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/huggingface"))
        .env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
        .env("HF_HUB_OFFLINE", "1")
        .env("TERM", "xterm");
    command.stdin(Stdio::null());
    command
}

/// A signal to a child.
pub fn send(signal: &str, child: &Child) {
    let kill = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().expect("a shell");
    assert!(kill.success(), "the program has ended by itself: it needs more steps");
}

/// Waits for something that comes within minutes.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(240), "{what}");
        sleep(Duration::from_millis(10));
    }
}

/// What a finished child left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ran {
    let output = command.output().expect("the program starts");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("the program prints UTF-8")
}

impl Ran {
    /// The one JSON object that stdout holds, with nothing on stderr.
    pub fn json(&self) -> Value {
        assert_eq!(self.err, "", "stdout: {}", self.out);
        assert_eq!(self.out.matches('\n').count(), 1, "one line: {}", self.out);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// The JSON of a command that does its job.
pub fn answer(command: &mut Command) -> Value {
    let ran = run(command);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.json()
}

/// The record of an inversion, whose exit code is that of what it claims.
pub fn inversion(command: &mut Command) -> Value {
    record(run(command.arg("--json")))
}

/// The record of an inversion that has run, see [`inversion`].
pub fn record(ran: Ran) -> Value {
    let record = ran.json();
    let exact = record["exact"].as_bool().unwrap_or_else(|| panic!("{record}"));
    assert_eq!(ran.code, Some(if exact { 0 } else { 1 }), "{record}");
    record
}

/// The sentence of a refusal: one line on stderr, nothing on stdout, and nothing that looks like an accident.
pub fn refusal(command: &mut Command, code: i32) -> String {
    let ran = run(command);
    assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{ran:?}");
    let line = ran.err.strip_suffix('\n').unwrap_or_else(|| panic!("{ran:?}"));
    assert!(!line.contains(['\n', '\r', '\u{1b}']), "not one plain line: {ran:?}");
    for accident in ["panicked", "RUST_BACKTRACE", "internal fault", "unwrap"] {
        assert!(!line.contains(accident), "{ran:?}");
    }
    line.strip_prefix("error: ").unwrap_or_else(|| panic!("{ran:?}")).to_owned()
}

/// Refuses with this code in a sentence that holds all of `parts`.
#[track_caller]
pub fn refuses(command: &mut Command, code: i32, parts: &[&str]) {
    let sentence = refusal(command, code);
    assert!(!sentence.contains("multiple times"), "refused for what the test itself repeats: {sentence}");
    for part in parts {
        assert!(sentence.contains(part), "`{part}` is not in: {sentence}");
    }
}

/// Bytes of the events of the search that is under way in the folder of a list or a count; 0 before there are any.
#[cfg(unix)]
pub fn events_under_way(out: &Path) -> u64 {
    let events = || fs::read_dir(out.join("work")).ok()?.find_map(|run| fs::metadata(run.ok()?.path().join("events.jsonl")).ok());
    events().map_or(0, |events| events.len())
}

/// A record without what the clock says.
pub fn untimed(record: &Value) -> Value {
    let mut record = record.clone();
    for key in ["load_seconds", "seconds", "seconds_to_exact"] {
        record.as_object_mut().expect("an object").remove(key).unwrap_or_else(|| panic!("no `{key}`"));
    }
    record
}

/// The tiny model's tokenizer.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(&Path::new(TINY).join("tokenizer.json")).unwrap()
}

/// A list of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap_or_else(|_| panic!("no token ids: {value}"))
}

/// Token ids as an option takes them.
pub fn listed(value: &Value) -> String {
    ids(value).iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// An empty folder that goes away with the value.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The tiny model in a folder of its own, to be spoilt.
pub fn tiny_copy() -> TempDir {
    let copy = folder();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(Path::new(TINY).join(name), copy.path().join(name)).expect("a copy");
    }
    copy
}

/// Rewrites a JSON file.
pub fn edit(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    change(&mut value);
    fs::write(&path, value.to_string()).expect("a file");
}

/// Rewrites the header of a safetensors file.
pub fn edit_header(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let bytes = fs::read(&path).expect("a file");
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a header");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header = serde_json::from_slice(header).expect("JSON");
    change(&mut header);
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&path, [&length, header.as_bytes(), data].concat()).expect("a file");
}

/// Rewrites a tensor of a safetensors file: `change` gets its bytes.
pub fn edit_tensor(path: PathBuf, name: &str, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(&path).expect("a file");
    let length = u64::from_le_bytes(*bytes.first_chunk::<8>().expect("a header")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    let offset = |end: usize| 8 + length + header[name]["data_offsets"][end].as_u64().expect("an offset") as usize;
    let (start, end) = (offset(0), offset(1));
    change(&mut bytes[start..end]);
    fs::write(&path, bytes).expect("a file");
}

/// The lines of a run's `events.jsonl`.
pub fn events(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("events.jsonl")).expect("events");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
