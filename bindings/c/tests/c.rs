//! The header matches the source. The C example runs with both libraries. ctypes reaches the same interface.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the folder in which cargo puts the libraries that it built with this test.
fn libraries() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().to_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}{err}");
    output
}

#[test]
fn header_is_up_to_date() {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let made = cbindgen::generate_with_config(here(), config).unwrap();
    let path = here().join("include/evenkeel.h");
    if std::env::var("EVENKEEL_HEADER").is_ok_and(|what| what == "write") {
        made.write_to_file(&path);
    }
    let mut text = Vec::new();
    made.write(&mut text);
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == String::from_utf8(text).unwrap(),
        "{} is out of date: EVENKEEL_HEADER=write cargo test -p evenkeel-c",
        path.display()
    );
}

#[test]
fn example_runs_with_either_library() {
    let folder = tempfile::tempdir().unwrap();
    let libraries = libraries();
    let mut printed = Vec::new();
    for (name, link) in [("shared", "-levenkeel_c"), ("static", "-l:libevenkeel_c.a")] {
        let program = folder.path().join(name);
        let mut cc = Command::new("cc");
        cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror"]).arg(here().join("examples/split.c"));
        cc.arg("-I").arg(here().join("include")).arg("-L").arg(&libraries).arg(link);
        // libstdc++ serves HiGHS, which the tests may link.
        run(cc.args(["-lpthread", "-ldl", "-lm", "-lstdc++"]).arg("-o").arg(&program));
        printed.push(run(Command::new(&program).env("LD_LIBRARY_PATH", &libraries)).stdout);
    }
    assert_eq!(printed[0], printed[1]);
    let text = String::from_utf8(printed.remove(0)).unwrap();
    assert!(text.contains(": peak 75 tokens\n"), "{text}");
    assert!(text.contains("a wrong number of experts: "), "{text}");
}

#[test]
fn ctypes_smoke() {
    let library = libraries().join("libevenkeel_c.so");
    let script = here().join("tests/smoke.py");
    let output = run(Command::new("python3").arg(script).arg(library));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ok");
}
