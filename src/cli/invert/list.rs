//! `dlmi invert --targets`: one target after another, the model loaded once. A list is a study of its targets with one set of settings.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::series::{Aim, Kept, Series, is_solved, notes, robust, verdict};
use crate::cli::args::{Cli, Invert};
use crate::cli::session::Session;
use crate::cli::signals::{ended_by, watch_signals};
use crate::invert::Robust;
use crate::report::csv::{Csv, text};
use crate::study::{Cell, End, Store, Study, Tally, work};
use crate::subject::check_context;
use crate::terminal::counted;
use crate::ui::table::columns;
use crate::ui::{Policy, print_result, visible};
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
    let shortest = resolved.settings.shortest;
    let mut study = Study::of_targets(model, targets, &resolved)?.robust(verb.robust);
    let kept = Kept::open(verb.out.as_deref())?;
    let signal = watch_signals()?;
    let count = study.cells().len();
    let what = format!("inverting {}", counted(count as u64, "target"));
    let aim = List { targets: count, as_json: cli.global.json, tally: Tally::default(), kept: 0, interrupted: None };
    let mut list = Series::new(&study, &kept.store, what, policy, signal.clone(), aim);
    let outcome = work(&mut study, &kept.store, choice, true, &mut list);
    let interrupted = list.aim.interrupted.take();
    drop(list);
    // What was found is printed even where the list could not be gone through.
    let lines = study.cells().iter().map(|cell| Line::of(cell, &kept.store, interrupted.as_ref())).collect::<Result<Vec<_>>>()?;
    match (cli.global.json, verb.csv) {
        (true, _) => (),
        (false, true) => print_result(&csv(&lines))?,
        (false, false) => print_result(&table(&lines, shortest))?,
    }
    outcome?;
    let missed = ExitCode::from(u8::from(!lines.iter().all(|line| line.solved)));
    Ok(if signal.has_come() { ended_by(&signal) } else { missed })
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

/// Every target, once.
struct List {
    targets: usize,
    as_json: bool,
    tally: Tally,
    /// Targets that were done before.
    kept: u64,
    /// What the search that was interrupted has come to.
    interrupted: Option<Value>,
}

impl Aim for List {
    const UNIT: &'static str = "target";

    fn name(&self, cell: &Cell) -> String {
        visible(&cell.target.id).to_string()
    }

    fn so_far(&self) -> (usize, usize, String) {
        ((self.kept + self.tally.done + self.tally.failed) as usize, self.targets, self.tally.words())
    }

    fn take(&mut self, _: &Cell, end: &End, record: Option<Value>) -> Option<String> {
        self.tally.count(end);
        self.kept += u64::from(*end == End::Already);
        if matches!(end, End::Interrupted { .. }) {
            self.interrupted.clone_from(&record);
        }
        record.filter(|_| self.as_json).map(json_line)
    }
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
    /// Free tokens of the prompt.
    prompt_tokens: Option<u64>,
    /// As typed.
    prompt: Option<String>,
    /// What was told of other circumstances, where that was asked.
    robust: Option<Robust>,
    /// What a reader must also know.
    notes: Vec<String>,
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
            prompt_tokens: inversion["prompt_tokens"].as_u64(),
            prompt,
            robust: robust(inversion),
            notes: notes(inversion).map(str::to_owned).collect(),
            reason,
        })
    }
}

/// A row for each target, and the notes, with N where it is another for each, and in how many circumstances it is exact where that was asked.
fn table(lines: &[Line], shortest: bool) -> String {
    let n = |cell: String| shortest.then_some(cell);
    let asked = lines.iter().any(|line| line.robust.is_some());
    let withstood = |cell: String| asked.then_some(cell);
    let head = ["target", "exact", "right when fed", "matched", "seconds", "forward", "backward"].map(str::to_owned);
    let head = head.into_iter().chain(n("N".into())).chain(withstood("robust".into())).chain(["prompt".into()]).collect::<Vec<_>>();
    let cells = |line: &Line| {
        let of = |count: u64| format!("{count}/{}", line.tokens);
        let [forward, backward] = line.cost.map(|positions| positions.to_string());
        let reason = || format!("({})", visible(line.reason.as_deref().unwrap_or_default()));
        let prompt = line.prompt.as_ref().map_or_else(reason, |prompt| format!("\"{}\"", visible(prompt)));
        let (target, verdict) = (visible(&line.target).to_string(), verdict(line.exact, line.solved).to_owned());
        let (fed, matched) = (of(line.right_when_fed as u64), of(line.matched));
        let length = n(line.prompt_tokens.map_or("-".into(), |tokens| tokens.to_string()));
        let robust = withstood(line.robust.filter(|_| line.exact == Some(true)).map_or("-".into(), |robust| {
            let yes = robust.told().iter().filter(|(_, told)| *told == Some(true)).count();
            format!("{yes}/{}", Robust::COUNT)
        }));
        let cells = [target, verdict, fed, matched, format!("{:.1}", line.seconds), forward, backward];
        cells.into_iter().chain(length).chain(robust).chain([prompt]).collect()
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(lines.iter().map(cells)).collect();
    let count = |of: fn(&Line) -> bool| lines.iter().filter(|line| of(line)).count();
    let (exact, narrow) = (count(|line| line.exact == Some(true)), count(|line| line.exact == Some(true) && !line.solved));
    let narrow = if narrow > 0 { format!(", {narrow} of them by a smaller lead than asked for") } else { String::new() };
    let seconds: f64 = lines.iter().map(|line| line.seconds).sum();
    let robust = if asked { robust_line(lines) } else { String::new() };
    format!("{}{robust}{}{exact} of {} exact{narrow}, {seconds:.1} s", columns(&rows), all_notes(lines), lines.len())
}

/// How many of the exact prompts are exact in each of the other circumstances, of those of which it was told.
fn robust_line(lines: &[Line]) -> String {
    let told: Vec<_> =
        lines.iter().filter(|line| line.exact == Some(true)).filter_map(|line| line.robust).map(|robust| robust.told()).collect();
    let word = |circumstance: usize, name: &str| {
        let answers: Vec<bool> = told.iter().filter_map(|told| told[circumstance].1).collect();
        format!("{name} {} of {}", answers.iter().filter(|exact| **exact).count(), answers.len())
    };
    let words = Robust::default().told().iter().enumerate().map(|(circumstance, (name, _))| word(circumstance, name)).collect::<Vec<_>>();
    format!("robust  {}\n", words.join(", "))
}

/// A line for each note, with the targets of which it is said where it is not said of all.
fn all_notes(lines: &[Line]) -> String {
    let mut said: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in lines {
        for note in &line.notes {
            match said.iter_mut().find(|(known, _)| known == note) {
                Some((_, targets)) => targets.push(&line.target),
                None => said.push((note, vec![&line.target])),
            }
        }
    }
    let of = |targets: &[&str]| if targets.len() == lines.len() { String::new() } else { format!("{}: ", targets.join(", ")) };
    said.iter().map(|(note, targets)| format!("note  {}{}\n", visible(&of(targets)), visible(note))).collect()
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
        "prompt_tokens",
        "f16",
        "bf16",
        "q8",
        "ndarray",
        "trailing_newline",
        "trailing_space",
    ];
    let row = |line: &Line| {
        let Line { right_when_fed, matched, tokens, seconds, cost: [forward, backward], .. } = line;
        let known = |what: bool| if line.exact.is_some() { what.to_string() } else { String::new() };
        let numbers = [right_when_fed.to_string(), matched.to_string(), tokens.to_string(), seconds.to_string()];
        let cost = [forward.to_string(), backward.to_string()];
        let words = [&line.prompt, &line.reason].map(|words| words.as_deref().map_or(String::new(), text));
        let verdicts = vec![text(&line.target), known(line.exact == Some(true)), known(line.solved)];
        let length = line.prompt_tokens.map_or(String::new(), |tokens| tokens.to_string());
        let robust = line.robust.unwrap_or_default().told().map(|(_, told)| told.map_or(String::new(), |exact| exact.to_string()));
        [verdicts, numbers.to_vec(), cost.to_vec(), words.to_vec(), vec![length], robust.to_vec()].concat()
    };
    Csv { rows: lines.iter().map(row).collect(), ..Csv::new(&head) }.to_csv()
}
