//! What all measurements say: each estimator's variance and bias, and which of them differ.

use serde::Serialize;

use super::{Bias, Compared, Extent, Line};
use crate::distribution::{KolmogorovSmirnov, Quartiles, kolmogorov_smirnov};

/// Of a summary; fields are added, never renamed.
pub const SCHEMA: &str = "dlmi.gradients.summary/1";

/// Every estimator that was measured, and every two of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// `dlmi.gradients.summary/1`.
    pub schema: &'static str,
    /// In the order in which estimators are listed.
    pub estimators: Vec<Figures>,
    /// Every two of them.
    pub tests: Vec<Tests>,
}

/// The measurements of one estimator, over steps, targets and seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Its label.
    pub estimator: &'static str,
    /// Variance of a gradient.
    pub variance: Both,
    /// Difference from the authors' reference.
    pub bias_authors: Both,
    /// Difference from the unbiased reference.
    pub bias: Both,
    /// Standard error of that difference.
    pub floor: Both,
    /// Length of the bias over that of the true gradient, √(`squared` / `gradient_squared`), where the reference shows that there is one.
    pub relative_bias: Option<Quartiles>,
    /// The same of the standard error, √(`floor_squared` / `gradient_squared`): a relative bias below it may be none.
    pub relative_floor: Option<Quartiles>,
}

/// Largest entries, and means over the entries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Both {
    /// Of the largest entries.
    pub max: Option<Quartiles>,
    /// Of the means.
    pub mean: Option<Quartiles>,
}

/// Whether the largest entries of two estimators may come from one distribution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tests {
    /// One.
    pub a: &'static str,
    /// The other.
    pub b: &'static str,
    /// Of the variance.
    pub variance: Option<KolmogorovSmirnov>,
    /// Of the difference from the authors' reference.
    pub bias_authors: Option<KolmogorovSmirnov>,
    /// Of the difference from the unbiased reference.
    pub bias: Option<KolmogorovSmirnov>,
}

/// A size of a measurement.
type Size = fn(&Line) -> Option<Extent>;

const VARIANCE: Size = |line| Some(line.measurement.variance);
const BIAS_AUTHORS: Size = |line| line.measurement.bias_authors;
const BIAS: Size = |line| line.measurement.bias.map(|bias| Extent { max: bias.max, mean: bias.mean });
const FLOOR: Size = |line| line.measurement.bias.map(|bias| bias.floor);

impl Summary {
    /// Of these measurements.
    pub fn of(lines: &[Line]) -> Self {
        let of = |estimator: Compared| -> Vec<&Line> { lines.iter().filter(|line| line.estimator == estimator.label()).collect() };
        let measured: Vec<(&'static str, Vec<&Line>)> = Compared::all()
            .into_iter()
            .map(|estimator| (estimator.label(), of(estimator)))
            .filter(|(_, lines)| !lines.is_empty())
            .collect();
        let pairs = measured.iter().enumerate().flat_map(|(i, a)| measured[i + 1..].iter().map(move |b| (a, b)));
        Self {
            schema: SCHEMA,
            estimators: measured.iter().map(|(estimator, lines)| Figures::of(estimator, lines)).collect(),
            tests: pairs.map(|((a, of_a), (b, of_b))| Tests::of((a, of_a), (b, of_b))).collect(),
        }
    }
}

impl Figures {
    fn of(estimator: &'static str, lines: &[&Line]) -> Self {
        let both = |size: Size| Both { max: Quartiles::of(&largest(lines, size)), mean: Quartiles::of(&means(lines, size)) };
        let relative = |size: fn(&Bias) -> f64| {
            let biases = lines.iter().filter_map(|line| line.measurement.bias.filter(|bias| bias.gradient_squared > 0.0));
            Quartiles::of(&biases.map(|bias| (size(&bias).max(0.0) / bias.gradient_squared).sqrt()).collect::<Vec<_>>())
        };
        Self {
            estimator,
            variance: both(VARIANCE),
            bias_authors: both(BIAS_AUTHORS),
            bias: both(BIAS),
            floor: both(FLOOR),
            relative_bias: relative(|bias| bias.squared),
            relative_floor: relative(|bias| bias.floor_squared),
        }
    }
}

impl Tests {
    fn of((a, of_a): (&'static str, &[&Line]), (b, of_b): (&'static str, &[&Line])) -> Self {
        let test = |size: Size| kolmogorov_smirnov(&largest(of_a, size), &largest(of_b, size));
        Self { a, b, variance: test(VARIANCE), bias_authors: test(BIAS_AUTHORS), bias: test(BIAS) }
    }
}

fn largest(lines: &[&Line], size: Size) -> Vec<f64> {
    lines.iter().filter_map(|line| size(line)).map(|extent| extent.max).collect()
}

fn means(lines: &[&Line], size: Size) -> Vec<f64> {
    lines.iter().filter_map(|line| size(line)).map(|extent| extent.mean).collect()
}
