//! Files and texts from outside: reads with a limit, UTF-8 with an offset in the error, writes that are whole or absent.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use tempfile::{NamedTempFile, PersistError};

use crate::error::quoted;
use crate::{Error, Result};

/// How the note begins that Git LFS leaves in place of a file which was not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Opens a regular file and says how many bytes it has. Whatever else lies there (a pipe would block for ever) is refused before it is
/// opened.
///
/// # Errors
/// What cannot be opened, what is no regular file, and a Git LFS pointer.
pub fn open_regular(path: &Path) -> Result<(File, std::fs::Metadata)> {
    let reading = |error| Error::reading(path, &error);
    if !std::fs::metadata(path).map_err(reading)?.is_file() {
        return Err(Error::input(format!("{} is not a regular file", quoted(&path.display().to_string()))));
    }
    let mut file = File::open(path).map_err(reading)?;
    let metadata = file.metadata().map_err(reading)?;
    let mut beginning = Vec::new();
    (&file).take(LFS_POINTER.len() as u64).read_to_end(&mut beginning).map_err(reading)?;
    if beginning == LFS_POINTER {
        return Err(Error::input(format!(
            "{} is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`",
            quoted(&path.display().to_string())
        )));
    }
    file.rewind().map_err(reading)?;
    Ok((file, metadata))
}

/// The whole of a regular file that may not be larger than `limit` bytes.
///
/// # Errors
/// As [`open_regular`], and a file that is larger.
pub fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, metadata) = open_regular(path)?;
    let too_large = |len| Error::input(format!("{} has {len} bytes; at most {limit} are read", quoted(&path.display().to_string())));
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::new();
    // One more than may be there: the file may have grown since.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::reading(path, &error))?;
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// As [`read_small`], of a [`text`].
///
/// # Errors
/// Those of [`read_small`] and of [`utf8`].
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    text(read_small(path, limit)?, &quoted(&path.display().to_string()))
}

/// As [`utf8`], of a whole file: the byte order mark that some editors put first is no part of the text.
///
/// # Errors
/// As [`utf8`].
pub fn text(bytes: Vec<u8>, name: &str) -> Result<String> {
    let mut text = utf8(bytes, name)?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// How long a pipe is waited for before it is said that it is.
const QUIET_WAIT: Duration = Duration::from_secs(2);

/// The whole of whatever can be read from its beginning to its end, a pipe (`<(command)`) as well as a file, if that is no more than
/// `limit` bytes. A pipe that nobody writes is waited for, and that is said.
///
/// # Errors
/// What cannot be read, and what is larger.
pub fn read_stream(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let is_regular = std::fs::metadata(path).map_err(|error| Error::reading(path, &error))?.is_file();
    if is_regular {
        return read_small(path, limit);
    }
    let (sender, receiver) = channel();
    let source: PathBuf = path.into();
    // Opening a pipe blocks too; who stops the program ends this thread with it.
    std::thread::spawn(move || sender.send(read_bytes(&source, limit)));
    let name = quoted(&path.display().to_string());
    let bytes = receiver.recv_timeout(QUIET_WAIT).or_else(|error| {
        if error == RecvTimeoutError::Timeout {
            tracing::warn!("waiting for {name}, until whoever writes it is done");
        }
        receiver.recv()
    });
    let bytes = bytes.unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into())).map_err(|error| Error::reading(path, &error))?;
    match bytes.len() as u64 > limit {
        true => Err(Error::input(format!("{name} has more than {limit} bytes, which is all that is read of it"))),
        false => Ok(bytes),
    }
}

/// At most one byte more than `limit`.
fn read_bytes(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes, as a rule a digest's, in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text from bytes that `name` (an argument, a file, standard input) brought.
///
/// # Errors
/// An input error that names the offset of the first byte which is not UTF-8.
pub fn utf8(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Error::input(format!("{name} is not UTF-8 text: byte {offset} (0x{:02x}) starts no valid character", error.as_bytes()[offset]))
    })
}

/// What a line of a file of `/proc` says in kB (`VmRSS:   2048 kB`), in bytes; nothing where the system has no such line.
pub fn kilobytes(path: &str, name: &str) -> Option<u64> {
    kilobytes_in(&std::fs::read_to_string(path).ok()?, name)
}

fn kilobytes_in(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Takes the lock of a file that was opened from `path`; false where another process holds it.
///
/// # Errors
/// The file system has no locks, or fails.
pub fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => {
            Err(Error::environment(format!("cannot lock `{}`: {error}; name a folder on another file system", path.display())))
        }
    }
}

/// Opens a file to lock it, and makes it where there is none.
///
/// # Errors
/// [`Error::Environment`] with the path.
pub fn open_lock(path: &Path) -> Result<File> {
    let opened = File::options().create(true).read(true).write(true).truncate(false).open(path);
    opened.map_err(|error| Error::writing(path, &error))
}

/// What this machine calls itself; nothing where it does not say.
pub fn host_name() -> String {
    std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned()
}

/// Writes a temporary file in the same folder, then renames it: whatever happens, the old or the new content is there, whole.
///
/// # Errors
/// [`Error::Environment`] with the path.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    place(path, content, |file| file.persist(path)).map_err(|error| Error::writing(path, &error))
}

/// The same where nothing may be yet; `option` named the path.
///
/// # Errors
/// As [`replace`]; input where something is there.
#[cfg(feature = "cli")]
pub fn create(path: &Path, content: &[u8], option: &'static str) -> Result<()> {
    place(path, content, |file| file.persist_noclobber(path)).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Error::option(option, format!("`{}` is already there; name another file", path.display())),
        _ => Error::writing(path, &error),
    })
}

/// Writes a temporary file beside `path`, and has it renamed.
fn place(
    path: &Path,
    content: &[u8],
    rename: impl FnOnce(NamedTempFile) -> std::result::Result<File, PersistError>,
) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = temporary_in(folder)?;
    file.as_file_mut().write_all(content)?;
    file.as_file().sync_all()?;
    rename(file)?;
    sync_folder(folder)
}

/// Writes what somebody wants at `path`. A file, or what a link leads to, is replaced as by [`replace`]; into what is no file, such as a pipe,
/// a device or what is open already (`/dev/stdout`), it is written.
///
/// # Errors
/// [`Error::Environment`] with the path.
#[cfg(feature = "cli")]
pub fn write_to(path: &Path, content: &[u8]) -> Result<()> {
    let writing = |error: std::io::Error| Error::writing(path, &error);
    let is_open = ["/dev/fd", "/proc"].iter().any(|root| path.starts_with(root));
    if is_open || path.metadata().is_ok_and(|found| !found.is_file()) {
        return File::options().append(true).open(path).and_then(|mut file| file.write_all(content)).map_err(writing);
    }
    match std::fs::read_link(path) {
        Ok(target) => write_to(&path.parent().unwrap_or(Path::new("")).join(target), content),
        Err(_) => replace(path, content),
    }
}

/// Whether both paths lead to one file that is there.
#[cfg(feature = "cli")]
pub fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Makes the folder that `option` names, with those above it.
///
/// # Errors
/// A file is there; [`Error::Environment`] where it cannot be made.
pub fn make_folder(path: &Path, option: &'static str) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return Err(Error::option(option, format!("`{}` is a file; name a folder", path.display())));
    }
    std::fs::create_dir_all(path).map_err(|error| Error::writing(path, &error))
}

/// Makes a rename outlive the machine, where the file system can: some know no such thing of a folder.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// A temporary file that whoever the umask lets may read: by itself it would be its owner's alone. An error does not say its name, which nobody
/// gave it.
fn temporary_in(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|error| match error.to_string().split_once(" at path ") {
        Some((cause, _)) => std::io::Error::new(error.kind(), cause),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_to_its_end_or_to_the_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        assert_eq!(read_stream(file.path(), 5).unwrap(), b"12345");
        assert!(read_stream(file.path(), 4).unwrap_err().to_string().contains("5 bytes"));
        assert!(read_stream(Path::new("/nonexistent"), 4).unwrap_err().to_string().contains("/nonexistent"));
        assert!(read_stream(file.path().parent().unwrap(), 4).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn what_never_ends_is_refused_and_a_pipe_is_waited_for() {
        assert_eq!(read_stream(Path::new("/dev/null"), 4).unwrap(), b"");
        let error = read_stream(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("1048576 bytes"), "{error}");

        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let writer = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::write(pipe, "late").unwrap())
        };
        assert_eq!(read_stream(&pipe, 4).unwrap(), b"late");
        writer.join().unwrap();
    }

    #[test]
    fn what_the_system_says_in_kilobytes_are_bytes() {
        assert_eq!(kilobytes_in("MemFree: 1 kB\nMemAvailable:    2048 kB\n", "MemAvailable:"), Some(2 << 20));
        assert_eq!(kilobytes_in("MemFree: 1 kB\n", "MemAvailable:"), None);
        assert_eq!(kilobytes("/nonexistent", "VmRSS:"), None);
    }

    #[test]
    fn one_process_holds_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (first, second) = (File::create(&path).unwrap(), File::open(&path).unwrap());
        assert!(try_lock(&first, &path).unwrap());
        assert!(!try_lock(&second, &path).unwrap());
        drop(first);
        assert!(try_lock(&second, &path).unwrap());
    }

    /// A handle that only names a place (O_PATH) stands for a file system without locks.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_lock_that_cannot_be_had_is_not_held_by_another_process() {
        use std::os::unix::fs::OpenOptionsExt;
        let folder = tempfile::tempdir().unwrap();
        let place = File::options().read(true).custom_flags(0o10_000_000).open(folder.path()).unwrap();
        let error = try_lock(&place, folder.path()).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().starts_with("cannot lock `"), "{error}");
    }

    /// A device or a pipe stays what it is, and so does a link.
    #[cfg(all(unix, feature = "cli"))]
    #[test]
    fn what_is_no_file_is_written_into() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for content in ["one", "two"] {
            std::fs::write(&file, "before").unwrap();
            write_to(&link, content.as_bytes()).unwrap();
            assert!(std::fs::read_to_string(&file).unwrap() == content && link.symlink_metadata().unwrap().is_symlink());
        }
        std::fs::remove_file(&file).unwrap();
        write_to(&link, b"new").unwrap();
        assert!(std::fs::read_to_string(&file).unwrap() == "new" && link.symlink_metadata().unwrap().is_symlink());
        // A file in a folder of the devices is a file.
        if let Ok(shared) = tempfile::tempdir_in("/dev/shm") {
            let file = shared.path().join("file");
            ["before", "new"].iter().for_each(|content| write_to(&file, content.as_bytes()).unwrap());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        }
        write_to(Path::new("/dev/null"), b"one").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
        assert!(write_to(folder.path(), b"one").is_err() && same_file(&file, &link) && !same_file(&file, &folder.path().join("none")));
        let (there, nowhere) = (create(&file, b"one", "out").unwrap_err(), folder.path().join("no/where"));
        assert!(there.exit_code() == 2 && std::fs::read_to_string(&file).unwrap() == "new", "{there}");
        for error in [replace(&nowhere, b"one").unwrap_err(), create(&nowhere, b"one", "out").unwrap_err()] {
            assert!(error.exit_code() == 3 && error.to_string().matches(".tmp").count() == 1, "of the folder alone: {error}");
        }
        assert!(make_folder(&file, "out").unwrap_err().to_string().ends_with("is a file; name a folder"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file_but_of_an_argument() {
        let (folder, marked) = (tempfile::tempdir().unwrap(), "\u{feff}a\u{feff}");
        let path = folder.path().join("text");
        std::fs::write(&path, marked).unwrap();
        assert_eq!(read_text(&path, 10).unwrap(), "a\u{feff}");
        assert_eq!(utf8(marked.into(), "the argument").unwrap(), marked);
        std::fs::write(&path, b"\xef\xbb\xbfa\xff").unwrap();
        assert!(read_text(&path, 10).unwrap_err().to_string().contains("byte 4 (0xff)"));
    }

    #[test]
    fn a_git_lfs_pointer_is_called_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        std::fs::write(&path, pointer).unwrap();
        let text = open_regular(&path).unwrap_err().to_string();
        assert!(text.contains("model.safetensors` is a Git LFS pointer") && text.contains("git lfs pull"), "{text}");
        // A file is read from its first byte on.
        std::fs::write(&path, &pointer[1..]).unwrap();
        assert_eq!(read_small(&path, 1000).unwrap(), pointer.as_bytes()[1..]);
    }
}
