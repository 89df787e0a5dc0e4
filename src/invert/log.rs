//! The record of a run, step by step: `events.jsonl`, and beside it the same numbers for TensorBoard.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::event::{BestSoFar, Event};
use super::scores::Scores;
use super::tensorboard;
use crate::files::replace;
use crate::{Error, Result};

/// The file of the events.
pub(super) const EVENTS: &str = "events.jsonl";

/// Both files, open at their ends.
#[derive(Debug)]
pub(super) struct Log {
    lines: Tail,
    board: Tail,
    last: Option<Event>,
    /// Lines that were behind the last step that was saved.
    pub dropped: usize,
    /// When the run would have begun, had it never been interrupted; seconds since 1970.
    began: f64,
}

impl Log {
    /// Opens the files in `folder` and keeps the steps up to `last`, which is taken as it is given here: what the file says of it
    /// may be what was added when the run was interrupted. The later ones were not saved, and will be made again. `seconds` have been spent.
    pub fn open(folder: &Path, last: Option<Event>, seconds: f64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let (path, began) = (folder.join(EVENTS), now - seconds);
        let kept: Vec<Event> = before(&path, last.as_ref().map_or(0, |last| last.step)).collect();
        let dropped = lines_of(&path).saturating_sub(kept.len() + usize::from(last.is_some()));
        replace(&path, kept.iter().map(line).collect::<String>().as_bytes())?;
        let mut board = Tail::open(folder.join(tensorboard::FILE))?;
        // Derived from the events, and so in place: a TensorBoard that has it open reads on where it was.
        board.cut(0)?;
        board.put(&tensorboard::header(began))?;
        let mut log = Self { lines: Tail::open(path)?, board, last: None, dropped, began };
        kept.iter().try_for_each(|event| log.board.put(&tensorboard::record(began + event.seconds, event)))?;
        last.map_or(Ok(()), |last| log.put(last))?;
        Ok(log)
    }

    /// The event written last.
    pub fn last(&self) -> Option<&Event> {
        self.last.as_ref()
    }

    /// Has the disk hold what was added.
    pub fn sync(&self) -> Result<()> {
        self.lines.file.sync_data().map_err(|error| Error::writing(&self.lines.path, &error))
    }

    /// Adds a step.
    pub fn put(&mut self, event: Event) -> Result<()> {
        self.lines.put(line(&event).as_bytes())?;
        self.board.put(&tensorboard::record(self.began + event.seconds, &event))?;
        self.last = Some(event);
        Ok(())
    }

    /// Writes the last step again, with what is known of it when the run ends.
    pub fn end(&mut self, best: BestSoFar, scores: Option<Scores>) -> Result<()> {
        let Some(last) = self.last.take() else { return Ok(()) };
        self.lines.cut(self.lines.before_last)?;
        self.board.cut(self.board.before_last)?;
        self.put(Event { best: Some(best), scores, ..last })
    }
}

/// The events in a file before `step`; a line that was cut off ends them.
fn before(path: &Path, step: u64) -> impl Iterator<Item = Event> {
    let lines = File::open(path).into_iter().flat_map(|file| BufReader::new(file).lines());
    lines.map_while(|line| serde_json::from_str(&line.ok()?).ok()).take_while(move |event: &Event| event.step < step)
}

/// Lines of a file, the last of which may be cut off.
fn lines_of(path: &Path) -> usize {
    File::open(path).map_or(0, |file| BufReader::new(file).split(b'\n').map_while(Result::ok).count())
}

fn line(event: &Event) -> String {
    crate::terminal::json(event) + "\n"
}

/// A file that grows, and whose last piece may be taken back.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: File,
    before_last: u64,
}

impl Tail {
    fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|error| Error::writing(&path, &error))?;
        Ok(Self { path, file, before_last: 0 })
    }

    fn put(&mut self, piece: &[u8]) -> Result<()> {
        let write = || -> std::io::Result<u64> {
            let before = self.file.metadata()?.len();
            (&self.file).write_all(piece)?;
            Ok(before)
        };
        self.before_last = write().map_err(|error| Error::writing(&self.path, &error))?;
        Ok(())
    }

    fn cut(&self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(|error| Error::writing(&self.path, &error))
    }
}
