//! One verified file over an unreliable wire.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{HubConfig, Listing, Observer, Remote, Spec, Transfer};
use crate::{Error, Result};

/// Requests for one thing before giving up on it.
const TRIES: u32 = 5;
/// An attempt that came this much further than any before does not count as failed.
const HEADWAY: u64 = 1 << 20;
/// Silence that ends an attempt.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LISTING_LIMIT: u64 = 32 << 20;

/// Speaks to one repository.
pub(super) struct Client {
    api: Api,
    repo: ApiRepo,
    spec: Spec,
    https_only: bool,
    pause: Duration,
}

/// An answer whose status is known and whose body is not read yet.
struct Reply {
    status: u16,
    /// Where the body begins in the file; `None` if it is the whole file.
    starts_at: Option<u64>,
    retry_after: Option<Duration>,
    body: Box<dyn Read>,
}

impl Client {
    pub(super) fn new(config: &HubConfig, spec: &Spec) -> Result<Self> {
        let api = ApiBuilder::from_cache(Cache::new(config.cache.clone()))
            .with_endpoint(config.endpoint.clone())
            .with_token(config.token.clone())
            .with_user_agent("dlmi", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| Error::environment(format!("the hub's client cannot start: {error}")))?;
        Ok(Self {
            repo: api.repo(spec.repo()),
            api,
            spec: spec.clone(),
            https_only: config.endpoint.starts_with("https://"),
            pause: config.pause,
        })
    }

    /// What the revision holds, with sizes and digests.
    pub(super) fn listing(&self) -> Result<Listing> {
        let request = self.repo.info_request();
        let url = request.uri_ref().map(|uri| format!("{uri}?blobs=true")).unwrap_or_default();
        let mut text = Vec::new();
        let mut failures = Failures::new(&url, self.pause);
        loop {
            let reply = self.exchange(&url, 0, &mut failures)?;
            match reply.body.take(LISTING_LIMIT).read_to_end(&mut text) {
                Ok(_) => break,
                Err(error) => failures.add(&error.to_string(), None)?,
            }
            text.clear();
        }
        serde_json::from_slice(&text).map_err(|error| Error::environment(format!("{url} does not answer as the hub does: {error}")))
    }

    /// Fetches `file` of `commit` into `blob`, going on where an earlier attempt or run was cut. What arrives is
    /// kept under another name until its size and digest are right.
    pub(super) fn download(&self, commit: &str, file: &Remote, blob: &Path, observer: Observer) -> Result<()> {
        let partial = blob.with_extension("dlmi-partial");
        let failed = |error: std::io::Error| Error::writing(&partial, &error);
        std::fs::create_dir_all(blob.parent().unwrap_or(blob)).map_err(failed)?;
        let mut part = File::options().read(true).append(true).create(true).open(&partial).map_err(failed)?;
        part.lock().map_err(failed)?;
        if std::fs::metadata(blob).is_ok_and(|blob| blob.len() == file.size) {
            return Ok(()); // Another process held the lock, and this is what it did.
        }
        self.fill(commit, file, &mut part, &failed, observer)?;
        let found = digest(&mut part, file).map_err(failed)?;
        if found != file.digest {
            std::fs::remove_file(&partial).map_err(failed)?;
            return Err(Error::environment(format!(
                "`{}` of {} arrived with digest {found} instead of {}: it was removed, try again or another endpoint",
                file.name, self.spec, file.digest
            )));
        }
        part.sync_all().map_err(failed)?;
        std::fs::rename(&partial, blob).map_err(failed)
    }

    /// Appends to `part` until it has the size of `file`.
    fn fill(
        &self,
        commit: &str,
        file: &Remote,
        part: &mut File,
        failed: &dyn Fn(std::io::Error) -> Error,
        observer: Observer,
    ) -> Result<()> {
        let report = |have| observer(&Transfer { file: &file.name, done: have, total: file.size });
        let repo = Repo::with_revision(self.spec.repo.clone(), RepoType::Model, commit.to_owned());
        let url = self.api.repo(repo).url(&file.name);
        let mut failures = Failures::new(&url, self.pause);
        let mut have = part.metadata().map_err(failed)?.len();
        if have > file.size {
            have = 0;
            part.set_len(0).map_err(failed)?;
        }
        let mut furthest = have;
        loop {
            report(have);
            if have == file.size {
                return Ok(());
            }
            let reply = self.exchange(&url, have, &mut failures)?;
            match reply.starts_at {
                Some(start) if start == have => {}
                Some(_) => {
                    failures.add("it answers with another range than was asked for", None)?;
                    continue;
                }
                None => {
                    have = 0; // The whole file: the server does not know ranges.
                    part.set_len(0).map_err(failed)?;
                }
            }
            let why = match copy(reply.body, part, &mut have, file.size, report).map_err(failed)? {
                Ok(()) if have == file.size => return Ok(()),
                Ok(()) => "the connection was closed".to_owned(),
                Err(error) => error.to_string(),
            };
            let headway = have >= furthest + HEADWAY;
            furthest = furthest.max(have);
            if !headway {
                failures.add(&format!("got {have} of {} bytes ({why})", file.size), None)?;
            }
        }
    }

    /// Asks until the answer is a success; refusals end it at once, overload and lost connections after some tries.
    fn exchange(&self, url: &str, from: u64, failures: &mut Failures) -> Result<Reply> {
        loop {
            match self.request(url, from) {
                Ok(reply) => match reply.status {
                    200 | 206 => return Ok(reply),
                    status @ (429 | 500..) => failures.add(&format!("status {status}"), reply.retry_after)?,
                    status => return Err(self.refused(url, status)),
                },
                Err(reason) => failures.add(&reason, None)?,
            }
        }
    }

    /// One request by hf-hub's own client, which sends the token and drops it where a redirect leaves the host.
    fn request(&self, url: &str, from: u64) -> Result<Reply, String> {
        let mut request = self.repo.info_request().uri(url).header("accept-encoding", "identity");
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request
            .config()
            .http_status_as_error(false)
            .https_only(self.https_only)
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build()
            .call()
            .map_err(|error| error.to_string())?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let range = header("content-range").and_then(|range| range.strip_prefix("bytes "));
        let start = range.and_then(|range| range.split('-').next()?.parse().ok());
        let retry_after = header("retry-after").and_then(|seconds| seconds.parse().ok());
        let status = response.status().as_u16();
        Ok(Reply {
            status,
            starts_at: (status == 206).then(|| start.unwrap_or(u64::MAX)),
            retry_after: retry_after.map(Duration::from_secs),
            body: Box::new(response.into_body().into_reader()),
        })
    }

    fn refused(&self, url: &str, status: u16) -> Error {
        let hint = match status {
            401 | 403 => "check the name, and for a private or gated model set HF_TOKEN to a token that may read it",
            404 => "check the name and the revision",
            _ => "check the endpoint",
        };
        Error::environment(format!("the hub answers {status} for {} at {url}: {hint}", self.spec))
    }
}

/// Failed attempts at one address.
struct Failures<'a> {
    url: &'a str,
    pause: Duration,
    count: u32,
}

impl<'a> Failures<'a> {
    fn new(url: &'a str, pause: Duration) -> Self {
        Self { url, pause, count: 0 }
    }

    /// Waits before the next attempt, or gives up with the last reason.
    fn add(&mut self, reason: &str, asked: Option<Duration>) -> Result<()> {
        self.count += 1;
        if self.count == TRIES {
            return Err(Error::environment(format!("{} failed {TRIES} times, at last with: {reason}; try again later", self.url)));
        }
        let pause = asked.unwrap_or(self.pause * 2u32.pow(self.count - 1)).min(LONGEST_PAUSE);
        tracing::info!("{}: {reason}, trying again in {} s", self.url, pause.as_secs_f32());
        std::thread::sleep(pause);
        Ok(())
    }
}

/// Copies up to `size` bytes in all. The outer result is the disk's, the inner the wire's.
fn copy(mut body: impl Read, part: &mut File, have: &mut u64, size: u64, report: impl Fn(u64)) -> std::io::Result<std::io::Result<()>> {
    let mut buffer = vec![0; 1 << 16];
    while *have < size {
        let wanted = buffer.len().min(usize::try_from(size - *have).unwrap_or(usize::MAX));
        let got = match body.read(&mut buffer[..wanted]) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) => return Ok(Err(error)),
        };
        part.write_all(&buffer[..got])?;
        *have += got as u64;
        report(*have);
    }
    Ok(Ok(()))
}

/// The digest of the kind that `file` is listed with.
fn digest(part: &mut File, file: &Remote) -> std::io::Result<String> {
    fn of<H: Digest + Write>(mut hash: H, part: &mut File) -> std::io::Result<String> {
        std::io::copy(part, &mut hash)?;
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
    part.rewind()?;
    if file.digest.len() == 64 {
        return of(Sha256::new(), part);
    }
    of(Sha1::new().chain_update(format!("blob {}\0", file.size)), part)
}
