//! Bodies that are cut or wrong, refusals, overload, silence.

use super::*;

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
fn a_redirect_loop_ends() {
    let path = address(WEIGHTS);
    let around = Answer::Reply(302, format!("location: {path}\r\n"), Vec::new());
    let hub = Fake::new(&[(WEIGHTS, b"weights")]).answering(path, &[around]).start();
    let message = hub.fails();
    assert!(message.contains("redirect") && message.contains(&address(WEIGHTS)), "{message}");
    assert_eq!(hub.asked_for(WEIGHTS), 11, "asked once, redirected ten times");
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
