//! The cache folder, laid out as huggingface_hub does: what is complete in it, what its files should hold, how they come to lie there.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hf_hub::Repo;
use serde::Serialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{EXTRAS, HubConfig, Remote, Spec, is_hex};
use crate::files::{hex, read_text, replace};
use crate::source::Digests;
use crate::source::checkpoint::{CONFIG, INDEX, Index, TOKENIZER, WEIGHTS};
use crate::source::digests::Stamp;
use crate::{Error, Result};

/// Larger than any file that names a commit, in bytes.
const LARGEST_REFERENCE: u64 = 4096;

/// A repository's folder in the cache: `blobs/DIGEST`, `snapshots/COMMIT/NAME` that point there, and `refs/REVISION` that name a commit.
#[derive(Debug)]
pub(super) struct Shelf(PathBuf);

impl Shelf {
    pub fn of(config: &HubConfig, spec: &Spec) -> Self {
        Self(config.cache.join(Repo::model(spec.repo.clone()).folder_name()))
    }

    pub fn blob(&self, digest: &str) -> PathBuf {
        self.0.join("blobs").join(digest)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.0.join("snapshots").join(commit)
    }

    /// The commit that a revision named when it was last fetched.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_hex(revision, 40) {
            return Some(revision.to_owned());
        }
        let commit = read_text(&self.0.join("refs").join(revision), LARGEST_REFERENCE).ok()?.trim().to_owned();
        is_hex(&commit, 40).then_some(commit)
    }

    /// Keeps which commit a revision names.
    pub fn name(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.0.join("refs").join(revision);
        std::fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(|error| Error::writing(&path, &error))?;
        replace(&path, commit.as_bytes())
    }
}

/// Points `link` at `blob`, its neighbour in `../../blobs`.
pub(super) fn link_blob(digest: &str, blob: &Path, link: &Path) -> io::Result<()> {
    let points_there = || link.exists() && std::fs::read_link(link).is_ok_and(|target| target.ends_with(digest));
    if points_there() {
        return Ok(());
    }
    std::fs::create_dir_all(link.parent().unwrap_or(link))?;
    // A dangling link is in the way, or a file that nobody has compared; another process may have just put a right link there.
    let _ = std::fs::remove_file(link);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(Path::new("../../blobs").join(digest), link);
    #[cfg(not(unix))]
    let linked = std::fs::hard_link(blob, link);
    let _ = (digest, blob);
    if link.exists() { Ok(()) } else { linked }
}

/// The digest of a file, of the kind that `wanted` is listed with.
pub(super) fn digest(path: &Path, wanted: &Remote) -> io::Result<String> {
    fn of<H: Digest + Write>(mut hash: H, path: &Path) -> io::Result<String> {
        io::copy(&mut File::open(path)?, &mut hash)?;
        Ok(hex(&hash.finalize()))
    }
    match wanted.digest.len() {
        64 => of(Sha256::new(), path),
        _ => of(Sha1::new().chain_update(format!("blob {}\0", wanted.size)), path),
    }
}

/// Whether a blob has the size and the digest of `wanted`. Large files that `known` knows the digest of are not read again.
pub(super) fn is_intact(blob: &Path, wanted: &Remote, known: Option<&Digests>) -> bool {
    let Ok(metadata) = std::fs::metadata(blob) else { return false };
    let read = || digest(blob, wanted).map_err(|error| Error::reading(blob, &error));
    let found = match known.filter(|_| wanted.digest.len() == 64) {
        Some(known) => known.get(Stamp::of(blob, &metadata).map(|stamp| vec![stamp]), read),
        None => read(),
    };
    metadata.len() == wanted.size && found.is_ok_and(|found| found == wanted.digest)
}

/// The first file that a model folder lacks.
pub(super) fn missing(folder: &Path) -> Option<String> {
    let mut needed = [CONFIG, TOKENIZER].map(str::to_owned).into_iter().chain(weights(folder));
    needed.find(|name| !folder.join(name).is_file())
}

/// The weight files of a model folder: one, or those that an index names.
fn weights(folder: &Path) -> Vec<String> {
    let single = vec![WEIGHTS.to_owned()];
    if folder.join(WEIGHTS).is_file() { single } else { shards(&folder.join(INDEX)).unwrap_or(single) }
}

/// The first file of a model folder that points to a blob whose content is not what the blob's name says, and that blob.
pub(super) fn spoilt(folder: &Path, known: &Digests) -> Option<(String, PathBuf)> {
    let small = [CONFIG, TOKENIZER, INDEX].into_iter().chain(EXTRAS).map(str::to_owned);
    small.chain(weights(folder)).find_map(|name| {
        let blob = folder.join(std::fs::read_link(folder.join(&name)).ok()?);
        let digest = blob.file_name()?.to_str().filter(|name| is_hex(name, 40) || is_hex(name, 64))?.to_owned();
        let wanted = Remote { name, size: std::fs::metadata(&blob).ok()?.len(), digest };
        (!is_intact(&blob, &wanted, Some(known))).then_some((wanted.name, blob))
    })
}

/// The weight files that an index names, each once.
pub(super) fn shards(index: &Path) -> Result<Vec<String>> {
    Ok(Index::read(index)?.files().into_iter().map(str::to_owned).collect())
}

/// A model that can be loaded without a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cached {
    /// What to give as `--model`.
    pub spec: String,
    /// The folder.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

/// The complete models in the cache, by name.
pub fn cached(config: &HubConfig) -> Vec<Cached> {
    let mut models = Vec::new();
    for repo in entries(&config.cache) {
        let name = repo.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = name.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else {
            continue;
        };
        let branches: Vec<(String, String)> = entries(&repo.join("refs"))
            .into_iter()
            .filter_map(|file| {
                let commit = read_text(&file, LARGEST_REFERENCE).ok()?.trim().to_owned();
                Some((commit, file.file_name()?.to_string_lossy().into_owned()))
            })
            .collect();
        for path in entries(&repo.join("snapshots")) {
            let commit = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if missing(&path).is_some() {
                continue;
            }
            let named = branches.iter().find(|(of, _)| *of == commit);
            let spec = match named.map_or(commit.as_str(), |(_, branch)| branch) {
                "main" => name.clone(),
                revision => format!("{name}@{revision}"),
            };
            let sizes = entries(&path).into_iter().filter_map(|file| Some(file.metadata().ok()?.len()));
            models.push(Cached { spec, bytes: sizes.sum(), path });
        }
    }
    models
}

/// The sorted contents of a folder; nothing if there is none.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder).into_iter().flatten();
    let mut found: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}
