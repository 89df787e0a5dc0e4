//! `dlmi doctor`: what this machine can compute on, and what is missing.

use super::args::Cli;
use crate::Result;
use crate::backend::doctor;
use crate::ui::{print_result, visible_block};

pub(super) fn run(cli: &Cli) -> Result<()> {
    let report = doctor::report()?;
    match cli.global.json {
        true => print_result(&super::json(&report)),
        false => print_result(&visible_block(&report.to_string())),
    }
}
