//! `dlmi report`: what a study says.

use super::args::{self, Cli};
use super::json;
use crate::Result;
use crate::report::report;
use crate::ui::{print_result, visible};

pub(super) fn run(cli: &Cli, verb: &args::Report) -> Result<()> {
    cli.no_settings()?;
    let written = report(&verb.inputs, &verb.folder())?;
    if cli.global.json {
        return print_result(&json(&written));
    }
    print_result(&visible(&written.page.display().to_string()))
}
