//! The paper's tables: scores by method, prompts that were found, overlaps; paired differences, and all cells.

use std::collections::BTreeMap;

use super::data::{Cell, Data, Inversion};
use super::groups::{Group, SCORES, Score, Series, Target, model_names};
use super::statistics::{difference, mean};
use super::table::{Column, Field, Table, choice, column, estimates, rates};

/// From here on the paper would speak of a prompt that repeats its target.
const PAPERS_OVERLAP: f64 = 0.2;

/// The tables of a group that compare methods.
pub fn comparisons(group: &Group) -> Vec<Table> {
    [Some(scores(group)), kinds(group), Some(overlaps(group)), Some(differences(group))].into_iter().flatten().collect()
}

/// Table 1's methods: what each scores, at what cost.
fn scores(group: &Group) -> Table {
    let row = |series: &Series| {
        let estimate = |of: fn(&Inversion) -> Option<f64>| Field::Estimate(series.estimate(&group.targets, of));
        let costs: Vec<f64> = series.cells.iter().filter_map(|cell| cell.found().map(|it| it.cost.positions() as f64)).collect();
        let seconds: Vec<f64> = series.cells.iter().filter_map(|cell| cell.found()?.seconds).collect();
        let average = |numbers: &[f64]| if numbers.is_empty() { Field::None } else { Field::Number(mean(numbers)) };
        let rate = series.rate(&group.targets, is_exact);
        let counts = [rate.targets, rate.runs, series.failed()].map(|n| Field::Number(n as f64));
        let mut fields = vec![Field::Text(series.label.to_owned())];
        fields.extend(counts);
        fields.push(Field::Rate(rate));
        fields.push(Field::Estimate(series.mean(&group.targets, matched)));
        fields.extend(SCORES.iter().map(|score| estimate(score.of)));
        let for_each = (rate.successes > 0).then(|| costs.iter().sum::<f64>() / rate.successes as f64);
        fields.extend([average(&costs), Field::optional(for_each), average(&seconds)]);
        fields
    };
    let first = vec![column("method"), column("targets"), column("runs"), column("failed"), rates("exact"), estimates("matched prefix")];
    let scores = SCORES.map(|score| estimates(score.name)).to_vec();
    Table {
        name: format!("scores-{}", group.slug()),
        title: format!("Table 1: methods and scores ({})", group.title()),
        caption: format!(
            "The four scores are of the last step, matched prefix (a share of the target) and exact of the best prompt. Means over \
             targets with the 95 % interval of a bootstrap over targets, seeds nested; of rates Wilson's, over targets. Positions for \
             each exact: those of all runs over the exact ones. Compare within a column.{}{}",
            repeated(group),
            failed(group)
        ),
        columns: [first, scores, ["positions", "positions for each exact", "seconds"].map(column).to_vec()].concat(),
        rows: group.all_series().map(row).collect(),
    }
}

/// What a study has targets of, each by itself: where there are several, the whole says little.
fn kinds(group: &Group) -> Option<Table> {
    let row = |kind: &str, targets: &[Target], series: &Series| {
        let rate = series.rate(targets, is_exact);
        let names = [kind, series.label].map(|name| Field::Text(name.to_owned()));
        let counts = [rate.targets, rate.runs].map(|n| Field::Number(n as f64));
        let matched = Field::Estimate(series.mean(targets, matched));
        [names.to_vec(), counts.to_vec(), vec![Field::Rate(rate), matched]].concat()
    };
    let by_kind = group.by_kind();
    let rows = by_kind.iter().flat_map(|(kind, targets)| group.all_series().map(move |series| row(kind, targets, series)));
    let table = Table {
        name: format!("kinds-{}", group.slug()),
        title: format!("Kinds of targets ({})", group.title()),
        caption: "Targets by their k, else by their names without the number. Exact and matched prefix as above.".into(),
        columns: vec![choice("kind"), choice("method"), column("targets"), column("runs"), rates("exact"), estimates("matched prefix")],
        rows: rows.collect(),
    };
    (!by_kind.is_empty()).then_some(table)
}

/// Whether its prompt is exact. What failed has none.
fn is_exact(cell: &Cell) -> Option<bool> {
    Some(cell.found().is_some_and(|found| found.exact))
}

/// The same as a number.
fn exact(cell: &Cell) -> Option<f64> {
    is_exact(cell).map(|exact| f64::from(u8::from(exact)))
}

/// The share of the target that the model writes before it goes astray.
fn matched(cell: &Cell) -> Option<f64> {
    Some(cell.found().map_or(0.0, |found| found.best.matched_prefix as f64 / cell.target_tokens() as f64))
}

/// What is said of runs that their seed does not tell apart.
fn repeated(group: &Group) -> String {
    let of = |series: &Series| {
        format!(
            " {}: draws nothing random in this budget, so {} runs of other seeds are the same and count once.",
            series.label, series.repeated
        )
    };
    group.series.iter().filter(|series| series.repeated > 0).map(of).collect()
}

fn failed(group: &Group) -> String {
    match group.all_series().map(Series::failed).sum::<usize>() {
        0 => String::new(),
        n => format!(" Failed: {n}. They count as 0 in every score that their method has; `study run --retry` computes them again."),
    }
}

/// §4.3: whether a prompt repeats its target.
fn overlaps(group: &Group) -> Table {
    let row = |series: &Series| {
        let found: Vec<&Inversion> = series.cells.iter().filter_map(|cell| cell.found()).collect();
        let largest = |of: fn(&Inversion) -> f64| Field::optional(found.iter().map(|it| of(it)).reduce(f64::max));
        // A run without a prompt repeats nothing, and is no evidence either.
        let estimate = |of: fn(&Inversion) -> f64| Field::Estimate(series.mean(&group.targets, |cell| cell.found().map(of)));
        let high = series.rate(&group.targets, |cell| cell.found().map(|it| it.overlap >= PAPERS_OVERLAP));
        vec![
            Field::Text(series.label.to_owned()),
            Field::Number(found.len() as f64),
            estimate(|it| it.overlap),
            largest(|it| it.overlap),
            Field::Rate(high),
            estimate(|it| it.target_hit_ratio),
            largest(|it| it.target_hit_ratio),
            estimate(|it| it.overlap_text),
            largest(|it| it.overlap_text),
        ]
    };
    Table {
        name: format!("overlap-{}", group.slug()),
        title: format!("§4.3: overlap of prompt and target ({})", group.title()),
        caption: "Of the best hard prompt. Overlap: share of its positions with a token of the target; hit ratio: share of the target's \
                  distinct tokens that it has; letters: longest common run of letters and digits over those of the target. The paper says \
                  that overlap stays below 0.2."
            .into(),
        columns: vec![
            column("method"),
            column("runs"),
            estimates("overlap"),
            column("largest overlap"),
            rates("overlap from 0.2"),
            estimates("hit ratio"),
            column("largest hit ratio"),
            estimates("letters"),
            column("largest letters"),
        ],
        rows: group.all_series().map(row).collect(),
    }
}

/// Every two methods on the targets that both have.
fn differences(group: &Group) -> Table {
    let all: Vec<&Series> = group.all_series().collect();
    let pairs = all.iter().enumerate().flat_map(|(i, a)| all[i + 1..].iter().map(move |b| (*a, *b)));
    let row = |(a, b): (&Series, &Series)| {
        let of_best = |of: fn(&Cell) -> Option<f64>| difference(&a.by_target(&group.targets, of), &b.by_target(&group.targets, of));
        let of_last = |score: &Score| difference(&a.runs(&group.targets, score.of), &b.runs(&group.targets, score.of));
        let differences = [of_best(exact), of_best(matched)].into_iter().chain(SCORES.iter().map(of_last));
        let names = [a, b].map(|series| Field::Text(series.label.to_owned()));
        names.into_iter().chain(differences.map(Field::Estimate)).collect()
    };
    Table {
        name: format!("differences-{}", group.slug()),
        title: format!("Paired differences ({})", group.title()),
        caption: "Method minus the other on the same targets, mean and 95 % interval of a bootstrap over targets, seeds nested; exact and \
                  matched prefix of the best prompt, the four scores of the last step. Each interval is for itself: among twenty pairs \
                  without a difference, about one leaves out 0."
            .into(),
        columns: [
            vec![column("method"), column("minus"), estimates("exact"), estimates("matched prefix")],
            SCORES.map(|score| estimates(score.name)).to_vec(),
        ]
        .concat(),
        rows: pairs.map(row).collect(),
    }
}

/// Tables 3 and 4: what was found for each target, of each method's first seed.
pub fn prompts(group: &Group) -> Table {
    let first = |series: &Series, target: &Target| -> Option<Vec<Field>> {
        let cell = series.cells.iter().find(|cell| cell.place.target_ids == target.ids && cell.outcome.is_ok())?;
        let found = cell.found()?;
        Some(vec![
            Field::Text(series.label.to_owned()),
            k(cell),
            Field::Text(cell.place.target.clone()),
            Field::Text(found.target_text.clone()),
            Field::Text(found.prompt_text.clone()),
            Field::optional(found.prompt_perplexity),
            Field::Output(found.completion_text.clone(), found.target_text.clone()),
            Field::Number(found.best.hard_free),
            yes(found.exact),
        ])
    };
    let of = |series| group.targets.iter().filter_map(move |target| first(series, target));
    Table {
        name: format!("prompts-{}", group.slug()),
        title: format!("Tables 3 and 4: prompts that were found ({})", group.title()),
        caption: "The best hard prompt of the first seed, its perplexity from its second token on, what the model writes after it \
                  (greedily; marked where it departs from the target), and the LCS ratio of that."
            .into(),
        columns: vec![
            choice("method"),
            choice("k"),
            column("target"),
            column("target text"),
            column("prompt"),
            column("perplexity"),
            column("output"),
            column("LCS ratio"),
            choice("exact"),
        ],
        rows: group.all_series().flat_map(of).collect(),
    }
}

/// All cells, one row each.
pub fn cells(data: &Data) -> Table {
    let models = model_names(data);
    let several = models.len() > 1;
    let mut columns: Vec<Column> = [choice("method"), choice("exact"), choice("k"), column("target")].to_vec();
    columns.extend(several.then(|| choice("model")));
    columns.extend([choice("N"), choice("budget"), choice("seed")]);
    columns.extend(["target text", "prompt", "output", "matched"].map(column));
    columns.extend(SCORES.map(|score| column(score.name)));
    columns.extend(["perplexity", "overlap", "positions", "seconds", "stopped", "id"].map(column));
    Table {
        name: "cells".into(),
        title: "All cells".into(),
        caption: "One row for each run. Prompt, output and matched prefix are of the best hard prompt, the four scores of the last step. \
                  A click on a column's name sorts."
            .into(),
        columns,
        rows: sorted(data).into_iter().map(|cell| row(cell, several.then(|| models[cell.place.model_digest.as_str()].as_str()))).collect(),
    }
}

/// By model, N, budget, target, method and seed.
fn sorted(data: &Data) -> Vec<&Cell> {
    let mut cells: BTreeMap<_, &Cell> = BTreeMap::new();
    for cell in &data.cells {
        let p = &cell.place;
        cells.insert((&p.model_digest, p.prompt_tokens, p.budget, p.k, &p.target, &p.method, p.seed, &p.id), cell);
    }
    cells.into_values().collect()
}

fn row(cell: &Cell, model: Option<&str>) -> Vec<Field> {
    let place = &cell.place;
    let found = cell.found();
    let text = |of: fn(&Inversion) -> &String| found.map_or(Field::None, |it| Field::Text(of(it).clone()));
    let number = |of: fn(&Inversion) -> Option<f64>| Field::optional(found.and_then(of));
    let mut fields = vec![
        Field::Text(place.method.clone()),
        found.map_or(Field::Word("failed".into()), |it| yes(it.exact)),
        k(cell),
        Field::Text(place.target.clone()),
    ];
    fields.extend(model.map(|name| Field::Text(name.to_owned())));
    fields.extend([Field::Number(place.prompt_tokens as f64), Field::Word(place.budget.to_string()), Field::Number(place.seed as f64)]);
    fields.extend([text(|it| &it.target_text), text(|it| &it.prompt_text)]);
    fields.push(found.map_or(Field::None, |it| Field::Output(it.completion_text.clone(), it.target_text.clone())));
    fields.push(number(|it| Some(it.best.matched_prefix as f64)));
    fields.extend(SCORES.map(|score| number(score.of)));
    fields.extend([
        number(|it| it.prompt_perplexity),
        number(|it| Some(it.overlap)),
        number(|it| Some(it.cost.positions() as f64)),
        number(|it| it.seconds),
    ]);
    fields.push(Field::Text(cell.outcome.as_ref().map_or_else(Clone::clone, |it| it.stopped.clone())));
    fields.push(Field::Text(place.id.clone()));
    fields
}

fn k(cell: &Cell) -> Field {
    Field::optional(cell.place.k.map(f64::from))
}

fn yes(exact: bool) -> Field {
    Field::Word(if exact { "yes" } else { "no" }.to_owned())
}
