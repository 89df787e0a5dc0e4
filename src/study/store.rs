//! A study's folder: what is done, what failed, what somebody is at.
//!
//! `cells/<id>.json` is a finished cell, whole or absent; `failed/<id>.json` one that cannot be had, with the reason; `work/<id>/` is the
//! run folder of one that was begun; `locks/<id>` is held by whoever is at it, and let go by the system when that process ends, however it
//! ends.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::Cell;
use super::cell::SCHEMA;
use crate::error::quoted;
use crate::files::{host_name, make_folder, open_lock, read_text, replace, try_lock};
use crate::{Error, Result, terminal};

/// Larger than any record, in bytes.
const LARGEST_RECORD: u64 = 64 << 20;

/// A study's folder.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Nobody else computes this cell while this value lives.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl Store {
    /// Opens or makes the folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(root: &Path) -> Result<Self> {
        make_folder(root, "out")?;
        for name in ["cells", "failed", "work", "locks"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(|error| Error::writing(&path, &error))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// A folder to be read.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(root: &Path) -> Result<Self> {
        match root.join("cells").is_dir() {
            true => Ok(Self { root: root.to_owned() }),
            false => Err(Error::input(format!("`{}` is no folder of a study; `study run` makes it", root.display()))),
        }
    }

    fn done_path(&self, id: &str) -> PathBuf {
        self.root.join("cells").join(format!("{id}.json"))
    }

    fn failed_path(&self, id: &str) -> PathBuf {
        self.root.join("failed").join(format!("{id}.json"))
    }

    /// The run folder of a cell.
    pub fn work(&self, id: &str) -> PathBuf {
        self.root.join("work").join(id)
    }

    /// Whether a cell is finished.
    pub fn is_done(&self, id: &str) -> bool {
        is_written(&self.done_path(id))
    }

    /// Whether a cell has failed.
    pub fn has_failed(&self, id: &str) -> bool {
        !self.is_done(id) && is_written(&self.failed_path(id))
    }

    /// Whether there is nothing to do for a cell; one that failed is done again with `retry`.
    pub fn is_over(&self, id: &str, retry: bool) -> bool {
        self.is_done(id) || (!retry && self.has_failed(id))
    }

    /// Takes a cell, unless somebody is at it.
    ///
    /// # Errors
    /// The lock cannot be made.
    pub fn claim(&self, id: &str) -> Result<Option<Claim>> {
        let path = self.root.join("locks").join(id);
        let file = open_lock(&path)?;
        // Who asks whether a cell is running holds its lock for a moment.
        for _ in 0..3 {
            if try_lock(&file, &path)? {
                return Ok(Some(Claim { _lock: file }));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }

    /// Whether somebody is at a cell.
    pub fn is_running(&self, id: &str) -> bool {
        let lock = File::open(self.root.join("locks").join(id));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Keeps what a cell came to, or its record with more in it, and lets its run folder go.
    ///
    /// # Errors
    /// The disk.
    pub fn finish(&self, _claim: &Claim, cell: &Cell, mut found: Value) -> Result<()> {
        let mut record = json!({ "schema": SCHEMA, "cell": cell.summary() });
        let map = record.as_object_mut().expect("an object");
        map.append(found.as_object_mut().expect("an object"));
        map.entry("provenance").or_insert_with(provenance);
        replace(&self.done_path(&cell.id), format!("{}\n", terminal::json(&record)).as_bytes())?;
        _ = fs::remove_file(self.failed_path(&cell.id));
        self.clear(&cell.id);
        Ok(())
    }

    /// Keeps why a cell cannot be had.
    ///
    /// # Errors
    /// The disk.
    pub fn fail(&self, _claim: &Claim, cell: &Cell, reason: &str) -> Result<()> {
        let record = json!({ "schema": SCHEMA, "cell": cell.summary(), "failed": reason, "provenance": provenance() });
        replace(&self.failed_path(&cell.id), format!("{}\n", terminal::json(&record)).as_bytes())
    }

    /// Forgets how far a cell has come.
    pub fn clear(&self, id: &str) {
        _ = fs::remove_dir_all(self.work(id));
    }

    /// What a cell left: its result, else why it failed.
    ///
    /// # Errors
    /// A file that is no record of this cell.
    pub fn record(&self, id: &str) -> Result<Option<Value>> {
        let path = if self.is_done(id) { self.done_path(id) } else { self.failed_path(id) };
        if !is_written(&path) {
            return Ok(None);
        }
        let record: Value = serde_json::from_str(&read_text(&path, LARGEST_RECORD)?).unwrap_or_default();
        let path = path.display();
        match record["schema"].as_str() {
            Some(SCHEMA) if record["cell"]["id"] == id => Ok(Some(record)),
            Some(other) if other != SCHEMA => Err(Error::input(format!(
                "`{path}` has schema {}, this dlmi reads {SCHEMA}; move it away and run the study again, or use the dlmi that wrote it",
                quoted(other)
            ))),
            _ => Err(Error::input(format!("`{path}` is no record of this cell; delete it and run the study again"))),
        }
    }
}

/// Whether a record is there. A file without content is what a machine leaves that went down as it was written.
fn is_written(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.len() > 0)
}

/// Where a cell was computed.
fn provenance() -> Value {
    json!({
        // Slurm may run several nodes on one host.
        "node": std::env::var("SLURMD_NODENAME").unwrap_or_else(|_| host_name()),
        "process": std::process::id(),
        "threads": rayon::current_num_threads(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}
