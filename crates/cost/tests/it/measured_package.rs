//! The real package, if `EVENKEEL_AICONFIGURATOR` names its wheel or folder.

use crate::skip_support::skipped;
use evenkeel_cost::CostDatabase;
use evenkeel_cost::check::{CheckScope, DatabaseCheck, check_database, check_operations};
use evenkeel_cost::import::import_package;
use std::path::PathBuf;

fn package() -> Option<PathBuf> {
    let path = std::env::var_os("EVENKEEL_AICONFIGURATOR").map(PathBuf::from);
    if path.is_none() {
        skipped("no aiconfigurator-core");
    }
    path
}

/// The table of a GPU in the crate is the one that an import makes. A100 is the smallest.
#[test]
fn an_import_makes_the_table_of_the_crate() {
    let Some(path) = package() else { return };
    let databases = import_package(&path, &["a100"], &|_, _, _| {}).unwrap();
    assert_eq!(databases, [CostDatabase::builtin("a100").unwrap()]);
}

#[test]
fn the_tables_have_their_errors() {
    let Some(path) = package() else { return };
    let database = CostDatabase::builtin("h100").unwrap();
    let DatabaseCheck { rows, together, .. } = check_database(&database, &path, &|_, _, _| {}).unwrap();
    let held_out: Vec<_> = rows.iter().filter(|row| row.scope == CheckScope::HeldOutShapes).collect();
    assert!(held_out.len() >= 13);
    for row in &held_out {
        assert!(row.beats_simpler_methods(), "{row:?}");
    }
    assert!(together.meets_limits(), "{together:?}");
    // Three of 16 groups miss a limit: kernels without tuning, and two with a single model.
    assert!(held_out.iter().filter(|row| row.meets_limits()).count() * 5 >= held_out.len() * 4);
    assert!(rows.iter().any(|row| matches!(row.scope, CheckScope::OlderVersion(_))));
}

/// The check of the operations finds the errors that the table states, and compares older versions.
#[test]
fn the_operations_have_their_errors() {
    let Some(path) = package() else { return };
    let database = CostDatabase::builtin("a100").unwrap();
    let rows = check_operations(&database, &path, &|_, _, _| {}).unwrap();
    let held_out = rows.iter().filter(|row| row.scope == CheckScope::HeldOutShapes);
    let mut compared = 0;
    for row in held_out {
        let entry = database.operations_of(row.kind).find(|entry| {
            (&entry.framework, &entry.kernel, &entry.dtype) == (&row.framework, &row.kernel, &row.dtype)
        });
        assert_eq!(entry.map(|entry| entry.errors), Some(row.errors), "{row:?}");
        compared += 1;
    }
    assert_eq!(compared, database.operations.len());
    assert!(rows.iter().any(|row| matches!(row.scope, CheckScope::OlderVersion(_))));
}
