//! Success against cost: the share of runs that are exact, and of the target that is matched.

use std::collections::BTreeSet;

use super::super::csv::{exact, text};
use super::super::data::last_at;
use super::super::data::{Cell, Step};
use super::super::groups::{Group, Series};
use super::super::scale::Scale;
use super::super::statistics::{Estimate, Rate, average, estimate};
use super::super::svg::{Axis, Figure, Mark, Panel, Point};
use super::{csv, legend, numbers, words};

/// Points of a line at most.
const MAX_STAGES: usize = 200;
/// Those that have an interval, the last among them: one takes thousands of resamples of all runs.
const WITH_INTERVAL: usize = 10;

/// What a method has come to after so much work.
struct Stage {
    cost: f64,
    exact: Rate,
    /// Mean over the targets; its interval at some stages only.
    matched: Estimate,
}

/// The figure of a group. None where no run has a trace.
pub(super) fn figure(group: &Group) -> Option<Figure> {
    let found: Vec<(&Series, Vec<Stage>)> =
        group.series.iter().map(|series| (series, stages(group, series))).filter(|(_, stages)| !stages.is_empty()).collect();
    if found.is_empty() {
        return None;
    }
    let mut table = csv(&["method", "positions", "exact", "exact_low", "exact_high", "exact_runs"]);
    for (series, stages) in &found {
        for stage in stages {
            let (Rate { successes, runs, .. }, (low, high)) = (stage.exact, stage.exact.interval());
            let row = vec![text(series.label), exact(stage.cost), successes.to_string(), exact(low), exact(high), runs.to_string()];
            table.rows.push([row, numbers(&stage.matched)].concat());
        }
    }
    let cost = Scale::log(found.iter().flat_map(|(_, stages)| stages.iter().map(|stage| stage.cost)));
    let panel = |title: &str, axis: &str, of: fn(&Stage) -> Point| {
        let points = found.iter().flat_map(|(_, stages)| stages).map(of);
        let shares = Scale::shares(points.map(|point| point.interval.map_or(point.y, |(_, high)| high)));
        Panel {
            title: title.to_owned(),
            x: Axis { title: "positions, forward and backward".into(), ticks: cost.ticks(), scale: cost.clone() },
            y: Axis { title: axis.to_owned(), ticks: shares.ticks(), scale: shares },
            marks: found.iter().flat_map(|(series, stages)| marks(series, stages, of)).collect(),
        }
    };
    let rate = |stage: &Stage| {
        let (Rate { successes, runs, .. }, (low, high)) = (stage.exact, stage.exact.interval());
        let tip = format!("{successes} of {runs} exact [{low:.3}, {high:.3}]");
        Point { x: stage.cost, y: stage.exact.share(), interval: Some((low, high)), tip }
    };
    let matched = |stage: &Stage| {
        let Estimate { mean, interval, .. } = stage.matched;
        Point { x: stage.cost, y: mean, interval, tip: words(&stage.matched) }
    };
    Some(Figure {
        name: format!("success-{}", group.slug()),
        title: format!("Success against cost ({})", group.title()),
        caption: "By the best prompt so far. Left: runs whose prompt is exact, with Wilson's 95 % interval, over targets, at the end. Right: the share \
                  of the target that is written before the first wrong token, with the 95 % interval of a bootstrap over targets, seeds \
                  nested. Each run by what it has cost itself; the LM head is not in it. A run that has ended \
                  keeps what it found, and one that failed counts as 0 in both."
            .into(),
        panels: vec![panel("exact", "share of runs", rate), panel("matched prefix", "share of the target", matched)],
        legend: legend(found.iter().map(|(series, _)| *series)),
        csv: table,
    })
}

/// A line over all stages, a point with its interval at the last.
fn marks(series: &Series, stages: &[Stage], of: fn(&Stage) -> Point) -> [Mark; 2] {
    let line = stages.iter().map(of).map(|point| (point.x, point.y)).collect();
    let last = stages.last().map(of).map(|point| Point { tip: format!("{}: {}", series.label, point.tip), ..point });
    [Mark::Line(series.style, line), Mark::Points(series.style, last.into_iter().collect())]
}

fn stages(group: &Group, series: &Series) -> Vec<Stage> {
    let stage = |(number, cost): (usize, u64)| {
        let runs = series.by_target(&group.targets, |cell| Some(matched_at(cell, cost)));
        let exact = series.rate(&group.targets, |cell| Some(exact_at(cell, cost)));
        let with_interval = number.is_multiple_of(MAX_STAGES / WITH_INTERVAL);
        let matched = if with_interval { estimate(&runs) } else { average(&runs) };
        Some(Stage { cost: cost as f64, exact, matched: matched? })
    };
    let costs: BTreeSet<u64> = series.cells.iter().flat_map(|cell| cell.trace.iter().map(|step| step.cost.positions())).collect();
    let every = costs.len().div_ceil(MAX_STAGES).max(1);
    // Counted from the end, which is always drawn.
    let mut stages: Vec<Stage> = costs.into_iter().rev().step_by(every).enumerate().filter_map(stage).collect();
    stages.reverse();
    stages
}

/// A run when its best prompt was last looked at before it had cost more.
fn at(cell: &Cell, cost: u64) -> Option<&Step> {
    last_at(&cell.trace, |it| it.cost.positions() <= cost)
}

fn matched_at(cell: &Cell, cost: u64) -> f64 {
    let best = at(cell, cost).and_then(|it| it.best);
    best.map_or(0.0, |best| (best.matched_prefix as f64 / cell.target_tokens() as f64).min(1.0))
}

/// The reported prompt is the best of all, so a run is exact from the step that found it.
fn exact_at(cell: &Cell, cost: u64) -> bool {
    at(cell, cost).is_some_and(|step| cell.found().is_some_and(|found| found.exact && found.best.step <= step.step))
}
