//! One request and its answer: who gets the token, which redirects are followed, and how long a server may say nothing.
//!
//! The request runs on a thread of its own and hands over what arrives, so that a wait can be spoken of and ended, whatever it is for: a
//! name that is not resolved, a connection, an answer, the next piece of a body.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, http::Response};

use super::HubConfig;
use crate::error::quoted;
use crate::files::read_small;
use crate::{Error, Result};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 10;
/// Parts of [`Patience::silence`] after each of which is looked at what came.
const PARTS: u32 = 6;
/// Bytes of a body that are handed over at once.
const PIECE: usize = 1 << 16;
/// Larger than any file of certificates, in bytes.
const LARGEST_CERTIFICATES: u64 = 16 << 20;

/// How long a server is waited for.
#[derive(Debug, Clone)]
pub struct Patience {
    /// First pause before a retry; each further one is twice as long.
    pub pause: Duration,
    /// A server that sends nothing, or less than `slowest`, for so long is given up.
    pub silence: Duration,
    /// Bytes a second.
    pub slowest: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { pause: Duration::from_secs(1), silence: Duration::from_secs(60), slowest: 1024 }
    }
}

/// Why an answer did not come.
#[derive(Debug)]
pub(super) enum Trouble {
    /// May be over at the next try.
    Passing(String),
    /// Will be the same at the next try, or was waited for long enough.
    Lasting(String),
}

/// Where a body begins in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At byte 0: the answer is the whole file.
    Whole,
    At(u64),
    /// The answer is a part and does not say which.
    Unsaid,
}

/// What is known of an answer before its body.
#[derive(Debug)]
pub(super) struct Head {
    pub status: u16,
    pub start: Start,
    pub retry_after: Option<Duration>,
}

enum Piece {
    Head(Head),
    Body(Vec<u8>),
}

/// Sends requests.
pub(super) struct Wire {
    agent: Agent,
    home: Uri,
    authorization: Option<String>,
    patience: Patience,
}

impl Wire {
    pub(super) fn new(config: &HubConfig) -> Result<Self> {
        let home: Uri =
            config.endpoint.parse().map_err(|_| Error::input(format!("the endpoint {} is no web address", quoted(&config.endpoint))))?;
        // The thread of a request that was given up ends by itself, a while later.
        let end = Some(2 * config.patience.silence);
        let agent = Agent::config_builder()
            .user_agent(concat!("dlmi/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots(config)?).build())
            .timeout_resolve(end)
            .timeout_connect(end)
            .timeout_recv_response(end)
            .timeout_per_read(end)
            .build();
        Ok(Self { agent: agent.into(), home, authorization: config.authorization.clone(), patience: config.patience.clone() })
    }

    /// Asks for `url` from byte `from` on.
    pub(super) fn get(&self, url: &str, from: u64) -> Result<(Head, Pieces), Trouble> {
        let url: Uri = url.parse().map_err(|_| Trouble::Lasting("it is no web address".to_owned()))?;
        let (sender, receiver) = sync_channel(4);
        let host = url.authority().map_or_else(String::new, |authority| authority.to_string());
        let request = Request { agent: self.agent.clone(), home: self.home.clone(), authorization: self.authorization.clone(), url, from };
        std::thread::spawn(move || request.run(&sender));
        let mut pieces = Pieces { receiver, pace: Pace::new(host, self.patience.clone()) };
        match pieces.receive()? {
            Some(Piece::Head(head)) => Ok((head, pieces)),
            _ => Err(Trouble::Passing("the connection was closed".to_owned())),
        }
    }
}

/// The certificates to trust: those of the variable, else the system's, else the ones that are compiled in.
fn roots(config: &HubConfig) -> Result<RootCerts> {
    let Some((variable, path)) = &config.certificates else {
        let found = rustls_native_certs::load_native_certs().certs;
        let found: Vec<Certificate> = found.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        return Ok(if found.is_empty() { RootCerts::WebPki } else { found.into() });
    };
    let bytes = read_small(path, LARGEST_CERTIFICATES).map_err(|error| Error::input(format!("{variable}: {error}")))?;
    let certificate = |item| if let Ok(PemItem::Certificate(certificate)) = item { Some(certificate) } else { None };
    let found: Vec<Certificate> = parse_pem(&bytes).filter_map(certificate).collect();
    match found.is_empty() {
        true => Err(Error::input(format!("{variable}: {} holds no certificate in PEM", quoted(&path.display().to_string())))),
        false => Ok(found.into()),
    }
}

/// A request on its thread.
struct Request {
    agent: Agent,
    home: Uri,
    authorization: Option<String>,
    url: Uri,
    from: u64,
}

type Sender = SyncSender<Result<Piece, Trouble>>;

impl Request {
    /// Hands over the answer; who is not listened to any more stops.
    fn run(self, to: &Sender) {
        let _: Result<(), SendError<_>> = match self.follow() {
            Ok(answer) => hand_over(answer, to),
            Err(trouble) => to.send(Err(trouble)),
        };
    }

    /// The answer behind all redirects.
    fn follow(mut self) -> Result<Response<Body>, Trouble> {
        for _ in 0..=REDIRECTS {
            let answer = self.ask()?;
            let Some(location) = answer.headers().get("location").filter(|_| answer.status().is_redirection()) else { return Ok(answer) };
            let next = location.to_str().ok().and_then(|location| joined(&self.url, location));
            let next = next.ok_or_else(|| Trouble::Lasting("it redirects to what is no web address; check the endpoint".to_owned()))?;
            if is_secure(&self.url) && !is_secure(&next) {
                return Err(Trouble::Lasting(
                    "it redirects from https to http, where others can read along; check the endpoint".to_owned(),
                ));
            }
            self.url = next;
        }
        Err(Trouble::Lasting(format!("it redirects more than {REDIRECTS} times, perhaps in a circle; check the endpoint")))
    }

    fn ask(&self) -> Result<Response<Body>, Trouble> {
        let mut request = self.agent.get(self.url.clone());
        if self.from > 0 {
            request = request.header("range", format!("bytes={}-", self.from));
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| origin(&self.url) == origin(&self.home)) {
            request = request.header("authorization", authorization);
        }
        request.call().map_err(trouble)
    }
}

fn hand_over(answer: Response<Body>, to: &Sender) -> Result<(), SendError<Result<Piece, Trouble>>> {
    to.send(Ok(Piece::Head(head(&answer))))?;
    let mut body = answer.into_body().into_reader();
    loop {
        let mut piece = vec![0; PIECE];
        match body.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(got) => piece.truncate(got),
            Err(error) => return to.send(Err(Trouble::Passing(error.to_string()))),
        }
        to.send(Ok(Piece::Body(piece)))?;
    }
}

fn head(answer: &Response<Body>) -> Head {
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let range = header("content-range").and_then(|range| range.strip_prefix("bytes "));
    let start = range.and_then(|range| range.split('-').next()?.trim().parse().ok());
    let status = answer.status().as_u16();
    Head {
        status,
        start: if status == 206 { start.map_or(Start::Unsaid, Start::At) } else { Start::Whole },
        retry_after: header("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs),
    }
}

/// An error of the client. What is wrong with a certificate stays wrong.
fn trouble(error: ureq::Error) -> Trouble {
    let is_certificate = match &error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    };
    match is_certificate {
        true => {
            Trouble::Lasting(format!("its certificate is not accepted ({error}): where a network has its own, set SSL_CERT_FILE to it"))
        }
        false => Trouble::Passing(error.to_string()),
    }
}

fn is_secure(url: &Uri) -> bool {
    url.scheme_str() == Some("https")
}

/// Scheme, host and port: what has to be the same for a token to be sent.
fn origin(url: &Uri) -> (bool, Option<String>, u16) {
    let usual = if is_secure(url) { 443 } else { 80 };
    (is_secure(url), url.host().map(str::to_lowercase), url.port_u16().unwrap_or(usual))
}

/// The address that a `location` header of an answer from `base` means.
fn joined(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    let begins = |scheme: &str| location.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let whole = match location {
        _ if begins("http://") || begins("https://") => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => format!("{scheme}://{authority}{folder}/{location}"),
    };
    whole.parse().ok().filter(|url: &Uri| url.host().is_some_and(|host| !host.is_empty()))
}

/// The pieces of an answer as they arrive.
pub(super) struct Pieces {
    receiver: Receiver<Result<Piece, Trouble>>,
    pace: Pace,
}

impl Pieces {
    /// The next piece of the body; none at its end.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        match self.receive()? {
            Some(Piece::Body(piece)) => Ok(Some(piece)),
            _ => Ok(None),
        }
    }

    fn receive(&mut self) -> Result<Option<Piece>, Trouble> {
        loop {
            match self.receiver.recv_timeout(self.pace.left()) {
                Ok(piece) => {
                    let piece = piece?;
                    self.pace.came(&piece)?;
                    return Ok(Some(piece));
                }
                Err(RecvTimeoutError::Timeout) => self.pace.look()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// Watches how much comes, part by part of the time that a server is given, and says when it is too little.
struct Pace {
    host: String,
    patience: Patience,
    /// When the current part is over.
    until: Instant,
    /// Bytes in it.
    bytes: u64,
    /// Slow parts before it, and their bytes.
    slow: u32,
    slow_bytes: u64,
}

impl Pace {
    fn new(host: String, patience: Patience) -> Self {
        let until = Instant::now() + patience.silence / PARTS;
        Self { host, patience, until, bytes: 0, slow: 0, slow_bytes: 0 }
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn came(&mut self, piece: &Piece) -> Result<(), Trouble> {
        match piece {
            // An answer is a word, however late.
            Piece::Head(_) => *self = Self::new(std::mem::take(&mut self.host), self.patience.clone()),
            Piece::Body(piece) => self.bytes += piece.len() as u64,
        }
        if self.left().is_zero() { self.look() } else { Ok(()) }
    }

    /// At the end of a part.
    fn look(&mut self) -> Result<(), Trouble> {
        let Patience { silence, slowest, .. } = self.patience;
        let part = silence / PARTS;
        let enough = (slowest as f64 * part.as_secs_f64()).max(1.0);
        let bytes = std::mem::take(&mut self.bytes);
        self.until = Instant::now() + part;
        if bytes as f64 >= enough {
            (self.slow, self.slow_bytes) = (0, 0);
            return Ok(());
        }
        self.slow += 1;
        self.slow_bytes += bytes;
        let seconds = (part * self.slow).as_secs_f32();
        let what = match self.slow_bytes {
            0 => format!("{} has sent nothing for {seconds} s", self.host),
            bytes => format!("{} has sent only {bytes} bytes in {seconds} s", self.host),
        };
        if self.slow == PARTS {
            return Err(Trouble::Lasting(format!("{what} and is given up; what came is kept, try again later or another HF_ENDPOINT")));
        }
        tracing::warn!("{what}; it is given up after {} s", silence.as_secs_f32());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(&a.parse().unwrap()) == origin(&b.parse().unwrap());
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        assert!(same("http://hub.example", "http://u:p@hub.example:80/x?y"));
        for other in ["http://hub.example/", "https://hub.example:8443/", "https://cdn.hub.example/", "https://hub.example.org/"] {
            assert!(!same("https://hub.example/", other), "{other}");
        }
        assert!(!same("http://127.0.0.1:1000", "http://127.0.0.1:1001"));
    }

    #[test]
    fn locations_are_read_against_the_address_that_gave_them() {
        let from = |location| joined(&"https://hub.example:81/a/b?c=d".parse().unwrap(), location).map(|url| url.to_string());
        for (location, expected) in [
            ("https://cdn.example/x?y", "https://cdn.example/x?y"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/x/y", "https://hub.example:81/x/y"),
            ("x?y", "https://hub.example:81/a/x?y"),
        ] {
            assert_eq!(from(location).as_deref(), Some(expected));
        }
        for none in ["http://", "//", "/ x", "/\u{e9} x"] {
            assert_eq!(from(none), None, "{none}");
        }
        // Not another scheme: a path below.
        assert_eq!(from("ftp://h/x").as_deref(), Some("https://hub.example:81/a/ftp://h/x"));
    }
}
