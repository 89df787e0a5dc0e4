//! The cache folder: what is complete in it, and how files come to lie in it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CONFIG, HubConfig, INDEX, TOKENIZER, WEIGHTS, is_plain};
use crate::{Error, Result};

/// Longest index that is read: 600 000 tensors.
const INDEX_LIMIT: u64 = 64 << 20;

/// Points `link` at `blob`, its neighbour in `../../blobs`, as hf-hub and its Python twin do.
pub(super) fn link_blob(digest: &str, blob: &Path, link: &Path) -> std::io::Result<()> {
    if link.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(link.parent().unwrap_or(link))?;
    // A dangling link is in the way; another process may have just put a right one there.
    let _ = std::fs::remove_file(link);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(Path::new("../../blobs").join(digest), link);
    #[cfg(not(unix))]
    let linked = std::fs::hard_link(blob, link);
    let _ = (digest, blob);
    if link.exists() { Ok(()) } else { linked }
}

/// The first file that a model folder lacks.
pub(super) fn missing(folder: &Path) -> Option<String> {
    let lacks = |name: &&str| !folder.join(name).is_file();
    if let Some(name) = [CONFIG, TOKENIZER].iter().find(|name| lacks(name)) {
        return Some((*name).to_owned());
    }
    if !lacks(&WEIGHTS) {
        return None;
    }
    match shards(&folder.join(INDEX)) {
        Ok(shards) => shards.into_iter().find(|name| lacks(&name.as_str())),
        Err(_) => Some(WEIGHTS.to_owned()),
    }
}

/// The weight files that an index names, each once. The names are anybody's, so only plain ones pass.
pub(super) fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let size = std::fs::metadata(index).map_err(|error| Error::reading(index, &error))?.len();
    if size > INDEX_LIMIT {
        return Err(Error::input(format!("`{}` is larger than 64 MiB", index.display())));
    }
    let bytes = std::fs::read(index).map_err(|error| Error::reading(index, &error))?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|error| Error::input(format!("`{}` is not a weight index: {error}", index.display())))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(Error::input("the weight index names no file"));
    }
    match names.iter().find(|name| !is_plain(name) || !name.ends_with(".safetensors")) {
        Some(name) => Err(Error::input(format!("the weight index names `{}`, which is not a plain file name", name.escape_debug()))),
        None => Ok(names),
    }
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
                let commit = std::fs::read_to_string(&file).ok()?.trim().to_owned();
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
