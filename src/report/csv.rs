//! Tables as CSV and Markdown.

use super::markup::escaped;
use super::statistics::Estimate;
use crate::terminal::json;

/// A table of text, for CSV.
#[derive(Debug, Clone, Default)]
pub struct Csv {
    /// Names of the columns.
    pub head: Vec<String>,
    /// The lines.
    pub rows: Vec<Vec<String>>,
}

impl Csv {
    /// An empty table.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// RFC 4180 with line feeds. Texts come here as JSON strings ([`text`]), so that none is taken for a formula or holds a line break.
    pub fn to_csv(&self) -> String {
        let field = |value: &String| match value.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", value.replace('"', "\"\"")),
            false => value.clone(),
        };
        let line = |values: &Vec<String>| values.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
        std::iter::once(&self.head).chain(&self.rows).map(line).collect()
    }

    /// As Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |values: &Vec<String>| format!("| {} |\n", values.iter().map(|value| markdown(value)).collect::<Vec<_>>().join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.head.len()));
        line(&self.head) + &rule + &self.rows.iter().map(line).collect::<String>()
    }
}

/// A text as a JSON string.
pub fn text(value: &str) -> String {
    json(&value)
}

/// A number in full.
pub fn exact(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

/// An estimate in full: mean, both ends of its interval, targets and runs.
pub fn numbers(estimate: &Estimate) -> Vec<String> {
    let Estimate { mean, interval, targets, runs } = *estimate;
    let (low, high) = interval.map_or_else(Default::default, |(low, high)| (exact(low), exact(high)));
    vec![exact(mean), low, high, targets.to_string(), runs.to_string()]
}

/// Text within a table of Markdown.
fn markdown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in escaped(text).chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '!') {
            safe.push('\\');
        }
        safe.push(c);
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_field_and_no_formula() {
        let mut csv = Csv::new(&["a", "b"]);
        csv.rows.push(vec![text("=cmd|' /C calc'!A0"), text("x,\"y\"\nz")]);
        assert_eq!(csv.to_csv(), "a,b\n\"\"\"=cmd|' /C calc'!A0\"\"\",\"\"\"x,\\\"\"y\\\"\"\\nz\"\"\"\n");
        assert!(csv.to_csv().lines().count() == 2);
    }

    #[test]
    fn markdown_is_no_markup() {
        let mut csv = Csv::new(&["a"]);
        csv.rows.push(vec!["[x](javascript:y) | <b> `c`\n".to_owned()]);
        assert_eq!(csv.to_markdown(), "| a |\n|---|\n| \\[x\\](javascript:y) \\| &lt;b&gt; \\`c\\`⏎ |\n");
    }
}
