//! `dlmi study`: a grid of inversions.

mod cost;
mod run;
mod slurm;
mod workers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

use super::args::{self, Cli};
use super::{answer, json};
use crate::backend::BackendName;
use crate::files::{same_file, write_to};
use crate::settings::Options;
use crate::study::{Cell, Counts, Status, Store, Study, counts, merge};
use crate::ui::table::columns;
use crate::ui::{Policy, print_result, transfer_bar};
use crate::{Error, Result};

/// Cells are missing.
const INCOMPLETE: u8 = 4;
/// Missing cells that are named at most.
const MISSING_SHOWN: usize = 12;

#[inline]
pub(super) fn run(cli: &Cli, verb: &args::Study, policy: Policy) -> Result<ExitCode> {
    cli.place()?;
    match verb {
        args::Study::Cells(verb) => cells(cli, verb, open_for_list(cli, verb, policy)?),
        args::Study::Run(verb) => run::run(cli, verb, policy),
        args::Study::Slurm(verb) => slurm::run(cli, verb, &open(cli, &verb.file, policy)?),
        args::Study::Worker(verb) => workers::work(cli, verb, policy),
        args::Study::Status { file, out } => status(cli, &open(cli, file, policy)?, &stores(out)?),
        args::Study::Merge { file, out, science, merged } => {
            if merged.as_ref().is_some_and(|merged| same_file(merged, file)) {
                return Err(Error::input(format!("`{}` is the study itself; name another file to merge into", file.display())));
            }
            merge_all(&open(cli, file, policy)?, out, *science, merged.as_deref())
        }
    }
}

fn open(cli: &Cli, file: &Path, policy: Policy) -> Result<Study> {
    Study::open(file, cli.global.offline, &transfer_bar(policy))
}

/// The study, of the model of `--stand-in` where one is named.
fn open_for_list(cli: &Cli, verb: &args::Cells, policy: Policy) -> Result<Study> {
    match &verb.stand_in {
        None => open(cli, &verb.file, policy),
        Some(model) => Study::with_stand_in(&verb.file, model, cli.global.offline, &transfer_bar(policy)),
    }
}

/// What `--backend` and `--device` say.
fn place(cli: &Cli) -> Result<(Option<BackendName>, Option<usize>)> {
    let mut options = Options::default();
    let flags = cli.place()?;
    flags.iter().try_for_each(|(key, value)| options.assign(key, value))?;
    let given = flags.iter().any(|(key, _)| *key == "backend");
    Ok((given.then_some(options.backend), options.device))
}

#[inline]
fn cells(cli: &Cli, verb: &args::Cells, mut study: Study) -> Result<ExitCode> {
    let store = verb.out.as_deref().map(Store::open).transpose()?;
    let listed: Vec<usize> = match &store {
        Some(store) if verb.pending => study.due(store, verb.retry),
        _ => (0..study.cells().len()).collect(),
    };
    if verb.cost {
        return cost::run(cli, verb, &mut study, store.as_ref(), &listed);
    }
    let listed: Vec<&Cell> = listed.into_iter().map(|place| &study.cells()[place]).collect();
    if cli.global.json || verb.ids {
        let line = |cell: &&Cell| if verb.ids { format!("{}\n", cell.id) } else { format!("{}\n", json(&cell.summary())) };
        let lines: String = listed.iter().map(line).collect();
        return print_all(&lines).map(|()| ExitCode::SUCCESS);
    }
    let status = counts(listed, &[]);
    let mut lines = vec![["axis", "value", "cells"].map(str::to_owned).to_vec()];
    lines.push(vec!["all".into(), String::new(), status.all.cells.to_string()]);
    for (axis, values) in &status.axes {
        lines.extend(values.iter().map(|(value, counts)| vec![(*axis).to_owned(), word(value), counts.cells.to_string()]));
    }
    print_result(&columns(&lines))?;
    Ok(ExitCode::SUCCESS)
}

fn status(cli: &Cli, study: &Study, stores: &[Store]) -> Result<ExitCode> {
    let status = counts(study.cells(), stores);
    answer(cli, &status.to_json(), || readable(&status))?;
    Ok(ExitCode::SUCCESS)
}

fn readable(status: &Status) -> String {
    let row = |axis: &str, value: String, counts: &Counts| {
        let numbers = [counts.cells, counts.done, counts.failed, counts.running, counts.pending];
        [axis.to_owned(), value].into_iter().chain(numbers.map(|number| number.to_string())).collect::<Vec<_>>()
    };
    let mut lines = vec![["axis", "value", "cells", "done", "failed", "running", "pending"].map(str::to_owned).to_vec()];
    lines.push(row("all", String::new(), &status.all));
    for (axis, values) in &status.axes {
        lines.extend(values.iter().map(|(value, counts)| row(axis, word(value), counts)));
    }
    columns(&lines)
}

/// A value of an axis for people; a target file need not say a k.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => crate::ui::visible(text).to_string(),
        other => other.to_string(),
    }
}

/// Lines, of which there may be none.
fn print_all(lines: &str) -> Result<()> {
    if lines.is_empty() { Ok(()) } else { print_result(lines) }
}

fn stores(folders: &[PathBuf]) -> Result<Vec<Store>> {
    folders.iter().map(|folder| Store::open(folder)).collect()
}

fn merge_all(study: &Study, folders: &[PathBuf], science: bool, merged: Option<&Path>) -> Result<ExitCode> {
    let (records, missing) = merge(study.cells(), &stores(folders)?, science)?;
    let lines: String = records.iter().map(|record| format!("{}\n", json(record))).collect();
    match merged {
        Some(path) => write_to(path, lines.as_bytes())?,
        None => print_all(&lines)?,
    }
    if !missing.is_empty() {
        let mut ids: Vec<&str> = missing.iter().take(MISSING_SHOWN).map(|cell| &*cell.id).collect();
        ids.extend((missing.len() > MISSING_SHOWN).then_some("…"));
        let (count, all) = (missing.len(), study.cells().len());
        tracing::warn!("{count} of {all} cells are missing; `study run` computes them: {}", ids.join(", "));
        return Ok(ExitCode::from(INCOMPLETE));
    }
    Ok(ExitCode::SUCCESS)
}
