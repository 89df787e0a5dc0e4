//! How the program takes the machine's memory: what it frees it keeps, and where none is left it ends with a sentence.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::memory::ADVICE;

/// The system's allocator; a request that it refuses ends the process with one line and exit code 3, where Rust would abort it. Sizes that
/// are known are compared with what is left before they are asked for ([`crate::backend::memory::require`]): this is for all the small ones.
pub struct Allocator;

/// Whether the process is to die of a request that is refused.
static DEADLY: AtomicBool = AtomicBool::new(false);

/// From now on a refused request ends the process by a signal: its parent takes an exit code for a fault that other workers would have too.
pub fn die_when_refused() {
    DEADLY.store(true, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        granted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        granted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        granted(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

#[inline]
fn granted(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        refused(size);
    }
    block
}

/// The end. Nothing here takes memory; of several threads the first one speaks.
#[cold]
fn refused(size: usize) -> ! {
    static SPEAKS: AtomicBool = AtomicBool::new(false);
    while SPEAKS.swap(true, Ordering::Relaxed) {
        std::thread::park();
    }
    let mut stderr = std::io::stderr().lock();
    _ = writeln!(stderr, "error: out of memory: {} KiB more are not to be had: {ADVICE}", size.div_ceil(1 << 10));
    if DEADLY.load(Ordering::Relaxed) {
        std::process::abort();
    }
    std::process::exit(3)
}

/// Every operation takes and frees tensors of megabytes, which glibc would give back to the system and fetch again, page by page: a search
/// of bard's took 1.6 times as long. The first two are the largest values that it accepts. A thread's arena of its own is given back
/// whatever they say, in pieces of 64 MiB: a step of SmolLM2 at N = 80 took a seventh longer, and a tenth more memory. To be called before
/// any other thread exists.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: all are plain settings of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
