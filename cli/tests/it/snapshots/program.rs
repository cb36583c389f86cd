//! The program, run in the root of the repository with its own folder for its output files.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns the path of the program under test.
fn program() -> &'static str {
    env!("CARGO_BIN_EXE_evenkeel")
}

/// Returns the root of the repository, which has the sample traces in `traces/`.
pub(super) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A folder for the output files of commands. Arguments and outputs refer to it as `[folder]`.
#[derive(Debug)]
pub(super) struct Sandbox(tempfile::TempDir);

impl Sandbox {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Returns the path of a file in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Reads a text file that a command wrote.
    pub(super) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs the program. Arguments are separated by spaces. Single quotes hold spaces together.
    fn output(&self, args: &str) -> Output {
        let args = split_arguments(args).into_iter().map(|arg| arg.replace("[folder]", &self.folder()));
        Command::new(program())
            .current_dir(repository())
            .args(args)
            // Both variables would change the output, and neither is an argument.
            .env_remove("COLUMNS")
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap()
    }

    fn folder(&self) -> String {
        self.0.path().to_str().unwrap().to_owned()
    }

    /// Runs a command that must succeed. Returns its stdout and stderr.
    pub(super) fn run(&self, args: &str) -> [String; 2] {
        let output = self.output(args);
        let [stdout, stderr] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8(bytes).unwrap().replace(&self.folder(), "[folder]"));
        assert!(output.status.success(), "evenkeel {args}: {stderr}");
        [stdout, stderr]
    }

    /// Runs a command with `--json`. Returns its document.
    pub(super) fn document(&self, args: &str) -> Value {
        serde_json::from_str(&self.run(&format!("{args} --json"))[0]).unwrap()
    }
}

fn split_arguments(line: &str) -> Vec<String> {
    let parts = line.split('\'').enumerate();
    let words = parts.flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}
