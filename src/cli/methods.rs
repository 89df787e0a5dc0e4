//! `dlmi methods`: the paper's Table 1 from the registered methods.

use serde_json::{Map, Value};

use super::answer;
use super::args::Cli;
use crate::Result;
use crate::method::registry::MethodName;
use crate::ui::table::columns;

/// The first of these columns are Table 1's, the others the rest of what makes a method that method.
const TABLE_1: usize = 4;

pub(super) fn run(cli: &Cli) -> Result<()> {
    let row = |method: MethodName| method.registered().defaults.row().map(|row| (method, row.words()));
    let rows: Vec<_> = MethodName::all().filter_map(row).collect();
    let object = |(method, words): &Row| -> Map<String, Value> {
        let words = words.iter().map(|(column, cell)| ((*column).to_owned(), Value::from(cell.clone())));
        std::iter::once(("method".to_owned(), method.to_string().into())).chain(words).collect()
    };
    answer(cli, &rows.iter().map(object).collect::<Vec<_>>(), || readable(&rows))
}

/// A method and its columns, each with its name.
type Row = (MethodName, [(&'static str, String); 8]);

fn readable(rows: &[Row]) -> String {
    let part = |from: usize, to: usize| {
        let titles = rows[0].1[from..to].iter().map(|(column, _)| column.replace('_', " "));
        let titles = std::iter::once("method".to_owned()).chain(titles).collect();
        let cells = rows.iter().map(|(method, words)| {
            std::iter::once(method.to_string()).chain(words[from..to].iter().map(|(_, cell)| cell.clone())).collect()
        });
        columns(&std::iter::once(titles).chain(cells).collect::<Vec<_>>())
    };
    let has_row = |method: &MethodName| rows.iter().any(|(known, _)| known == method);
    let others: Vec<String> = MethodName::all().filter(|method| !has_row(method)).map(|method| method.to_string()).collect();
    format!(
        "{}\n{}\nWithout a row: {}. `dlmi invert --help` says what each does.",
        part(0, TABLE_1),
        part(TABLE_1, rows[0].1.len()),
        others.join(", ")
    )
}
