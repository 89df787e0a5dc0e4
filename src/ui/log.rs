//! Log lines on stderr, and one sentence where Rust would print a panic.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use tracing::Event;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::escaping::{abbreviated, visible, visible_block};
use super::to_stderr;
use crate::error::panic_message;
use crate::{Error, Result, gpu_memory};

/// Log lines on stderr: errors with -1, warnings with 0, what the program does with 1, details with 2. The libraries
/// below are heard when they warn.
pub fn init_logging(verbosity: i8) {
    let filter = match verbosity {
        ..0 => "error,wgpu=off,wgpu_hal=off",
        // What a font lacks is no news to who asked for a report, nor what a driver lacks that may not be taken.
        0 => "warn,resvg=error,usvg=error,wgpu=off,wgpu_hal=off",
        1 => "warn,dlmi=info,resvg=error,usvg=error,wgpu_hal=off",
        2 => "warn,dlmi=debug",
        3.. => "warn,dlmi=trace",
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).event_format(Line).with_writer(Log);
    // Only the first of several counts, in tests.
    _ = subscriber.try_init();
}

/// `warning: message`.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warning",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        write!(writer, "{level}: ")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Escapes log lines (they name files and tensors that others wrote) and keeps them above the live line.
#[derive(Clone, Copy)]
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        to_stderr(&visible_block(&String::from_utf8_lossy(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// The last panic: what it said and where.
static LAST_PANIC: Mutex<Option<(String, String)>> = Mutex::new(None);

/// Keeps panics off the terminal: they are remembered for [`guarded`] and logged for debugging only, since Burn's
/// device threads panic where an error would do.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message").to_string();
        let place = panic.location().map_or("an unknown place".into(), ToString::to_string);
        tracing::debug!("panic at {place}: {message}\n{}", std::backtrace::Backtrace::capture());
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some((message, place));
    }));
    gpu_memory::watch();
}

/// Runs `work`; a panic becomes one sentence.
///
/// # Errors
/// Those of `work`; for a panic that the GPU has no room, or an internal fault.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(|| gpu_memory::or_error(work))).unwrap_or_else(|payload| {
        let message = panic_message(&*payload).unwrap_or("no message");
        let last = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        if message.contains("ThreadPoolBuildError") {
            return Err(Error::environment(
                "no more threads can be started: set RAYON_NUM_THREADS to fewer, or allow more processes (ulimit -u)",
            ));
        }
        let place = last.filter(|(last, _)| last == message).map_or(String::new(), |(_, place)| format!(" at {place}"));
        let message = abbreviated(&visible(message), 300);
        Err(Error::environment(format!("internal fault{place}: {message}; please report it with the command that led to it")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_sentence() {
        assert_eq!(guarded(|| Ok(5)).unwrap(), 5);
        let error = guarded::<()>(|| panic!("no such\ntensor {}", 7)).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(message.starts_with("internal fault") && message.contains("no such⏎tensor 7") && !message.contains('\n'), "{message}");
        assert!(guarded::<()>(|| Err(Error::input("x"))).unwrap_err().exit_code() == 2);
        // As rayon says it, and the pools of the kernels.
        let error = guarded::<()>(|| panic!("The global thread pool has not been initialized.: ThreadPoolBuildError {{ kind: IOError }}"));
        assert!(error.unwrap_err().to_string().starts_with("no more threads can be started: set RAYON_NUM_THREADS"));
    }
}
