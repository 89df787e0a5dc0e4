//! What a study says: the paper's figures and tables with intervals, as a page that opens from disk, and as files.
//!
//! Records go in one direction: [`data`] reads them, [`mod@groups`] puts side by side what may be compared, [`statistics`] makes means and
//! intervals of it, `figures` and `tables` say what is shown, `svg`, `png`, `csv` and `page` how.

pub mod csv;
pub mod data;
mod figures;
pub mod groups;
mod markup;
mod page;
mod palette;
mod png;
pub mod records;
mod scale;
pub mod statistics;
mod svg;
mod table;
mod tables;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::files::{make_folder, replace};
use data::Data;
use figures::figures;
use groups::{Group, groups};
use svg::Figure;
use table::Table;

/// What a report holds.
struct Report<'a> {
    data: &'a Data,
    groups: Vec<Group<'a>>,
    figures: Vec<Figure>,
    /// Scores, overlaps, differences.
    comparisons: Vec<Table>,
    /// Tables 3 and 4.
    prompts: Vec<Table>,
    cells: Table,
}

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// Runs of studies that were read.
    pub cells: usize,
    /// Measurements of gradients that were read.
    pub gradients: usize,
    /// Figures, each as SVG, PNG and CSV.
    pub figures: usize,
    /// Tables, each as CSV and Markdown.
    pub tables: usize,
}

/// Reads records from folders of studies and files of JSON Lines, and writes `index.html` and all figures and tables into `folder`.
///
/// # Errors
/// Those of [`records::read`]; the folder cannot be written.
pub fn report(paths: &[PathBuf], folder: &Path) -> Result<Written> {
    let data = records::read(paths)?;
    let report = Report::of(&data);
    make_folder(folder, "report")?;
    for figure in &report.figures {
        let (svg, file) = (figure.svg(), |ending: &str| folder.join(format!("{}.{ending}", figure.name)));
        replace(&file("png"), &png::png(&svg)?)?;
        replace(&file("svg"), svg.as_bytes())?;
        replace(&file("csv"), figure.csv.to_csv().as_bytes())?;
    }
    for table in report.tables() {
        let file = |ending: &str| folder.join(format!("{}.{ending}", table.name));
        replace(&file("csv"), table.csv().to_csv().as_bytes())?;
        replace(&file("md"), table.markdown().as_bytes())?;
    }
    let page = folder.join("index.html");
    replace(&page, report.page().as_bytes())?;
    let (figures, tables) = (report.figures.len(), report.tables().count());
    Ok(Written { page, cells: data.cells.len(), gradients: data.gradients.len(), figures, tables })
}

impl<'a> Report<'a> {
    fn of(data: &'a Data) -> Self {
        let groups = groups(data);
        let mut report = Self {
            figures: figures(data, &groups),
            comparisons: groups.iter().flat_map(tables::comparisons).collect(),
            prompts: groups.iter().map(tables::prompts).collect(),
            cells: tables::cells(data),
            groups,
            data,
        };
        report.tell_names_apart();
        report
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.comparisons.iter().chain(&self.prompts).chain(Some(&self.cells).filter(|table| !table.rows.is_empty()))
    }

    /// Two models may come to the same part of a file's name.
    fn tell_names_apart(&mut self) {
        let mut seen = HashSet::new();
        let figures = self.figures.iter_mut().map(|figure| &mut figure.name);
        let tables = self.comparisons.iter_mut().chain(&mut self.prompts).map(|table| &mut table.name);
        for name in figures.chain(tables) {
            let own = name.clone();
            let mut number = 2;
            while !seen.insert(name.clone()) {
                *name = format!("{own}-{number}");
                number += 1;
            }
        }
    }
}
