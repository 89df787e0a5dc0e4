//! `dlmi invert --targets`: one target after another, the model loaded once. A list is a study of its targets with one set of settings.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli::args::{Cli, Invert};
use crate::cli::session::Session;
use crate::cli::signals::{ended_by, watch_signals};
use crate::invert::Report;
use crate::report::csv::{Csv, text};
use crate::study::{Cell, End, Foreman, Queue, Store, Study, Tally, work};
use crate::ui::table::columns;
use crate::ui::{Policy, Progress, Status, print_part, print_result, visible};
use crate::{Error, Result};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Invert, path: &Path, policy: Policy) -> Result<ExitCode> {
    let session = Session::open(cli, policy)?;
    let targets = session.targets(path)?;
    session.settings().check()?;
    let choice = session.device()?;
    let Session { model, resolved } = session;
    let mut study = Study::of_targets(model, targets, &resolved)?;
    let kept = Kept::open(verb.out.as_deref())?;
    let signal = watch_signals()?;
    let mut list = List::new(&study, &kept.store, cli.global.json, policy, signal.clone());
    work(&mut study, &kept.store, choice, false, &mut list)?;
    drop(list);
    let lines = study.cells().iter().map(|cell| Line::of(cell, &kept.store)).collect::<Result<Vec<_>>>()?;
    match (cli.global.json, verb.csv) {
        (true, _) => (),
        (false, true) => print_result(&csv(&lines))?,
        (false, false) => print_result(&table(&lines))?,
    }
    Ok(match signal.load(Ordering::Relaxed) {
        0 if lines.iter().all(|line| line.solved) => ExitCode::SUCCESS,
        0 => ExitCode::from(1),
        number => ended_by(number),
    })
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

/// Hands out the targets in their order, and shows how they go.
struct List<'a> {
    queue: Queue,
    names: Vec<String>,
    ids: Vec<String>,
    store: &'a Store,
    as_json: bool,
    signal: Arc<AtomicUsize>,
    tally: Tally,
    progress: Progress,
    began: Instant,
}

impl<'a> List<'a> {
    fn new(study: &Study, store: &'a Store, as_json: bool, policy: Policy, signal: Arc<AtomicUsize>) -> Self {
        let cells = study.cells();
        let (names, ids) = cells.iter().map(|cell| (cell.target.id.clone(), cell.id.clone())).unzip();
        let progress = Progress::new(policy, format!("inverting {} targets", cells.len()));
        let queue = Queue::new(0..cells.len(), None);
        Self { queue, names, ids, store, as_json, signal, tally: Tally::default(), progress, began: Instant::now() }
    }

    fn show(&mut self, now: Option<String>) {
        self.progress.update(&Status {
            unit: "target",
            step: self.tally.done + self.tally.failed,
            steps: Some(self.names.len() as u64),
            seconds: self.began.elapsed().as_secs_f64(),
            best: self.tally.words(),
            text: now,
            ..Status::default()
        });
    }
}

impl Foreman for List<'_> {
    fn next_cell(&mut self) -> Option<usize> {
        self.queue.next_cell()
    }

    fn step(&mut self, cell: &Cell, report: &Report) -> Result<()> {
        let so_far = super::so_far(report, cell.target_tokens());
        self.show(Some(format!("{}: step {}, {so_far}", visible(&cell.target.id), report.step)));
        Ok(())
    }

    fn ended(&mut self, cell: usize, end: &End) -> Result<()> {
        self.queue.ended(cell, end);
        self.tally.count(end);
        self.show(None);
        if let End::Failed { reason, .. } = end {
            tracing::warn!("{}: {reason}", visible(&self.names[cell]));
        }
        match self.store.record(&self.ids[cell])? {
            Some(record) if self.as_json => print_part(&json_line(record)).map(|_| ()),
            _ => Ok(()),
        }
    }

    fn signal(&self) -> Arc<AtomicUsize> {
        self.signal.clone()
    }
}

/// Whether an inversion of a record is all that was asked for. Older records do not say: no lead was asked for then.
pub(super) fn is_solved(inversion: &Value) -> bool {
    inversion["solved"].as_bool().or(inversion["exact"].as_bool()) == Some(true)
}

/// What `invert --json` prints of one target, its name and k before it; of one that failed the reason.
fn json_line(mut record: Value) -> String {
    let mut line = json!({ "target": record["cell"]["target"], "k": record["cell"]["k"] });
    let map = line.as_object_mut().expect("an object");
    match record["inversion"].take() {
        Value::Object(inversion) => map.extend(inversion),
        _ => drop(map.insert("failed".into(), record["failed"].take())),
    }
    crate::cli::json(&line)
}

/// What became of a target.
struct Line {
    target: String,
    /// Nothing where it was not computed.
    exact: Option<bool>,
    /// It is all that was asked for.
    solved: bool,
    /// Tokens of the target that are the argmax behind the prompt, the target's own fed.
    right_when_fed: usize,
    /// Tokens that the model writes before the first wrong one.
    matched: u64,
    tokens: usize,
    seconds: f64,
    /// Positions forward and backward.
    cost: [u64; 2],
    /// The prompt as typed, else why there is none.
    prompt: String,
}

impl Line {
    fn of(cell: &Cell, store: &Store) -> Result<Self> {
        let record = store.record(&cell.id)?.unwrap_or_default();
        let (inversion, tokens) = (&record["inversion"], cell.target_tokens());
        let prompt = inversion["prompt_text"].as_str().or(record["failed"].as_str()).unwrap_or("interrupted");
        Ok(Self {
            target: cell.target.id.clone(),
            exact: inversion["exact"].as_bool(),
            solved: is_solved(inversion),
            right_when_fed: (inversion["best"]["hard_forced_accuracy"].as_f64().unwrap_or(0.0) * tokens as f64).round() as usize,
            matched: inversion["best"]["matched_prefix"].as_u64().unwrap_or(0),
            tokens,
            seconds: inversion["seconds"].as_f64().unwrap_or(0.0),
            cost: ["forward_tokens", "backward_tokens"].map(|part| inversion["cost"][part].as_u64().unwrap_or(0)),
            prompt: prompt.to_owned(),
        })
    }

    fn verdict(&self) -> &'static str {
        match self.exact {
            Some(true) => "exact",
            Some(false) => "no",
            None => "-",
        }
    }
}

fn table(lines: &[Line]) -> String {
    let head = ["target", "exact", "right when fed", "matched", "seconds", "forward", "backward", "prompt"];
    let cells = |line: &Line| {
        let of = |count: u64| format!("{count}/{}", line.tokens);
        let [forward, backward] = line.cost.map(|positions| positions.to_string());
        let (target, prompt) = (visible(&line.target).to_string(), format!("\"{}\"", visible(&line.prompt)));
        let (fed, matched) = (of(line.right_when_fed as u64), of(line.matched));
        vec![target, line.verdict().into(), fed, matched, format!("{:.1}", line.seconds), forward, backward, prompt]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head.map(str::to_owned).to_vec()).chain(lines.iter().map(cells)).collect();
    let exact = lines.iter().filter(|line| line.exact == Some(true)).count();
    let seconds: f64 = lines.iter().map(|line| line.seconds).sum();
    format!("{}{exact} of {} exact, {seconds:.1} s", columns(&rows), lines.len())
}

fn csv(lines: &[Line]) -> String {
    let head = ["target", "exact", "right_when_fed", "matched_prefix", "tokens", "seconds", "forward_tokens", "backward_tokens", "prompt"];
    let row = |line: &Line| {
        let Line { right_when_fed, matched, tokens, seconds, cost: [forward, backward], .. } = line;
        let exact = line.exact.map_or(String::new(), |exact| exact.to_string());
        let numbers = [right_when_fed.to_string(), matched.to_string(), tokens.to_string(), seconds.to_string()];
        let cost = [forward.to_string(), backward.to_string()];
        [vec![text(&line.target), exact], numbers.to_vec(), cost.to_vec(), vec![text(&line.prompt)]].concat()
    };
    Csv { rows: lines.iter().map(row).collect(), ..Csv::new(&head) }.to_csv()
}
