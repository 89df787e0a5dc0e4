//! Figure 4: the temperature by step.

use super::super::csv::text;
use super::super::groups::{Group, Series};
use super::super::scale::Scale;
use super::super::statistics::{Estimate, estimate};
use super::super::svg::{Axis, Figure, Mark, Panel, Point};
use super::{csv, numbers, words};

/// The figure of a group. None where no method has a temperature.
pub(super) fn figure(group: &Group) -> Option<Figure> {
    let found: Vec<(&Series, Vec<(f64, Estimate)>)> =
        group.series.iter().map(|series| (series, by_step(group, series))).filter(|(_, points)| !points.is_empty()).collect();
    if found.is_empty() {
        return None;
    }
    let mut table = csv(&["method", "step"]);
    for (series, points) in &found {
        let row = |(step, estimate): &(f64, Estimate)| [vec![text(series.label), step.to_string()], numbers(estimate)].concat();
        table.rows.extend(points.iter().map(row));
    }
    let ends = found.iter().flat_map(|(_, points)| points).flat_map(|(_, it)| it.interval.map_or([it.mean; 2], |(low, high)| [low, high]));
    let last = found.iter().filter_map(|(_, points)| points.last()).map(|(step, _)| *step).fold(1.0, f64::max);
    let (y, x) = (Scale::log(ends), Scale::Linear(0.0, last));
    let bands = found.iter().map(|(series, points)| {
        Mark::Band(series.style, points.iter().filter_map(|(step, estimate)| Some((*step, estimate.interval?))).collect())
    });
    let lines = found.iter().map(|(series, points)| Mark::Line(series.style, points.iter().map(|(step, it)| (*step, it.mean)).collect()));
    let end = |series: &Series, (step, it): &(f64, Estimate)| {
        let tip = format!("{}: {}", series.label, words(it));
        Point { x: *step, y: it.mean, interval: None, tip }
    };
    let ends_of_lines =
        found.iter().map(|(series, points)| Mark::Points(series.style, points.last().map(|last| end(series, last)).into_iter().collect()));
    Some(Figure {
        name: format!("temperature-{}", group.slug()),
        title: format!("Figure 4: effective temperature by step ({})", group.title()),
        caption: "Mean over the prompt's positions; mean over targets and 95 % interval of a bootstrap over \
                  targets, seeds nested. A run that has stopped keeps its last temperature. Methods without a temperature are left out."
            .into(),
        panels: vec![Panel {
            title: "effective temperature τ, mean over positions".into(),
            x: Axis { title: "step".into(), ticks: x.ticks(), scale: x },
            y: Axis { title: String::new(), ticks: y.ticks(), scale: y },
            marks: bands.chain(lines).chain(ends_of_lines).collect(),
        }],
        legend: super::legend(found.iter().map(|(series, _)| *series)),
        csv: table,
    })
}

/// Steps from the first on that are all drawn, and points on a line after them at most.
const ALL_DRAWN: u64 = 32;
const POINTS: u64 = 128;

/// Mean temperature of a method by step.
fn by_step(group: &Group, series: &Series) -> Vec<(f64, Estimate)> {
    let last = series.cells.iter().map(|cell| cell.temperature.len() as u64).max().unwrap_or(0);
    let every = last.div_ceil(POINTS).max(1);
    let steps = match last {
        0 => series.steps(),
        _ => (1..=last).filter(|step| *step <= ALL_DRAWN || step.is_multiple_of(every)).collect(),
    };
    let at = |step: u64| Some((step as f64, estimate(&series.by_target(&group.targets, |cell| cell.temperature_at(step)))?));
    steps.into_iter().filter_map(at).collect()
}
