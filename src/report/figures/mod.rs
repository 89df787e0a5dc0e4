//! The paper's figures, and one of its own: success against cost.

mod gradients;
mod lcs;
mod success;
mod temperature;

use super::csv::{Csv, numbers};
use super::data::Data;
use super::groups::{Group, Series};
use super::palette::Style;
use super::statistics::Estimate;
use super::svg::Figure;

/// All figures that the data has numbers for, in the paper's order.
pub fn figures(data: &Data, groups: &[Group]) -> Vec<Figure> {
    let each = |figure: fn(&Group) -> Option<Figure>| groups.iter().filter_map(figure).collect::<Vec<_>>();
    [each(lcs::figure), each(temperature::figure), gradients::figures(data), each(success::figure)].into_iter().flatten().collect()
}

/// Styles and labels of series.
fn legend<'a>(series: impl Iterator<Item = &'a Series<'a>>) -> Vec<(Style, String)> {
    series.map(|series| (series.style, series.label.to_owned())).collect()
}

/// `0.25 [0.1, 0.4], 3 targets, 6 runs`.
pub fn words(estimate: &Estimate) -> String {
    let interval = estimate.interval.map_or(String::new(), |(low, high)| format!(" [{low:.3}, {high:.3}]"));
    let s = |n: usize| if n == 1 { "" } else { "s" };
    let Estimate { mean, targets, runs, .. } = *estimate;
    format!("{mean:.3}{interval}, {targets} target{}, {runs} run{}", s(targets), s(runs))
}

/// A table with these columns, and after them those that [`numbers`] fills.
fn csv(columns: &[&str]) -> Csv {
    Csv::new(&[columns, &["mean", "low", "high", "targets", "runs"]].concat())
}
