//! `dlmi config show`: every setting with the layer that set it.

use super::answer;
use super::args::{Cli, Config};
use super::session::Session;
use crate::Result;
use crate::ui::Policy;

pub(super) fn run(cli: &Cli, Config::Show: &Config, policy: Policy) -> Result<()> {
    let resolved = Session::open(cli, policy)?.resolved;
    answer(cli, &resolved.to_json(), || resolved.to_string())
}
