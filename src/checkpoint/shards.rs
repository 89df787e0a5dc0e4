//! Weights spread over several safetensors files, as `model.safetensors.index.json` lists them.
//!
//! The index is untrusted: it names files. A name that is not a plain file name, or that leads out of the folder, is
//! refused before anything is opened.

use super::storage::Source;
use super::{Tensors, read_text, safetensors};
use crate::error::{Error, Result, quoted};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
/// Each shard is a file held open.
const MOST_SHARDS: usize = 512;
/// Largest index that is read, in bytes.
const LARGEST_INDEX: u64 = 8 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weight files of a folder and the tensors in them: `model.safetensors`, else the shards of the index.
pub(super) fn open_folder(folder: &Path) -> Result<(Vec<Source>, Tensors)> {
    let single = folder.join("model.safetensors");
    let index = folder.join(INDEX);
    if single.exists() {
        let mut source = Source::open(&single)?;
        let tensors = safetensors::tensors(&mut source, 0)?;
        return Ok((vec![source], tensors));
    }
    if index.exists() {
        return open_shards(folder, &index);
    }
    Err(Error::input(format!(
        "{} has neither `model.safetensors` nor `{INDEX}`; give a folder in Hugging Face layout, or the path of a `.gguf` or `.safetensors` file",
        quoted(&folder.display().to_string())
    )))
}

fn open_shards(folder: &Path, path: &Path) -> Result<(Vec<Source>, Tensors)> {
    let origin = path.display().to_string();
    let wrong = |what: String| Error::input(format!("{} {what}", quoted(&origin)));
    let index: Index =
        serde_json::from_str(&read_text(path, LARGEST_INDEX)?).map_err(|error| wrong(format!("is not a valid index: {error}")))?;
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if names.len() > MOST_SHARDS {
        return Err(wrong(format!("names {} files; at most {MOST_SHARDS} are read", names.len())));
    }
    let paths = names.iter().map(|name| inside(folder, name, &origin)).collect::<Result<Vec<_>>>()?;

    let (mut sources, mut tensors) = (Vec::new(), Tensors::new());
    for (number, (name, path)) in names.iter().zip(paths).enumerate() {
        let mut source = Source::open(&path)?;
        for (tensor, entry) in safetensors::tensors(&mut source, number)? {
            if index.weight_map.get(&tensor).map(String::as_str) != Some(name) {
                return Err(wrong(format!("does not place {} in {}, where it lies", quoted(&tensor), quoted(name))));
            }
            tensors.insert(tensor, entry);
        }
        sources.push(source);
    }
    if let Some((tensor, shard)) = index.weight_map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
        return Err(wrong(format!("places {} in {}, which lacks it", quoted(tensor), quoted(shard))));
    }
    Ok((sources, tensors))
}

/// The path of a shard, with links followed.
fn inside(folder: &Path, name: &str, index: &str) -> Result<PathBuf> {
    let refused = |why: &str| Error::input(format!("{} names the file {}, {why}", quoted(index), quoted(name)));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.chars().all(plain) || name.starts_with('.') || !name.ends_with(".safetensors") {
        return Err(refused("which is not the plain name of a `.safetensors` file"));
    }
    let resolve = |path: &Path| path.canonicalize().map_err(|error| Error::reading(path, &error));
    let (home, path) = (resolve(folder)?, resolve(&folder.join(name))?);
    if path.starts_with(&home) || blobs(&home).is_some_and(|blobs| path.starts_with(blobs)) {
        return Ok(path);
    }
    Err(refused("which is a link out of its folder"))
}

/// A snapshot in the hub's cache, `…/snapshots/<revision>`, is made of links into `…/blobs`.
fn blobs(home: &Path) -> Option<PathBuf> {
    let snapshots = home.parent()?;
    (snapshots.file_name()? == "snapshots").then(|| snapshots.with_file_name("blobs"))
}
