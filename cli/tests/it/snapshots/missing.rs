//! A missing snapshot fails in CI, and is not written there.

use super::program::repository;
use std::process::Command;

/// Name of a snapshot that is in no folder.
const MISSING: &str = "missing-by-intent";

/// Runs as a test in the process that the next test starts, and does nothing otherwise.
#[test]
fn compares_with_a_missing_snapshot() {
    if std::env::var_os("EVENKEEL_MISSING_SNAPSHOT").is_some() {
        super::compare(MISSING, "anything");
    }
}

#[test]
fn a_missing_snapshot_fails_in_ci_and_is_not_written() {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("compares_with_a_missing_snapshot")
        .envs([("EVENKEEL_MISSING_SNAPSHOT", "1"), ("CI", "true")])
        .env_remove("INSTA_UPDATE")
        .env_remove("INSTA_FORCE_PASS")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(101), "{}", String::from_utf8_lossy(&output.stdout));
    let written = std::fs::read_dir(repository().join("cli/tests/snapshots")).unwrap();
    let names = written.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with(MISSING)).count(), 0);
}
