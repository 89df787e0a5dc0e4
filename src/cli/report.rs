//! `dlmi report`: what a study says.

use super::answer;
use super::args::{self, Cli};
use crate::Result;
use crate::report::report;
use crate::ui::visible;

pub(super) fn run(cli: &Cli, verb: &args::Report) -> Result<()> {
    cli.no_settings()?;
    let written = report(&verb.inputs, &verb.folder())?;
    answer(cli, &written, || visible(&written.page.display().to_string()))
}
