//! Figure 5: variance and bias of gradient estimates.

use std::collections::{BTreeMap, BTreeSet};

use super::super::csv::{Csv, exact, text};
use super::super::data::Data;
use super::super::groups::{model_names, slug};
use super::super::palette::Style;
use super::super::scale::Scale;
use super::super::statistics::mean;
use super::super::svg::{Axis, Figure, Mark, Panel};
use crate::distribution::{kolmogorov_smirnov, quantile, sorted};
use crate::gradients::{Compared, Line};

/// What is measured of a gradient.
struct Quantity {
    name: &'static str,
    title: &'static str,
    of: fn(&Line) -> Option<f64>,
}

const QUANTITIES: [Quantity; 3] = [
    Quantity { name: "variance", title: "largest variance over the logits", of: |it| Some(it.measurement.variance.max) },
    Quantity { name: "bias_authors", title: "largest \"bias\", the paper's reference", of: |it| Some(it.measurement.bias_authors?.max) },
    Quantity { name: "bias", title: "mean bias against leave-one-out REINFORCE", of: |it| Some(it.measurement.bias?.mean) },
];

/// A figure for each model, N and number of steps, its variance and biases as violins.
pub(super) fn figures(data: &Data) -> Vec<Figure> {
    let names = model_names(data);
    let mut sorted: BTreeMap<(&str, usize, u64), Vec<&Line>> = BTreeMap::new();
    for gradient in &data.gradients {
        sorted.entry((&gradient.model, gradient.prompt_tokens, gradient.steps)).or_default().push(gradient);
    }
    sorted.into_iter().map(|((model, n, steps), gradients)| figure(&names[model], n, steps, &gradients)).collect()
}

fn figure(model: &str, n: usize, steps: u64, gradients: &[&Line]) -> Figure {
    let estimators = estimators(gradients);
    let mut table =
        Csv::new(&["quantity", "estimator", "values", "mean", "min", "median", "max", "floor", "ks_distance_to_reinforce", "ks_p"]);
    let panels = QUANTITIES
        .iter()
        .map(|quantity| panel(quantity, &estimators, gradients, &mut table))
        .filter(|panel| !panel.marks.is_empty())
        .collect();
    let range = |of: fn(&Line) -> u64| {
        let values: std::collections::BTreeSet<u64> = gradients.iter().map(|gradient| of(gradient)).collect();
        values.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
    };
    Figure {
        name: format!("gradients-{}", slug(model, n as u64, &steps.to_string())),
        title: format!("Figure 5: variance and bias of gradients ({model}, N = {n}, {steps} steps)"),
        caption: format!(
            "A value is one measurement: a step of a run (target × seed) of the estimator itself, {} gradients of {} prompts each, the \
             largest of all N·V logits, or their mean. Violins over logarithms; the mark is the mean, the line goes to the extremes. The \
             paper's reference is REINFORCE from a fresh shared baseline, which is nearly 0, so its \"bias\" is nearly the largest \
             gradient. The other reference is leave-one-out REINFORCE, which is unbiased; the upright line is the floor, what an \
             estimator without any bias would show: by the standard error of the difference, median of the measurements. Values at the \
             floor are no evidence of a bias. Values of one run depend on each other: the p-values of the Kolmogorov–Smirnov tests in the \
             CSV are too small.",
            range(|it| it.draws.into()),
            range(|it| it.samples as u64)
        ),
        panels,
        legend: Vec::new(),
        csv: table,
    }
}

/// The estimators that there are, the paper's first: name, label, style.
fn estimators<'a>(gradients: &[&'a Line]) -> Vec<(&'a str, String, Style)> {
    let all = Compared::all();
    let placed = |name: &'a str| (all.iter().position(|estimator| estimator.label() == name).unwrap_or(all.len()), name);
    let found: BTreeSet<(usize, &str)> = gradients.iter().map(|gradient| placed(&gradient.estimator)).collect();
    let style = |(place, name): (usize, &'a str)| match all.get(place) {
        Some(estimator) => (name, estimator.title().to_owned(), Style::of_method(estimator.method())),
        None => (name, name.to_owned(), Style::of_method("")),
    };
    found.into_iter().map(style).collect()
}

fn panel(quantity: &Quantity, estimators: &[(&str, String, Style)], gradients: &[&Line], table: &mut Csv) -> Panel {
    let of = |name: &str, of: fn(&Line) -> Option<f64>| -> Vec<f64> {
        let own = gradients.iter().filter(|gradient| gradient.estimator == name);
        own.filter_map(|gradient| of(gradient)).filter(|value| value.is_finite()).collect()
    };
    let reinforce = of("reinforce", quantity.of);
    let median = |values: &[f64]| (!values.is_empty()).then(|| quantile(&sorted(values), 0.5));
    let (mut marks, mut lanes) = (Vec::new(), Vec::new());
    for (name, label, style) in estimators {
        let values = of(name, quantity.of);
        if values.is_empty() {
            continue;
        }
        // The mean size of an error is its standard error at most: 0.8 of it where errors are normal, all of it where five gradients hit a
        // logit once or never.
        let floor = (quantity.name == "bias").then(|| median(&of(name, |it| Some(it.measurement.bias?.floor.mean)))).flatten();
        let test = if *name == "reinforce" { None } else { kolmogorov_smirnov(&values, &reinforce) };
        let (distance, p) = (test.map(|test| test.statistic), test.map(|test| test.p));
        let ordered = sorted(&values);
        let number = |value: Option<f64>| value.map_or(String::new(), exact);
        let ends = [Some(mean(&values)), Some(ordered[0]), median(&values), ordered.last().copied(), floor, distance, p].map(number);
        table.rows.push([vec![quantity.name.to_owned(), text(name), values.len().to_string()], ends.to_vec()].concat());
        // A zero has no place on a logarithmic axis.
        marks.push(Mark::Violin(*style, lanes.len(), values.into_iter().filter(|value| *value > 0.0).collect()));
        marks.extend(floor.map(|floor| Mark::Reference(lanes.len(), floor)));
        lanes.push((lanes.len() as f64, label.clone()));
    }
    let drawn = marks.iter().flat_map(|mark| match mark {
        Mark::Violin(_, _, values) => values.clone(),
        Mark::Reference(_, x) => vec![*x],
        _ => Vec::new(),
    });
    let x = Scale::log(drawn);
    Panel {
        title: quantity.title.to_owned(),
        x: Axis { title: String::new(), ticks: x.ticks(), scale: x },
        y: Axis { title: String::new(), scale: Scale::Lanes(lanes.len()), ticks: lanes },
        marks,
    }
}
