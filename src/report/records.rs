//! Reads the records of studies, and those of `dlmi gradients`, each known by its schema.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::data::{Cell, Data, Hard, Inversion, Last, Place};
use super::groups::FLOOR;
use crate::error::quoted;
use crate::files::read_text;
use crate::gradients::{Line, SCHEMA as GRADIENTS, SUMMARY_SCHEMA as GRADIENTS_SUMMARY};
use crate::invert::record::SCHEMA as INVERSION;
use crate::study::cell;
use crate::{Error, Result};

/// Larger than any file of records, in bytes.
const LARGEST_FILE: u64 = 2 << 30;

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
            let (name, text) = (quoted(&file.display().to_string()), read_text(&file, LARGEST_FILE)?);
            if path.is_dir() && text.trim().is_empty() {
                return Err(Error::input(format!("{name} holds no record; delete it and run the study again")));
            }
            for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
                let broken = |what: String| Error::input(format!("{name}, line {number}: {what}"));
                match parse(line).map_err(broken)? {
                    Record::Cell(cell) => add(&mut data.cells, &mut places, *cell),
                    Record::Gradients { model, lines } => {
                        data.measured_models.extend(lines.first().map(|line| line.model.clone()).zip(model));
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
    Gradients {
        /// As it was given, where that is said.
        model: Option<String>,
        lines: Vec<Line>,
    },
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
            false => Ok(Record::Gradients { model: typed(value["cell"]["model"].take())?, lines: typed(value["gradients"].take())? }),
        },
        cell::SCHEMA => Ok(Record::Cell(Box::new(parse_cell(value)?))),
        GRADIENTS => Ok(Record::Gradients { model: None, lines: vec![typed(value)?] }),
        GRADIENTS_SUMMARY => Ok(Record::Other),
        INVERSION => {
            Err("it is a result of `invert --json`; a report is made of the folder of `invert --targets FILE --out DIR`".to_owned())
        }
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
