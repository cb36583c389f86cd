//! SIGHUP: a reload is one transaction, and no file can block the service.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, Reply, Server, command, folder, refusal};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TOKEN: &str = "a-token-of-many-letters";

/// Returns whether the long forms run.
fn full() -> bool {
    std::env::var("EVENKEEL_ATTACK").is_ok_and(|form| form == "full")
}

fn write_private(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Starts a service with its address and tokens in its file.
fn with_tokens(data: &Path, listen: &str) -> (Server, String) {
    let tokens = data.join("tokens");
    write_private(&tokens, &format!("{TOKEN}\n"));
    let good = format!(
        "listen = \"{listen}\"\ntoken_file = \"{}\"\n[limits]\nbody_mib = 2\n{CONFIG}",
        tokens.display()
    );
    let mut start = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    let file = data.join("config.toml");
    std::fs::write(&file, &good).unwrap();
    start.args(["serve", "--data"]).arg(data).arg("--config").arg(file);
    (Server::run(start, None), good)
}

/// Sends a request over loopback, for any address in the URL.
fn ask(server: &Server, method: &str, path: &str, token: Option<&str>) -> Reply {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> =
        authorization.iter().map(|value| ("authorization", value.as_str())).collect();
    server.send(method, path, &headers, None)
}

#[test]
fn no_file_opens_the_service() {
    for listen in ["0.0.0.0:0", "127.0.0.1:0"] {
        let data = folder();
        let (server, good) = with_tokens(data.path(), listen);
        let (file, tokens) = (data.path().join("config.toml"), data.path().join("tokens"));
        let refuse = |what: &str| {
            server.signal("HUP");
            let line = server.said("configuration");
            assert!(line.contains("not reloaded"), "{what}: {line}");
            assert_eq!(ask(&server, "GET", "/v1/models", None).status, 401, "{what}");
            assert_eq!(ask(&server, "GET", "/v1/models", Some(TOKEN)).status, 200, "{what}");
            let put = [("content-type", "application/json")];
            let made = server.send("PUT", "/v1/models/x", &put, Some(b"{\"ranks\": 2}"));
            assert_eq!(made.status, 401, "{what}");
            // The limits of the old file apply as well.
            let large = vec![b' '; (2 << 20) + 5000];
            let authorization = format!("Bearer {TOKEN}");
            let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
            assert_eq!(server.send("PUT", "/v1/models/x", &headers, Some(&large)).status, 413, "{what}");
            line
        };
        std::fs::write(&file, "").unwrap();
        refuse("empty");
        std::fs::write(&file, "[limits]\nbody_mib = 8\n").unwrap();
        refuse("without tokens");
        std::fs::write(&file, "listen = \"127.0.0.1:8787\"\n[limits]\nbody_mib = 8\n").unwrap();
        refuse("another address, without tokens");
        let steps = if full() { 1 } else { 7 };
        let token_file = good.find("token_file").unwrap();
        for end in (0..token_file + "token_file = ".len()).step_by(steps) {
            std::fs::write(&file, &good[..end]).unwrap();
            refuse(&format!("cut off at {end}"));
        }
        std::fs::remove_file(&file).unwrap();
        refuse("missing");
        mkfifo(&file);
        assert!(refuse("FIFO").contains("a FIFO, expected a regular file"));
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert!(refuse("device").contains("a device, expected a regular file"));
        std::fs::remove_file(&file).unwrap();
        // A complete file with errors in its other parts changes nothing either.
        let wider = good.replace("body_mib = 2", "body_mib = 8");
        for (spoilt, part) in [
            (format!("{wider}\n[models.\"a b\"]\nranks = 2\n"), "is not a valid name"),
            (wider.replace("every = 6", "every = 0"), "decide.every: 0, expected 1 to 1000000000"),
            (
                wider.replace(
                    "body_mib = 8",
                    "body_mib = 8\nmodels = 1\n[models.a]\nranks = 2\n[models.b]\nranks = 2",
                ),
                "limits.models",
            ),
        ] {
            std::fs::write(&file, spoilt).unwrap();
            let line = refuse(part);
            assert!(line.contains(part), "{line}");
        }
        std::fs::write(&file, &wider).unwrap();
        for spoilt in ["", "short\n", "a-token-of-many#letters\n"] {
            std::fs::write(&tokens, spoilt).unwrap();
            refuse(&format!("tokens {spoilt:?}"));
        }
        std::fs::remove_file(&tokens).unwrap();
        refuse("no file of tokens");
        mkfifo(&tokens);
        assert!(refuse("FIFO of tokens").contains("a FIFO"));
        std::fs::remove_file(&tokens).unwrap();
        write_private(&tokens, "another-token-of-letters\n");
        server.signal("HUP");
        assert_eq!(server.said("configuration"), "configuration reloaded");
        assert_eq!(ask(&server, "GET", "/v1/models", Some(TOKEN)).status, 401);
        assert_eq!(ask(&server, "GET", "/v1/models", Some("another-token-of-letters")).status, 200);
        server.terminate();
    }
}

#[test]
fn a_model_of_another_shape_is_refused_as_a_whole() {
    let data = folder();
    let with = |ranks: usize, every: usize| {
        format!("{}[models.m]\nranks = {ranks}\n", CONFIG.replace("every = 6", &format!("every = {every}")))
    };
    let server = Server::start(data.path(), &with(2, 6));
    drop(command(data.path(), &format!("{}[models.new]\nranks = 2\n", with(4, 7))));
    server.signal("HUP");
    assert!(server.said("configuration").contains("not reloaded: [models.m] differs"));
    assert_eq!(server.get("/v1/models/m").json()["decide"]["every"], 6);
    assert_eq!(server.get("/v1/models/new").status, 404);
    server.terminate();
}

#[test]
fn files_that_are_no_files_hold_up_neither_start_nor_end() {
    let data = folder();
    let fifo = data.path().join("fifo");
    mkfifo(&fifo);
    let begun = Instant::now();
    let mut start = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    start.args(["serve", "--data"]).arg(data.path()).arg("--config").arg(&fifo);
    assert!(refusal(start).contains("a FIFO, expected a regular file"));
    let message = refusal(command(data.path(), &format!("token_file = \"{}\"\n", fifo.display())));
    assert!(message.contains("a FIFO, expected a regular file"), "{message}");
    let message = refusal(command(data.path(), "token_file = \"/dev/zero\"\n"));
    assert!(message.contains("a device, expected a regular file"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // A flood of signals arrives while the file is a FIFO. Requests are still answered, and the service can
    // end.
    let server = Server::start(data.path(), CONFIG);
    let file = data.path().join("config.toml");
    std::fs::remove_file(&file).unwrap();
    mkfifo(&file);
    for _ in 0..20 {
        server.signal("HUP");
        assert_eq!(server.get("/healthz").status, 200);
    }
    let begun = Instant::now();
    server.terminate();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn files_of_secrets_are_private_or_warned_of() {
    let data = folder();
    let (inner, tokens) = (data.path().join("a/b"), data.path().join("tokens"));
    std::fs::write(&tokens, format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o644)).unwrap();
    let run = || {
        let mut start = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        start.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&inner).current_dir(data.path());
        start.arg("--token-file").arg(&tokens);
        Server::run(start, Some(TOKEN))
    };
    let server = run();
    let line = server.said("warning");
    assert!(line.contains("token file") && line.contains("(mode 0644)"), "{line}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let store = inner.join("evenkeel.redb");
    assert_eq!((mode(&inner), mode(&store)), (0o700, 0o600));
    assert!(!server.terminate().iter().any(|line| line.contains("the store")));
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o664)).unwrap();
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).unwrap();
    let server = run();
    let line = server.said("warning");
    assert!(line.contains("store") && line.contains("(mode 0664)"), "{line}");
    server.terminate();
}
