//! The file of the lines: what a run left there, and what it adds.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::line::SCHEMA;
use super::{Line, Plan, Unit};
use crate::files::{read_text, replace, try_lock};
use crate::{Error, Result};

/// Larger than any file of lines, in bytes.
const LARGEST_FILE: u64 = 1 << 30;

/// A file of lines, which nobody else writes while this value lives.
#[derive(Debug)]
pub struct LineFile {
    path: PathBuf,
    file: File,
}

impl LineFile {
    /// Opens or makes the file, and says which of the plan's lines it holds. A torn last line of measurements is dropped; lines of runs that
    /// are not the plan's stay.
    ///
    /// # Errors
    /// It holds something else, or one of these runs by other settings; another process writes it; the disk.
    pub fn open(path: &Path, plan: &Plan) -> Result<(Self, Vec<Line>)> {
        let this = Self { path: path.to_owned(), file: locked(path)? };
        let text = read_text(path, LARGEST_FILE)?;
        let (whole, torn) = text.split_at(text.rfind('\n').map_or(0, |at| at + 1));
        let lines: Vec<Line> = (1..).zip(whole.lines()).map(|(n, line)| this.read(n, line)).collect::<Result<_>>()?;
        let begins = format!("{{\"schema\":\"{SCHEMA}\"");
        if !torn.starts_with(&begins) && !begins.starts_with(torn) {
            return Err(this.foreign(lines.len() + 1));
        }
        for line in &lines {
            this.check(line, plan)?;
        }
        let this = if torn.is_empty() {
            this
        } else {
            replace(path, whole.as_bytes())?;
            Self { file: locked(path)?, ..this }
        };
        let units: HashSet<&str> = plan.units.iter().map(|unit| unit.id.as_str()).collect();
        Ok((this, lines.into_iter().filter(|line| units.contains(line.unit.as_str())).collect()))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The disk.
    pub fn add(&mut self, line: &Line) -> Result<()> {
        // In one go: who is interrupted leaves whole lines.
        self.file.write_all(format!("{}\n", line.to_json()).as_bytes()).map_err(|error| Error::writing(&self.path, &error))
    }

    fn read(&self, number: usize, text: &str) -> Result<Line> {
        let line: Option<Line> = serde_json::from_str(text).ok();
        line.filter(|line| line.schema == SCHEMA).ok_or_else(|| self.foreign(number))
    }

    /// What is said of a line that is somebody else's.
    fn foreign(&self, number: usize) -> Error {
        let path = self.path.display();
        Error::input(format!("`{path}`, line {number}: this is no measurement of gradients ({SCHEMA}); name another file"))
    }

    /// Refuses a line of one of these runs that was made by other settings.
    fn check(&self, line: &Line, plan: &Plan) -> Result<()> {
        let alike = |unit: &&Unit| (unit.estimator.label(), &unit.target.id, unit.seed) == (&*line.estimator, &line.target, line.seed);
        match plan.units.iter().find(alike).filter(|unit| unit.id != line.unit) {
            None => Ok(()),
            Some(unit) => {
                let path = self.path.display();
                Err(Error::input(format!("`{path}` holds {unit}, measured by other settings or on another model; name another file")))
            }
        }
    }
}

/// A file to be added to, that no other process holds.
fn locked(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| Error::writing(path, &error))?;
    match try_lock(&file, path)? {
        true => Ok(file),
        false => Err(Error::input(format!("another process is writing `{}`; name another file", path.display()))),
    }
}
