//! Against a scripted hub on the loopback.

mod cache;
mod secrets;
mod tls;
mod transfer;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::store::entries;
use super::*;
use crate::files::hex;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_marker_that_nobody_may_see";

/// What the server does with one request.
#[derive(Clone)]
enum Answer {
    /// Status, extra headers, body.
    Reply(u16, String, Vec<u8>),
    /// Promises the whole body and closes after so many bytes.
    Cut(Vec<u8>, usize),
    /// The body, or the rest of it from the asked range on.
    Ranged(Vec<u8>),
    /// Not a word, and the connection stays open.
    Silence,
    /// The head of an answer, then the body in pieces of so many bytes, 20 ms between two.
    Trickle(Vec<u8>, usize),
}

#[derive(Debug, Clone)]
struct Request {
    path: String,
    headers: HashMap<String, String>,
}

/// Answers each path with its answers in turn, the last one for ever.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(host: &str, script: HashMap<String, Vec<Answer>>) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            let mut script = script;
            for stream in listener.incoming() {
                serve(stream.unwrap(), &mut script, &seen);
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }
}

fn serve(mut stream: TcpStream, script: &mut HashMap<String, Vec<Answer>>, seen: &Mutex<Vec<Request>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        })
        .collect();
    let range = headers.get("range").cloned();
    seen.lock().unwrap().push(Request { path: path.clone(), headers });
    let answer = match script.get_mut(&path) {
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
        None => Answer::Reply(404, String::new(), Vec::new()),
    };
    let (status, extra, body, until) = match answer {
        Answer::Silence => {
            std::mem::forget(stream);
            return;
        }
        Answer::Trickle(body, size) => {
            std::thread::spawn(move || trickle(stream, &body, size));
            return;
        }
        Answer::Reply(status, extra, body) => (status, extra, body.clone(), body.len()),
        Answer::Cut(body, until) => (200, String::new(), body, until),
        Answer::Ranged(body) => match range.and_then(|range| range["bytes=".len()..].strip_suffix('-')?.parse().ok()) {
            Some(from) => {
                let extra = format!("content-range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
                (206, extra, body[from..].to_vec(), body.len() - from)
            }
            None => (200, String::new(), body.clone(), body.len()),
        },
    };
    let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n{extra}\r\n", body.len());
    // A client that has seen enough may be gone.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..until]));
}

fn trickle(mut stream: TcpStream, body: &[u8], size: usize) {
    let head = format!("HTTP/1.1 200 x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut sent = stream.write_all(head.as_bytes());
    for piece in body.chunks(size) {
        sent = sent.and_then(|()| stream.write_all(piece));
        if sent.is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ok(body: &[u8]) -> Answer {
    Answer::Reply(200, String::new(), body.to_vec())
}

fn status(status: u16) -> Answer {
    Answer::Reply(status, String::new(), Vec::new())
}

fn git_sha1(body: &[u8]) -> String {
    let mut hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", body.len()));
    hash.update(body);
    hex(&hash.finalize())
}

fn sha256(body: &[u8]) -> String {
    hex(&Sha256::digest(body))
}

/// A repository: its listing is made from `files`, and each file answers with its content unless told otherwise.
struct Fake {
    files: Vec<(&'static str, Vec<u8>)>,
    script: HashMap<String, Vec<Answer>>,
}

const LISTING: &str = "/api/models/org/name/revision/main?blobs=true";

fn address(name: &str) -> String {
    format!("/org/name/resolve/{COMMIT}/{name}")
}

impl Fake {
    fn new(weights: &[(&'static str, &[u8])]) -> Self {
        let mut files = vec![(CONFIG, b"{}".to_vec()), (TOKENIZER, b"{\"t\":1}".to_vec())];
        files.extend(weights.iter().map(|(name, body)| (*name, body.to_vec())));
        Self { files, script: HashMap::new() }
    }

    fn answering(mut self, path: impl Into<String>, answers: &[Answer]) -> Self {
        self.script.insert(path.into(), answers.to_vec());
        self
    }

    fn start(self) -> Hub {
        let mut script = self.script;
        let siblings: Vec<_> = self
            .files
            .iter()
            .map(|(name, body)| {
                let mut sibling = serde_json::json!({"rfilename": name, "size": body.len(), "blobId": git_sha1(body)});
                if name.ends_with(".safetensors") {
                    sibling["lfs"] = serde_json::json!({"sha256": sha256(body), "size": body.len(), "pointerSize": 1});
                }
                sibling
            })
            .collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        script.entry(LISTING.into()).or_insert_with(|| vec![ok(listing.as_bytes())]);
        for (name, body) in self.files {
            script.entry(address(name)).or_insert_with(|| vec![Answer::Ranged(body)]);
        }
        let server = Server::start("127.0.0.1", script);
        let folder = tempfile::tempdir().unwrap();
        let config = HubConfig {
            endpoint: server.address.clone(),
            authorization: Some(format!("Bearer {TOKEN}")),
            cache: folder.path().join("hub"),
            offline: None,
            certificates: None,
            patience: Patience { pause: Duration::ZERO, ..Patience::default() },
            digests: Digests::within(folder.path().join("digests")),
        };
        Hub { server, config, _folder: folder }
    }
}

struct Hub {
    server: Server,
    config: HubConfig,
    _folder: TempDir,
}

impl Hub {
    fn resolve(&self) -> Result<PathBuf> {
        resolve(&self.config, "org/name", SILENT)
    }

    /// The message of the failure, which is the environment's and keeps the token to itself.
    fn fails(&self) -> String {
        let error = self.resolve().unwrap_err();
        assert!(!format!("{error} {error:?} {:?}", self.config).contains("marker"), "{error}");
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    }

    fn asked_for(&self, name: &str) -> usize {
        self.server.paths().iter().filter(|path| **path == address(name)).count()
    }

    /// A folder of the repository's in the cache.
    fn folder(&self, name: &str) -> PathBuf {
        self.config.cache.join("models--org--name").join(name)
    }

    /// Files in the blobs folder.
    fn blobs(&self) -> Vec<String> {
        entries(&self.folder("blobs")).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }
}

/// What is said meanwhile, level and message of each line.
fn logged<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Lines::default();
    let result = tracing::subscriber::with_default(lines.clone(), work);
    (result, lines.all())
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn fmt::Debug) {
                self.0 = format!("{value:?}");
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(format!("{} {}", event.metadata().level(), message.0));
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
