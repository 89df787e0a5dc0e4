//! A table whose fields know what they are: on the page, as Markdown, and with every number in full as CSV.

use super::csv::{Csv, exact, numbers, text};
use super::scale::number;
use super::statistics::{Estimate, Rate};
use crate::ui::visible;

/// Rows of fields.
pub struct Table {
    /// Its part of file names.
    pub name: String,
    /// One line above it.
    pub title: String,
    /// What it shows and how, in sentences.
    pub caption: String,
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Vec<Field>>,
}

/// A column: its name, the names that it has in CSV, and whether the page offers its values for a choice.
#[derive(Debug, Clone)]
pub struct Column {
    /// On the page.
    pub name: String,
    /// In CSV.
    pub csv: Vec<String>,
    /// Few values, to choose from.
    pub choice: bool,
}

/// What stands in a table.
#[derive(Debug, Clone)]
pub enum Field {
    /// A word or a sentence of the program's own.
    Word(String),
    /// A text of others.
    Text(String),
    /// What a model wrote, and what it should have written.
    Output(String, String),
    /// A count or a measurement.
    Number(f64),
    /// A mean with its interval.
    Estimate(Option<Estimate>),
    /// Successes among runs.
    Rate(Rate),
    /// Nothing.
    None,
}

/// A column of words, texts or numbers.
pub fn column(name: &str) -> Column {
    Column { name: name.to_owned(), csv: vec![name.replace(' ', "_")], choice: false }
}

/// As [`column`], with few values.
pub fn choice(name: &str) -> Column {
    Column { choice: true, ..column(name) }
}

/// A column of means.
pub fn estimates(name: &str) -> Column {
    let csv = ["", "_low", "_high", "_targets", "_runs"].map(|end| name.replace(' ', "_") + end).to_vec();
    Column { name: name.to_owned(), csv, choice: false }
}

/// A column of rates.
pub fn rates(name: &str) -> Column {
    let csv = ["", "_of", "_low", "_high"].map(|end| name.replace(' ', "_") + end).to_vec();
    Column { name: name.to_owned(), csv, choice: false }
}

impl Field {
    /// A number that may be missing.
    pub fn optional(number: Option<f64>) -> Self {
        number.map_or(Self::None, Self::Number)
    }

    /// As people read it; of a text, what acts in it is made visible.
    pub fn shown(&self) -> String {
        match self {
            Self::Word(text) => text.clone(),
            Self::Text(text) | Self::Output(text, _) => visible(text),
            Self::Number(value) => number(*value),
            Self::Estimate(Some(Estimate { mean, interval: Some((low, high)), .. })) => {
                format!("{} [{}, {}]", two(*mean), two(*low), two(*high))
            }
            Self::Estimate(Some(Estimate { mean, .. })) => two(*mean),
            Self::Rate(Rate { runs: 0, .. }) | Self::Estimate(None) | Self::None => "–".to_owned(),
            Self::Rate(rate) => {
                let (Rate { successes, runs, .. }, (low, high)) = (rate, rate.interval());
                format!("{successes} of {runs} [{low:.2}, {high:.2}]")
            }
        }
    }

    /// What it is sorted by, where that is a number.
    pub fn order(&self) -> Option<f64> {
        match self {
            Self::Number(value) => Some(*value),
            Self::Estimate(found) => found.map(|it| it.mean),
            Self::Rate(rate) => Some(rate.share()),
            _ => None,
        }
    }

    /// Whether it is a number, known or not.
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Estimate(_) | Self::Rate(..) | Self::None)
    }

    fn csv(&self, fields: usize) -> Vec<String> {
        match self {
            Self::Word(word) => vec![word.clone()],
            Self::Text(value) | Self::Output(value, _) => vec![text(value)],
            Self::Number(value) => vec![exact(*value)],
            Self::Estimate(Some(estimate)) => numbers(estimate),
            Self::Rate(rate) => {
                let (low, high) = rate.interval();
                vec![rate.successes.to_string(), rate.runs.to_string(), exact(low), exact(high)]
            }
            Self::Estimate(None) | Self::None => vec![String::new(); fields],
        }
    }
}

/// Two digits behind the point, with a true minus.
fn two(x: f64) -> String {
    format!("{x:.2}").replace("-0.00", "0.00").replace('-', "−")
}

impl Table {
    /// With every number in full.
    pub fn csv(&self) -> Csv {
        let row = |fields: &Vec<Field>| fields.iter().zip(&self.columns).flat_map(|(field, column)| field.csv(column.csv.len())).collect();
        Csv { head: self.columns.iter().flat_map(|column| column.csv.clone()).collect(), rows: self.rows.iter().map(row).collect() }
    }

    /// As people read it.
    pub fn markdown(&self) -> String {
        let rows = self.rows.iter().map(|fields| fields.iter().map(Field::shown).collect()).collect();
        Csv { head: self.columns.iter().map(|column| column.name.clone()).collect(), rows }.to_markdown()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_fills_its_columns() {
        let estimate = Estimate { mean: -0.004, interval: Some((-0.25, 0.5)), targets: 2, runs: 4 };
        let table = Table {
            name: String::new(),
            title: String::new(),
            caption: String::new(),
            columns: vec![column("method"), estimates("score"), rates("exact"), column("n")],
            rows: vec![
                vec![
                    Field::Text("a,b".into()),
                    Field::Estimate(Some(estimate)),
                    Field::Rate(Rate { successes: 1, runs: 2, targets: 2 }),
                    Field::Number(0.125),
                ],
                vec![Field::Word("x".into()), Field::Estimate(None), Field::Rate(Rate { successes: 0, runs: 2, targets: 2 }), Field::None],
            ],
        };
        let csv = table.csv().to_csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], "method,score,score_low,score_high,score_targets,score_runs,exact,exact_of,exact_low,exact_high,n");
        assert!(lines[1].starts_with("\"\"\"a,b\"\"\",-0.004,-0.25,0.5,2,4,1,2,0.09"), "{}", lines[1]);
        assert!(lines[2].starts_with("x,,,,,,0,2,0,") && lines[2].ends_with(','), "{}", lines[2]);
        assert!(table.markdown().contains("| a,b | 0.00 \\[−0.25, 0.50\\] | 1 of 2"), "{}", table.markdown());
    }
}
