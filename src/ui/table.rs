//! Names and values, or rows of cells, in aligned columns.

use serde_json::{Map, Value};

use super::escaping::visible;

/// Names and values, a line each.
pub fn pairs(values: &Map<String, Value>) -> String {
    let width = values.keys().map(String::len).max().unwrap_or(0);
    let line = |(name, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name:width$}  {}\n", visible(&value))
    };
    values.iter().map(line).collect()
}

/// Lines of cells, the columns aligned.
pub fn columns(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    let line = |line: &Vec<String>| line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect::<Vec<_>>().join("  ");
    lines.iter().map(|cells| format!("{}\n", line(cells).trim_end())).collect()
}
