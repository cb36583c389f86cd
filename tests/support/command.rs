//! The command line program as users run it.

#![allow(dead_code, reason = "each test program uses its own part")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

pub(crate) fn stdout(args: &[&str]) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn document(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

/// Returns the message of a command that must fail with exit code 1.
pub(crate) fn refusal(args: &[&str]) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    stderr
}

/// Writes a trace of `steps` x 2 layers (ids 3 and 5) x 16 experts whose heavy expert is `heavy(step)`.
/// Returns its path.
pub(crate) fn trace_file(folder: &Path, name: &str, steps: u64, heavy: impl Fn(u64) -> u64) -> String {
    let mut text = String::from("step,layer,expert,tokens\n");
    for step in 0..steps {
        for layer in [3, 5] {
            for expert in 0..16u64 {
                let tokens = 20
                    + 90 * u64::from(expert == (layer + heavy(step)) % 16)
                    + (step * 31 + expert * expert * 17 + layer) % 23;
                text += &format!("{step},{layer},{expert},{tokens}\n");
            }
        }
    }
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
