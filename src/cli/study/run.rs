//! `dlmi study run`: the cells that are not done, one after another or by several workers.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;

use super::workers::Office;
use super::{INCOMPLETE, open, place};
use crate::Result;
use crate::cli::args::{Cli, Compute};
use crate::cli::signals::{ended_by, watch_signals};
use crate::files::read_text;
use crate::invert::Report;
use crate::study::{Cell, Counts, End, Foreman, Queue, Store, Study, Tally, counts, work};
use crate::ui::{Policy, Progress, Status, print_result};

/// Larger than any list of ids, in bytes.
const LARGEST_LIST: u64 = 64 << 20;

#[inline]
pub(super) fn run(cli: &Cli, verb: &Compute, policy: Policy) -> Result<ExitCode> {
    let mut study = open(cli, &verb.file, policy)?;
    let (backend, device) = place(cli)?;
    let choice = study.device(backend, device)?;
    let store = Store::create(&verb.out)?;
    let cells = asked(&study, verb)?;
    let due: Vec<usize> = cells.iter().copied().filter(|&cell| !store.is_over(&study.cells()[cell].id, verb.retry)).collect();
    let queue = Queue::new(due, verb.limit.map(|limit| limit as usize));
    let signal = watch_signals()?;
    let mut board = Board::new(policy, verb, queue.len(), cells.len());
    // A fault may take a GPU's context with it: then a process of its own ends, and not the run.
    if verb.workers > 1 || choice.device.is_gpu() {
        Office::new(cli, verb, &study, &store, queue, &mut board).on(&choice)?.run(&signal)?;
    } else {
        let labels = study.cells().iter().map(ToString::to_string).collect();
        let mut foreman = Alone { queue, labels, signal: signal.clone(), board: &mut board };
        work(&mut study, &store, choice, verb.retry, &mut foreman)?;
    }
    let Board { tally, .. } = board;
    let left = counts(cells.iter().map(|&cell| &study.cells()[cell]), &[store]).all;
    print_result(&summary(cli.global.json, &tally, &left, verb))?;
    Ok(match (signal.load(Ordering::Relaxed), left) {
        (number @ 1.., _) => ended_by(number),
        (_, Counts { pending, running, .. }) if pending + running > 0 => ExitCode::from(INCOMPLETE),
        (_, Counts { failed: 1.., .. }) => ExitCode::from(1),
        _ => ExitCode::SUCCESS,
    })
}

/// The places of the cells that this run was asked for.
fn asked(study: &Study, verb: &Compute) -> Result<Vec<usize>> {
    if let Some(list) = &verb.cells {
        return study.places(read_text(list, LARGEST_LIST)?.split_whitespace());
    }
    if !verb.cell.is_empty() {
        return study.places(verb.cell.iter().map(String::as_str));
    }
    let (number, of) = verb.shard.unwrap_or((1, 1));
    Ok(study.shard(number, of).collect())
}

/// What this run did, and how far the cells that it was asked for are.
fn summary(as_json: bool, tally: &Tally, left: &Counts, verb: &Compute) -> String {
    if as_json {
        let run = json!({ "done": tally.done, "exact": tally.exact, "failed": tally.failed, "hard_free": tally.score() });
        return crate::cli::json(&json!({ "run": run, "study": left }));
    }
    let now = if tally.done + tally.failed > 0 { format!("; this run: {} done ({})", tally.done, tally.words()) } else { String::new() };
    let Counts { cells, done, failed, running, pending } = left;
    let mut line = format!("{done} of {cells} cells done, {failed} failed, {running} running, {pending} pending{now}");
    if *failed > 0 {
        line += &format!("\nwhy they failed: {}; again with --retry", verb.out.join("failed").display());
    }
    line
}

/// What a run has done so far, and its progress line.
pub(super) struct Board {
    progress: Progress,
    tally: Tally,
    began: Instant,
    due: u64,
    /// What is being done, `gbda, N 10, …`.
    now: String,
}

impl Board {
    fn new(policy: Policy, verb: &Compute, due: usize, cells: usize) -> Self {
        let name = verb.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let before = cells - due;
        let what = if before > 0 { format!("{name} ({before} of {cells} cells not in this run)") } else { name };
        Self { progress: Progress::new(policy, what), tally: Tally::default(), began: Instant::now(), due: due as u64, now: String::new() }
    }

    /// Counts a cell that was left.
    pub(super) fn ended(&mut self, cell: &str, end: &End) {
        self.tally.count(end);
        match end {
            End::Done { exact, hard_free, seconds } => {
                tracing::info!("{cell}: hard_free {hard_free:.2}{}, {seconds:.1} s", if *exact { ", exact" } else { "" });
            }
            End::Failed { reason, .. } => tracing::warn!("{cell} failed: {reason}"),
            End::Already => self.due = self.due.saturating_sub(1),
            End::Elsewhere | End::Interrupted => (),
        }
        self.show();
    }

    /// Says what is being done.
    pub(super) fn now(&mut self, now: String) {
        self.now = now;
        self.show();
    }

    fn show(&mut self) {
        self.progress.update(&Status {
            unit: "cell",
            step: self.tally.done + self.tally.failed,
            steps: Some(self.due),
            seconds: self.began.elapsed().as_secs_f64(),
            max_seconds: None,
            best: self.tally.words(),
            text: (!self.now.is_empty()).then(|| self.now.clone()),
        });
    }
}

/// Computes in this process.
struct Alone<'a> {
    queue: Queue,
    labels: Vec<String>,
    signal: Arc<AtomicUsize>,
    board: &'a mut Board,
}

impl Foreman for Alone<'_> {
    fn next_cell(&mut self) -> Option<usize> {
        self.queue.next_cell()
    }

    fn step(&mut self, cell: &Cell, report: &Report) -> Result<()> {
        let done = match (cell.options.steps, cell.options.max_positions) {
            (Some(steps), _) => format!("step {}/{steps}", report.step),
            (None, Some(positions)) => format!("position {}/{positions}", report.cost.positions()),
            (None, None) => format!("step {}", report.step),
        };
        self.board.now(format!("{cell}: {done}"));
        Ok(())
    }

    fn ended(&mut self, cell: usize, end: &End) -> Result<()> {
        self.queue.ended(cell, end);
        self.board.ended(&self.labels[cell], end);
        Ok(())
    }

    fn interrupted(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }
}
