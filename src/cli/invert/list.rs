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
use crate::subject::check_context;
use crate::terminal::counted;
use crate::ui::table::columns;
use crate::ui::{Policy, Progress, Status, print_part, print_result, visible};
use crate::{Error, Result};

#[inline]
pub(super) fn run(cli: &Cli, verb: &Invert, path: &Path, policy: Policy) -> Result<ExitCode> {
    if cli.global.json && verb.csv {
        return Err(Error::option("csv", "`--json` prints a line for each target; leave one of them out"));
    }
    let session = Session::open(cli, policy)?;
    let targets = session.targets(path)?;
    check_all(&session)?;
    let choice = session.device()?;
    let Session { model, resolved } = session;
    let mut study = Study::of_targets(model, targets, &resolved)?;
    let kept = Kept::open(verb.out.as_deref())?;
    let signal = watch_signals()?;
    let mut list = List::new(&study, &kept.store, cli.global.json, policy, signal.clone());
    let outcome = work(&mut study, &kept.store, choice, true, &mut list);
    let (cells, interrupted) = list.into_parts();
    // What was found is printed even where the list could not be gone through.
    let lines = cells.iter().map(|cell| Line::of(cell, &kept.store, interrupted.as_ref())).collect::<Result<Vec<_>>>()?;
    match (cli.global.json, verb.csv) {
        (true, _) => (),
        (false, true) => print_result(&csv(&lines))?,
        (false, false) => print_result(&table(&lines))?,
    }
    outcome?;
    Ok(match signal.load(Ordering::Relaxed) {
        0 if lines.iter().all(|line| line.solved) => ExitCode::SUCCESS,
        0 => ExitCode::from(1),
        number => ended_by(number),
    })
}

/// Refuses what is wrong with every search, whatever its target.
///
/// # Errors
/// Settings that contradict each other, a model without a usable chat template or start token where one is asked for, a prompt that leaves no
/// room for a target.
fn check_all(session: &Session) -> Result<()> {
    let (model, settings) = (&session.model, session.settings());
    settings.check()?;
    model.chat(settings)?;
    model.bos(settings.bos)?;
    check_context(model.config(), settings.prompt_tokens, 1)
}

/// What a search that is left has come to: its record or, where it was interrupted, what is kept nowhere yet.
pub(super) fn left(cell: &Cell, end: &End, store: &Store) -> Result<Option<Value>> {
    match end {
        End::Interrupted { inversion } => Ok(Some(json!({ "cell": cell.summary(), "inversion": inversion }))),
        End::Elsewhere => Ok(None),
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

/// Hands out the targets in their order, and shows how they go.
struct List<'a> {
    queue: Queue,
    cells: Vec<Cell>,
    store: &'a Store,
    as_json: bool,
    signal: Arc<AtomicUsize>,
    tally: Tally,
    progress: Progress,
    began: Instant,
    /// What the search that was interrupted has come to.
    interrupted: Option<Value>,
    /// Nobody reads the results any more.
    unread: bool,
}

impl<'a> List<'a> {
    fn new(study: &Study, store: &'a Store, as_json: bool, policy: Policy, signal: Arc<AtomicUsize>) -> Self {
        let cells = study.cells().to_vec();
        Self {
            queue: Queue::new(0..cells.len(), None),
            progress: Progress::new(policy, format!("inverting {}", counted(cells.len() as u64, "target"))),
            cells,
            store,
            as_json,
            signal,
            tally: Tally::default(),
            began: Instant::now(),
            interrupted: None,
            unread: false,
        }
    }

    /// The targets, and what was interrupted.
    fn into_parts(self) -> (Vec<Cell>, Option<Value>) {
        (self.cells, self.interrupted)
    }

    fn show(&mut self, now: Option<String>) {
        self.progress.update(&Status {
            unit: "target",
            step: self.tally.done + self.tally.failed,
            steps: Some(self.cells.len() as u64),
            seconds: self.began.elapsed().as_secs_f64(),
            best: self.tally.words(),
            text: now,
            ..Status::default()
        });
    }
}

impl Foreman for List<'_> {
    fn next_cell(&mut self) -> Option<usize> {
        if self.unread { None } else { self.queue.next_cell() }
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
            tracing::warn!("{}: {reason}", visible(&self.cells[cell].target.id));
        }
        let cell = &self.cells[cell];
        let Some(record) = left(cell, end, self.store)? else { return Ok(()) };
        if matches!(end, End::Interrupted { .. }) {
            self.interrupted = Some(record.clone());
        }
        if self.as_json {
            self.unread = !print_part(&json_line(record))?;
        }
        Ok(())
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

/// In a word: `narrow` is exact, but by a smaller lead than was asked for.
pub(super) fn verdict(exact: Option<bool>, solved: bool) -> &'static str {
    match (exact, solved) {
        (Some(true), true) => "exact",
        (Some(true), false) => "narrow",
        (Some(false), _) => "no",
        (None, _) => "-",
    }
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
    /// As typed.
    prompt: Option<String>,
    /// Why there is none.
    reason: Option<String>,
}

impl Line {
    fn of(cell: &Cell, store: &Store, interrupted: Option<&Value>) -> Result<Self> {
        let record = match interrupted.filter(|record| record["cell"]["id"] == cell.id) {
            Some(record) => record.clone(),
            None => store.record(&cell.id)?.unwrap_or_default(),
        };
        let (inversion, tokens) = (&record["inversion"], cell.target_tokens());
        let prompt = inversion["prompt_text"].as_str().map(str::to_owned);
        let otherwise = if store.is_running(&cell.id) { "another process is at it" } else { "not begun" };
        let reason = prompt.is_none().then(|| record["failed"].as_str().unwrap_or(otherwise).to_owned());
        Ok(Self {
            target: cell.target.id.clone(),
            exact: inversion["exact"].as_bool(),
            solved: is_solved(inversion),
            right_when_fed: (inversion["best"]["hard_forced_accuracy"].as_f64().unwrap_or(0.0) * tokens as f64).round() as usize,
            matched: inversion["best"]["matched_prefix"].as_u64().unwrap_or(0),
            tokens,
            seconds: inversion["seconds"].as_f64().unwrap_or(0.0),
            cost: ["forward_tokens", "backward_tokens"].map(|part| inversion["cost"][part].as_u64().unwrap_or(0)),
            prompt,
            reason,
        })
    }
}

fn table(lines: &[Line]) -> String {
    let head = ["target", "exact", "right when fed", "matched", "seconds", "forward", "backward", "prompt"];
    let cells = |line: &Line| {
        let of = |count: u64| format!("{count}/{}", line.tokens);
        let [forward, backward] = line.cost.map(|positions| positions.to_string());
        let reason = || format!("({})", visible(line.reason.as_deref().unwrap_or_default()));
        let prompt = line.prompt.as_ref().map_or_else(reason, |prompt| format!("\"{}\"", visible(prompt)));
        let (target, verdict) = (visible(&line.target).to_string(), verdict(line.exact, line.solved).to_owned());
        let (fed, matched) = (of(line.right_when_fed as u64), of(line.matched));
        vec![target, verdict, fed, matched, format!("{:.1}", line.seconds), forward, backward, prompt]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head.map(str::to_owned).to_vec()).chain(lines.iter().map(cells)).collect();
    let count = |of: fn(&Line) -> bool| lines.iter().filter(|line| of(line)).count();
    let (exact, narrow) = (count(|line| line.exact == Some(true)), count(|line| line.exact == Some(true) && !line.solved));
    let narrow = if narrow > 0 { format!(", {narrow} of them by a smaller lead than asked for") } else { String::new() };
    let seconds: f64 = lines.iter().map(|line| line.seconds).sum();
    format!("{}{exact} of {} exact{narrow}, {seconds:.1} s", columns(&rows), lines.len())
}

fn csv(lines: &[Line]) -> String {
    let head = [
        "target",
        "exact",
        "solved",
        "right_when_fed",
        "matched_prefix",
        "tokens",
        "seconds",
        "forward_tokens",
        "backward_tokens",
        "prompt",
        "reason",
    ];
    let row = |line: &Line| {
        let Line { right_when_fed, matched, tokens, seconds, cost: [forward, backward], .. } = line;
        let known = |what: bool| if line.exact.is_some() { what.to_string() } else { String::new() };
        let numbers = [right_when_fed.to_string(), matched.to_string(), tokens.to_string(), seconds.to_string()];
        let cost = [forward.to_string(), backward.to_string()];
        let words = [&line.prompt, &line.reason].map(|words| words.as_deref().map_or(String::new(), text));
        let verdicts = vec![text(&line.target), known(line.exact == Some(true)), known(line.solved)];
        [verdicts, numbers.to_vec(), cost.to_vec(), words.to_vec()].concat()
    };
    Csv { rows: lines.iter().map(row).collect(), ..Csv::new(&head) }.to_csv()
}
