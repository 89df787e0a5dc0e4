//! What a template may take: it is untrusted, and its engine descends into itself once for every level of what it is given.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::files::kilobytes;

/// Bytes of a template. Real ones have up to 40 000; each byte may be a level of an expression.
pub(super) const LARGEST: usize = 64 << 10;
/// Instructions of a rendering, of which each 64 bytes of a value are one too. A chat takes some thousands.
pub(super) const FUEL: u64 = 1 << 18;
/// Stack of the thread that compiles or renders: deep enough for expressions of as many levels as a template has bytes, and for values as
/// deeply nested as the fuel lets them be.
const STACK: usize = 256 << 20;
/// How long, in waits and the seconds of each, and with how many bytes of memory that thread may work: the engine does not count all that
/// it does (sums of lists are free). Waits are counted, not a clock's seconds, since a program may be stopped and go on.
const WAITS: u32 = 500;
const WAIT: Duration = Duration::from_millis(10);
const MEMORY: u64 = 512 << 20;

/// What `work` gives on a thread of its own; nothing where it goes beyond these bounds. Such a thread is left to itself, and ends with the
/// program.
///
/// # Errors
/// No thread can be started.
pub(super) fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<Option<T>> {
    let (done, outcome) = channel();
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || done.send(work()));
    thread.map_err(|error| Error::environment(format!("no thread can be started: {error}")))?;
    let resident = || kilobytes("/proc/self/status", "VmRSS:").unwrap_or(0);
    let most = resident() + MEMORY;
    for _ in 0..WAITS {
        match outcome.recv_timeout(WAIT) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) if resident() < most => {}
            Err(_) => break,
        }
    }
    Ok(None)
}
