//! Who gets the token and the login of an endpoint.

use super::*;

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
