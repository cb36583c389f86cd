//! Types of other crates in public interfaces. A change of their major version would break ours, so each is
//! listed here.
//!
//! The reader of `public_api` finds the paths. An entry `NAME::*` allows a whole crate from version 1.0 on.
//! Types of crates below 1.0 are listed one by one, and docs/decisions/0001-public-api.md states the reason.
//! Items made by macros are missing.

use crate::public_api::{Crate, Outcome};
use std::collections::BTreeSet;
use std::path::Path;

/// Crate, its folder, and the paths of other crates that its interface may contain.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("evenkeel", "src", "serde::* serde_json::* thiserror::*"),
    ("evenkeel_solver", "solver/src", "thiserror::*"),
    ("evenkeel_trace", "crates/trace/src", ""),
    ("evenkeel_simulate", "crates/simulate/src", "thiserror::*"),
    ("evenkeel_cost", "crates/cost/src", "serde::* thiserror::*"),
    (
        "evenkeel_cuda",
        "crates/cuda/src",
        "thiserror::* cudarc cudarc::cublas::result::CublasError cudarc::driver::CudaFunction cudarc::driver::CudaSlice \
         cudarc::driver::CudaStream cudarc::driver::CudaView cudarc::driver::CudaViewMut cudarc::driver::DevicePtr \
         cudarc::driver::DeviceRepr cudarc::driver::DriverError",
    ),
    ("evenkeel_exec", "crates/exec/src", "serde::* thiserror::* cudarc::driver::CudaStream"),
    ("evenkeel_report", "crates/report/src", ""),
    ("evenkeel_serve", "crates/serve/src", "serde::* thiserror::* toml::* utoipa::*"),
];

/// Returns the foreign paths of a crate outside the standard library and this workspace.
fn foreign_paths(of: &Crate) -> BTreeSet<String> {
    let mut paths = of.foreign_paths();
    paths.retain(|path| {
        let name = path.split("::").next().unwrap_or_default();
        !["std", "core", "alloc"].contains(&name) && !name.starts_with("evenkeel")
    });
    paths
}

/// Returns the differences between foreign paths and a list of allowed ones.
fn violations(found: &BTreeSet<String>, allowed: &str) -> Vec<String> {
    let allows = |entry: &str, path: &str| match entry.strip_suffix('*') {
        Some(name) => path.starts_with(name),
        None => path == entry,
    };
    let entries: Vec<&str> = allowed.split_whitespace().collect();
    let unlisted = found.iter().filter(|path| !entries.iter().any(|entry| allows(entry, path)));
    let unused = entries.iter().filter(|entry| !found.iter().any(|path| allows(entry, path)));
    unlisted
        .map(|path| format!("{path} is not allowed"))
        .chain(unused.map(|e| format!("{e} is unused")))
        .collect()
}

#[test]
fn interfaces_contain_no_other_foreign_types() -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for (name, folder, allowed) in ALLOWED {
        let found = foreign_paths(&Crate::read(&root.join(folder))?);
        all.extend(violations(&found, allowed).into_iter().map(|violation| format!("{name}: {violation}")));
    }
    assert!(all.is_empty(), "see tests/it/foreign_types.rs:\n{}", all.join("\n"));
    Ok(())
}

/// Crate, and its functions and fields whose types are tuples or arrays.
/// docs/decisions/0001-public-api.md states the reasons.
const ANONYMOUS: &[(&str, &str)] = &[
    ("evenkeel_solver", "SolverTables::forests SolverTables::seats SolverTables::two"),
    ("evenkeel_serve", "PhaseState::last_imbalance StepOutcome::imbalance counts_digest wire::counts_digest"),
];

#[test]
fn results_have_names() -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for (name, folder, _) in ALLOWED {
        let allowed = ANONYMOUS.iter().find(|(allowed, _)| allowed == name).map_or("", |(_, names)| names);
        let found = Crate::read(&root.join(folder))?.anonymous_results();
        all.extend(violations(&found, allowed).into_iter().map(|violation| format!("{name}: {violation}")));
    }
    assert!(all.is_empty(), "see tests/it/foreign_types.rs:\n{}", all.join("\n"));
    let seeded =
        "pub struct Pair { pub both: (u8, u8), one: [u8; 2] } pub fn draw() -> Option<[f64; 2]> { None }";
    let found = Crate::parse(seeded)?.anonymous_results();
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["Pair::both", "draw"]);
    Ok(())
}

#[test]
fn whole_crates_are_allowed_from_version_1_on() -> Outcome {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let text = std::fs::read_to_string(manifest).map_err(|error| error.to_string())?;
    let is_stable = |name: &str| {
        let line = text.lines().find(|line| line.replace('-', "_").starts_with(&format!("{name} = ")));
        let mut quoted = line.unwrap_or_default().split('"');
        quoted.nth(1).is_some_and(|version| !version.starts_with("0."))
    };
    let entries = ALLOWED.iter().flat_map(|(.., allowed)| allowed.split_whitespace());
    for name in entries.filter_map(|entry| entry.strip_suffix("::*")) {
        assert!(is_stable(name), "{name} is below 1.0: list its types one by one");
    }
    assert!(is_stable("serde") && !is_stable("petgraph") && !is_stable("no_such_crate"));
    Ok(())
}

#[test]
fn a_foreign_type_is_found_wherever_it_stands() -> Outcome {
    let text = "
        mod inner { pub use petgraph::graph::UnGraph; pub(crate) use half::bf16; }
        use inner::UnGraph;
        use std::path::Path;
        use redb::Error as StoreError;
        pub use cudarc;
        pub struct Graph { nodes: petgraph::graph::NodeIndex, pub weights: Vec<crate::inner::bf16> }
        impl Graph {
            pub fn graph(&self) -> UnGraph<u32, ()> { todo!() }
            pub fn read(path: &Path, with: impl Fn(&csv::Reader<u8>)) -> Result<Self, std::io::Error> { todo!() }
            fn hidden(&self) -> zip::ZipArchive<()> { todo!() }
        }
        impl From<StoreError> for Graph { fn from(_: StoreError) -> Self { todo!() } }
    ";
    let found = foreign_paths(&Crate::parse(text)?);
    let expected = ["csv::Reader", "cudarc", "half::bf16", "petgraph::graph::UnGraph", "redb::Error"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    let allowed = "csv::Reader cudarc half::* petgraph::graph::UnGraph serde::*";
    assert_eq!(violations(&found, allowed), ["redb::Error is not allowed", "serde::* is unused"]);
    Ok(())
}
