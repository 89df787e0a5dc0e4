//! The errors a user can act on. Each is one sentence that names the thing, the limit and what to do,
//! and knows the exit code of the program.

use std::any::Any;
use std::path::Path;

/// Result of everything that can fail for a reason the user should read.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by whose turn it is to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bad usage, configuration or input: the user changes the command or the file (exit 2).
    #[error("{0}")]
    Input(String),
    /// As [`Error::Input`], about the option of this name (exit 2).
    #[error("`{option}`: {message}")]
    Option {
        /// A field of [`crate::Options`], or a parameter that is chosen like one.
        option: &'static str,
        /// What is wrong with it, and what to do.
        message: String,
    },
    /// The environment lacks something: a device, a driver, the hub, disk space (exit 3).
    #[error("{0}")]
    Environment(String),
    /// Something needs more memory than there is; something smaller may fit (exit 3).
    #[error("{0}")]
    Memory(String),
    /// A signal came before there was anything to show (exit 130).
    #[error("interrupted at its start, before there was a prompt to show")]
    Interrupted,
}

impl Error {
    /// An [`Error::Input`] from anything that reads as a sentence.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// An [`Error::Option`] about a field of [`crate::Options`], or another option of a run such as `resume`.
    pub fn option(option: &'static str, message: impl Into<String>) -> Self {
        Self::Option { option, message: message.into() }
    }

    /// An [`Error::Environment`] from anything that reads as a sentence.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::Environment(message.into())
    }

    /// A failed read: a file that is absent or may not be read is the user's input.
    pub fn reading(path: &Path, error: &std::io::Error) -> Self {
        Self::Input(format!("cannot read `{}`: {error}", path.display()))
    }

    /// A failed write: a full or read-only disk is the environment's fault.
    pub fn writing(path: &Path, error: &std::io::Error) -> Self {
        Self::Environment(format!("cannot write `{}`: {error}", path.display()))
    }

    /// Exit code of the process: 2 input, 3 environment, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) | Self::Option { .. } => 2,
            Self::Environment(_) | Self::Memory(_) => 3,
            Self::Interrupted => 130,
        }
    }
}

/// What a caught panic said, where that is a text.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied())
}

/// A name or value from an untrusted file as it may stand in a message: quoted, without control characters, and the
/// middle left out where it is long (a path says at its end which file it is).
pub(crate) fn quoted(name: &str) -> String {
    const SIDE: usize = 80;
    let escaped = |part: &str| {
        let one = |c: char| if matches!(c, '"' | '\'') { c.to_string() } else { c.escape_debug().to_string() };
        part.chars().map(one).collect::<String>()
    };
    let head = name.char_indices().nth(SIDE).map(|(at, _)| at);
    let tail = name.char_indices().rev().nth(SIDE - 1).map(|(at, _)| at);
    match (head, tail) {
        (Some(head), Some(tail)) if head < tail => format!("`{}…{}`", escaped(&name[..head]), escaped(&name[tail..])),
        _ => format!("`{}`", escaped(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_long_name_keeps_both_ends_and_controls_nothing() {
        assert_eq!(quoted("model.norm"), "`model.norm`");
        assert_eq!(quoted("found \"x\""), "`found \"x\"`");
        assert_eq!(quoted("\u{1b}]0;x\u{7}\n\u{202e}"), "`\\u{1b}]0;x\\u{7}\\n\\u{202e}`");
        let whole = "é".repeat(160);
        assert_eq!(quoted(&whole), format!("`{whole}`"));
        let path = format!("/{}/config.json", "é".repeat(1000));
        let shown = quoted(&path);
        assert!(shown.starts_with("`/é") && shown.ends_with("é/config.json`") && shown.chars().count() == 163, "{shown}");
    }
}
