//! Ctrl-C and SIGTERM: once to end with what there is, twice to end at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::{Error, Result};

/// The first Ctrl-C or SIGTERM leaves its number here; the second one ends the program at once.
pub(super) fn watch_signals() -> Result<Arc<AtomicUsize>> {
    let (number, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, again.clone())
            .and_then(|_| flag::register_usize(signal, number.clone(), signal as usize))
            .and_then(|_| flag::register(signal, again.clone()))
            .map_err(|error| Error::environment(format!("cannot watch for Ctrl-C: {error}")))?;
    }
    Ok(number)
}
