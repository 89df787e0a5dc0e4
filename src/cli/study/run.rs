//! `dlmi study run`: the cells that are not done, by one worker or several.

use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::workers::Office;
use super::{INCOMPLETE, open, place};
use crate::Result;
use crate::cli::args::{Cli, Compute, read_text};
use crate::cli::signals::{ended_by, watch_signals};
use crate::study::{Counts, End, Queue, Store, Study, Tally, counts};
use crate::ui::{Policy, Progress, Status, print_result};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Compute, policy: Policy) -> Result<ExitCode> {
    let study = open(cli, &verb.file, policy)?;
    let (backend, device) = place(cli)?;
    let choice = study.device(backend, device)?;
    let store = Store::create(&verb.out)?;
    let cells = asked(&study, verb)?;
    let due: Vec<usize> = cells.iter().copied().filter(|&cell| !store.is_over(&study.cells()[cell].id, verb.retry)).collect();
    let queue = Queue::new(due.iter().copied(), verb.limit.map(|limit| limit as usize));
    let work = due.iter().take(queue.len()).map(|&cell| study.work(cell)).sum();
    let signal = watch_signals()?;
    let mut board = Board::new(policy, verb, [queue.len(), cells.len()], work);
    Office::new(cli, verb, &study, &store, queue, &mut board).on(&choice)?.run(&signal)?;
    let Board { tally, .. } = board;
    let left = counts(cells.iter().map(|&cell| &study.cells()[cell]), &[store]).all;
    print_result(&summary(cli.global.json, &tally, &left, verb))?;
    Ok(match left {
        _ if signal.has_come() => ended_by(&signal),
        Counts { pending, running, .. } if pending + running > 0 => ExitCode::from(INCOMPLETE),
        Counts { failed: 1.., .. } => ExitCode::from(1),
        _ => ExitCode::SUCCESS,
    })
}

/// The places of the cells that this run was asked for.
fn asked(study: &Study, verb: &Compute) -> Result<Vec<usize>> {
    if let Some(list) = &verb.cells {
        return study.places(read_text(None, Some(list.clone()))?.unwrap_or_default().split_whitespace());
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
    let now = match tally.words() {
        _ if tally.done + tally.failed == 0 => String::new(),
        words if words.is_empty() => format!("; this run: {} done", tally.done),
        words => format!("; this run: {} done ({words})", tally.done),
    };
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
    /// Operations of the cells that are over, and of all that are due.
    work: [f64; 2],
    /// What is being done, `gbda, N 10, …`.
    now: String,
}

impl Board {
    /// Of so many cells that are due, of so many, and the operations of the former.
    fn new(policy: Policy, verb: &Compute, [due, cells]: [usize; 2], work: f64) -> Self {
        let name = verb.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let before = cells - due;
        let what = if before > 0 { format!("{name} ({before} of {cells} cells not in this run)") } else { name };
        let progress = Progress::new(policy, what);
        Self { progress, tally: Tally::default(), began: Instant::now(), due: due as u64, work: [0.0, work], now: String::new() }
    }

    /// Counts a cell of so many operations that was left.
    pub(super) fn ended(&mut self, cell: &str, work: f64, end: &End) {
        self.tally.count(end);
        match end {
            End::Done { exact, hard_free, seconds } => {
                self.work[0] += work;
                let score = hard_free.map_or(String::new(), |score| format!("hard_free {score:.2}, "));
                tracing::info!("{cell}: {score}{}{seconds:.1} s", if *exact { "exact, " } else { "" });
            }
            End::Failed { reason, .. } => {
                self.work[0] += work;
                tracing::warn!("{cell} failed: {reason}");
            }
            End::Already => {
                self.due = self.due.saturating_sub(1);
                self.work[1] -= work;
            }
            End::Elsewhere | End::Interrupted { .. } => (),
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
            share: (self.work[1] > 0.0).then(|| self.work[0] / self.work[1]),
            seconds: self.began.elapsed().as_secs_f64(),
            max_seconds: None,
            best: self.tally.words(),
            text: (!self.now.is_empty()).then(|| self.now.clone()),
        });
    }
}
