//! SHA-256 of weight files, kept from one start to the next: hashing reads gigabytes to learn a name.
//!
//! One small file for each model says of which files, by path, length, time and inode, the digest is. Whatever is wrong with it or with
//! its folder, the weights are hashed again.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::files::{hex, read_small, replace};

/// Largest entry that is read, in bytes: 512 shards of the longest paths.
const LARGEST_ENTRY: u64 = 4 << 20;
/// A file changed less than this ago may change again without its time changing, so that its digest is not kept yet.
const SETTLED: Duration = Duration::from_secs(2);

/// Where digests are kept.
#[derive(Debug, Clone)]
pub struct Digests {
    folder: Option<PathBuf>,
}

/// What is known of a weight file without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    path: PathBuf,
    len: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    device: u64,
    inode: u64,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    files: Vec<Stamp>,
    digest: String,
}

impl Digests {
    /// In the user's cache folder: `$XDG_CACHE_HOME/dlmi/digests`, else `~/.cache/dlmi/digests`. Unit tests leave that folder alone.
    pub fn of_user() -> Self {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
        Self { folder: cache.map(|cache| cache.join("dlmi/digests")).filter(|_| !cfg!(test)) }
    }

    /// In this folder, which need not exist yet.
    pub fn within(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// The folder, where there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The digest of `files`: the kept one, else what `hash` finds, which is then kept. Without files (an embedded model) nothing is kept.
    pub(super) fn get(&self, files: Option<Vec<Stamp>>, hash: impl FnOnce() -> Result<String>) -> Result<String> {
        let Some((files, path)) = files.and_then(|files| self.entry(&files).map(|path| (files, path))) else { return hash() };
        if let Some(digest) = kept(&path, &files) {
            return Ok(digest);
        }
        let digest = hash()?;
        if files.iter().all(Stamp::settled) {
            keep(&path, &Entry { files, digest: digest.clone() });
        }
        Ok(digest)
    }

    /// The entry of these files: named by their paths, so that a model that changes replaces its own.
    fn entry(&self, files: &[Stamp]) -> Option<PathBuf> {
        let mut name = Sha256::new();
        for file in files {
            name.update(file.path.as_os_str().as_encoded_bytes());
            name.update([0]);
        }
        let name = hex(&name.finalize()[..16]);
        Some(self.folder.as_ref()?.join(name))
    }
}

impl Stamp {
    /// Of the file at `path`; none where the system does not tell enough.
    pub fn of(path: &Path, metadata: &Metadata) -> Option<Self> {
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        #[cfg(unix)]
        let (device, inode) = (std::os::unix::fs::MetadataExt::dev(metadata), std::os::unix::fs::MetadataExt::ino(metadata));
        #[cfg(not(unix))]
        let (device, inode) = (0, 0);
        let modified = u64::try_from(modified.as_nanos()).ok()?;
        Some(Self { path: path.canonicalize().ok()?, len: metadata.len(), modified, device, inode })
    }

    fn settled(&self) -> bool {
        let since = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_nanos(self.modified));
        since.is_ok_and(|since| since > SETTLED)
    }
}

fn kept(path: &Path, files: &[Stamp]) -> Option<String> {
    let entry: Entry = serde_json::from_slice(&read_small(path, LARGEST_ENTRY).ok()?).ok()?;
    let is_digest = entry.digest.len() == 64 && entry.digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_digest && entry.files == files).then_some(entry.digest)
}

fn keep(path: &Path, entry: &Entry) {
    let written = serde_json::to_vec(entry).is_ok_and(|json| {
        let folder = path.parent().is_some_and(|folder| std::fs::create_dir_all(folder).is_ok());
        folder && replace(path, &json).is_ok()
    });
    if !written {
        tracing::debug!("the digest of the weights cannot be kept in `{}`", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const DIGESTS: [&str; 2] = ["aa", "bb"];

    fn digest(which: usize) -> String {
        DIGESTS[which].repeat(32)
    }

    fn stamps() -> Vec<Stamp> {
        let stamp = |name: &str| Stamp { path: name.into(), len: 7, modified: 1_000_000_007, device: 1, inode: 2 };
        vec![stamp("/models/a"), stamp("/models/b")]
    }

    /// The digest, and whether it was computed.
    fn get(digests: &Digests, files: Vec<Stamp>, found: usize) -> (String, bool) {
        let hashed = Cell::new(false);
        let hash = || {
            hashed.set(true);
            Ok(digest(found))
        };
        (digests.get(Some(files), hash).unwrap(), hashed.get())
    }

    #[test]
    fn the_same_files_are_hashed_once_and_changed_ones_again() {
        let home = tempfile::tempdir().unwrap();
        let digests = Digests::within(home.path().join("cache/digests"));
        assert_eq!(get(&digests, stamps(), 0), (digest(0), true));
        assert_eq!(get(&digests, stamps(), 1), (digest(0), false));
        let changes: [fn(&mut Stamp); 4] =
            [|stamp| stamp.len += 1, |stamp| stamp.modified += 1, |stamp| stamp.inode += 1, |stamp| stamp.device += 1];
        for change in changes {
            let mut files = stamps();
            change(&mut files[1]);
            assert_eq!(get(&digests, files.clone(), 1), (digest(1), true));
            assert_eq!(get(&digests, files, 0), (digest(1), false));
        }
        // Other paths are another model, the same in another order too.
        let reversed: Vec<Stamp> = stamps().into_iter().rev().collect();
        assert_eq!(get(&digests, reversed, 0), (digest(0), true));
        assert_eq!(std::fs::read_dir(home.path().join("cache/digests")).unwrap().count(), 2);
    }

    #[test]
    fn a_broken_entry_is_ignored_and_replaced() {
        let home = tempfile::tempdir().unwrap();
        let digests = Digests::within(home.path());
        get(&digests, stamps(), 0);
        let entry = digests.entry(&stamps()).unwrap();
        let whole = std::fs::read_to_string(&entry).unwrap();
        let huge = " ".repeat(LARGEST_ENTRY as usize + 1);
        for broken in ["", "{", "[]", &whole[..whole.len() / 2], &whole.replace("aa", "AA"), &whole.replace("aaaa", "aa"), &huge] {
            std::fs::write(&entry, broken).unwrap();
            assert_eq!(get(&digests, stamps(), 1), (digest(1), true), "{broken:.80}");
            assert_eq!(get(&digests, stamps(), 0), (digest(1), false));
        }
    }

    #[test]
    fn without_a_folder_everything_is_hashed() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("file"), "").unwrap();
        for digests in [Digests { folder: None }, Digests::of_user(), Digests::within(home.path().join("file/digests"))] {
            for _ in 0..2 {
                assert_eq!(get(&digests, stamps(), 0), (digest(0), true));
            }
        }
        let digests = Digests::within(home.path().join("digests"));
        assert_eq!(digests.get(None, || Ok(digest(0))).unwrap(), digest(0));
        assert!(!home.path().join("digests").exists());
    }

    #[test]
    fn a_file_that_was_just_written_is_not_trusted_yet() {
        let home = tempfile::tempdir().unwrap();
        let digests = Digests::within(home.path());
        let mut files = stamps();
        files[0].modified = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert_eq!(get(&digests, files.clone(), 0), (digest(0), true));
        assert_eq!(get(&digests, files, 1), (digest(1), true));
    }

    #[test]
    fn many_at_once_leave_a_whole_entry() {
        let home = tempfile::tempdir().unwrap();
        let digests = &Digests::within(home.path());
        std::thread::scope(|scope| {
            for which in 0..8 {
                scope.spawn(move || {
                    for _ in 0..5 {
                        keep(&digests.entry(&stamps()).unwrap(), &Entry { files: stamps(), digest: digest(which % 2) });
                        let (found, hashed) = get(digests, stamps(), 0);
                        assert!(!hashed && (found == digest(0) || found == digest(1)));
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
