//! Against a scripted hub on the loopback.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::store::entries;
use super::*;

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
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
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

#[test]
fn a_model_is_fetched_once_and_then_found_without_a_request() {
    let hub = Fake::new(&[(WEIGHTS, b"weights"), ("onnx.bin", b"not ours")]).start();
    let folder = hub.resolve().unwrap();
    assert_eq!(folder, hub.config.cache.join("models--org--name/snapshots").join(COMMIT));
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), b"weights");
    assert_eq!(std::fs::read(folder.join(CONFIG)).unwrap(), b"{}");
    assert_eq!(hub.asked_for("onnx.bin"), 0);
    let mut expected = vec![git_sha1(b"{}"), git_sha1(b"{\"t\":1}"), sha256(b"weights")];
    expected.sort();
    assert_eq!(hub.blobs(), expected);

    let before = hub.server.paths().len();
    assert_eq!(hub.resolve().unwrap(), folder);
    let offline = HubConfig { offline: Some("`offline`".into()), ..hub.config.clone() };
    assert_eq!(resolve(&offline, "org/name", SILENT).unwrap(), folder);
    assert_eq!(resolve(&offline, &format!("org/name@{COMMIT}"), SILENT).unwrap(), folder);
    assert_eq!(hub.server.paths().len(), before);

    pull(&hub.config, "org/name", SILENT).unwrap();
    assert_eq!(hub.server.paths()[before..], [LISTING], "only the listing is asked again");

    let listed = cached(&hub.config);
    assert_eq!(listed, [Cached { spec: "org/name".into(), path: folder, bytes: 16 }]);
}

#[test]
fn shards_come_by_their_index() {
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#;
    let shards: [(&str, &[u8]); 3] = [(INDEX, index), ("m-1.safetensors", b"one"), ("m-2.safetensors", b"two")];
    let hub = Fake::new(&shards).start();
    let folder = hub.resolve().unwrap();
    assert_eq!(std::fs::read(folder.join("m-2.safetensors")).unwrap(), b"two");
    let order: Vec<_> = hub.server.paths()[1..].to_vec();
    assert_eq!(order[0], address(INDEX), "the index first: {order:?}");
    assert_eq!(hub.asked_for("m-1.safetensors"), 1);

    std::fs::remove_file(folder.join("m-2.safetensors")).unwrap();
    assert!(cached(&hub.config).is_empty());
    hub.resolve().unwrap();
    assert_eq!(hub.asked_for("m-2.safetensors"), 1, "its blob is still there");
}

#[test]
fn hostile_shard_names_are_refused_before_any_request_for_them() {
    for name in ["../../../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "C:\\x.safetensors", "x.bin", ""] {
        let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
        let hub = Fake::new(&[(INDEX, index.as_bytes())]).start();
        let error = hub.resolve().unwrap_err();
        assert!(error.to_string().contains("not a plain file name"), "{name}: {error}");
        let last = hub.server.paths().pop().unwrap();
        assert_eq!(last, address(INDEX), "{name}");
    }
    let empty = Fake::new(&[(INDEX, br#"{"weight_map": {}}"#)]).start();
    assert!(empty.resolve().unwrap_err().to_string().contains("names no file"));
}

#[test]
fn hostile_commits_and_digests_never_become_paths() {
    for (sha, digest) in [("../../x", "0".repeat(40)), (COMMIT, "../../../../tmp/x".into()), (COMMIT, "A".repeat(40))] {
        let sibling = |name| serde_json::json!({"rfilename": name, "size": 2, "blobId": digest});
        let siblings = [sibling(CONFIG), sibling(TOKENIZER), sibling(WEIGHTS)];
        let listing = serde_json::json!({"sha": sha, "siblings": siblings}).to_string();
        let hub = Fake::new(&[]).answering(LISTING, &[ok(listing.as_bytes())]).start();
        hub.fails();
        assert_eq!(hub.server.paths(), [LISTING]);
        assert!(!hub.config.cache.exists());
    }
}

#[test]
fn wrong_bytes_are_removed_and_named() {
    for name in [WEIGHTS, CONFIG] {
        let body = if name == CONFIG { b"{]".to_vec() } else { b"weighty".to_vec() };
        let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(address(name), &[Answer::Ranged(body.clone())]).start();
        let message = hub.fails();
        let digests = if name == CONFIG { [git_sha1(&body), git_sha1(b"{}")] } else { [sha256(&body), sha256(b"weights")] };
        assert!(message.contains(name) && digests.iter().all(|digest| message.contains(digest)), "{message}");
        assert!(hub.blobs().iter().all(|blob| !blob.contains(&digests[1])), "{:?}", hub.blobs());
    }
}

#[test]
fn a_cut_body_goes_on_where_it_stopped() {
    let weights: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let cut = Answer::Cut(weights.clone(), 123_456);
    let path = address(WEIGHTS);
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(path, &[cut, Answer::Ranged(weights.clone())]).start();
    let folder = hub.resolve().unwrap();
    assert!(std::fs::read(folder.join(WEIGHTS)).unwrap() == weights);
    let ranges: Vec<_> = hub.server.requests().iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=123456-"]);
}

#[test]
fn an_observer_sees_every_file_come_to_its_end() {
    let weights = vec![3u8; 300_000];
    let cut = Answer::Cut(weights.clone(), 123_456);
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &[cut, Answer::Ranged(weights)]).start();
    let seen = std::cell::RefCell::new(Vec::new());
    resolve(&hub.config, "org/name", &|transfer| {
        seen.borrow_mut().push((transfer.file.to_owned(), transfer.done, transfer.total));
    })
    .unwrap();
    let seen = seen.into_inner();
    for (name, size) in [(CONFIG, 2), (TOKENIZER, 7), (WEIGHTS, 300_000)] {
        let done: Vec<u64> = seen.iter().filter(|(file, _, total)| file == name && *total == size).map(|(_, done, _)| *done).collect();
        assert!(done.is_sorted() && done.first() == Some(&0) && done.last() == Some(&size), "{name}: {done:?}");
    }
}

#[test]
fn a_server_without_ranges_starts_from_zero() {
    let weights = vec![7u8; 5000];
    let answers = [Answer::Cut(weights.clone(), 1234), ok(&weights)];
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &answers).start();
    assert_eq!(std::fs::read(hub.resolve().unwrap().join(WEIGHTS)).unwrap(), weights);
}

#[test]
fn a_large_body_that_is_always_cut_at_the_same_place_is_given_up() {
    let weights = vec![7u8; 3 << 20];
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &[Answer::Cut(weights.clone(), 2 << 20)]).start();
    let message = hub.fails();
    assert!(message.contains("got 2097152 of 3145728 bytes"), "{message}");
}

#[test]
fn a_wrong_range_is_never_appended() {
    let weights = vec![7u8; 5000];
    let wrong = Answer::Reply(206, "content-range: bytes 0-4999/5000\r\n".into(), weights.clone());
    let answers = [Answer::Cut(weights.clone(), 1234), wrong, Answer::Ranged(weights.clone())];
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &answers).start();
    assert_eq!(std::fs::read(hub.resolve().unwrap().join(WEIGHTS)).unwrap(), weights);
}

#[test]
fn a_part_that_does_not_say_which_starts_from_zero() {
    let weights: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
    let part = Answer::Reply(206, String::new(), weights[1234..].to_vec());
    let answers = [Answer::Cut(weights.clone(), 1234), part, Answer::Ranged(weights.clone())];
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &answers).start();
    assert_eq!(std::fs::read(hub.resolve().unwrap().join(WEIGHTS)).unwrap(), weights);
    let requests = hub.server.requests();
    let ranges: Vec<_> = requests.iter().filter(|request| request.path == address(WEIGHTS)).map(|it| it.headers.get("range")).collect();
    assert_eq!(ranges, [None, Some(&"bytes=1234-".to_owned()), None]);
    // One to a request for all of it is taken for all of it: the digest decides.
    let all = Answer::Reply(206, String::new(), weights.clone());
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &[all]).start();
    assert_eq!(std::fs::read(hub.resolve().unwrap().join(WEIGHTS)).unwrap(), weights);
}

#[test]
fn a_body_that_is_always_cut_is_given_up_with_what_came_and_resumed_by_the_next_run() {
    let weights = vec![7u8; 5000];
    let mut answers = vec![Answer::Cut(weights.clone(), 1234)];
    answers.extend(vec![Answer::Cut(weights.clone(), 700); 4]);
    answers.push(Answer::Ranged(weights.clone()));
    let hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &answers).start();
    let message = hub.fails();
    assert!(message.contains("got 700 of 5000 bytes"), "{message}");
    assert_eq!(hub.asked_for(WEIGHTS), 5);
    assert!(!hub.blobs().contains(&sha256(&weights)));

    assert_eq!(std::fs::read(hub.resolve().unwrap().join(WEIGHTS)).unwrap(), weights);
    let last = hub.server.requests().pop().unwrap();
    assert_eq!(last.headers["range"], "bytes=700-");
    assert!(hub.blobs().iter().all(|blob| !blob.contains("partial")), "{:?}", hub.blobs());
}

#[test]
fn overload_is_waited_for_and_then_named() {
    let later = Answer::Reply(429, "retry-after: 0\r\n".into(), Vec::new());
    let weights: &[(&str, &[u8])] = &[(WEIGHTS, b"weights")];
    let hub = Fake::new(weights).answering(address(WEIGHTS), &[later, status(503), ok(b"weights")]).start();
    hub.resolve().unwrap();
    assert_eq!(hub.asked_for(WEIGHTS), 3);

    let hub = Fake::new(weights).answering(address(WEIGHTS), &[status(502)]).start();
    let message = hub.fails();
    assert!(message.contains("502") && message.contains(&address(WEIGHTS)), "{message}");
    assert_eq!(hub.asked_for(WEIGHTS), 5);
}

#[test]
fn a_wait_is_shown_as_long_as_the_server_asks_for() {
    let later = Answer::Reply(429, "retry-after: 1\r\n".into(), Vec::new());
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(address(WEIGHTS), &[later, ok(b"weights")]).start();
    let (result, lines) = logged(|| hub.resolve());
    result.unwrap();
    let expected = format!("WARN {}{}: status 429; trying again in 1 s (2 of 5)", hub.server.address, address(WEIGHTS));
    assert_eq!(lines, [expected]);
}

#[test]
fn a_silent_server_is_spoken_of_and_given_up() {
    let mut hub = Fake::new(&[]).answering(LISTING, &[Answer::Silence]).start();
    hub.config.patience.silence = Duration::from_millis(900);
    let (message, lines) = logged(|| hub.fails());
    assert!(message.contains(LISTING) && message.contains("has sent nothing for 0.9 s and is given up"), "{message}");
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines[0].ends_with("has sent nothing for 0.15 s; it is given up after 0.9 s"), "{lines:?}");
    assert_eq!(hub.server.paths().len(), 1, "not asked again");
}

#[test]
fn a_server_that_is_too_slow_is_given_up_and_what_came_is_kept() {
    let weights = vec![7u8; 5000];
    // 50 bytes a second.
    let answers = [Answer::Trickle(weights.clone(), 1), Answer::Ranged(weights.clone())];
    let mut hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &answers).start();
    hub.config.patience.silence = Duration::from_millis(900);
    let (message, lines) = logged(|| hub.fails());
    assert!(message.contains("of 5000 bytes") && message.contains("has sent only") && message.contains("is given up"), "{message}");
    assert!(!lines.is_empty() && lines.iter().all(|line| line.contains("has sent only")), "{lines:?}");
    assert_eq!(hub.asked_for(WEIGHTS), 1);
    assert_eq!(std::fs::read(hub.resolve().unwrap().join(WEIGHTS)).unwrap(), weights);
    assert!(hub.server.requests().pop().unwrap().headers.contains_key("range"), "it goes on from what came");
}

#[test]
fn a_slow_server_that_is_fast_enough_is_waited_for() {
    let weights = vec![7u8; 6000];
    let mut hub = Fake::new(&[(WEIGHTS, &weights)]).answering(address(WEIGHTS), &[Answer::Trickle(weights.clone(), 100)]).start();
    hub.config.patience.silence = Duration::from_millis(900);
    hub.resolve().unwrap();
}

#[test]
fn refusals_are_final_and_say_what_to_check() {
    for (code, hint) in [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "revision")] {
        let hub = Fake::new(&[]).answering(LISTING, &[status(code)]).start();
        let message = hub.fails();
        assert!(message.contains(&code.to_string()) && message.contains(hint), "{message}");
        assert_eq!(hub.server.paths().len(), 1);
    }
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host_or_port() {
    for host in ["127.0.0.2", "127.0.0.1"] {
        let elsewhere = Server::start(host, HashMap::from([("/blob".to_owned(), vec![ok(b"weights")])]));
        let redirect = Answer::Reply(302, format!("location: {}/blob\r\n", elsewhere.address), Vec::new());
        let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(address(WEIGHTS), &[redirect]).start();
        hub.resolve().unwrap();
        for request in hub.server.requests() {
            assert_eq!(request.headers["authorization"], format!("Bearer {TOKEN}"));
        }
        let [request] = &elsewhere.requests()[..] else { panic!("one request to the other server") };
        assert!(!format!("{request:?}").contains("marker"), "{request:?}");
    }
}

#[test]
fn a_redirect_within_the_hub_keeps_the_token() {
    let moved = Answer::Reply(307, "location: /moved\r\n".into(), Vec::new());
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(address(WEIGHTS), &[moved]).answering("/moved", &[ok(b"weights")]).start();
    hub.resolve().unwrap();
    let last = hub.server.requests().pop().unwrap();
    assert_eq!((&*last.path, &*last.headers["authorization"]), ("/moved", &*format!("Bearer {TOKEN}")));
}

#[test]
fn the_login_of_an_endpoint_is_sent_there_and_never_shown() {
    let elsewhere = Server::start("127.0.0.2", HashMap::from([("/blob".to_owned(), vec![status(403)])]));
    let redirect = Answer::Reply(302, format!("location: {}/blob\r\n", elsewhere.address), Vec::new());
    let mut hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(address(WEIGHTS), &[status(500), redirect]).start();
    let endpoint = hub.server.address.replace("http://", "http://me:marker@");
    let variable = |name: &str| (name == "HF_ENDPOINT").then(|| (&endpoint).into());
    let read = HubConfig::read(&variable, false).unwrap();
    (hub.config.endpoint, hub.config.authorization) = (read.endpoint, read.authorization);
    let (message, lines) = logged(|| hub.fails());
    assert!(message.contains(&hub.server.address), "{message}");
    assert!(lines.len() == 1 && !lines[0].contains("marker") && !lines[0].contains("me:"), "{lines:?}");
    for request in hub.server.requests() {
        assert_eq!(request.headers["authorization"], "Basic bWU6bWFya2Vy");
    }
    assert!(!elsewhere.requests()[0].headers.contains_key("authorization"));
}

#[test]
fn a_redirect_loop_ends() {
    let path = address(WEIGHTS);
    let around = Answer::Reply(302, format!("location: {path}\r\n"), Vec::new());
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(path, &[around]).start();
    let message = hub.fails();
    assert!(message.contains("redirect") && message.contains(&address(WEIGHTS)), "{message}");
    assert_eq!(hub.asked_for(WEIGHTS), 11, "asked once, redirected ten times");
}

#[test]
fn offline_asks_nobody_and_says_what_is_missing_where_and_why() {
    let mut hub = Fake::new(&[(WEIGHTS, b"weights")]).start();
    hub.config.offline = Some("HF_HUB_OFFLINE=1".into());
    let message = hub.fails();
    let cache = hub.config.cache.display().to_string();
    for part in ["`config.json`", "org/name", "revision main", &cache, "HF_HUB_OFFLINE=1"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(pull(&hub.config, "org/name", SILENT).is_err());
    assert!(hub.server.paths().is_empty());

    hub.config.offline = None;
    let folder = hub.resolve().unwrap();
    std::fs::remove_file(folder.join(WEIGHTS)).unwrap();
    hub.config.offline = Some("`offline`".into());
    assert!(hub.fails().starts_with("`model.safetensors` of org/name"));
}

#[test]
fn a_cached_file_of_the_right_size_and_wrong_content_is_found_and_fetched_again() {
    for name in [WEIGHTS, CONFIG] {
        let mut hub = Fake::new(&[(WEIGHTS, b"weights")]).start();
        let folder = hub.resolve().unwrap();
        let (whole, blob) = (std::fs::read(folder.join(name)).unwrap(), folder.join(name).canonicalize().unwrap());
        let other = vec![b'x'; whole.len()];
        std::fs::write(&blob, &other).unwrap();

        hub.config.offline = Some("HF_HUB_OFFLINE=1".into());
        let message = hub.fails();
        for part in [name, "spoilt", blob.file_name().unwrap().to_str().unwrap(), "HF_HUB_OFFLINE=1"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        hub.config.offline = None;
        let (result, lines) = logged(|| hub.resolve());
        assert_eq!(std::fs::read(result.unwrap().join(name)).unwrap(), whole);
        assert!(lines.len() == 1 && lines[0].contains(name) && lines[0].contains("again"), "{lines:?}");
        assert_eq!(hub.asked_for(name), 2);
        let others: usize = [WEIGHTS, CONFIG, TOKENIZER].iter().filter(|other| **other != name).map(|other| hub.asked_for(other)).sum();
        assert_eq!(others, 2, "the others are as they should be");
    }
}

/// A flipped bit changes no time of a file: what is kept of its digest does not tell, a pull does.
#[test]
fn a_pull_reads_what_is_cached_again() {
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).start();
    let blob = hub.resolve().unwrap().join(WEIGHTS).canonicalize().unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(100);
    let write = |content: &str| {
        std::fs::write(&blob, content).unwrap();
        std::fs::File::options().write(true).open(&blob).unwrap().set_modified(long_ago).unwrap();
    };
    write("weights");
    hub.resolve().unwrap();
    assert_eq!(entries(hub.config.digests.folder().unwrap()).len(), 1, "its digest is kept");
    write("weightx");
    hub.resolve().unwrap();
    assert_eq!(std::fs::read(&blob).unwrap(), b"weightx", "not read again");
    pull(&hub.config, "org/name", SILENT).unwrap();
    assert_eq!(std::fs::read(&blob).unwrap(), b"weights");
}

#[test]
fn what_a_repository_need_not_have_comes_where_it_has_it() {
    let hub =
        Fake::new(&[(WEIGHTS, b"weights"), ("generation_config.json", b"{\"a\":1}"), ("tokenizer_config.json", b"{\"b\":2}")]).start();
    let folder = hub.resolve().unwrap();
    assert_eq!(std::fs::read(folder.join("generation_config.json")).unwrap(), b"{\"a\":1}");
    assert_eq!(std::fs::read(folder.join("tokenizer_config.json")).unwrap(), b"{\"b\":2}");
    assert_eq!(hub.asked_for("chat_template.jinja"), 0);
}

#[test]
fn a_download_by_another_process_is_waited_for_aloud() {
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).start();
    std::fs::create_dir_all(hub.folder("blobs")).unwrap();
    let partial = hub.folder("blobs").join(format!("{}.dlmi-partial", sha256(b"weights")));
    let other = std::fs::File::create(partial).unwrap();
    other.lock().unwrap();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(other);
    });
    let (result, lines) = logged(|| hub.resolve());
    result.unwrap();
    release.join().unwrap();
    assert!(lines.len() == 1 && lines[0].contains("another process is fetching `model.safetensors`"), "{lines:?}");
}

#[test]
fn a_repository_without_safetensors_says_how_to_go_on() {
    let hub = Fake::new(&[("q4.gguf", b""), ("q8.gguf", b"")]).start();
    let message = hub.fails();
    assert!(message.contains("q4.gguf, q8.gguf") && message.contains("give its path"), "{message}");
    let hub = Fake::new(&[("pytorch_model.bin", b"")]).start();
    assert!(hub.fails().contains("no safetensors"));
}

#[test]
fn a_dead_hub_is_named() {
    let mut hub = Fake::new(&[]).start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    hub.config.endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let message = hub.fails();
    assert!(message.contains(&hub.config.endpoint), "{message}");
}

#[test]
fn specs_are_names_and_nothing_else() {
    let spec: Spec = "HuggingFaceTB/SmolLM2-135M".parse().unwrap();
    assert_eq!((&*spec.repo, &*spec.revision), ("HuggingFaceTB/SmolLM2-135M", "main"));
    assert_eq!("a/b@refs/pr/1".parse::<Spec>().unwrap().revision, "refs/pr/1");
    for bad in ["", "a", "a/b/c", "../b", "a/..", "a/b@", "a/b@../../x", "a/b@/x", "a/b?x=1", "a/b@x@y", "a /b"] {
        assert_eq!(bad.parse::<Spec>().unwrap_err().exit_code(), 2, "{bad}");
    }
}

/// What is said meanwhile, level and message of each line.
fn logged<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Lines::default();
    let result = tracing::subscriber::with_default(lines.clone(), work);
    let lines = lines.0.lock().unwrap().clone();
    (result, lines)
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

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
