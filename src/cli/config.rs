//! `dlmi config show`: every setting with the layer that set it.

use super::args::{Cli, Config};
use super::session::Session;
use crate::Result;
use crate::ui::{Policy, print_result};

pub(super) fn run(cli: &Cli, Config::Show: &Config, policy: Policy) -> Result<()> {
    let resolved = Session::open(cli, policy)?.resolved;
    match cli.global.json {
        true => print_result(&super::json(&resolved.to_json())),
        false => print_result(&resolved.to_string()),
    }
}
