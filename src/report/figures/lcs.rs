//! Figures 2 and 3: the LCS ratio against the difficulty k, each score a panel.

use super::super::csv::text;
use super::super::groups::{Group, SCORES, Score, Series};
use super::super::scale::Scale;
use super::super::statistics::Estimate;
use super::super::svg::{Axis, Figure, Mark, Panel, Point};
use super::{csv, legend, numbers, words};

/// The figure of a group. None where no target has a k.
pub(super) fn figure(group: &Group) -> Option<Figure> {
    let ks: Vec<f64> = group.by_k().iter().filter_map(|(k, _)| k.map(f64::from)).collect();
    if ks.is_empty() {
        return None;
    }
    let mut table = csv(&["score", "method", "k"]);
    for (score, series) in SCORES.iter().flat_map(|score| group.all_series().map(move |series| (score, series))) {
        for (k, estimate) in by_k(group, series, score) {
            table.rows.push([vec![score.name.to_owned(), text(series.label), k.to_string()], numbers(&estimate)].concat());
        }
    }
    let floor = match group.floor {
        Some(_) => "The grey line and band are the floor: prompts that nobody searched for.",
        None => "No floor is drawn: there are no cells labelled <code>floor</code> on these targets.",
    };
    Some(Figure {
        name: format!("lcs-{}", group.slug()),
        title: format!("Figures 2 and 3: LCS ratio against k ({})", group.title()),
        caption: format!(
            "What the last step of a run scores; never compare two panels. Mean over targets and 95 % interval of a bootstrap over \
             targets, seeds nested; points are moved aside so as not to cover each other. {floor}"
        ),
        panels: SCORES.iter().map(|score| panel(group, score, &ks)).collect(),
        legend: legend(group.all_series()),
        csv: table,
    })
}

fn panel(group: &Group, score: &Score, ks: &[f64]) -> Panel {
    let floor = group.floor.iter().flat_map(|floor| {
        let found = by_k(group, floor, score);
        let band = found.iter().filter_map(|(k, estimate)| Some((*k, estimate.interval?))).collect();
        let line = found.iter().map(|(k, estimate)| (*k, estimate.mean)).collect();
        [Mark::Band(floor.style, band), Mark::Line(floor.style, line)]
    });
    let point = |series: &Series, (k, estimate): (f64, Estimate)| {
        let tip = format!("{}, k = {k}: {}", series.label, words(&estimate));
        Point { x: k, y: estimate.mean, interval: estimate.interval, tip }
    };
    let points = |series: &Series| by_k(group, series, score).into_iter().map(|found| point(series, found)).collect::<Vec<_>>();
    let series = group.series.iter().map(|series| Mark::Points(series.style, points(series)));
    let shares = Scale::Linear(0.0, 1.0);
    Panel {
        title: format!("{}: {}", score.name, score.title),
        x: Axis {
            title: "k, rank of the target's tokens".into(),
            scale: Scale::places(ks),
            ticks: ks.iter().map(|k| (*k, k.to_string())).collect(),
        },
        y: Axis { title: "LCS ratio".into(), ticks: shares.ticks(), scale: shares },
        marks: floor.chain(series).collect(),
    }
}

/// A score of a method at each k.
fn by_k(group: &Group, series: &Series, score: &Score) -> Vec<(f64, Estimate)> {
    let of = |(k, targets): (Option<u32>, Vec<_>)| Some((f64::from(k?), series.estimate(&targets, score.of)?));
    group.by_k().into_iter().filter_map(of).collect()
}
