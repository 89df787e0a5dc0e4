//! The command line: one thin file for each verb.

pub mod allocator;
pub mod args;
mod bench;
mod complete;
mod config;
mod doctor;
mod gradients;
mod invert;
mod methods;
mod models;
mod report;
mod score;
mod session;
mod signals;
mod study;
mod targets;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Cli, Verb};
use clap::error::ErrorKind;
use serde::Serialize;

use crate::terminal::json;
use crate::ui::{self, Color, Policy, print_result};
use crate::{Error, Result, backend};

/// Parses `arguments` (the program's name first), runs the verb, and says how it went.
///
/// Inline, like all callers of [`backend::dispatch`]: the kernels of every backend are then compiled into the program alone, and not
/// into the library and its tests again.
#[inline]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    if let Some(code) = backend::on_start() {
        return code;
    }
    let cli = match args::parse(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let policy = Policy::new(cli.global.color(), cli.global.quiet);
    ui::init_logging(cli.global.verbosity());
    ui::install_panic_hook();
    signals::outlive_file_limits();
    match ui::guarded(|| run(&cli, policy)) {
        Ok(code) => code,
        Err(error) => {
            ui::print_error(policy, &with_flag(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// An error about an option by the flag that sets it, where there is one.
fn with_flag(error: &Error) -> String {
    match error {
        Error::Option { option, message } if args::has_flag(option) => format!("--{}: {message}", option.replace('_', "-")),
        other => other.to_string(),
    }
}

/// Help and the version as clap prints them; wrong usage in one line, like every other error.
fn usage(error: &clap::Error) -> ExitCode {
    let policy = Policy::new(Color::Auto, false);
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that left has seen enough.
            if let Err(failed) = error.print()
                && failed.kind() != std::io::ErrorKind::BrokenPipe
            {
                ui::print_error(policy, &format!("cannot write the result to standard output: {failed}"));
                return ExitCode::from(3);
            }
        }
        _ => ui::print_error(policy, &sentence(&error.render().to_string())),
    }
    ExitCode::from(error.exit_code() as u8)
}

/// clap's paragraphs (what is wrong, a tip, the usage) one after another, and of several usages each.
fn sentence(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let paragraph = |text: &str| text.lines().map(line).collect::<Vec<_>>().join(if text.starts_with("Usage:") { " | " } else { " " });
    let paragraphs = message.split("\n\n").map(paragraph);
    let paragraphs = paragraphs.filter(|paragraph| !paragraph.is_empty() && !paragraph.starts_with("For more information"));
    paragraphs.collect::<Vec<_>>().join("; ").replace("; Usage: ", "; usage: ")
}

#[inline]
fn run(cli: &Cli, policy: Policy) -> Result<ExitCode> {
    match &cli.verb {
        Verb::Invert(verb) => invert::run(cli, verb, policy),
        Verb::Complete(verb) => done(complete::run(cli, verb, policy)),
        Verb::Score(verb) => done(score::run(cli, verb, policy)),
        Verb::Targets(verb) => targets::run(cli, verb, policy),
        Verb::Study(verb) => study::run(cli, verb, policy),
        Verb::Gradients(verb) => gradients::run(cli, verb, policy),
        Verb::Report(verb) => done(report::run(cli, verb)),
        Verb::Bench(verb) => done(bench::run(cli, verb, policy)),
        Verb::Models(verb) => done(models::run(cli, verb, policy)),
        Verb::Methods => done(methods::run(cli)),
        Verb::Doctor => done(doctor::run(cli, policy)),
        Verb::Config(verb) => done(config::run(cli, verb, policy)),
        Verb::Completions { shell } => done(completions(*shell)),
    }
}

/// Prints what a verb came to: as JSON with `--json`, else as people read it.
fn answer(cli: &Cli, result: &impl Serialize, readable: impl FnOnce() -> String) -> Result<()> {
    print_result(&if cli.global.json { json(result) } else { readable() })
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "dlmi", &mut script);
    print_result(&String::from_utf8_lossy(&script))
}
