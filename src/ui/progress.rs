//! How far long work has come, on stderr.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::escaping::{abbreviated, visible};
use super::{Policy, to_stderr};

/// Seconds between two plain progress lines.
const PLAIN_EVERY: f64 = 60.0;
/// Characters of a prompt in a progress line.
const ABBREVIATED: usize = 72;

static LIVE_LINE: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn live_line() -> MutexGuard<'static, Option<ProgressBar>> {
    LIVE_LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `bar` the live line, or none.
pub(super) fn keep_live(bar: Option<&ProgressBar>) {
    *live_line() = bar.cloned();
}

/// A live line on stderr, if there is one, is kept below what is written.
pub(super) fn above_live_line<T>(write: impl FnOnce() -> T) -> T {
    let bar = live_line().clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// How far long work has come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// What is counted; steps where nothing is said.
    pub unit: &'static str,
    /// Steps done.
    pub step: u64,
    /// Steps at most.
    pub steps: Option<u64>,
    /// Share of the work that is done, where some steps take longer than others.
    pub share: Option<f64>,
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
        let share = self.share.or_else(|| Some(self.step as f64 / self.steps? as f64));
        let by_share = share.filter(|share| *share > 0.0).map(|share| self.seconds * (1.0 / share - 1.0));
        by_clock.into_iter().chain(by_share).reduce(f64::min).map(|left| left.max(0.0))
    }

    fn line(&self) -> String {
        let unit = if self.unit.is_empty() { "step" } else { self.unit };
        let mut line = format!("{unit} {}", self.step);
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
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Live(bar) = &self.shown {
            keep_live(None);
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
    keep_live(Some(&bar));
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
