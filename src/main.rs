//! Parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_freed_memory();
    dlmi::cli::main(std::env::args_os())
}

/// Every operation takes and frees tensors of megabytes, which glibc would give back to the system and fetch again, page by page:
/// a search of bard's took 1.6 times as long. These are the largest values that it accepts.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called before any other thread exists; both are plain settings of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
