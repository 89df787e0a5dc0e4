//! One verified file over an unreliable wire.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::store::{digest, is_intact};
use super::wire::{Head, Pieces, Start, Trouble, Wire};
use super::{HubConfig, Listing, Observer, Remote, Spec, Transfer};
use crate::files::try_lock;
use crate::{Error, Result};

/// Requests for one thing before giving up on it.
const TRIES: u32 = 5;
/// An attempt that came this much further than any before does not count as failed.
const HEADWAY: u64 = 1 << 20;
/// Longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LISTING_LIMIT: usize = 32 << 20;

/// Speaks to one repository.
pub(super) struct Client {
    wire: Wire,
    endpoint: String,
    spec: Spec,
    pause: Duration,
}

impl Client {
    pub(super) fn new(config: &HubConfig, spec: &Spec) -> Result<Self> {
        let endpoint = config.endpoint.clone();
        Ok(Self { wire: Wire::new(config)?, endpoint, spec: spec.clone(), pause: config.patience.pause })
    }

    /// What the revision holds, with sizes and digests.
    pub(super) fn listing(&self) -> Result<Listing> {
        let Spec { repo, revision } = &self.spec;
        let url = format!("{}/api/models/{repo}/revision/{}?blobs=true", self.endpoint, revision.replace('/', "%2F"));
        let mut failures = Failures::new(&url, self.pause);
        let text = loop {
            let (_, pieces) = self.exchange(&url, 0, &mut failures)?;
            match whole(pieces, LISTING_LIMIT) {
                Ok(text) => break text,
                Err(trouble) => failures.add_trouble(trouble)?,
            }
        };
        serde_json::from_slice(&text).map_err(|error| Error::environment(format!("{url} does not answer as the hub does: {error}")))
    }

    /// Fetches `file` of `commit` into `blob`, going on where an earlier attempt or run was cut. What arrives is
    /// kept under another name until its size and digest are right.
    pub(super) fn download(&self, commit: &str, file: &Remote, blob: &Path, observer: Observer) -> Result<()> {
        let partial = blob.with_extension("dlmi-partial");
        let failed = |error: std::io::Error| Error::writing(&partial, &error);
        std::fs::create_dir_all(blob.parent().unwrap_or(blob)).map_err(failed)?;
        let open = || File::options().read(true).append(true).create(true).open(&partial).map_err(failed);
        let mut part = open()?;
        while !try_lock(&part, &partial)? {
            tracing::warn!("another process is fetching `{}`; waiting for it", file.name);
            part.lock().map_err(failed)?;
            // What it held may be gone: taken for the whole, or removed.
            part = open()?;
        }
        if is_intact(blob, file, None) {
            // Another process held the lock, and this is what it did.
            return std::fs::remove_file(&partial).map_err(failed);
        }
        self.fill(commit, file, &mut part, &failed, observer)?;
        let found = digest(&partial, file).map_err(failed)?;
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
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.spec.repo, file.name);
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
            let (head, pieces) = self.exchange(&url, have, &mut failures)?;
            match head.start {
                Start::At(start) if start == have => {}
                Start::At(_) => {
                    failures.add("it answers with another range than was asked for", None)?;
                    continue;
                }
                Start::Unsaid if have > 0 => {
                    // Nobody knows where it would go.
                    have = 0;
                    part.set_len(0).map_err(failed)?;
                    failures.add("it answers with a part and does not say which, so all of it is asked for", None)?;
                    continue;
                }
                // The whole file, from a server that does not know ranges.
                Start::Whole | Start::Unsaid => {
                    have = 0;
                    part.set_len(0).map_err(failed)?;
                }
            }
            let trouble = match copy(pieces, part, &mut have, file.size, report).map_err(failed)? {
                Ok(()) if have == file.size => return Ok(()),
                Ok(()) => Trouble::Passing("the connection was closed".to_owned()),
                Err(trouble) => trouble,
            };
            let headway = have >= furthest + HEADWAY;
            furthest = furthest.max(have);
            if !headway {
                failures.add_trouble(trouble.after(&format!("got {have} of {} bytes", file.size)))?;
            }
        }
    }

    /// Asks until the answer is a success; refusals end it at once, overload and lost connections after some tries.
    fn exchange(&self, url: &str, from: u64, failures: &mut Failures) -> Result<(Head, Pieces)> {
        loop {
            match self.wire.get(url, from) {
                Ok((head, pieces)) => match head.status {
                    200 | 206 => return Ok((head, pieces)),
                    status @ (429 | 500..) => failures.add(&format!("status {status}"), head.retry_after)?,
                    status => return Err(self.refused(url, status)),
                },
                Err(trouble) => failures.add_trouble(trouble)?,
            }
        }
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
        let pause = pause(self.pause, self.count, asked);
        tracing::warn!("{}: {reason}; trying again in {} s ({} of {TRIES})", self.url, pause.as_secs_f32(), self.count + 1);
        std::thread::sleep(pause);
        Ok(())
    }

    /// As [`Self::add`]; what will not pass ends it at once.
    fn add_trouble(&mut self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Passing(reason) => self.add(&reason, None),
            Trouble::Lasting(reason) => Err(Error::environment(format!("{}: {reason}", self.url))),
        }
    }
}

/// What a server asks for, else twice as long after every failure.
fn pause(first: Duration, failures: u32, asked: Option<Duration>) -> Duration {
    asked.unwrap_or(first * 2u32.pow(failures - 1)).min(LONGEST_PAUSE)
}

impl Trouble {
    fn after(self, what: &str) -> Self {
        match self {
            Self::Passing(reason) => Self::Passing(format!("{what} ({reason})")),
            Self::Lasting(reason) => Self::Lasting(format!("{what} ({reason})")),
        }
    }
}

/// A body of which no more than `limit` bytes and a piece are taken.
fn whole(mut pieces: Pieces, limit: usize) -> Result<Vec<u8>, Trouble> {
    let mut text = Vec::new();
    while let Some(piece) = pieces.next()?.filter(|_| text.len() < limit) {
        text.extend(piece);
    }
    Ok(text)
}

/// Copies up to `size` bytes in all. The outer result is the disk's, the inner the wire's.
fn copy(
    mut pieces: Pieces,
    part: &mut File,
    have: &mut u64,
    size: u64,
    report: impl Fn(u64),
) -> std::io::Result<std::result::Result<(), Trouble>> {
    while *have < size {
        let piece = match pieces.next() {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let wanted = piece.len().min(usize::try_from(size - *have).unwrap_or(usize::MAX));
        part.write_all(&piece[..wanted])?;
        *have += wanted as u64;
        report(*have);
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_unless_the_server_asks_for_another_and_none_is_longer_than_a_minute() {
        let seconds = Duration::from_secs;
        let pauses: Vec<Duration> = (1..TRIES).map(|failures| pause(seconds(1), failures, None)).collect();
        assert_eq!(pauses, [1, 2, 4, 8].map(seconds));
        assert_eq!(pause(seconds(1), 3, Some(seconds(7))), seconds(7));
        assert_eq!(pause(seconds(1), 1, Some(seconds(86_400))), seconds(60));
        assert_eq!(pause(seconds(30), 4, None), seconds(60));
    }
}
