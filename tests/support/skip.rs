//! Visible skips. `.ci/skipped` prints and records them, and compares them with the list of skips that CI
//! allows.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::panic::Location;
use std::process::Command;

/// Reports that this test is skipped. The reason is one of `.ci/skips`, optionally with a detail in brackets.
///
/// Panics if `CI=true` and the list does not have the reason. Outside the repository it only prints the
/// reason.
#[track_caller]
pub(crate) fn skipped(reason: &str) {
    let thread = std::thread::current();
    let place = format!("{}: {}", Location::caller().file(), thread.name().unwrap_or("a thread"));
    let script = crate::repository::root().join(".ci/skipped");
    if script.is_file() {
        // The script writes to stderr itself, since the harness hides the output of tests that pass.
        let status = Command::new(script).args([reason, &place]).status().unwrap();
        assert!(status.success(), "skipped: {reason}: not a reason that .ci/skips lists");
    } else {
        println!("skipped: {reason}");
    }
}
