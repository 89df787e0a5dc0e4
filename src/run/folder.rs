//! The folder of a run: `result.json`, `events.jsonl`, `checkpoint.safetensors`, and a lock.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use super::{Report, Snapshot, Standing};
use crate::method::State;
use crate::{Error, Result};

const SCHEMA: &str = "dlmi.checkpoint/1";

/// An opened run folder. Nobody else can open it until this value is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// What must be the same when the run goes on.
    identity: Value,
    events: File,
    _lock: File,
}

impl Folder {
    /// Opens or makes the folder. With `resume`, also reads the snapshot kept in it, if there is one; without, a folder that
    /// already holds a run is refused. `identity` is a flat JSON object of all settings but the budgets.
    pub fn open(path: &Path, identity: Value, resume: bool) -> Result<(Self, Option<Snapshot>)> {
        fs::create_dir_all(path).map_err(|error| Error::writing(path, &error))?;
        let lock = lock(path)?;
        let checkpoint = path.join("checkpoint.safetensors");
        let holds_run = ["checkpoint.safetensors", "result.json", "events.jsonl"].iter().any(|name| path.join(name).exists());
        if holds_run && !resume {
            return Err(Error::input(format!(
                "`{}` already holds a run; add --resume to go on with it, or name another folder",
                path.display()
            )));
        }
        let snapshot = checkpoint.exists().then(|| read(&checkpoint, &identity)).transpose()?;
        let events_path = path.join("events.jsonl");
        keep_events(&events_path, snapshot.as_ref().map_or(0, |snapshot| snapshot.standing.step))?;
        let events = OpenOptions::new().create(true).append(true).open(&events_path);
        let events = events.map_err(|error| Error::writing(&events_path, &error))?;
        Ok((Self { path: path.to_owned(), identity, events, _lock: lock }, snapshot))
    }

    /// Appends one line to `events.jsonl`.
    pub fn event(&mut self, report: &Report) -> Result<()> {
        let line = format!("{}\n", event(report));
        self.events.write_all(line.as_bytes()).map_err(|error| Error::writing(&self.path.join("events.jsonl"), &error))
    }

    /// Replaces `checkpoint.safetensors`.
    pub fn save(&self, snapshot: &Snapshot) -> Result<()> {
        let path = self.path.join("checkpoint.safetensors");
        replace(&path, &encode(snapshot, &self.identity))
    }

    /// Replaces `result.json`.
    pub fn result(&self, result: &str) -> Result<()> {
        replace(&self.path.join("result.json"), format!("{result}\n").as_bytes())
    }
}

fn event(report: &Report) -> Value {
    let number = |x: f32| if x.is_finite() { Value::from(x) } else { Value::Null };
    serde_json::json!({
        "step": report.step,
        "restart": report.restart,
        "seconds": report.seconds,
        "objective": number(report.progress.objective),
        "gradient_norm": report.progress.gradient_norm.map(number),
        "temperature": report.progress.temperature,
        "entropy": report.progress.entropy,
        "matched_prefix": report.best.map(|best| best.matched_prefix),
        "scores": report.scores,
        "cost": report.cost,
    })
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let opened = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path);
    let mut file = opened.map_err(|error| Error::writing(&path, &error))?;
    if file.try_lock().is_err() {
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        return Err(Error::environment(format!(
            "`{}` is in use by another dlmi ({}); wait for it or name another folder",
            folder.display(),
            holder.trim()
        )));
    }
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let holder = format!("process {} on {}\n", std::process::id(), if host.trim().is_empty() { "this host" } else { host.trim() });
    file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(|error| Error::writing(&path, &error))?;
    Ok(file)
}

/// Drops events after `step`, which the resumed run makes again, and a last line that was cut off.
fn keep_events(path: &Path, step: u64) -> Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let belongs =
        |line: &String| serde_json::from_str::<Value>(line).ok().and_then(|event| event["step"].as_u64()).is_some_and(|at| at <= step);
    let kept: Vec<String> = BufReader::new(file).lines().map_while(|line| line.ok()).filter(belongs).collect();
    let text: String = kept.iter().map(|line| format!("{line}\n")).collect();
    replace(path, text.as_bytes())
}

/// Writes beside, then renames: whatever happens, the old or the new content is there, whole.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| Error::writing(path, &error))
}

fn encode(snapshot: &Snapshot, identity: &Value) -> Vec<u8> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        snapshot.state.tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("a shape agrees with its values"))
    });
    let standing = serde_json::to_string(&snapshot.standing).expect("plain data");
    let fields = snapshot.state.fields.to_string();
    let metadata = HashMap::from([
        ("schema".to_owned(), SCHEMA.to_owned()),
        ("identity".to_owned(), identity.to_string()),
        ("standing".to_owned(), standing),
        ("fields".to_owned(), fields),
    ]);
    safetensors::serialize(views, Some(metadata)).expect("names are unique")
}

fn read(path: &Path, identity: &Value) -> Result<Snapshot> {
    let bytes = fs::read(path).map_err(|error| Error::reading(path, &error))?;
    let broken = |what: &dyn std::fmt::Display| Error::input(format!("`{}` is not a checkpoint of dlmi: {what}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(&error))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let field = |name: &str| metadata.get(name).cloned().ok_or_else(|| broken(&format!("`{name}` is missing")));
    let schema = field("schema")?;
    if schema != SCHEMA {
        return Err(Error::input(format!(
            "`{}` has schema {schema}, this dlmi reads {SCHEMA}; run it anew in another folder",
            path.display()
        )));
    }
    let known: Value = serde_json::from_str(&field("identity")?).map_err(|error| broken(&error))?;
    same_run(&known, identity, path)?;
    let standing: Standing = serde_json::from_str(&field("standing")?).map_err(|error| broken(&error))?;
    let fields: Value = serde_json::from_str(&field("fields")?).map_err(|error| broken(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(&error))?;
    let values = |view: &TensorView| view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let tensors = file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(&view)))).collect();
    Ok(Snapshot { standing, state: State { tensors, fields } })
}

/// Refuses to go on with other settings, naming the first that differs.
fn same_run(known: &Value, now: &Value, path: &Path) -> Result<()> {
    let (Some(known), Some(now)) = (known.as_object(), now.as_object()) else {
        return Err(Error::input(format!("`{}` does not say which settings it belongs to; run it anew", path.display())));
    };
    for key in now.keys().chain(known.keys()) {
        let (was, is) = (known.get(key).unwrap_or(&Value::Null), now.get(key).unwrap_or(&Value::Null));
        if was != is {
            return Err(Error::input(format!(
                "the run in `{}` has {key} = {was}, but this command says {is}; use the same settings or another folder",
                path.display()
            )));
        }
    }
    Ok(())
}
