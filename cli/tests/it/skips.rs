//! A skip is printed past the harness and recorded in a file. In CI it is an error unless `.ci/skips` lists
//! it.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::skip_support::skipped;
use std::process::{Command, Output};

/// Skips for the reason in `EVENKEEL_SKIP_FOR`. The tests below run it in a separate process.
#[test]
fn skips_for_a_reason() {
    if let Ok(reason) = std::env::var("EVENKEEL_SKIP_FOR") {
        skipped(&reason);
    }
}

fn skip_for(reason: &str, ci: &str, kept: &std::path::Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "skips::skips_for_a_reason"])
        .envs([("EVENKEEL_SKIP_FOR", reason), ("CI", ci)])
        .env("EVENKEEL_SKIPS", kept)
        .output()
        .unwrap()
}

#[test]
fn a_listed_skip_is_said_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("skips");
    for reason in ["no GPU", "no GPU (no driver\nhere)"] {
        let output = skip_for(reason, "true", &kept);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("skipped: no GPU") && said.lines().count() == 1, "{said}");
    }
    let line = "no GPU\tcli/tests/it/skips.rs: skips::skips_for_a_reason\n";
    assert_eq!(std::fs::read_to_string(kept).unwrap(), line.repeat(2));
}

#[test]
fn a_skip_that_is_not_listed_fails_in_ci_alone() {
    let folder = tempfile::tempdir().unwrap();
    for reason in ["no time", "no", "no GPUs", "", "NO GPU"] {
        let output = skip_for(reason, "true", &folder.path().join("skips"));
        assert!(!output.status.success(), "{reason:?}");
    }
    assert!(skip_for("no time", "", &folder.path().join("skips")).status.success());
}
