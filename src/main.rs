//! Parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_freed_memory();
    dlmi::cli::main(std::env::args_os())
}

/// Every operation takes and frees tensors of megabytes, which glibc would give back to the system and fetch again, page by page: a search
/// of bard's took 1.6 times as long. The first two are the largest values that it accepts. A thread's arena of its own is given back
/// whatever they say, in pieces of 64 MiB: a step of SmolLM2 at N = 80 took a seventh longer, and a tenth more memory.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called before any other thread exists; all are plain settings of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
