//! The packages of the workspace depend on each other as ARCHITECTURE.md states, and on no external libraries
//! except the listed ones.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

/// Package, packages of the workspace that it may depend on, and external ones.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("evenkeel-solver", "", "good_lp thiserror"),
    ("evenkeel", "solver", "good_lp petgraph rand_chacha rayon serde serde-saphyr serde_json thiserror"),
    (
        "evenkeel-trace",
        "evenkeel",
        "bytes csv encoding_rs encoding_rs_io flate2 parquet rayon rustix safetensors serde serde_json sha2 zip zstd",
    ),
    ("evenkeel-simulate", "evenkeel", "rayon thiserror"),
    ("evenkeel-cost", "evenkeel", "bytes parquet rand_chacha rayon serde serde_json thiserror zip"),
    ("evenkeel-advise", "evenkeel cost", "rayon serde serde_json thiserror"),
    ("evenkeel-cuda", "evenkeel solver", "cudarc libloading sha2 thiserror"),
    (
        "evenkeel-exec",
        "evenkeel cuda",
        "cudarc gemm half libloading memmap2 mpi pulp rayon rustix safetensors serde serde_json sha2 signal-hook thiserror",
    ),
    ("evenkeel-report", "advise evenkeel exec simulate", ""),
    (
        "evenkeel-serve",
        "cost evenkeel simulate solver trace",
        "axum bytes futures-util hyper hyper-util prometheus-client rayon redb rustix serde serde_json sha2 subtle thiserror \
         tokio tokio-rustls toml tower-service ureq utoipa zstd",
    ),
    (
        "evenkeel-cli",
        "advise evenkeel cost cuda exec report serve simulate solver trace",
        "anyhow clap clap_complete clap_mangen comfy-table indicatif mpi ratatui rayon serde serde_json sha2 signal-hook strsim \
         thiserror toml toml_parser ureq",
    ),
    ("evenkeel-c", "evenkeel cuda trace", ""),
    ("evenkeel-python", "advise evenkeel cuda trace", "numpy pyo3 rayon"),
];

/// Optional dependencies of the planning library. Its default features need none of them.
const OPTIONAL: [&str; 3] = ["good_lp", "petgraph", "serde-saphyr"];

/// Returns the violations in the packages that `cargo metadata --no-deps` lists.
fn violations(metadata: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, own, external)) = ALLOWED.iter().find(|(allowed, ..)| *allowed == name) else {
            found.push(format!("{name}: not in the table"));
            continue;
        };
        let own = own.split_whitespace().map(|name| match name {
            "evenkeel" => name.to_owned(),
            name => format!("evenkeel-{name}"),
        });
        let allowed: BTreeSet<String> = own.chain(external.split_whitespace().map(str::to_owned)).collect();
        for dependency in package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let on = dependency["name"].as_str().unwrap_or_default();
            // Tests may depend on anything.
            if !dependency["kind"].is_null() {
                continue;
            }
            if !allowed.contains(on) {
                found.push(format!("{name} depends on {on}"));
            }
            if name == "evenkeel" && OPTIONAL.contains(&on) && dependency["optional"] != true {
                found.push(format!("{name} depends on {on} in every build"));
            }
        }
    }
    let missing = ALLOWED.iter().filter(|(name, ..)| packages.iter().all(|package| package["name"] != *name));
    found.extend(missing.map(|(name, ..)| format!("{name}: in the table alone")));
    found
}

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .arg("--offline")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn packages_depend_on_each_other_as_planned() {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let mut metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(violations(&metadata), Vec::<String>::new());

    // The test adds a forbidden edge, which must be found.
    let packages = metadata["packages"].as_array_mut().unwrap();
    let library = packages.iter_mut().find(|package| package["name"] == "evenkeel").unwrap();
    let edge = serde_json::json!({ "name": "clap", "kind": null, "optional": false });
    library["dependencies"].as_array_mut().unwrap().push(edge);
    assert_eq!(violations(&metadata), ["evenkeel depends on clap"]);
}

/// Returns the packages that a package needs in a build with its default features.
fn packages_of(name: &str) -> BTreeSet<String> {
    let tree = cargo(&["tree", "-p", name, "-e", "normal", "--prefix", "none"]);
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_planning_library_is_light() {
    let packages = packages_of("evenkeel");
    assert!(packages.len() <= 35, "{} packages: {packages:?}", packages.len());
    let heavy = [
        "anyhow", "axum", "clap", "clarabel", "csv", "cudarc", "good_lp", "parquet", "petgraph", "ratatui",
        "redb", "tokio", "zip",
    ];
    assert!(heavy.iter().all(|name| !packages.contains(*name)), "{packages:?}");
}

#[test]
fn bindings_take_neither_the_program_nor_the_service() {
    for binding in ["evenkeel-c", "evenkeel-python"] {
        let packages = packages_of(binding);
        assert!(
            ["axum", "clap", "tokio"].iter().all(|name| !packages.contains(*name)),
            "{binding}: {packages:?}"
        );
    }
}
