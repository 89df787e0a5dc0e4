//! Against a scripted hub on the loopback.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

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
            token: Some(TOKEN.into()),
            cache: folder.path().join("hub"),
            offline: None,
            pause: Duration::ZERO,
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

    /// Files in the blobs folder.
    fn blobs(&self) -> Vec<String> {
        entries(&self.config.cache.join("models--org--name/blobs"))
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect()
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
fn refusals_are_final_and_say_what_to_check() {
    for (code, hint) in [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "revision")] {
        let hub = Fake::new(&[]).answering(LISTING, &[status(code)]).start();
        let message = hub.fails();
        assert!(message.contains(&code.to_string()) && message.contains(hint), "{message}");
        assert_eq!(hub.server.paths().len(), 1);
    }
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let elsewhere = Server::start("127.0.0.2", HashMap::from([("/blob".to_owned(), vec![ok(b"weights")])]));
    let redirect = Answer::Reply(302, format!("location: {}/blob\r\n", elsewhere.address), Vec::new());
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(address(WEIGHTS), &[redirect]).start();
    hub.resolve().unwrap();
    for request in hub.server.requests() {
        assert_eq!(request.headers["authorization"], format!("Bearer {TOKEN}"));
    }
    let [request] = &elsewhere.requests()[..] else { panic!("one request to the other host") };
    assert!(!format!("{request:?}").contains("marker"), "{request:?}");
}

#[test]
fn a_redirect_loop_ends() {
    let path = address(WEIGHTS);
    let around = Answer::Reply(302, format!("location: {path}\r\n"), Vec::new());
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(path, &[around]).start();
    let message = hub.fails();
    assert!(message.contains("redirect"), "{message}");
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

#[test]
fn the_cache_folder_follows_the_first_variable_that_is_set() {
    let all = [("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")];
    let expected = ["/c", "/h/hub", "/x/huggingface/hub"];
    for first in 0..all.len() {
        let variables: HashMap<&str, &str> = all[first..].iter().copied().collect();
        let folder = cache_folder(|name| variables.get(name).map(|value| (*value).to_owned()));
        assert_eq!(folder.unwrap(), Path::new(expected[first]));
    }
}
