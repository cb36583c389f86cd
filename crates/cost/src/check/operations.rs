//! Comparison of a database's operations with the measurements of a package.

use super::CheckScope;
use crate::database::CostDatabase;
use crate::import::operations::{MeasuredOperation, RowScope, measure_errors};
use crate::import::package::Package;
use crate::import::{ImportError, ImportStage, Progress, read_gpu_operations};
use crate::kernel_entry::{ErrorQuantiles, version_key};
use crate::operations::{OperationEntry, OperationKind};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Errors of a database for one kind of operation, framework, kernel and number format.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct OperationCheckRow {
    /// GPU of the database.
    pub gpu: String,
    /// Kind of operation.
    pub kind: OperationKind,
    /// Serving framework, or `nccl`.
    pub framework: String,
    /// Name of the kernel in the table.
    pub kernel: String,
    /// Number format in the table.
    pub dtype: String,
    /// Rows that were compared.
    pub scope: CheckScope,
    /// Number of compared rows.
    pub rows: u64,
    /// Errors, percent.
    pub errors: ErrorQuantiles,
}

/// Compares the operations of a database with a package, row by row.
///
/// # Errors
/// Fails if the path is no package, or if a table is unusable.
pub fn check_operations(
    database: &CostDatabase,
    path: &Path,
    progress: Progress<'_>,
) -> Result<Vec<OperationCheckRow>, ImportError> {
    let package = Package::open(path)?;
    let measured = read_gpu_operations(&package, &database.gpu, progress)?;
    let (done, total) = (AtomicUsize::new(0), measured.len());
    let compared: Vec<_> = measured
        .par_iter()
        .map(|operation| {
            let compared = compare(database, operation);
            progress(ImportStage::Checking, done.fetch_add(1, Ordering::Relaxed) + 1, total);
            compared
        })
        .collect();
    let mut groups: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for (key, errors) in compared.into_iter().flatten() {
        groups.entry(key).or_default().extend(errors);
    }
    let row = |((kind, framework, kernel, dtype, scope), mut errors): (_, Vec<f64>)| {
        Some(OperationCheckRow {
            gpu: database.gpu.clone(),
            kind,
            framework,
            kernel,
            dtype,
            scope,
            rows: errors.len() as u64,
            errors: super::quantiles(&mut errors)?,
        })
    };
    Ok(groups.into_iter().filter_map(row).collect())
}

/// Kind, framework, kernel, number format, and compared rows.
type GroupKey = (OperationKind, String, String, String, CheckScope);

fn compare(database: &CostDatabase, measured: &MeasuredOperation) -> Option<(GroupKey, Vec<f64>)> {
    let Found { entry, is_older } = find_entry(database, measured)?;
    let id = &measured.id;
    let (rows, scope) = if is_older {
        (RowScope::All, CheckScope::OlderVersion(id.version.clone()))
    } else {
        (RowScope::HeldOut, CheckScope::HeldOutShapes)
    };
    let errors = measure_errors(&entry.operation, measured, &database.hardware, rows);
    Some(((id.family, id.framework.clone(), id.kernel.clone(), id.dtype.clone(), scope), errors))
}

/// Entry that predicts a measured operation.
struct Found<'a> {
    entry: &'a OperationEntry,
    /// True if the measurements are of an older version than the entry's.
    is_older: bool,
}

/// Returns the entry that predicts a measured operation. For an older version it is the kernel of the same
/// name, or else that with the most rows.
fn find_entry<'a>(database: &'a CostDatabase, measured: &MeasuredOperation) -> Option<Found<'a>> {
    let id = &measured.id;
    let same = |entry: &&OperationEntry| {
        entry.operation.kind() == id.family && entry.framework == id.framework && entry.dtype == id.dtype
    };
    let named = || database.operations.iter().filter(same).filter(|entry| entry.kernel == id.kernel);
    if let Some(entry) = named().find(|entry| entry.version == id.version) {
        return Some(Found { entry, is_older: false });
    }
    // A kernel of a fitted version that has no entry is not compared.
    if database.operations.iter().filter(same).any(|entry| entry.version == id.version) {
        return None;
    }
    let other = named().max_by_key(|entry| entry.rows);
    let entry = other.or_else(|| database.operation(id.family, &id.framework, &id.dtype))?;
    let is_older = version_key(&id.version) < version_key(&entry.version);
    is_older.then_some(Found { entry, is_older })
}
