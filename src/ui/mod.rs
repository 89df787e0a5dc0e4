//! What people see: escaped text, colour, progress, log lines, and one sentence where Rust would print a panic.

mod transfer;

use std::fmt::{self, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::Event;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::setting::Choice;
use crate::{Error, Result};

pub use transfer::transfer_bar;

/// Seconds between two plain progress lines.
const PLAIN_EVERY: f64 = 60.0;
/// Characters of a prompt in a progress line.
const ABBREVIATED: usize = 72;

/// Text for one line of a terminal: characters that would act, hide or reorder are shown instead (ESC as `␛`, a
/// newline as `⏎`, a right-to-left override as `\u{202e}`). Model texts are the least trustworthy there are.
pub fn visible(text: &str) -> String {
    escaped(text, |_| false)
}

/// As [`visible`], but newlines and tabs are kept.
pub fn visible_block(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if keep(c) => shown.push(c),
            '\n' => shown.push('⏎'),
            // Unicode has a picture of every C0 character.
            '\0'..='\u{1f}' => shown.extend(char::from_u32(0x2400 + u32::from(c))),
            '\u{7f}' => shown.push('␡'),
            _ if c.is_control() || is_invisible(c) => shown.extend(c.escape_unicode()),
            _ => shown.push(c),
        }
    }
    shown
}

/// Zero-width, direction-changing, line-breaking and blank characters outside the control codes.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// At most `length` characters, the last one `…` where something was left out.
pub fn abbreviated(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some(_) => text.chars().take(length.saturating_sub(1)).chain(['…']).collect(),
        None => text.into(),
    }
}

/// When to print in colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Choice for Color {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Auto, "auto", "On a terminal, unless NO_COLOR is set"),
        (Self::Always, "always", "Always"),
        (Self::Never, "never", "Never"),
    ];
}

impl Color {
    fn on(self, terminal: bool, no_color: bool) -> bool {
        match self {
            Self::Auto => terminal && !no_color,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Colours by meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// What worked.
    Good,
    /// What deserves attention.
    Notice,
    /// What failed.
    Bad,
    /// What matters less.
    Dim,
    /// What matters most.
    Bold,
}

/// What may be shown where, from the flags, the environment and the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Colour on stdout.
    pub color_out: bool,
    /// Colour on stderr.
    pub color_err: bool,
    /// stderr is a terminal that can rewrite a line.
    pub live: bool,
    /// No progress at all.
    pub quiet: bool,
}

impl Policy {
    /// Looks at the streams and at `NO_COLOR` and `TERM`.
    pub fn new(color: Color, quiet: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").map_or(cfg!(unix), |term| term == "dumb");
        let (out, err) = (io::stdout().is_terminal() && !dumb, io::stderr().is_terminal() && !dumb);
        let on = |terminal| color.on(terminal, set("NO_COLOR"));
        Self { color_out: on(out), color_err: on(err), live: err, quiet }
    }
}

/// `text` in colour where `on`.
pub fn paint(on: bool, paint: Paint, text: &str) -> String {
    let code = match paint {
        Paint::Good => 32,
        Paint::Notice => 33,
        Paint::Bad => 31,
        Paint::Dim => 2,
        Paint::Bold => 1,
    };
    if on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.into() }
}

/// Prints the result on stdout, with a newline at its end. That nobody reads on is no error (`| head`).
///
/// # Errors
/// Stdout cannot be written for another reason: a full disk.
pub fn print_result(text: &str) -> Result<()> {
    print_part(text).map(drop)
}

/// As [`print_result`], for a part of a result, at once and above the live line. False when nobody reads on: the rest is in vain.
///
/// # Errors
/// Those of [`print_result`].
pub fn print_part(text: &str) -> Result<bool> {
    above_live_line(|| write_result(&mut io::stdout().lock(), text))
}

fn write_result(out: &mut impl io::Write, text: &str) -> Result<bool> {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    // In one go: who is interrupted leaves whole lines.
    let written = out.write_all(format!("{text}{newline}").as_bytes()).and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::environment(format!("cannot write the result to standard output: {error}"))),
    }
}

/// Prints an error on stderr.
pub fn print_error(policy: Policy, error: &str) {
    let line = format!("{} {}\n", paint(policy.color_err, Paint::Bad, "error:"), visible(error));
    to_stderr(&line);
}

fn to_stderr(text: &str) {
    // A closed stderr leaves nobody to tell.
    above_live_line(|| _ = io::stderr().lock().write_all(text.as_bytes()));
}

/// A live line on stderr, if there is one, is kept below what is written.
fn above_live_line<T>(write: impl FnOnce() -> T) -> T {
    let bar = live_line().clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

static LIVE_LINE: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn live_line() -> MutexGuard<'static, Option<ProgressBar>> {
    LIVE_LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far long work has come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Steps done.
    pub step: u64,
    /// Steps at most.
    pub steps: Option<u64>,
    /// Seconds since the work began.
    pub seconds: f64,
    /// Seconds at most.
    pub max_seconds: Option<f64>,
    /// The best score so far, `17/20 right, hinge 1.6`.
    pub best: String,
    /// The current prompt.
    pub text: Option<String>,
}

impl Status {
    /// Seconds until the first of the budgets ends, if there is one.
    fn left(&self) -> Option<f64> {
        let by_clock = self.max_seconds.map(|max| max - self.seconds);
        let by_steps =
            self.steps.filter(|_| self.step > 0).map(|steps| self.seconds / self.step as f64 * steps.saturating_sub(self.step) as f64);
        by_clock.into_iter().chain(by_steps).reduce(f64::min).map(|left| left.max(0.0))
    }

    fn line(&self) -> String {
        let mut line = format!("step {}", self.step);
        if let Some(steps) = self.steps {
            _ = write!(line, "/{steps}");
        }
        if !self.best.is_empty() {
            _ = write!(line, " · {}", self.best);
        }
        _ = match self.left() {
            Some(left) => write!(line, " · {} left", clock(left)),
            None => write!(line, " · {}", clock(self.seconds)),
        };
        if let Some(text) = &self.text {
            _ = write!(line, " · {}", abbreviated(&visible(text), ABBREVIATED));
        }
        line
    }
}

/// `4:07`, `1:02:03`.
fn clock(seconds: f64) -> String {
    // `as` saturates, so no number of seconds is too many.
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Progress of long work on stderr: a line that is rewritten on a terminal, elsewhere one line a minute.
#[derive(Debug)]
pub struct Progress {
    what: String,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Live(ProgressBar),
    /// Seconds of the last line.
    Plain(f64),
    Nothing,
}

impl Progress {
    /// Begins to show progress of `what`, "inverting 20 tokens".
    pub fn new(policy: Policy, what: impl Into<String>) -> Self {
        let what = visible(&what.into());
        let shown = match policy {
            Policy { quiet: true, .. } => Shown::Nothing,
            Policy { live: true, .. } => Shown::Live(live(&what)),
            _ => Shown::Plain(0.0),
        };
        Self { what, shown }
    }

    /// Shows how far it is, where it is time to.
    pub fn update(&mut self, status: &Status) {
        match &mut self.shown {
            Shown::Live(bar) => bar.set_message(format!("{} · {}", self.what, status.line())),
            Shown::Plain(last) => {
                if let Some(line) = plain(&self.what, last, status) {
                    to_stderr(&line);
                }
            }
            Shown::Nothing => (),
        }
    }

    /// Takes the live line away.
    pub fn finish(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Live(bar) = &self.shown {
            *live_line() = None;
            bar.finish_and_clear();
        }
    }
}

fn live(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(150));
    *live_line() = Some(bar.clone());
    bar
}

/// The plain line, if the last one is a minute ago.
fn plain(what: &str, last: &mut f64, status: &Status) -> Option<String> {
    if status.seconds - *last < PLAIN_EVERY {
        return None;
    }
    *last = status.seconds;
    Some(format!("{what} · {}\n", status.line()))
}

/// Log lines on stderr: errors with -1, warnings with 0, what the program does with 1, details with 2. The libraries
/// below are heard when they warn.
pub fn init_logging(verbosity: i8) {
    let filter = match verbosity {
        ..0 => "error",
        0 => "warn",
        1 => "warn,dlmi=info",
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
}

/// Runs `work`; a panic becomes one sentence.
///
/// # Errors
/// Those of `work`, and an environment error for a panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let message =
            payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let last = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        let place = last.filter(|(last, _)| last == message).map_or(String::new(), |(_, place)| format!(" at {place}"));
        let message = abbreviated(&visible(message), 300);
        Err(Error::environment(format!("internal fault{place}: {message}; please report it with the command that led to it")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown() {
        assert_eq!(visible("a\u{1b}]52;c;eA==\u{7}\r\n\tb\0"), "a␛]52;c;eA==␇␍⏎␉b␀");
        assert_eq!(visible("\u{9b}31m \u{7f}"), "\\u{9b}31m ␡");
        assert_eq!(
            visible("abc\u{202e}def\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}"),
            "abc\\u{202e}def\\u{2066}\\u{200b}\\u{feff}\\u{2028}\\u{e0041}"
        );
        assert_eq!(visible_block("a\n\tb\r\u{1b}"), "a\n\tb␍␛");
        assert_eq!(visible("Grüße, 世界 🙂 'x' \\ \""), "Grüße, 世界 🙂 'x' \\ \"");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_gets_through(text in any::<String>()) {
            let shown = visible(&text);
            prop_assert!(!shown.chars().any(|c| c.is_control() || is_invisible(c)));
            prop_assert_eq!(visible(&shown), shown);
        }

        #[test]
        fn an_abbreviation_is_no_longer_than_asked(text in any::<String>(), length in 1..30usize) {
            let short = abbreviated(&text, length);
            prop_assert!(short.chars().count() <= length);
            prop_assert_eq!(short == text, text.chars().count() <= length || text.ends_with('…') && text.chars().count() == length);
        }
    }

    #[test]
    fn colour_follows_flag_then_environment_then_stream() {
        assert!(Color::Auto.on(true, false));
        assert!(!Color::Auto.on(false, false));
        assert!(!Color::Auto.on(true, true));
        assert!(Color::Always.on(false, true));
        assert!(!Color::Never.on(true, false));
        assert_eq!(paint(true, Paint::Bad, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(paint(false, Paint::Bad, "x"), "x");
    }

    #[test]
    fn a_status_line_says_how_far_and_how_long() {
        let status = Status { step: 64, steps: Some(256), seconds: 32.0, best: "17/20 right, hinge 1.6".into(), ..Status::default() };
        assert_eq!(status.line(), "step 64/256 · 17/20 right, hinge 1.6 · 1:36 left");
        let both = Status { max_seconds: Some(60.0), ..status.clone() };
        assert_eq!(both.left(), Some(28.0));
        let over = Status { max_seconds: Some(10.0), ..status.clone() };
        assert_eq!(over.left(), Some(0.0));
        let free = Status { steps: None, text: Some("a\nb".into()), seconds: 3723.0, ..status };
        assert_eq!(free.line(), "step 64 · 17/20 right, hinge 1.6 · 1:02:03 · a⏎b");
        assert_eq!(Status { steps: Some(9), ..Status::default() }.left(), None, "no step yet, no guess");
        assert!(!clock(f64::INFINITY).is_empty() && !clock(f64::NAN).is_empty());
    }

    #[test]
    fn plain_progress_is_a_line_a_minute() {
        let mut last = 0.0;
        let shown: Vec<_> = (0..=300)
            .map(|seconds| Status { seconds: f64::from(seconds), step: 1, ..Status::default() })
            .filter(|status| plain("inverting", &mut last, status).is_some())
            .map(|status| status.seconds)
            .collect();
        assert_eq!(shown, [60.0, 120.0, 180.0, 240.0, 300.0]);
    }

    struct Broken(ErrorKind);

    impl io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error_but_a_full_disk_is() {
        let mut out = Vec::new();
        assert!(write_result(&mut out, "a\n").unwrap());
        assert!(write_result(&mut out, "b").unwrap());
        assert_eq!(out, b"a\nb\n");
        assert!(!write_result(&mut Broken(ErrorKind::BrokenPipe), "x").unwrap());
        assert_eq!(write_result(&mut Broken(ErrorKind::StorageFull), "x").unwrap_err().exit_code(), 3);
    }

    #[test]
    fn a_panic_becomes_one_sentence() {
        assert_eq!(guarded(|| Ok(5)).unwrap(), 5);
        let error = guarded::<()>(|| panic!("no such\ntensor {}", 7)).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(message.starts_with("internal fault") && message.contains("no such⏎tensor 7") && !message.contains('\n'), "{message}");
        assert!(guarded::<()>(|| Err(Error::input("x"))).unwrap_err().exit_code() == 2);
    }
}
