//! `org/name[@revision]` on the Hugging Face hub → a local folder with config, tokenizer and weights.
//!
//! The hub's own listing of a commit says what each file must be before the first one is asked for. Names, sizes, digests and commits are
//! checked before they become a path or a request, and nothing is kept whose digest is wrong. The cache's layout (hf-hub's) and the
//! variables are those of the hub's Python client, so that both use one cache and one login. hf-hub's own client is not used: it sends the
//! login's token to every port of its host, looks for it beside the cache, and checks neither size nor digest.

mod environment;
mod store;
mod transfer;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use crate::source::Digests;
use crate::source::checkpoint::{CONFIG, INDEX, TOKENIZER, WEIGHTS};
use crate::{Error, Result};
use store::{Shelf, is_intact, link_blob, missing, shards, spoilt};
use transfer::Client;

pub use environment::HubConfig;
pub use store::{Cached, cached};
pub use wire::Patience;

/// What a model may have besides.
const EXTRAS: [&str; 4] = ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// How far one file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer<'a> {
    /// Its name in the repository.
    pub file: &'a str,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Is told about every piece of a file that arrives.
pub type Observer<'a> = &'a dyn Fn(&Transfer);

/// An observer that does nothing.
pub const SILENT: Observer<'static> = &|_| ();

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// `org/name`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self> {
        let (repo, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let halves: Vec<&str> = repo.split('/').collect();
        if halves.len() != 2 || !halves.into_iter().all(is_plain) || !revision.split('/').all(is_plain) {
            return Err(Error::input(format!(
                "`{spec}` is not a model of the form org/name or org/name@revision (letters, digits, `.`, `_` and `-`)"
            )));
        }
        Ok(Self { repo: repo.into(), revision: revision.into() })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)
    }
}

impl Spec {
    /// The folder of the commit that the revision named when it was last fetched.
    fn snapshot(&self, config: &HubConfig) -> Option<PathBuf> {
        let shelf = Shelf::of(config, self);
        Some(shelf.snapshot(&shelf.commit(&self.revision)?))
    }
}

/// One path component that means itself everywhere.
fn is_plain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.len() <= 255 && name.bytes().all(allowed)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The local folder of `spec`: the cached one without any request if it is complete and its files are what their names in the cache say,
/// else what [`pull`] fetches. Large files are read for that once, then again only after they have changed.
///
/// # Errors
/// As [`pull`].
pub fn resolve(config: &HubConfig, spec: &str, observer: Observer) -> Result<PathBuf> {
    let spec: Spec = spec.parse()?;
    match spec.snapshot(config) {
        Some(folder) if missing(&folder).is_none() && spoilt(&folder, &config.digests).is_none() => Ok(folder),
        _ => fetch(config, &spec, Some(&config.digests), observer),
    }
}

/// Asks the hub what `spec` is now and fetches what the cache lacks or has wrong (all of it is read), telling `observer`. Returns the
/// folder with `config.json`, `tokenizer.json` and the weights as safetensors.
///
/// # Errors
/// Input for a malformed spec; environment if the hub may not be asked, does not have the model or its files, or
/// does not deliver what it lists.
pub fn pull(config: &HubConfig, spec: &str, observer: Observer) -> Result<PathBuf> {
    fetch(config, &spec.parse()?, None, observer)
}

fn fetch(config: &HubConfig, spec: &Spec, known: Option<&Digests>, observer: Observer) -> Result<PathBuf> {
    if let Some(forbids) = &config.offline {
        return Err(without_request(config, spec, forbids));
    }
    let client = Client::new(config, spec)?;
    let listing = client.listing()?;
    if !is_hex(&listing.sha, 40) {
        return Err(Error::environment(format!("the hub names no commit for {spec}")));
    }
    Fetcher { shelf: Shelf::of(config, spec), known, observer, client, spec, listing }.run()
}

/// Why a model cannot be had where requests are forbidden.
fn without_request(config: &HubConfig, spec: &Spec, forbids: &str) -> Error {
    let Spec { repo, revision } = spec;
    let folder = spec.snapshot(config);
    let lacks = folder.as_deref().map_or(Some(CONFIG.to_owned()), missing);
    let spoilt = folder.filter(|_| lacks.is_none()).and_then(|folder| spoilt(&folder, &config.digests));
    Error::environment(match spoilt {
        Some((name, blob)) => format!(
            "`{name}` of {repo} at revision {revision} is spoilt: `{}` does not have the digest that it is named after, and {forbids} forbids \
             to download it again",
            blob.display()
        ),
        None => format!(
            "`{}` of {repo} at revision {revision} is not in `{}`, and {forbids} forbids to download it",
            lacks.as_deref().unwrap_or(CONFIG),
            config.cache.display(),
        ),
    })
}

/// What the hub says a commit holds.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// A file as it must arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remote {
    name: String,
    size: u64,
    /// SHA-256 of the content in 64 hex digits, or git's SHA-1 of it as a blob in 40; also its name in the cache.
    digest: String,
}

struct Fetcher<'a> {
    client: Client,
    spec: &'a Spec,
    shelf: Shelf,
    listing: Listing,
    /// The digests that need not be computed again.
    known: Option<&'a Digests>,
    observer: Observer<'a>,
}

impl Fetcher<'_> {
    fn run(&self) -> Result<PathBuf> {
        let extras = EXTRAS.into_iter().filter(|name| self.lists(name));
        let small = [CONFIG, TOKENIZER].into_iter().chain(extras).map(|name| self.remote(name)).collect::<Result<Vec<_>>>()?;
        let weights = if self.lists(WEIGHTS) {
            vec![self.remote(WEIGHTS)?]
        } else if self.lists(INDEX) {
            let index = self.get(&self.remote(INDEX)?)?;
            let shards = shards(&index)?;
            shards.iter().map(|name| self.remote(name)).collect::<Result<_>>()?
        } else {
            return Err(self.without_safetensors());
        };
        for file in small.iter().chain(&weights) {
            self.get(file)?;
        }
        let commit = &self.listing.sha;
        if self.spec.revision != *commit {
            self.shelf.name(&self.spec.revision, commit)?;
        }
        Ok(self.shelf.snapshot(commit))
    }

    fn lists(&self, name: &str) -> bool {
        self.listing.siblings.iter().any(|sibling| sibling.rfilename == name)
    }

    fn remote(&self, name: &str) -> Result<Remote> {
        let lacks = |what: &str| Error::environment(format!("{} has no {what} `{name}` on the hub", self.spec));
        let mut siblings = self.listing.siblings.iter();
        let sibling = siblings.find(|sibling| sibling.rfilename == name).ok_or_else(|| lacks("file"))?;
        let (size, digest) = match &sibling.lfs {
            Some(lfs) => (Some(lfs.size), Some(&lfs.sha256).filter(|digest| is_hex(digest, 64))),
            None => (sibling.size, sibling.blob_id.as_ref().filter(|digest| is_hex(digest, 40))),
        };
        match (size, digest) {
            (Some(size), Some(digest)) => Ok(Remote { name: name.into(), size, digest: digest.clone() }),
            _ => Err(lacks("size and digest for")),
        }
    }

    /// Makes sure of the blob and of the link to it in the snapshot folder.
    fn get(&self, file: &Remote) -> Result<PathBuf> {
        let (blob, commit) = (self.shelf.blob(&file.digest), &self.listing.sha);
        if !is_intact(&blob, file, self.known) {
            if blob.exists() {
                tracing::warn!("`{}` in the cache is not what the hub lists; fetching it again", file.name);
            }
            self.client.download(commit, file, &blob, self.observer)?;
        }
        let link = self.shelf.snapshot(commit).join(&file.name);
        link_blob(&file.digest, &blob, &link).map_err(|error| Error::writing(&link, &error))?;
        Ok(link)
    }

    fn without_safetensors(&self) -> Error {
        let is_gguf = |name: &&str| name.ends_with(".gguf");
        let names = self.listing.siblings.iter().map(|sibling| sibling.rfilename.as_str());
        let shown = |name: &str| name.chars().filter(|c| !c.is_control()).take(80).collect();
        let ggufs: Vec<String> = names.filter(is_gguf).map(shown).take(20).collect();
        let Spec { repo, .. } = self.spec;
        Error::environment(if ggufs.is_empty() {
            format!("{} has no safetensors weights: choose another model", self.spec)
        } else {
            format!(
                "{repo} has its weights as GGUF only: download one of {} (`hf download {repo} FILE`) and give its path as the model",
                ggufs.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests;
