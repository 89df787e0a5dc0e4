//! Texts from arguments, files and standard input.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::quoted;
use crate::files::{self, read_stream, utf8};
use crate::{Error, Result};

/// A text longer than any model's context; more is not worth reading.
const LONGEST_TEXT: u64 = 64 << 20;

/// Larger than any list, in bytes: it becomes a setting, which every record holds.
const LARGEST_LIST: u64 = 1 << 20;

static STANDARD_INPUT_WAS_READ: AtomicBool = AtomicBool::new(false);

/// A token id of a list, as JSON has them too: with a space before it.
///
/// # Errors
/// It is none.
pub fn token_id(text: &str) -> Result<u32, &'static str> {
    text.trim().parse().map_err(|_| "a token id is a whole number from 0")
}

/// The lines of a file, or of standard input (`-`), but for empty ones and for spaces at their ends. A list without any is said to be that: it
/// may be another file than was meant.
///
/// # Errors
/// What cannot be read, is larger than 1 MiB, or is not UTF-8.
pub fn read_list(path: &Path) -> Result<String> {
    let (bytes, name) = read(path, LARGEST_LIST)?;
    let text = files::text(bytes, &name)?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        tracing::warn!("{name} is an empty list");
    }
    Ok(lines.join("\n"))
}

/// The text of an argument or of a file; `-` as either is standard input. One newline at the end of a file or of
/// standard input is left out; an argument is taken as it is.
///
/// # Errors
/// What cannot be read, is longer than 64 MiB, or is not UTF-8.
pub fn read_text(argument: Option<OsString>, file: Option<PathBuf>) -> Result<Option<String>> {
    let path = match (argument, file) {
        (Some(text), _) if text != "-" => return utf8(text.into_encoded_bytes(), "the argument").map(Some),
        (argument, file) => argument.map(PathBuf::from).or(file),
    };
    let Some(path) = path else { return Ok(None) };
    let (bytes, name) = read(&path, LONGEST_TEXT)?;
    without_newline(bytes, &name).map(Some)
}

/// What a file, or standard input (`-`), holds, at most so many bytes, and what it is called.
fn read(path: &Path, most: u64) -> Result<(Vec<u8>, String)> {
    match path.as_os_str() == "-" {
        true if STANDARD_INPUT_WAS_READ.swap(true, Ordering::Relaxed) => {
            Err(Error::input("standard input (`-`) can be read only once; put one of the two into a file"))
        }
        true => Ok((standard_input(std::io::stdin().lock(), most)?, "standard input".to_owned())),
        false => Ok((read_stream(path, most)?, quoted(&path.display().to_string()))),
    }
}

/// At most so many bytes.
fn standard_input(source: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = source.take(most + 1).read_to_end(&mut bytes);
    if length.map_err(|error| Error::input(format!("cannot read standard input: {error}")))? as u64 > most {
        return Err(Error::input(format!("standard input is longer than {} MiB; give less", most >> 20)));
    }
    Ok(bytes)
}

fn without_newline(bytes: Vec<u8>, name: &str) -> Result<String> {
    let mut text = files::text(bytes, name)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_its_lines_without_empty_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let list = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            read_list(file.path())
        };
        assert_eq!(list("\u{feff}cat\r\n\n  New York\t\n \n;".as_bytes()).unwrap(), "cat\nNew York\n;");
        assert_eq!(list(b"\n\n").unwrap(), "");
        assert!(list(&[b'a'; (1 << 20) + 1]).unwrap_err().to_string().contains("at most 1048576"));
        assert!(list(b"a\xff").unwrap_err().to_string().contains("byte 1 (0xff)"));
    }

    #[test]
    fn texts_come_as_they_are() {
        let file = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            read_text(None, Some(file.path().into())).map(Option::unwrap)
        };
        assert_eq!(read_text(None, None).unwrap(), None);
        assert_eq!(read_text(Some(" a\n".into()), None).unwrap().unwrap(), " a\n");
        assert_eq!(file(b"a\n\n").unwrap(), "a\n");
        assert_eq!(file(b"a\r\n").unwrap(), "a");
        assert_eq!(file(b"").unwrap(), "");
        assert_eq!(file("\u{feff}a\n".as_bytes()).unwrap(), "a");
        assert!(file(b"ab\xc3(").unwrap_err().to_string().ends_with("is not UTF-8 text: byte 2 (0xc3) starts no valid character"));
        assert!(read_text(None, Some("/nonexistent".into())).unwrap_err().to_string().starts_with("cannot read `/nonexistent`"));
        assert_eq!(standard_input(std::io::repeat(b'a'), 9).unwrap_err().exit_code(), 2);
    }
}
