//! Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: once to end with what there is; Ctrl-C or SIGTERM twice to end at once.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGUSR1, SIGXFSZ};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::interrupt::Signal;
use crate::{Error, Result};

/// A file that would grow past a limit (`ulimit -f`) is a write that fails and not the end, as on a full disk.
pub(super) fn outlive_file_limits() {
    #[cfg(unix)]
    drop(flag::register(SIGXFSZ, Arc::default()));
}

/// Comes with the first signal; a second Ctrl-C or SIGTERM ends the program at once.
pub(super) fn watch_signals() -> Result<Signal> {
    let (come, again) = (Signal::default(), Arc::new(AtomicBool::new(false)));
    let number = || come.as_cell();
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, again.clone())
            .and_then(|_| flag::register_usize(signal, number(), signal as usize))
            .and_then(|_| flag::register(signal, again.clone()))
            .map_err(cannot_watch)?;
    }
    // Schedulers send it when the time of a job is nearly up, some of them more than once.
    #[cfg(unix)]
    flag::register_usize(SIGUSR1, number(), SIGUSR1 as usize).map_err(cannot_watch)?;
    // The terminal is gone; under `nohup` it may.
    #[cfg(unix)]
    if !is_ignored(SIGHUP) {
        flag::register_usize(SIGHUP, number(), SIGHUP as usize).map_err(cannot_watch)?;
    }
    Ok(come)
}

/// The exit code of a command that ended because this signal came, as a shell has it.
pub(super) fn ended_by(signal: &Signal) -> ExitCode {
    ExitCode::from(128 + signal.number() as u8)
}

/// Whether the program was started with a signal ignored.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: it only writes the action as it is into `now`, for which all zeros are a value.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Leaves signals to the parent: schedulers send them to every process of a job.
pub(super) fn ignore_signals() -> Result<()> {
    let ignored = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    flag::register(SIGUSR1, ignored.clone()).map_err(cannot_watch)?;
    [SIGINT, SIGTERM].into_iter().try_for_each(|signal| flag::register(signal, ignored.clone()).map(drop).map_err(cannot_watch))
}

fn cannot_watch(error: std::io::Error) -> Error {
    Error::environment(format!("cannot watch for signals: {error}"))
}
