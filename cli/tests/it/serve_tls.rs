//! `evenkeel serve` over TLS: the certificate, the key file, and the reload of both.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, PATIENCE, Server, command, folder, refusal};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sets the permissions of a file.
fn chmod(file: &Path, mode: u32) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Copies a certificate and its key, which only this user may read.
fn copied(folder: &Path) -> (PathBuf, PathBuf) {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/serve");
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::copy(files.join("cert.pem"), &cert).unwrap();
    std::fs::copy(files.join("key.pem"), &key).unwrap();
    chmod(&key, 0o600);
    (cert, key)
}

fn config(cert: &Path, key: &Path) -> String {
    let (cert, key) = (cert.display(), key.display());
    format!("{CONFIG}\n[tls]\ncert = \"{cert}\"\nkey = \"{key}\"\n")
}

/// Posts a trace, trusting one certificate.
fn replay(server: &Server, ca: &Path, folder: &Path) -> std::process::Output {
    let trace = folder.join("t.csv");
    std::fs::write(&trace, "step,layer,expert,tokens\n0,0,0,5\n0,0,1,3\n1,0,3,9\n").unwrap();
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["trace", "replay", "--json", "--ranks", "2", "--redundant", "2", "--to", &server.url, "--ca"])
        .args([ca, &trace])
        .output()
        .unwrap()
}

#[test]
fn tls_is_spoken() {
    let data = folder();
    let (cert, key) = copied(data.path());
    let server = Server::start(data.path(), &config(&cert, &key));
    assert!(server.url.starts_with("https://127.0.0.1:"), "{}", server.url);
    assert!(server.try_send("GET", "/healthz", &[], None).is_err(), "an unknown certificate is not trusted");
    let mut clear = TcpStream::connect(server.address()).unwrap();
    clear.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = clear.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut text = vec![];
    let _ = clear.read_to_end(&mut text);
    assert!(!String::from_utf8_lossy(&text).contains("200"), "nothing is said in the clear");
    let done = replay(&server, &cert, data.path());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((answer["model"].as_str(), answer["accepted"].as_u64()), (Some("t"), Some(2)));
    let message = refusal(command(data.path(), &config(&key, &key)));
    assert!(message.contains("tls.cert"), "{message}");
    server.terminate();
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let data = folder();
    let (cert, key) = copied(data.path());
    for mode in [0o644, 0o604, 0o660, 0o602] {
        chmod(&key, mode);
        let message = refusal(command(data.path(), &config(&cert, &key)));
        assert!(
            message.contains("tls.key") && message.contains(&format!("mode {mode:04o}, expected 0600")),
            "{message}"
        );
    }
    chmod(&key, 0o640);
    let server = Server::start(data.path(), &config(&cert, &key));
    assert!(server.said("warning").contains("key.pem (mode 0640)"));
    server.terminate();
}

#[test]
fn a_renewed_certificate_is_read_again_and_a_bad_one_is_not() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/serve");
    let data = folder();
    let (cert, key) = copied(data.path());
    let server = Server::start(data.path(), &config(&cert, &key));
    let old = files.join("cert.pem");
    assert!(replay(&server, &old, data.path()).status.success());
    // Incomplete renewals: a key that does not match, a truncated file, a key that others can read.
    let new = files.join("renewed-cert.pem");
    let bad: [&dyn Fn(); 3] = [
        &|| assert!(std::fs::copy(&new, &cert).unwrap() > 0),
        &|| std::fs::write(&cert, &std::fs::read(&new).unwrap()[..200]).unwrap(),
        &|| {
            std::fs::copy(&old, &cert).unwrap();
            chmod(&key, 0o644);
        },
    ];
    for spoil in bad {
        spoil();
        server.signal("HUP");
        let line = server.said("configuration");
        assert!(line.contains("not reloaded: tls."), "{line}");
        assert!(replay(&server, &old, data.path()).status.success(), "the old certificate serves on");
    }
    std::fs::copy(&new, &cert).unwrap();
    std::fs::copy(files.join("renewed-key.pem"), &key).unwrap();
    chmod(&key, 0o600);
    server.signal("HUP");
    assert_eq!(server.said("configuration"), "configuration reloaded");
    assert!(replay(&server, &new, data.path()).status.success());
    assert!(!replay(&server, &old, data.path()).status.success(), "the new certificate is presented");
    server.terminate();
}
