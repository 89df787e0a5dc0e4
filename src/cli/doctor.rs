//! `dlmi doctor`: what this machine can compute on, and what is missing.

use super::answer;
use super::args::Cli;
use crate::Result;
use crate::backend::doctor;
use crate::ui::visible_block;

pub(super) fn run(cli: &Cli) -> Result<()> {
    let report = doctor::report()?;
    answer(cli, &report, || visible_block(&report.to_string()))
}
