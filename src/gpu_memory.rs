//! Notices that a GPU has run out of memory.
//!
//! Burn hands a GPU's work to a thread of its own. A buffer that cannot be had is a panic there, which the runtime catches and logs; it leaves
//! out whatever needs that buffer and goes on, and what is read afterwards is what stood in other memory before. So the panic is noticed by a
//! hook, and nothing that is read after it is believed ([`check`]).

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::sync::OnceLock;

use crate::{Error, Result};

/// What the first such panic said.
static SAID: OnceLock<String> = OnceLock::new();

/// How the threads are called on which CubeCL runs a device.
const THREAD: &str = "DS";
/// What stands in a panic about a buffer that cannot be had: CubeCL's, wgpu's, and wgpu's about limits of a device.
const SIGNS: [&str; 5] = ["can't allocate buffer", "Out of Memory", "OutOfMemory", "buffer_binding_size", "maximum buffer size"];

/// Has the panic hook notice such panics, before it does what it did. A hook that is set later must be watched again.
pub fn watch() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        notice(panic);
        before(panic);
    }));
}

/// Notices a panic of a device's own thread that says that a buffer cannot be had.
fn notice(panic: &PanicHookInfo) {
    let of_device = std::thread::current().name().is_some_and(|name| name.starts_with(THREAD));
    let sign = panic.payload_as_str().filter(|_| of_device).and_then(sign);
    sign.map(|line| SAID.get_or_init(|| line.to_owned()));
}

/// The line of a panic that says that a buffer cannot be had.
fn sign(message: &str) -> Option<&str> {
    message.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

/// The error to end with, once such a panic was noticed.
pub fn exhausted() -> Option<Error> {
    SAID.get().map(|line| error(line))
}

fn error(line: &str) -> Error {
    let bytes = line.split(|c: char| !c.is_ascii_digit()).find_map(|number| number.parse::<u64>().ok().filter(|&bytes| bytes >= 1 << 20));
    let buffer = bytes.map_or("a buffer".to_owned(), |bytes| format!("a buffer of {} MiB", bytes >> 20));
    Error::Memory(format!(
        "the GPU has no room for {buffer}: let less be computed at once (--max-memory, fewer samples or candidates), use --dtype f16 or a \
         smaller model, or compute on the CPU (--backend flex)"
    ))
}

/// Runs `work`, and has that error in place of the panic that [`check`] ends it with. Nothing more can be computed in this process then.
///
/// # Errors
/// Those of `work`; a GPU has no room.
pub fn or_error<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| exhausted().map_or_else(|| resume_unwind(panic), Err))
}

/// Called when something was read from a device.
///
/// # Panics
/// Once such a panic was noticed. Who catches it finds the reason with [`exhausted`].
pub fn check() {
    if let Some(error) = exhausted() {
        panic!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the runtimes write it, and what they say of tuning that fails.
    #[test]
    fn a_shortage_is_told_from_other_panics() {
        let cubecl = "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 3221225472\n   0: std::backtrace";
        let limit = "wgpu error: Validation Error\n\nCaused by:\n  In Device::create_bind_group\n    \
                     Buffer binding 0 range 150994944 exceeds `max_*_buffer_binding_size` limit 134217728\n";
        for (said, size) in [(cubecl, "a buffer of 3072 MiB:"), (limit, "a buffer of 144 MiB:"), ("wgpu error: Out of Memory", "a buffer:")]
        {
            let message = error(sign(said).unwrap()).to_string();
            assert!(message.contains(size) && !message.contains('\n'), "{message}");
        }
        for other in ["called `Result::unwrap()` on an `Err` value: CallError", "wgpu error: Validation Error\n\nCaused by:\n  a shader"] {
            assert_eq!(sign(other), None);
        }
        assert!(exhausted().is_none());
    }
}
