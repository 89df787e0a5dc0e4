//! Against a server on the loopback that speaks TLS with a certificate of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::super::*;
use crate::testing::golden;

fn certificate() -> PathBuf {
    golden("loopback/cert.pem")
}

/// Answers every request with this, head and body; the address.
fn serve(answer: String) -> String {
    let (certificate, key) = (CertificateDer::from_pem_file(certificate()), PrivateKeyDer::from_pem_file(golden("loopback/key.pem")));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![certificate.unwrap()], key.unwrap()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            // A client that does not like the certificate leaves.
            let head =
                BufReader::new(Read::by_ref(&mut stream)).lines().take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
            if head.count() > 0 {
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    address
}

fn pulled(endpoint: String, certificates: Option<(&'static str, PathBuf)>) -> Error {
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig {
        endpoint,
        authorization: None,
        cache: cache.path().into(),
        offline: None,
        certificates,
        patience: Patience { pause: std::time::Duration::ZERO, ..Patience::default() },
        digests: Digests::within(cache.path().join("digests")),
    };
    pull(&config, "org/name", SILENT).unwrap_err()
}

#[test]
fn a_certificate_is_trusted_where_a_variable_names_it() {
    let endpoint = serve("HTTP/1.1 404 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into());
    let message = pulled(endpoint.clone(), None).to_string();
    assert!(message.contains("certificate is not accepted") && message.contains("SSL_CERT_FILE"), "{message}");
    assert!(!message.contains("failed 5 times"), "it stays wrong: {message}");
    // Heard through TLS.
    let message = pulled(endpoint, Some(("SSL_CERT_FILE", certificate()))).to_string();
    assert!(message.contains("the hub answers 404"), "{message}");
}

#[test]
fn a_file_without_certificates_is_named_with_its_variable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roots.pem");
    std::fs::write(&file, "-----BEGIN NOTHING-----").unwrap();
    for (name, path) in [("SSL_CERT_FILE", file), ("REQUESTS_CA_BUNDLE", folder.path().into()), ("SSL_CERT_FILE", "/nonexistent".into())] {
        let shown = path.display().to_string();
        let error = pulled("https://127.0.0.1:1".into(), Some((name, path)));
        let message = error.to_string();
        assert!(error.exit_code() == 2 && message.starts_with(name) && message.contains(&shown), "{message}");
    }
}

#[test]
fn a_redirect_from_https_to_http_is_not_followed() {
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let location = format!("http://{}/x", plain.local_addr().unwrap());
    let endpoint = serve(format!("HTTP/1.1 302 x\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
    let message = pulled(endpoint, Some(("SSL_CERT_FILE", certificate()))).to_string();
    assert!(message.contains("from https to http"), "{message}");
    plain.set_nonblocking(true).unwrap();
    assert!(plain.accept().is_err(), "nobody asked there");
}
