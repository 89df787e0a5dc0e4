//! What a report is made of: the records of a study, and those of `dlmi gradients`, each known by its schema.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::Deserialize;
use serde_json::Value;

use super::groups::FLOOR;
use crate::error::quoted;
use crate::files::read_text;
use crate::gradients::{Line, SCHEMA as GRADIENTS, SUMMARY_SCHEMA as GRADIENTS_SUMMARY};
use crate::metrics::Spread;
use crate::study::cell;
use crate::subject::Cost;
use crate::{Error, Result};

/// Larger than any file of records, in bytes.
const LARGEST_FILE: u64 = 2 << 30;

/// All records, each once.
#[derive(Debug, Default)]
pub struct Data {
    /// Cells in the order in which they were read: files as named, folders by id.
    pub cells: Vec<Cell>,
    /// Measurements of gradients.
    pub gradients: Vec<Line>,
    /// Runs that were to be measured, and failed.
    pub unmeasured: usize,
}

/// A cell of a study: where it stands on the axes, and what it came to.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its place.
    pub place: Place,
    /// What was found, or why nothing can be had.
    pub outcome: Result<Inversion, String>,
    /// The steps that have scores, and those at which the best prompt matched more; of older records the former alone.
    pub trace: Vec<Step>,
    /// τ after each step, mean over the positions. Older records do not have it, nor methods without.
    pub temperature: Vec<Option<f64>>,
}

/// Where a cell stands.
#[derive(Debug, Clone, Deserialize)]
pub struct Place {
    /// The hash of all that decides the result.
    pub id: String,
    /// SHA-256 of the weights.
    pub model_digest: String,
    /// As it was given; not in the records of `merge --science`.
    pub model: Option<String>,
    /// Name of the target.
    pub target: String,
    /// y.
    pub target_ids: Vec<u32>,
    /// The k that the target was drawn with.
    pub k: Option<u32>,
    /// What tables call the method.
    pub method: String,
    /// N.
    pub prompt_tokens: u64,
    /// The budget.
    #[serde(flatten)]
    pub budget: Budget,
    /// Seed.
    pub seed: u64,
}

/// What a run was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(from = "Limits")]
pub struct Budget {
    work: Option<Work>,
    /// Of a list; a study has no such limit.
    milliseconds: Option<u64>,
}

/// A budget that is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Work {
    /// So many steps of each start.
    Steps(u64),
    /// So many positions pushed through the model, however many steps a start has.
    Positions(u64),
}

/// A budget as it is written.
#[derive(Deserialize)]
struct Limits {
    steps: Option<u64>,
    max_positions: Option<u64>,
    max_seconds: Option<f64>,
}

impl From<Limits> for Budget {
    fn from(limits: Limits) -> Self {
        Self {
            work: limits.max_positions.map(Work::Positions).or(limits.steps.map(Work::Steps)),
            milliseconds: limits.max_seconds.map(|seconds| (seconds * 1e3).round() as u64),
        }
    }
}

/// `256 steps`, `60000 positions`, `256 steps in 0.5 s`.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let work = self.work.map(|work| match work {
            Work::Steps(steps) => format!("{steps} steps"),
            Work::Positions(positions) => format!("{positions} positions"),
        });
        let seconds = self.milliseconds.map(|ms| format!("{} s", ms as f64 / 1e3));
        match (work, seconds) {
            (Some(work), Some(seconds)) => write!(f, "{work} in {seconds}"),
            (work, seconds) => f.write_str(&work.or(seconds).unwrap_or_else(|| "no budget".to_owned())),
        }
    }
}

/// What a report reads of a result.
#[derive(Debug, Clone, Deserialize)]
pub struct Inversion {
    /// The method's own name.
    pub method: String,
    /// All settings, resolved.
    pub settings: Value,
    /// y as text.
    pub target_text: String,
    /// What is typed.
    pub prompt_text: String,
    /// What the model wrote after it.
    pub completion_text: String,
    /// See docs/design.md.
    pub exact: bool,
    /// The scores of the last step, as the paper plots them.
    pub lcs: Last,
    /// Those of the reported prompt.
    pub best: Best,
    /// Share of prompt positions with a token of y.
    pub overlap: f64,
    /// Share of distinct tokens of y that the prompt has.
    pub target_hit_ratio: f64,
    /// Longest common run of letters and digits.
    pub overlap_text: f64,
    /// Of the prompt from its second token on.
    pub prompt_perplexity: Option<f64>,
    /// Steps made.
    pub steps: u64,
    /// Not in the records of `merge --science`.
    pub seconds: Option<f64>,
    /// Work.
    pub cost: Cost,
    /// Why it ended.
    pub stopped: String,
}

/// Scores of the last step.
#[derive(Debug, Clone, Deserialize)]
pub struct Last {
    /// None without a relaxed prompt.
    pub relaxed_forced: Option<f64>,
    /// None without a relaxed prompt.
    pub relaxed_free: Option<f64>,
    /// The hard prompt, the target fed; none where a signal left no time for it.
    pub hard_forced: Option<f64>,
    /// The hard prompt, free-running; likewise.
    pub hard_free: Option<f64>,
    /// The hard prompt as searched.
    pub prompt_ids: Vec<u32>,
}

/// Scores of the reported prompt.
#[derive(Debug, Clone, Deserialize)]
pub struct Best {
    /// Target tokens before the first wrong one.
    pub matched_prefix: usize,
    /// The prompt, free-running.
    pub hard_free: f64,
    /// The step that found it.
    pub step: u64,
}

/// A step that has scores.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    /// Steps so far.
    pub step: u64,
    /// τ over the positions.
    pub temperature: Option<Spread>,
    /// Of the best prompt so far.
    pub best: Option<Prefix>,
    /// Of the hard prompt at hand.
    pub scores: Option<Hard>,
    /// Work so far.
    pub cost: Cost,
}

/// What a step says of the hard prompt at hand.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Hard {
    /// The target fed.
    pub hard_forced: f64,
    /// Free-running.
    pub hard_free: f64,
}

/// What a step says of the best prompt so far.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Prefix {
    /// Target tokens before the first wrong one.
    pub matched_prefix: usize,
}

impl Cell {
    /// M, the stop token included where one was asked for.
    pub fn target_tokens(&self) -> usize {
        let ends = self.found().is_some_and(|found| found.settings["end"] == true);
        self.place.target_ids.len() + usize::from(ends)
    }

    /// Its result, where it has one.
    pub fn found(&self) -> Option<&Inversion> {
        self.outcome.as_ref().ok()
    }

    /// τ after so many steps, mean over the positions; of a run that has stopped before, its last one. By the scored steps where the record has no
    /// others.
    pub fn temperature_at(&self, step: u64) -> Option<f64> {
        match self.temperature.len() {
            0 => last_at(&self.trace, |it| it.step <= step)?.temperature.map(|spread| spread.mean),
            steps => self.temperature[(step as usize).clamp(1, steps) - 1],
        }
    }

    /// Whether the seed decides anything. SODA begins at zeros and draws nothing before it draws Z again; `echo` draws nothing at all.
    pub fn draws_anything(&self) -> bool {
        let Some(found) = self.found() else { return true };
        match found.method.as_str() {
            "echo" => false,
            "soda" => {
                let settings = &found.settings["soda"];
                let starts_at_zeros = settings["initial_deviation"].as_f64().unwrap_or(0.0) == 0.0;
                let redrawn = settings["redraw_every"].as_u64().is_some_and(|every| found.steps > every);
                let restarts = found.settings["restarts"].as_u64().unwrap_or(0) > 0;
                !starts_at_zeros || redrawn || restarts
            }
            _ => true,
        }
    }
}

/// The last step of a run up to which `reached` holds: its last one where it has stopped before that ends.
pub fn last_at(trace: &[Step], reached: impl Fn(&Step) -> bool) -> Option<&Step> {
    trace[..trace.partition_point(reached)].last()
}

/// Reads folders of studies and files of JSON Lines. A cell that several of them hold counts once, its result before its failure.
///
/// # Errors
/// What is neither; a record that is broken or of another schema, by file and line; no record at all.
pub fn read(paths: &[PathBuf]) -> Result<Data> {
    let mut data = Data::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut measured: HashSet<(String, u64)> = HashSet::new();
    let mut unmeasured: HashSet<String> = HashSet::new();
    for path in paths {
        for file in files(path)? {
            let name = quoted(&file.display().to_string());
            for (number, line) in (1..).zip(read_text(&file, LARGEST_FILE)?.lines()).filter(|(_, line)| !line.trim().is_empty()) {
                let broken = |what: String| Error::input(format!("{name}, line {number}: {what}"));
                match parse(line).map_err(broken)? {
                    Record::Cell(cell) => add(&mut data.cells, &mut places, *cell),
                    Record::Gradients(lines) => {
                        data.gradients.extend(lines.into_iter().filter(|line| measured.insert((line.unit.clone(), line.step))));
                    }
                    Record::Unmeasured(unit) => _ = unmeasured.insert(unit),
                    Record::Other => (),
                }
            }
        }
    }
    distinct(&data.cells)?;
    distinct_measurements(&data.gradients)?;
    data.gradients.iter().for_each(|line| _ = unmeasured.remove(&line.unit));
    data.unmeasured = unmeasured.len();
    match data.cells.is_empty() && data.gradients.is_empty() && data.unmeasured == 0 {
        false => Ok(data),
        true => Err(Error::input("there is no record yet; `study run` and `gradients` make them")),
    }
}

/// Refuses two cells that would count as two seeds of one method, and are of one seed by two settings.
fn distinct(cells: &[Cell]) -> Result<()> {
    let mut seen: HashMap<_, &str> = HashMap::new();
    for Cell { place, .. } in cells {
        let axes = (&place.model_digest, &place.method, place.prompt_tokens, place.budget, &place.target_ids, place.seed);
        if let Some(other) = seen.insert(axes, &place.id) {
            let Place { id, method, prompt_tokens, budget, target, seed, .. } = place;
            return Err(Error::input(format!(
                "the cells {other} and {id} are both {}, N {prompt_tokens}, {budget}, seed {seed}, target {}, by different settings; give the \
                 methods labels of their own; where the study's file has changed, report what `study merge` makes of the folder; for another \
                 setting of a list, use another folder",
                quoted(method),
                quoted(target)
            )));
        }
    }
    Ok(())
}

/// Refuses measurements of what would count as one run, by two settings.
fn distinct_measurements(lines: &[Line]) -> Result<()> {
    let mut seen: HashMap<_, &str> = HashMap::new();
    for line in lines {
        let Line { model, estimator, target, seed, prompt_tokens, steps, .. } = line;
        let other = *seen.entry((model, estimator, target, seed, prompt_tokens, steps)).or_insert(&line.unit);
        if other != line.unit {
            return Err(Error::input(format!(
                "the runs {other} and {} are both {estimator}, N {prompt_tokens}, {steps} steps, seed {seed}, target {}, measured by different \
                 settings; report them apart, or, where the study's file has changed, what `study merge` makes of the folder",
                line.unit,
                quoted(target)
            )));
        }
    }
    Ok(())
}

/// The files of records that a path stands for.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    if !path.join("cells").is_dir() {
        let name = quoted(&path.display().to_string());
        return Err(Error::input(format!("{name} is no folder of a study; give what `study run --out` made, or a file of JSON Lines")));
    }
    let mut files = Vec::new();
    for folder in ["cells", "failed"].map(|name| path.join(name)).into_iter().filter(|folder| folder.is_dir()) {
        let entries = fs::read_dir(&folder).map_err(|error| Error::reading(&folder, &error))?;
        let records = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut records: Vec<PathBuf> = records.filter(|file| file.extension().is_some_and(|extension| extension == "json")).collect();
        records.sort();
        files.append(&mut records);
    }
    Ok(files)
}

enum Record {
    Cell(Box<Cell>),
    Gradients(Vec<Line>),
    /// The run with this id.
    Unmeasured(String),
    Other,
}

fn parse(line: &str) -> Result<Record, String> {
    let mut value: Value = serde_json::from_str(line).map_err(|error| format!("it is not JSON: {error}"))?;
    let schema = value["schema"].as_str().unwrap_or_default().to_owned();
    match schema.as_str() {
        cell::SCHEMA if value["cell"]["gradients"].is_object() => match value["failed"].is_string() {
            true => Ok(Record::Unmeasured(value["cell"]["id"].as_str().unwrap_or_default().to_owned())),
            false => Ok(Record::Gradients(typed(value["gradients"].take())?)),
        },
        cell::SCHEMA => Ok(Record::Cell(Box::new(parse_cell(value)?))),
        GRADIENTS => Ok(Record::Gradients(vec![typed(value)?])),
        GRADIENTS_SUMMARY => Ok(Record::Other),
        other => {
            Err(format!("schema {} is unknown; a report reads {} (study merge) and {GRADIENTS} (gradients)", quoted(other), cell::SCHEMA))
        }
    }
}

fn parse_cell(mut value: Value) -> Result<Cell, String> {
    let place: Place = typed(value["cell"].take())?;
    let (outcome, trace) = match value["failed"].as_str() {
        Some(reason) => (Err(reason.to_owned()), Vec::new()),
        None => (Ok(typed::<Inversion>(value["inversion"].take())?), typed(value["trace"].take())?),
    };
    let temperature = typed::<Option<_>>(value["temperature"].take())?.unwrap_or_default();
    let mut cell = Cell { place, outcome, trace, temperature };
    average_floor(&mut cell);
    check(&cell)?;
    Ok(cell)
}

/// The floor's last step is one random prompt of many: its scores are the means over all steps that were scored.
fn average_floor(cell: &mut Cell) {
    let scores: Vec<Hard> = cell.trace.iter().filter_map(|step| step.scores).collect();
    if let Ok(found) = &mut cell.outcome
        && found.method == FLOOR
        && !scores.is_empty()
    {
        let mean = |of: fn(&Hard) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
        (found.lcs.hard_forced, found.lcs.hard_free) = (Some(mean(|it| it.hard_forced)), Some(mean(|it| it.hard_free)));
    }
}

fn typed<T: for<'a> Deserialize<'a>>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("the record is broken: {error}"))
}

/// Refuses what no run can come to.
fn check(cell: &Cell) -> Result<(), String> {
    let Some(found) = cell.found() else { return Ok(()) };
    let Last { relaxed_forced, relaxed_free, hard_forced, hard_free, .. } = found.lcs;
    let shares = [found.best.hard_free, found.overlap, found.target_hit_ratio, found.overlap_text];
    let wrong = shares
        .into_iter()
        .chain([hard_forced, hard_free, relaxed_forced, relaxed_free].into_iter().flatten())
        .find(|share| !(0.0..=1.0).contains(share));
    if let Some(share) = wrong {
        return Err(format!("the record is broken: {share} is no share from 0 to 1"));
    }
    match found.best.matched_prefix <= cell.target_tokens() && cell.target_tokens() > 0 {
        true => Ok(()),
        false => Err("the record is broken: more tokens are matched than the target has".to_owned()),
    }
}

fn add(cells: &mut Vec<Cell>, places: &mut HashMap<String, usize>, cell: Cell) {
    match places.get(&cell.place.id) {
        None => {
            places.insert(cell.place.id.clone(), cells.len());
            cells.push(cell);
        }
        Some(&known) if cells[known].outcome.is_err() && cell.outcome.is_ok() => cells[known] = cell,
        Some(&known) => {
            if let (Some(first), Some(second)) = (cells[known].found(), cell.found())
                && (first.exact, first.best.matched_prefix) != (second.exact, second.best.matched_prefix)
            {
                tracing::warn!("there are two results of cell {}, which differ; the first is taken", cell.place.id);
            }
        }
    }
}
