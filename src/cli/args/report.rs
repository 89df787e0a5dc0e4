//! The parts of `report`.

use std::path::PathBuf;

use clap::Args;

/// `report`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  dlmi report smoke
  dlmi report here.jsonl there.jsonl -o report
  dlmi report smoke gradients.jsonl

OUT/index.html opens from disk and needs no network. Beside it: each figure as SVG, PNG and CSV, each table as CSV and Markdown.")]
pub struct Report {
    /// Folders of studies (`study run --out`), and JSON Lines of `study merge` and `gradients`
    #[arg(required = true, value_name = "DIR")]
    pub inputs: Vec<PathBuf>,
    /// Where to write [default: DIR/report; beside a file, its name without the ending and `-report`]
    #[arg(short = 'o', long = "report", value_name = "OUT")]
    pub out: Option<PathBuf>,
}

impl Report {
    /// Where to write.
    pub fn folder(&self) -> PathBuf {
        let first = &self.inputs[0];
        let beside = || first.with_file_name(format!("{}-report", first.file_stem().unwrap_or_default().to_string_lossy()));
        self.out.clone().unwrap_or_else(|| if first.is_dir() { first.join("report") } else { beside() })
    }
}
