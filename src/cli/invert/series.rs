//! Searches one after another, each of them a cell of a study: what a list of targets and a count of prompts share.

use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::interrupt::Signal;
use crate::invert::{Report, Robust};
use crate::study::{Cell, End, Foreman, Queue, Store, Study};
use crate::ui::{Policy, Progress, Status, print_part};
use crate::{Error, Result};

/// What the searches are for.
pub(super) trait Aim {
    /// What is counted while they go on.
    const UNIT: &'static str;

    /// What a search is called in messages.
    fn name(&self, cell: &Cell) -> String;

    /// No more searches are wanted.
    fn is_met(&self) -> bool {
        false
    }

    /// How many of how many there are, and the best in words.
    fn so_far(&self) -> (usize, usize, String);

    /// What a search has come to, where anything is known of it; returns the line to print.
    fn take(&mut self, cell: &Cell, end: &End, record: Option<Value>) -> Option<String>;
}

/// Hands out the searches in their order, shows how they go, and prints what they come to.
pub(super) struct Series<'a, A> {
    pub(super) aim: A,
    cells: Vec<Cell>,
    queue: Queue,
    store: &'a Store,
    signal: Signal,
    progress: Progress,
    began: Instant,
    /// Nobody reads the results any more.
    unread: bool,
}

impl<'a, A: Aim> Series<'a, A> {
    /// `what` is being done, in words.
    pub(super) fn new(study: &Study, store: &'a Store, what: String, policy: Policy, signal: Signal, aim: A) -> Self {
        let cells = study.cells().to_vec();
        let (queue, progress) = (Queue::new(0..cells.len(), None), Progress::new(policy, what));
        Self { aim, cells, queue, store, signal, progress, began: Instant::now(), unread: false }
    }

    fn show(&mut self, now: Option<String>) {
        let (done, all, best) = self.aim.so_far();
        self.progress.update(&Status {
            unit: A::UNIT,
            step: done as u64,
            steps: Some(all as u64),
            seconds: self.began.elapsed().as_secs_f64(),
            best,
            text: now,
            ..Status::default()
        });
    }
}

impl<A: Aim> Foreman for Series<'_, A> {
    fn next_cell(&mut self) -> Option<usize> {
        if self.unread || self.aim.is_met() { None } else { self.queue.next_cell() }
    }

    fn step(&mut self, cell: &Cell, report: &Report) -> Result<()> {
        let so_far = super::so_far(report, cell.target_tokens());
        self.show(Some(format!("{}: step {}, {so_far}", self.aim.name(cell), report.step)));
        Ok(())
    }

    fn ended(&mut self, cell: usize, end: &End) -> Result<()> {
        self.queue.ended(cell, end);
        let cell = &self.cells[cell];
        if let End::Failed { reason, .. } = end {
            tracing::warn!("{}: {reason}", self.aim.name(cell));
        }
        let line = self.aim.take(cell, end, record(cell, end, self.store)?);
        self.show(None);
        if let Some(line) = line {
            self.unread = !print_part(&line)?;
        }
        Ok(())
    }

    fn signal(&self) -> Signal {
        self.signal.clone()
    }
}

/// What a search that is left has come to: its record or, where it was interrupted, what is kept nowhere yet.
fn record(cell: &Cell, end: &End, store: &Store) -> Result<Option<Value>> {
    match end {
        End::Interrupted { inversion: Value::Null } | End::Elsewhere => Ok(None),
        End::Interrupted { inversion } => Ok(Some(json!({ "cell": cell.summary(), "inversion": inversion }))),
        _ => store.record(&cell.id),
    }
}

/// Where the results are kept: in the folder of `--out`, else in one that goes with the process.
pub(super) struct Kept {
    pub(super) store: Store,
    _folder: Option<tempfile::TempDir>,
}

impl Kept {
    pub(super) fn open(out: Option<&Path>) -> Result<Self> {
        if let Some(out) = out {
            return Ok(Self { store: Store::create(out)?, _folder: None });
        }
        let folder = tempfile::tempdir().map_err(|error| Error::environment(format!("cannot make a temporary folder: {error}")))?;
        Ok(Self { store: Store::create(folder.path())?, _folder: Some(folder) })
    }
}

/// Whether an inversion of a record is all that was asked for. Older records do not say: no lead was asked for then.
pub(super) fn is_solved(inversion: &Value) -> bool {
    inversion["solved"].as_bool().or(inversion["exact"].as_bool()) == Some(true)
}

/// What a user types of an inversion of a record: in a chat the turn, without the template around it.
pub(super) fn typed(inversion: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let settings = &inversion["settings"];
    match settings["chat"] == true {
        true => [&settings["prefix"], &inversion["free_text"], &settings["suffix"]].map(text).concat(),
        false => text(&inversion["prompt_text"]),
    }
}

/// What a reader of an inversion must also know.
pub(super) fn notes(inversion: &Value) -> impl Iterator<Item = &str> {
    inversion["notes"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// What was told of the circumstances in which an inversion of a record is exact too, where that was asked.
pub(super) fn robust(inversion: &Value) -> Option<Robust> {
    Robust::deserialize(&inversion["robust"]).ok()
}

/// In a word: `narrow` is exact, but by a smaller lead than was asked for.
pub(super) fn verdict(exact: Option<bool>, solved: bool) -> &'static str {
    match (exact, solved) {
        (Some(true), true) => "exact",
        (Some(true), false) => "narrow",
        (Some(false), _) => "no",
        (None, _) => "-",
    }
}
