//! What people see: results on stdout; errors, log lines and progress on stderr.

mod colour;
mod escaping;
mod log;
mod progress;
pub mod table;
mod transfer;

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use crate::{Error, Result};

pub use colour::{Color, Paint, Policy, paint};
pub use escaping::{abbreviated, visible, visible_block};
pub use log::{guarded, init_logging, install_panic_hook};
pub use progress::{Progress, Status};
pub use transfer::transfer_bar;

use progress::above_live_line;

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

/// Prints a text that a model wrote: on a terminal with what would act there escaped; into a file or a pipe as it is, with a newline that
/// whoever reads a text from standard input leaves out again.
///
/// # Errors
/// Those of [`print_result`].
pub fn print_text(text: &str) -> Result<()> {
    match io::stdout().is_terminal() {
        true => print_result(&visible_block(text)),
        false => above_live_line(|| write_all(&mut io::stdout().lock(), &readable_again(text))).map(drop),
    }
}

/// A carriage return before the newline would go with it.
fn readable_again(text: &str) -> String {
    if text.ends_with('\r') { text.to_owned() } else { format!("{text}\n") }
}

fn write_result(out: &mut impl io::Write, text: &str) -> Result<bool> {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    // In one go: who is interrupted leaves whole lines.
    write_all(out, &format!("{text}{newline}"))
}

fn write_all(out: &mut impl io::Write, text: &str) -> Result<bool> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_text_is_the_same_once_a_newline_is_left_out() {
        for text in ["a", "a\n", "a\r", "a\r\n", "", "\n", "\u{1b}[31m"] {
            let printed = readable_again(text);
            let read = printed.strip_suffix('\n').map_or(&*printed, |text| text.strip_suffix('\r').unwrap_or(text));
            assert_eq!(read, text);
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
}
