//! `org/name[@revision]` on the Hugging Face hub → a local folder with config, tokenizer and weights.
//!
//! hf-hub brings the cache's layout (shared with its Python twin), the addresses and the client that withholds the
//! token from other hosts. Its `download` is not used: it names files by unchecked headers, sends the token to
//! wherever a file's metadata redirects, appends to a partial file whatever comes back, and checks neither size nor
//! digest. Here the hub's own listing of a commit says what each file must be before the first one is asked for.

mod store;
mod transfer;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

use crate::{Error, Result};
use store::{link_blob, missing, shards};
use transfer::Client;

pub use store::{Cached, cached};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// What a repository may have besides.
const OPTIONAL: [&str; 1] = ["generation_config.json"];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

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

/// Where the hub is, where its files are kept, and whether it may be asked.
#[derive(Clone)]
pub struct HubConfig {
    /// Address without a final slash, `https://huggingface.co` unless HF_ENDPOINT says otherwise.
    pub endpoint: String,
    /// Sent to `endpoint` only, never shown.
    pub token: Option<String>,
    /// The folder of `models--org--name` folders.
    pub cache: PathBuf,
    /// What forbids requests, as the user wrote it.
    pub offline: Option<String>,
    /// First pause before a retry; each further one is twice as long.
    pub pause: Duration,
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, offline, .. } = self;
        write!(f, "HubConfig {{ {endpoint}, {}, offline: {offline:?} }}", cache.display())
    }
}

impl HubConfig {
    /// Honours HF_ENDPOINT, HF_TOKEN (else the login's token file), HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and
    /// HF_HUB_OFFLINE as the Python library does; `offline` is the caller's own word.
    ///
    /// # Errors
    /// Input for an endpoint that is no web address; environment if no variable leads to a cache folder.
    pub fn from_env(offline: bool) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::input(format!("HF_ENDPOINT is `{endpoint}`: it must begin with https:// or http://")));
        }
        let cache = cache_folder(variable)?;
        let token = variable("HF_TOKEN").or_else(|| Cache::new(cache.clone()).token());
        let forbids = |value: &String| matches!(&*value.to_lowercase(), "1" | "true" | "yes" | "on");
        let variable = variable("HF_HUB_OFFLINE").filter(forbids);
        let variable = variable.map(|value| format!("HF_HUB_OFFLINE={value}"));
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()),
            cache,
            offline: offline.then(|| "`offline`".to_owned()).or(variable),
            pause: Duration::from_secs(1),
        })
    }
}

fn cache_folder(variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf> {
    if let Some(cache) = variable("HF_HUB_CACHE") {
        return Ok(cache.into());
    }
    let home = variable("HF_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(variable("XDG_CACHE_HOME")?).join("huggingface")));
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
    home.map(|home| home.join("hub")).ok_or_else(|| Error::environment("there is no home folder to keep models in: set HF_HOME"))
}

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
    fn repo(&self) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, self.revision.clone())
    }

    fn cached(&self, config: &HubConfig) -> CacheRepo {
        Cache::new(config.cache.clone()).repo(self.repo())
    }

    /// The folder of the commit that the revision named when it was last fetched.
    fn snapshot(&self, config: &HubConfig) -> Option<PathBuf> {
        let cached = self.cached(config);
        if is_hex(&self.revision, 40) {
            return Some(cached.pointer_path(&self.revision));
        }
        let folder = config.cache.join(self.repo().folder_name());
        let commit = std::fs::read_to_string(folder.join("refs").join(&self.revision)).ok()?;
        is_hex(commit.trim(), 40).then(|| cached.pointer_path(commit.trim()))
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

/// The local folder of `spec`: the cached one without any request if it is complete, else [`pull`]ed.
///
/// # Errors
/// As [`pull`].
pub fn resolve(config: &HubConfig, spec: &str, observer: Observer) -> Result<PathBuf> {
    let spec: Spec = spec.parse()?;
    match spec.snapshot(config) {
        Some(folder) if missing(&folder).is_none() => Ok(folder),
        _ => fetch(config, &spec, observer),
    }
}

/// Asks the hub what `spec` is now and fetches what the cache lacks, telling `observer`. Returns the
/// folder with `config.json`, `tokenizer.json` and the weights as safetensors.
///
/// # Errors
/// Input for a malformed spec; environment if the hub may not be asked, does not have the model or its files, or
/// does not deliver what it lists.
pub fn pull(config: &HubConfig, spec: &str, observer: Observer) -> Result<PathBuf> {
    fetch(config, &spec.parse()?, observer)
}

fn fetch(config: &HubConfig, spec: &Spec, observer: Observer) -> Result<PathBuf> {
    if let Some(forbids) = &config.offline {
        let missing = spec.snapshot(config).and_then(|folder| missing(&folder));
        return Err(Error::environment(format!(
            "`{}` of {} at revision {} is not in `{}`, and {forbids} forbids to download it",
            missing.as_deref().unwrap_or(CONFIG),
            spec.repo,
            spec.revision,
            config.cache.display(),
        )));
    }
    let client = Client::new(config, spec)?;
    let listing = client.listing()?;
    if !is_hex(&listing.sha, 40) {
        return Err(Error::environment(format!("the hub names no commit for {spec}")));
    }
    Fetcher { cached: spec.cached(config), observer, client, spec, listing }.run()
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
    cached: CacheRepo,
    listing: Listing,
    observer: Observer<'a>,
}

impl Fetcher<'_> {
    fn run(&self) -> Result<PathBuf> {
        let optional = OPTIONAL.into_iter().filter(|name| self.lists(name));
        let small = [CONFIG, TOKENIZER].into_iter().chain(optional).map(|name| self.remote(name)).collect::<Result<Vec<_>>>()?;
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
        let folder = self.cached.pointer_path(&self.listing.sha);
        if self.spec.revision != self.listing.sha {
            let reference = self.cached.create_ref(&self.listing.sha);
            reference.map_err(|error| Error::writing(&folder, &error))?;
        }
        Ok(folder)
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
        let blob = self.cached.blob_path(&file.digest);
        let present = std::fs::metadata(&blob).is_ok_and(|blob| blob.len() == file.size);
        if !present {
            self.client.download(&self.listing.sha, file, &blob, self.observer)?;
        }
        let link = self.cached.pointer_path(&self.listing.sha).join(&file.name);
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
