//! `dlmi doctor`: what this machine can compute on, and what is missing.

use super::answer;
use super::args::Cli;
use crate::Result;
use crate::backend::doctor;
use crate::ui::{Policy, Progress, visible_block};

pub(super) fn run(cli: &Cli, policy: Policy) -> Result<()> {
    // A GPU's first self-test compiles for up to a minute.
    let progress = Progress::new(policy, "looking at this machine, and testing its GPUs");
    let report = doctor::report()?;
    drop(progress);
    answer(cli, &report, || visible_block(&report.to_string()))
}
