//! Configuration of the program by flags, the environment and `evenkeel.toml`, as users run it.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::command::trace_file;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A working folder with a trace and its project file. No folder above it has one.
struct Project {
    folder: tempfile::TempDir,
    trace: String,
}

impl Project {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let trace = trace_file(folder.path(), "loads.csv", 6, |_| 0);
        if !config.is_empty() {
            fs::write(folder.path().join("evenkeel.toml"), config).unwrap();
        }
        Self { folder, trace }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns a call in a folder below the project, with variables of the form `NAME=VALUE`.
    fn command(&self, args: &[&str], variables: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        command.args(args).current_dir(self.path());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EVENKEEL_") {
                command.env_remove(name);
            }
        }
        command.envs(variables.iter().map(|variable| variable.split_once('=').unwrap()));
        command
    }

    fn run(&self, args: &[&str], variables: &[&str]) -> Output {
        self.command(args, variables).output().unwrap()
    }

    fn stdout(&self, args: &[&str], variables: &[&str]) -> String {
        let output = self.run(args, variables);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn document(&self, args: &[&str], variables: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(args, variables)).unwrap()
    }

    /// Returns the single line on stderr of a call that fails with exit code 1.
    fn refusal(&self, args: &[&str], variables: &[&str]) -> String {
        let output = self.run(args, variables);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr.trim_end().strip_prefix("error: ").unwrap().to_owned()
    }
}

#[test]
fn a_plan_takes_its_cluster_from_every_source() {
    let project = Project::new("[cluster]\nranks = 4\nredundant = 8\n[output]\njson = true\n");
    let plan = |more: &[&str], variables: &[&str]| {
        let args = [&["plan", "loads.csv"][..], more].concat();
        let cluster = project.document(&args, variables)["cluster"].clone();
        (cluster["ranks"].as_u64().unwrap(), cluster["redundant"].as_u64().unwrap())
    };
    assert_eq!(plan(&[], &[]), (4, 8));
    assert_eq!(plan(&[], &["EVENKEEL_RANKS=8"]), (8, 8));
    assert_eq!(plan(&["--ranks", "2"], &["EVENKEEL_RANKS=8"]), (2, 8));
    assert_eq!(plan(&["--ranks", "2", "--json", "--no-config"], &[]), (2, 2));
    // The file is found from a folder below.
    fs::create_dir(project.path().join("below")).unwrap();
    let output = project
        .command(&["plan", &project.trace], &["EVENKEEL_PLAN_REDUNDANT=12"])
        .current_dir(project.path().join("below"))
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["cluster"]["redundant"], 12);
    // A report states the options that the command line does not show.
    project.stdout(&["simulate", "loads.csv", "--report", "report.html"], &["EVENKEEL_SIMULATE_SPLITS=even"]);
    let report = fs::read_to_string(project.path().join("report.html")).unwrap();
    for part in ["--ranks=4", "--redundant=8", "--splits=even", "--json"] {
        assert!(report.contains(part), "{part}");
    }
}

#[test]
fn an_option_without_effect_is_refused_on_the_command_line_alone() {
    let project = Project::new("[cluster]\nranks = 4\n[batches]\norder = \"shuffled\"\ndecode-batch = 4\n");
    project.stdout(&["plan", "loads.csv"], &[]);
    project.stdout(&["plan", "loads.csv"], &["EVENKEEL_GROUPS=2"]);
    assert!(
        project
            .refusal(&["plan", "loads.csv", "--order", "shuffled"], &[])
            .contains("--order shuffled has no effect")
    );
    // A stated option goes before a conflicting one of the file.
    let message = project.refusal(&["plan", "loads.csv", "--batch-tokens", "64"], &[]);
    assert!(message.contains("--batch-tokens 64 has no effect"), "{message}");
}

#[test]
fn errors_name_the_variable_or_the_line() {
    let project = Project::new("# shared\n[cluster]\nranks = \"four\"\n");
    let plan = ["plan", "loads.csv"];
    let file =
        "evenkeel.toml:3: cluster.ranks: found `four`, expected R of --ranks: invalid digit found in string";
    assert_eq!(project.refusal(&plan, &[]), file);
    let variable = "EVENKEEL_RANKS: found `few`, expected R of --ranks: invalid digit found in string";
    assert_eq!(project.refusal(&plan, &["EVENKEEL_RANKS=few"]), variable);
    project.stdout(&["plan", "loads.csv", "--ranks", "4"], &["EVENKEEL_RANKS=few"]);
    // The value is checked only for the commands that have the option.
    project.stdout(&["trace", "inspect", "loads.csv"], &[]);
    assert_eq!(project.refusal(&["config", "show", "plan"], &[]), file);
    fs::write(project.path().join("evenkeel.toml"), "[cluster]\nranks = 4\nnode = 2\n").unwrap();
    let message = project.refusal(&plan, &[]);
    assert_eq!(message, "evenkeel.toml:3: unknown field `node` in [cluster]: the nearest is `nodes`");
    // Help, completions and pages work with a broken file.
    for args in [&["plan", "--help"][..], &["completions", "bash"], &["man"], &["config", "path"]] {
        assert!(project.run(args, &[]).status.success(), "{args:?}");
    }
    // An error of the command line is one.
    let output = project.run(&["plan", "--rank", "4"], &[]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn files_that_are_no_files_are_refused() {
    let project = Project::new("");
    let file = project.path().join("evenkeel.toml");
    let refusal = || project.refusal(&["plan", "loads.csv", "--ranks", "4"], &[]);
    fs::create_dir(&file).unwrap();
    assert_eq!(refusal(), "evenkeel.toml: a folder, expected a regular file");
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "#".repeat(10 << 20)).unwrap();
    assert_eq!(refusal(), "evenkeel.toml: larger than 1048576 bytes, expected at most that many");
    fs::write(&file, b"\n[plan]\npolicy = \"\xff\"\n").unwrap();
    assert_eq!(refusal(), "evenkeel.toml: line 3 is not UTF-8, expected text");
    fs::write(&file, "[plan]\npolicy = eplb\n").unwrap();
    assert!(refusal().starts_with("evenkeel.toml:2: "));
    fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    assert_eq!(refusal(), "evenkeel.toml: a FIFO, expected a regular file");
    fs::remove_file(&file).unwrap();
    fs::write(&file, "[cluster]\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    fs::set_permissions(&file, mode).unwrap();
    // The superuser can read the file.
    if fs::read(&file).is_err() {
        assert!(refusal().starts_with("evenkeel.toml: Permission denied"));
    }
}

#[test]
fn show_prints_values_with_their_sources() {
    let project = Project::new("[cluster]\nranks = 4\n\n[plan]\nmemory-budget = 64\n");
    let variables = [
        "EVENKEEL_RUN_SPLIT=even",
        "EVENKEEL_RANK=8",
        "EVENKEEL_TOKEN=hush",
        "EVENKEEL_REAL_TRACES=/nowhere",
    ];
    let text = project.stdout(&["config", "show", "--threads", "2"], &variables);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = |option: &str| {
        rows.iter().find(|row| row.first() == Some(&option)).unwrap_or_else(|| panic!("{text}"))
    };
    let file = project.path().join("evenkeel.toml");
    assert_eq!(rows[0], ["file:", file.to_str().unwrap()]);
    assert_eq!(row("ranks")[..3], ["ranks", "4", "evenkeel.toml:2"]);
    assert!(row("ranks").contains(&"simulate,") && !row("ranks").contains(&"serve"), "{text}");
    assert_eq!(
        row("memory-budget"),
        &["memory-budget", "64", "evenkeel.toml:5", "plan,", "plan", "new,", "plan", "replan"]
    );
    assert_eq!(row("threads"), &["threads", "2", "flag", "every", "command"]);
    assert_eq!(row("split"), &["split", "even", "EVENKEEL_RUN_SPLIT", "run"]);
    assert!(text.contains("no option reads EVENKEEL_RANK; the nearest is EVENKEEL_RANKS"), "{text}");
    assert!(text.contains("no option reads EVENKEEL_REAL_TRACES\n"), "{text}");
    assert!(!text.contains("hush"), "{text}");
    let document = project.document(&["config", "show", "plan", "--json"], &variables);
    assert_eq!(document["file"], file.to_str().unwrap());
    let values = document["values"].as_array().unwrap();
    let ranks = values.iter().find(|value| value["option"] == "ranks" && value["command"] == "plan").unwrap();
    let source =
        serde_json::json!({ "kind": "file", "file": "evenkeel.toml", "line": 2, "key": "cluster.ranks" });
    assert_eq!((&ranks["value"], &ranks["source"]), (&"4".into(), &source));
    assert!(values.iter().all(|value| value["command"] != "run"));
    assert_eq!(document["unknown_variables"][0]["suggestion"], "EVENKEEL_RANKS");
    let all = project.stdout(&["config", "show", "--all", "plan"], &[]);
    let policy = |line: &str| line.split_whitespace().eq(["policy", "recourse", "default", "plan"]);
    assert!(all.lines().any(policy), "{all}");
    let message = project.refusal(&["config", "show", "plam"], &[]);
    assert!(message.starts_with("no command `plam`: expected one of "), "{message}");
    assert_eq!(project.stdout(&["config", "path"], &[]), format!("{}\n", file.display()));
    assert!(project.refusal(&["config", "path", "--no-config"], &[]).contains("no evenkeel.toml"));
    let empty = Project::new("").stdout(&["config", "show"], &[]);
    assert_eq!(empty, "file: none\nevery option has its built-in default\n");
}

#[test]
fn completions_are_scripts() {
    let project = Project::new("");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = project.stdout(&["completions", shell], &[]);
        for part in ["evenkeel", "completions", "max-moves", "no-config"] {
            assert!(script.contains(part), "{shell}: {part}");
        }
    }
    let script = project.path().join("evenkeel.bash");
    fs::write(&script, project.stdout(&["completions", "bash"], &[])).unwrap();
    assert!(Command::new("bash").arg("-n").arg(script).status().unwrap().success());
    assert_eq!(project.run(&["completions", "tcsh"], &[]).status.code(), Some(2));
}

#[test]
fn pages_are_complete() {
    let project = Project::new("");
    let page = project.stdout(&["man", "plan", "replan"], &[]);
    assert!(page.contains(".TH evenkeel-plan-replan 1"), "{page}");
    assert!(page.contains("EVENKEEL_MAX_MOVES") && page.contains(r"\-\-max\-moves"), "{page}");
    assert!(project.refusal(&["man", "plam"], &[]).starts_with("no command `plam`: "));
    let folder = project.path().join("pages");
    project.stdout(&["man", "--dir", "pages"], &[]);
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in ["evenkeel.1", "evenkeel-plan.1", "evenkeel-config-show.1", "evenkeel-trace-inspect.1"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
    for name in names {
        let text = fs::read_to_string(folder.join(&name)).unwrap();
        assert!(text.contains(".TH evenkeel"), "{name}");
        let groff = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(folder.join(&name))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        if let Ok(output) = groff {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && !errors.contains("error"), "{name}: {errors}");
        }
    }
}

#[cfg(feature = "serve")]
#[test]
fn the_service_reads_its_part_of_the_same_file() {
    use crate::serve_support::Server;
    let project = Project::new(
        "[cluster]\nranks = 4\n[serve]\nlisten = \"127.0.0.1:0\"\ndata = \"store\"\n[plan]\npolicy = \"eplb\"\n\
         [decide]\nevery = 9\n[models.m]\nranks = 2\n",
    );
    fs::create_dir(project.path().join("below")).unwrap();
    let mut start = project.command(&["serve"], &[]);
    start.current_dir(project.path().join("below"));
    let server = Server::run(start, None);
    assert_eq!(server.get("/v1/models/m").json()["decide"]["every"], 9);
    // The folder is relative to that of the file.
    assert!(project.path().join("store").exists());
    let file = project.path().join("evenkeel.toml");
    fs::write(&file, "[cluster]\nranks = 4\n[limits]\nbody = 9\n").unwrap();
    server.signal("HUP");
    let line = server.said("configuration");
    assert!(line.contains("not reloaded") && line.contains("line 4") && line.contains("`body`"), "{line}");
    server.terminate();
    let message = project.refusal(&["serve"], &[]);
    assert!(message.contains("line 4") && message.contains("`body`"), "{message}");
}
