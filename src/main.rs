//! Parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    dlmi::cli::main(std::env::args_os())
}
