//! The folder of a run: `result.json`, `events.jsonl` and the same for TensorBoard, `checkpoint.safetensors`, and a lock.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use super::event::{BestSoFar, Event};
use super::log::{EVENTS, Log};
use super::task::{AROUND, MOMENT, TOKENIZER};
use super::tensorboard;
use super::{Report, RunState, Snapshot};
use crate::error::quoted;
use crate::files::{host_name, make_folder, open_lock, open_regular, replace, try_lock};
use crate::invert::{Scores, judge::Judged};
use crate::method::State;
use crate::settings::is_off;
use crate::{Error, Result};

const SCHEMA: &str = "dlmi.checkpoint/4";
const CHECKPOINT: &str = "checkpoint.safetensors";
const RESULT: &str = "result.json";
const LOCK: &str = "lock";

/// An opened run folder. Nobody else can open it until this value is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// What must be the same when the run goes on.
    identity: Value,
    log: Log,
    _lock: File,
}

impl Folder {
    /// Opens or makes the folder. With `resume`, also reads the snapshot kept in it, if there is one; without, a folder that
    /// already holds a run is refused. `identity` is a JSON object of all settings but the budgets, those of the method in an object of its own.
    pub fn open(path: &Path, identity: Value, resume: bool) -> Result<(Self, Option<Snapshot>)> {
        make_folder(path, "out")?;
        only_files(path)?;
        let lock = lock(path)?;
        let checkpoint = path.join(CHECKPOINT);
        // A run that failed at its start leaves no event.
        let is_used = |name: &&str| fs::metadata(path.join(name)).is_ok_and(|file| file.len() > 0);
        let holds_run = [CHECKPOINT, RESULT, EVENTS].iter().any(is_used);
        if holds_run && !resume {
            return Err(Error::option(
                "out",
                format!("`{}` already holds a run; go on with it (--resume), or name another folder", path.display()),
            ));
        }
        let (snapshot, last) = checkpoint.exists().then(|| read(&checkpoint, &identity)).transpose()?.unzip();
        let seconds = snapshot.as_ref().map_or(0.0, |snapshot| snapshot.run.seconds);
        let log = Log::open(path, last.flatten(), seconds)?;
        Ok((Self { path: path.to_owned(), identity, log, _lock: lock }, snapshot))
    }

    /// The moment of the run that a folder holds, in seconds since 1970, where its chat template wrote the date.
    pub fn moment(path: &Path) -> Option<i64> {
        let (mut file, mut length, mut header) = (open_regular(&path.join(CHECKPOINT)).ok()?.0, [0; 8], Vec::new());
        file.read_exact(&mut length).ok()?;
        // The tensors behind it may be large.
        file.take(u64::from_le_bytes(length)).read_to_end(&mut header).ok()?;
        let header: Value = serde_json::from_slice(&header).ok()?;
        serde_json::from_str::<Value>(header["__metadata__"]["identity"].as_str()?).ok()?[MOMENT].as_i64()
    }

    /// Events behind the last step that was saved: they were dropped, and are made again.
    pub fn dropped(&self) -> usize {
        self.log.dropped
    }

    /// Adds a step to the events.
    pub fn event(&mut self, report: &Report) -> Result<()> {
        self.log.put(Event::from(report))
    }

    /// Adds to the last step what is known of it when the run is over.
    pub fn end(&mut self, best: &Judged, scores: Option<Scores>) -> Result<()> {
        self.log.end(BestSoFar::from(best), scores)
    }

    /// Replaces `checkpoint.safetensors`. The events up to it are on the disk before.
    pub fn save(&self, snapshot: &Snapshot) -> Result<()> {
        self.log.sync()?;
        let path = self.path.join(CHECKPOINT);
        replace(&path, &encode(snapshot, &self.identity, self.log.last(), &path)?)
    }

    /// Replaces `result.json`.
    pub fn result(&self, result: &str) -> Result<()> {
        replace(&self.path.join(RESULT), format!("{result}\n").as_bytes())
    }
}

/// Refuses links that would lead out of the folder, and what would block: somebody else may have put them there.
fn only_files(folder: &Path) -> Result<()> {
    for name in [CHECKPOINT, RESULT, EVENTS, tensorboard::FILE, LOCK] {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::input(format!("{} is no file; name another folder", quoted(&path.display().to_string()))));
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let mut file = open_lock(&path)?;
    if !try_lock(&file, &path)? {
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        return Err(Error::environment(format!(
            "`{}` is in use by another dlmi ({}); wait for it or name another folder",
            folder.display(),
            holder.trim()
        )));
    }
    let host = host_name();
    let holder = format!("process {} on {}\n", std::process::id(), if host.is_empty() { "this host" } else { &host });
    file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(|error| Error::writing(&path, &error))?;
    Ok(file)
}

fn encode(snapshot: &Snapshot, identity: &Value, last: Option<&Event>, path: &Path) -> Result<Vec<u8>> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        snapshot.method.tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("a shape agrees with its values"))
    });
    let run = serde_json::to_string(&snapshot.run).expect("plain data");
    let event = serde_json::to_string(&last).expect("plain data");
    let fields = snapshot.method.fields.to_string();
    let parts = [&identity.to_string(), &run, &event, &fields];
    let shapes = shapes(tensors.iter().map(|(name, shape, _)| (*name, &***shape)));
    let parts = parts.map(String::as_bytes).into_iter().chain([shapes.as_bytes()]);
    let checksum = checksum(parts.chain(tensors.iter().map(|(_, _, bytes)| &**bytes)));
    let metadata = HashMap::from([
        ("checksum".to_owned(), checksum),
        ("schema".to_owned(), SCHEMA.to_owned()),
        ("identity".to_owned(), identity.to_string()),
        ("run".to_owned(), run),
        ("event".to_owned(), event),
        ("fields".to_owned(), fields),
    ]);
    safetensors::serialize(views, Some(metadata)).map_err(|error| {
        let path = path.display();
        Error::input(format!("`{path}` cannot hold the state of this search ({error}); search with a smaller batch or a shorter target"))
    })
}

/// Names and shapes as a part of the checksum.
fn shapes<'a>(tensors: impl Iterator<Item = (&'a String, &'a [usize])>) -> String {
    tensors.map(|(name, shape)| format!("{name} {shape:?}\n")).collect()
}

/// CRC-32C of all parts, in hexadecimal.
fn checksum<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    format!("{:08x}", parts.fold(0, crc32c::crc32c_append))
}

/// The snapshot in a checkpoint, and the event of its last step.
fn read(path: &Path, identity: &Value) -> Result<(Snapshot, Option<Event>)> {
    let bytes = fs::read(path).map_err(|error| Error::reading(path, &error))?;
    let broken = |what: &dyn std::fmt::Display| {
        Error::input(format!("`{}` is not a checkpoint of dlmi: {what}; start a new run in another folder", path.display()))
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(&error))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let field = |name: &str| metadata.get(name).cloned().ok_or_else(|| broken(&format!("`{name}` is missing")));
    let schema = field("schema")?;
    if schema != SCHEMA {
        return Err(Error::input(format!(
            "`{}` has schema {schema}, this dlmi reads {SCHEMA}; start a new run in another folder",
            path.display()
        )));
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(&error))?;
    let parts = ["identity", "run", "event", "fields"].map(field).into_iter().collect::<Result<Vec<_>>>()?;
    // By name, as they were written.
    let tensors: BTreeMap<String, TensorView> = file.iter().map(|(name, view)| (name.to_owned(), view)).collect();
    let shapes = shapes(tensors.iter().map(|(name, view)| (name, view.shape())));
    let parts = parts.iter().map(String::as_bytes).chain([shapes.as_bytes()]);
    let found = checksum(parts.chain(tensors.values().map(TensorView::data)));
    if found != field("checksum")? || tensors.values().any(|view| view.dtype() != Dtype::F32) {
        return Err(broken(&"it is damaged, its checksum is not that of its content"));
    }
    let known: Value = serde_json::from_str(&field("identity")?).map_err(|error| broken(&error))?;
    same_run(&known, identity, path)?;
    let run: RunState = serde_json::from_str(&field("run")?).map_err(|error| broken(&error))?;
    let event: Option<Event> = serde_json::from_str(&field("event")?).map_err(|error| broken(&error))?;
    let fields: Value = serde_json::from_str(&field("fields")?).map_err(|error| broken(&error))?;
    let values = |view: &TensorView| view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let tensors = tensors.iter().map(|(name, view)| (name.clone(), (view.shape().to_vec(), values(view)))).collect();
    Ok((Snapshot { run, method: State { tensors, fields } }, event))
}

/// Refuses to go on with other settings, naming the first that differs.
fn same_run(known: &Value, now: &Value, path: &Path) -> Result<()> {
    if !known.is_object() {
        return Err(Error::input(format!("`{}` does not say which settings it belongs to; start a new run", path.display())));
    }
    let Some((name, was, is)) = first_difference(known, now) else { return Ok(()) };
    let path = path.display();
    Err(Error::input(match name.as_str() {
        TOKENIZER => format!("the model's tokenizer is another one than when the run in `{path}` began; start a new run in another folder"),
        // All settings are the same.
        AROUND => {
            format!("the model's chat template gives another text than when the run in `{path}` began; start a new run in another folder")
        }
        _ => format!("the run in `{path}` has {name} = {was}, but this command says {is}; use the same settings or another folder"),
    }))
}

/// Name and both values of the first key that differs, `snap.batch` within an object `snap`.
fn first_difference<'a>(known: &'a Value, now: &'a Value) -> Option<(String, &'a Value, &'a Value)> {
    let (known, now) = (known.as_object()?, now.as_object()?);
    now.keys().chain(known.keys()).find_map(|key| {
        let (was, is) = (known.get(key).unwrap_or(&Value::Null), now.get(key).unwrap_or(&Value::Null));
        match (was, is) {
            // What is off may not have been there when the run was begun.
            _ if was == is || (is_off(key, was) && is_off(key, is)) || key == MOMENT => None,
            (Value::Object(_), Value::Object(_)) => first_difference(was, is).map(|(name, was, is)| (format!("{key}.{name}"), was, is)),
            _ => Some((key.clone(), was, is)),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_command_line_does_not_say_is_refused_in_words() {
        let known = json!({ "seed": 1, TOKENIZER: "ab", AROUND: [[[1], []]] });
        let refused = |key: &str, value: Value| {
            let mut now = known.clone();
            now[key] = value;
            same_run(&known, &now, Path::new("run")).unwrap_err().to_string()
        };
        assert!(refused(TOKENIZER, json!("cd")).starts_with("the model's tokenizer is another one than when the run in `run` began"));
        let dated = refused(AROUND, json!([[[2], []]]));
        assert!(dated.contains("chat template gives another text") && !dated.contains('['), "{dated}");
        let same = |now: Value| same_run(&json!({ "seed": 1, MOMENT: 5 }), &now, Path::new("run")).is_ok();
        assert!(same(json!({ "seed": 1, MOMENT: 6 })), "what was written at a moment is compared, not the moment");
        assert!(refused("seed", json!(2)).contains("seed = 1, but this command says 2"));
    }

    #[test]
    fn what_is_off_may_be_new() {
        let now = json!({ "seed": 1, "new": false, "list": "", "snap": { "batch": 3, "weight": null } });
        assert_eq!(first_difference(&json!({ "seed": 1, "snap": { "batch": 3 } }), &now), None);
        let known = json!({ "seed": 1, "snap": { "batch": 3, "weight": 0.5 } });
        assert_eq!(first_difference(&known, &now), Some(("snap.weight".into(), &json!(0.5), &Value::Null)));
        let now = json!({ "seed": 1, "new": true, "snap": { "batch": 3, "weight": 0.5 } });
        assert_eq!(first_difference(&known, &now), Some(("new".into(), &Value::Null, &json!(true))));
    }
}
