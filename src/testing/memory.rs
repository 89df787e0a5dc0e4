//! An allocator that counts, so that a test can bound what hostile input makes the program take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes that this thread has taken and not given back, and the most they have been.
    static TAKEN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that ends has no counter any more.
    let _ = TAKEN.try_with(|taken| {
        let (now, most) = taken.get();
        taken.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came; counting takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(block, layout) }
    }
}

/// What `code` returns, and the most memory that this thread held while it ran, in bytes beyond what it held before.
pub fn peak_memory<T>(code: impl FnOnce() -> T) -> (T, usize) {
    let (before, _) = TAKEN.get();
    TAKEN.set((before, before));
    let result = code();
    let (_, most) = TAKEN.get();
    (result, (most - before) as usize)
}

#[test]
fn memory_is_counted() {
    let (_, peak) = peak_memory(|| {
        drop(vec![0u8; 3 << 20]);
        let mut grown = vec![1u8; 1 << 20];
        grown.reserve_exact(2 << 20);
        grown.len()
    });
    assert!((3 << 20..4 << 20).contains(&peak), "{peak}");
}
