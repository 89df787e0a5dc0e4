//! What is fetched, and what lies in the cache.

use super::*;

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
        assert!(error.to_string().contains("not the plain name of a `.safetensors` file"), "{name}: {error}");
        let last = hub.server.paths().pop().unwrap();
        assert_eq!(last, address(INDEX), "{name}");
    }
    let many: serde_json::Map<_, _> = (0..513).map(|i| (format!("t{i}"), format!("{i}.safetensors").into())).collect();
    let many = Fake::new(&[(INDEX, serde_json::json!({ "weight_map": many }).to_string().as_bytes())]).start();
    let error = many.resolve().unwrap_err().to_string();
    assert!(error.contains("names 513 files; at most 512 are read"), "what cannot be loaded is not fetched: {error}");
    assert_eq!(many.server.paths().pop().unwrap(), address(INDEX));
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
    let extras: [(&str, &[u8]); 3] =
        [("generation_config.json", b"{\"a\":1}"), ("tokenizer_config.json", b"{\"b\":2}"), ("special_tokens_map.json", b"{\"c\":3}")];
    let hub = Fake::new(&[&[(WEIGHTS, &b"weights"[..])], &extras[..]].concat()).start();
    let folder = hub.resolve().unwrap();
    for (name, content) in extras {
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), content);
    }
    assert_eq!(hub.asked_for("chat_template.jinja"), 0);
}

#[test]
fn a_download_by_another_process_is_waited_for_aloud() {
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).start();
    std::fs::create_dir_all(hub.folder("blobs")).unwrap();
    let partial = hub.folder("blobs").join(format!("{}.dlmi-partial", sha256(b"weights")));
    let other = std::fs::File::create(partial).unwrap();
    other.lock().unwrap();
    let (lines, began) = (Lines::default(), Instant::now());
    let heard = lines.clone();
    let release = std::thread::spawn(move || {
        while heard.all().is_empty() && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(other);
    });
    tracing::subscriber::with_default(lines.clone(), || hub.resolve()).unwrap();
    release.join().unwrap();
    let lines = lines.all();
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
fn specs_are_names_and_nothing_else() {
    let spec: Spec = "HuggingFaceTB/SmolLM2-135M".parse().unwrap();
    assert_eq!((&*spec.repo, &*spec.revision), ("HuggingFaceTB/SmolLM2-135M", "main"));
    assert_eq!("a/b@refs/pr/1".parse::<Spec>().unwrap().revision, "refs/pr/1");
    for bad in ["", "a", "a/b/c", "../b", "a/..", "a/b@", "a/b@../../x", "a/b@/x", "a/b?x=1", "a/b@x@y", "a /b"] {
        assert_eq!(bad.parse::<Spec>().unwrap_err().exit_code(), 2, "{bad}");
    }
}
