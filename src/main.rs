//! Parse, run, exit code.

use std::process::ExitCode;

use dlmi::cli::allocator::{self, Allocator};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    dlmi::cli::main(std::env::args_os())
}
