//! Write errors and damaged stores. No acknowledged step is lost, every step counts once, and damage is
//! refused.
//!
//! A library injects write errors. It is loaded before the C library and replaces `pwrite`, `fdatasync` and
//! `fsync`. `make attack` runs 250 cycles of errors and 500 damages (EVENKEEL_ATTACK=full).

#![cfg(all(feature = "serve", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, Server, command, folder, loads, noise, plan_of, shape, store};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn full() -> bool {
    std::env::var("EVENKEEL_ATTACK").is_ok_and(|form| form == "full")
}

/// Source of the library. The first byte of the file FAULTS selects the failing calls. `s` fails every flush,
/// alternately after and without the real flush. `w` fails every third write. Any other byte fails none.
const FAULTS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int calls;

static char mode(void) {
    const char *path = getenv("FAULTS");
    char byte = ' ';
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, &byte, 1) != 1) byte = ' ';
        close(file);
    }
    return byte;
}

static int fails(void) { errno = EIO; return -1; }

static int flush(int file, const char *name) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (mode() != 's') return real(file);
    if (atomic_fetch_add(&calls, 1) % 2) real(file);
    return fails();
}

int fdatasync(int file) { return flush(file, "fdatasync"); }
int fsync(int file) { return flush(file, "fsync"); }

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    if (mode() == 'w' && atomic_fetch_add(&calls, 1) % 3 == 0) return fails();
    return real(file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) { return pwrite64(file, bytes, count, at); }
"#;

/// Compiles the library and returns its path.
fn faults(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("faults.c"), folder.join("faults.so"));
    std::fs::write(&source, FAULTS).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut build = Command::new(compiler);
    build.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl");
    assert!(build.status().unwrap().success());
    library
}

fn counted(server: &Server) -> u64 {
    let metrics = server.get("/metrics").text;
    let line = metrics.lines().find(|line| line.starts_with("evenkeel_steps_accepted_total ")).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn write_errors_lose_nothing_and_count_nothing_twice() {
    let cycles: u64 = if full() { 250 } else { 12 };
    let data = folder();
    let library = faults(data.path());
    let switch = data.path().join("switch");
    std::fs::write(&switch, " ").unwrap();
    let start = || {
        let mut served = command(data.path(), CONFIG);
        served.env("LD_PRELOAD", &library).env("FAULTS", &switch);
        Server::run(served, None)
    };
    let mut server = start();
    assert_eq!(server.put_model("m", &json!(shape())).status, 201);
    // `next` is the next step to post, all before it are acknowledged. `since_start` counts steps since the
    // service started.
    let (mut next, mut since_start, mut failed) = (0u64, 0u64, 0u64);
    for cycle in 0..cycles {
        let mode = ["s", "w"][(cycle % 2) as usize];
        for (fault, posts) in [(" ", 3), (mode, 4), (" ", 2)] {
            std::fs::write(&switch, fault).unwrap();
            for _ in 0..posts {
                let end = next + 1 + next % 3;
                let reply = server.loads("m", &loads(next..end));
                match reply.status {
                    200 => {
                        let (new, known) =
                            (reply.json()["accepted"].clone(), reply.json()["repeated"].clone());
                        assert_eq!(new.as_u64().unwrap() + known.as_u64().unwrap(), end - next);
                        assert_eq!(known, 0, "cycle {cycle}: a refused step was counted");
                        since_start += end - next;
                        next = end;
                    }
                    503 => failed += 1,
                    status => panic!("cycle {cycle}: {status}: {}", reply.text),
                }
            }
            if fault == " " {
                let begun = Instant::now();
                while server.get("/readyz").status != 200 {
                    assert!(begun.elapsed() < Duration::from_secs(20), "ready again once writes succeed");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        assert_eq!(counted(&server), since_start, "cycle {cycle}");
        if cycle % 5 == 4 {
            // The service is killed while writes fail. Refused steps may be on disk or not, acknowledged ones
            // must be.
            std::fs::write(&switch, mode).unwrap();
            let end = next + 2;
            let taken = server.loads("m", &loads(next..end)).status == 200;
            server.kill();
            std::fs::write(&switch, " ").unwrap();
            server = start();
            since_start = 0;
            let again = server.loads("m", &loads(next.saturating_sub(50)..next)).json();
            assert_eq!(again["accepted"], 0, "cycle {cycle}: something acknowledged was forgotten");
            let again = server.loads("m", &loads(next..end)).json();
            assert!(!taken || again["accepted"] == 0);
            since_start += again["accepted"].as_u64().unwrap();
            next = end;
        }
    }
    let state = server.settled("m", "all");
    assert_eq!(state["accepted"].as_u64(), Some(next), "every step counts once");
    let (version, plan) = plan_of(0..next);
    assert_eq!((state["plan"].as_u64(), server.get("/v1/models/m/plan").text), (Some(version), plan));
    assert!(failed > cycles, "{failed} posts were refused");
    let log = server.terminate();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:?}");
    println!("{cycles} cycles of failing writes: {failed} posts refused, {next} steps counted once each");
}

#[test]
fn a_store_that_fails_or_disappears_is_not_ready() {
    let data = folder();
    let library = faults(data.path());
    let switch = data.path().join("switch");
    std::fs::write(&switch, " ").unwrap();
    let mut served = command(data.path(), CONFIG);
    served.env("LD_PRELOAD", &library).env("FAULTS", &switch);
    let server = Server::run(served, None);
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..20));
    server.settled("m", "all");
    std::fs::write(&switch, "s").unwrap();
    assert_eq!(server.loads("m", &loads(20..21)).status, 503);
    let red = server.get("/readyz");
    assert!(red.status == 503 && red.text.contains("the store"), "{}", red.text);
    assert_eq!((server.get("/healthz").status, server.get("/v1/models/m/plan").status), (200, 200));
    // The service becomes ready again by itself, without posts.
    std::fs::write(&switch, " ").unwrap();
    let begun = Instant::now();
    while server.get("/readyz").status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    // The file is moved away from the running service. Later writes to it would be lost.
    let (path, away) = (store(data.path()), data.path().join("away"));
    std::fs::rename(&path, &away).unwrap();
    let gone = server.get("/readyz");
    assert!(gone.status == 503 && gone.text.contains("removed"), "{}", gone.text);
    assert_eq!(server.loads("m", &loads(20..21)).status, 503);
    std::fs::write(&path, "something else").unwrap();
    assert!(server.get("/readyz").text.contains("replaced"));
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(server.loads("m", &loads(20..21)).json()["accepted"], 1);
    assert_eq!(server.get("/readyz").status, 200);
    server.terminate();
}

#[test]
fn damaged_stores_are_refused_or_equal() {
    let damages: u64 = if full() { 500 } else { 40 };
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..60));
    server.settled("m", "all");
    server.terminate();
    let good = std::fs::read(store(data.path())).unwrap();
    // Result of a start from the store: state, history, plan, and the replies to known steps.
    let seen = |server: &Server| {
        let mut state = server.get("/v1/models/m").json();
        for phase in state["phases"].as_array_mut().unwrap() {
            phase.as_object_mut().unwrap().remove("quiet_seconds");
        }
        let again = server.loads("m", &loads(0..60)).text;
        (state, server.get("/v1/models/m/history").json(), server.get("/v1/models/m/plan").text, again)
    };
    let server = Server::start(data.path(), CONFIG);
    let expected = seen(&server);
    server.terminate();
    let (mut refused, mut equal) = (0, 0);
    for seed in 0..damages {
        let mut bad = good.clone();
        let at = |k: u64, room: usize| (noise(seed * 1000 + k) * room as f64) as usize;
        match seed % 5 {
            0 => bad.truncate(at(0, good.len())),
            1 => (0..=seed % 64).for_each(|k| bad[at(k, good.len())] ^= 1 << (k % 8)),
            2 => {
                let begin = at(0, good.len() - 4096);
                bad[begin..begin + 4096].fill(0);
            }
            3 => {
                // One page of the file replaces another.
                let (from, to) = (at(0, good.len() / 4096) * 4096, at(1, good.len() / 4096) * 4096);
                let page = good[from..good.len().min(from + 4096)].to_vec();
                bad[to..to + page.len()].copy_from_slice(&page);
            }
            _ => bad[at(0, good.len())] = (noise(seed) * 256.0) as u8,
        }
        std::fs::write(store(data.path()), &bad).unwrap();
        let mut child =
            command(data.path(), CONFIG).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut lines, &mut url).unwrap();
        if url.starts_with("http") {
            child.kill().unwrap();
            child.wait().unwrap();
            // A second start, to inspect: the first one did not worsen the store.
            let server = Server::start(data.path(), CONFIG);
            assert_eq!(seen(&server), expected, "damage {seed}");
            assert_eq!(server.loads("m", &loads(60..70)).status, 200, "damage {seed}: it can be written");
            let log = server.terminate();
            assert!(
                !log.iter().any(|line| line.contains("panicked") || line.contains("not stored")),
                "{log:?}"
            );
            equal += 1;
        } else {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(1) && text.starts_with("error: "), "damage {seed}: {text}");
            assert!(text.contains("store") && !text.contains("panicked"), "damage {seed}: {text}");
            refused += 1;
        }
    }
    println!("{damages} damages: {refused} refused, {equal} without consequence");
    assert!(refused > damages / 5, "{refused}");
}
