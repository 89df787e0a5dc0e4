//! Colour: by meaning, and only where it is wanted.

use std::io::{self, IsTerminal};

use crate::setting::Choice;

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
        Paint::Bold => 1,
    };
    if on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
