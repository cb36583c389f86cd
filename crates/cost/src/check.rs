//! Comparison of a database with the measurements of a package.
//!
//! In: a [`CostDatabase`] and a package. Out: one [`CheckRow`] per table, framework and dtype, and one per
//! older version. It has the errors of the model, the roofline and interpolation on rows that no fit used.
//! Rows are read, routed and flagged as in an import. [`check_operations`] does the same for the other
//! operations of a step.

mod operations;

pub use operations::{OperationCheckRow, check_operations};

use crate::database::CostDatabase;
use crate::dtype::Dtype;
use crate::import::kernel_rows::{KernelRows, RowScope, round_digits};
use crate::import::measurements::{KernelId, MeasuredKernel};
use crate::import::package::Package;
use crate::import::routed_loads::RoutedLoads;
use crate::import::{ImportError, ImportStage, Progress, read_gpu};
use crate::kernel_entry::{ErrorQuantiles, HeldOutErrors, KernelEntry, KernelTable, MethodErrors};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of a package with which a database is compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CheckScope {
    /// Shapes that the fit did not use, in the fitted versions.
    HeldOutShapes,
    /// All rows of a version that the fit did not use.
    OlderVersion(String),
}

/// Errors of a database for one framework and dtype.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CheckRow {
    /// GPU of the database.
    pub gpu: String,
    /// Kind of table.
    pub table: KernelTable,
    /// Serving framework.
    pub framework: String,
    /// Number format.
    pub dtype: Dtype,
    /// Rows that were compared.
    pub scope: CheckScope,
    /// Rows left out because they contradict others.
    pub broken_rows: u64,
    /// Errors for balanced and skewed routing.
    pub errors: HeldOutErrors,
}

impl CheckRow {
    /// Returns true if the errors are acceptable, by [`HeldOutErrors::meets_limits`].
    pub fn meets_limits(&self) -> bool {
        self.errors.meets_limits()
    }

    /// Returns true if the model has lower errors than the roofline and than interpolation.
    pub fn beats_simpler_methods(&self) -> bool {
        let better = |a: ErrorQuantiles, b: ErrorQuantiles| a.median < b.median && a.p90 < b.p90;
        [self.errors.balanced, self.errors.skewed].into_iter().flatten().all(|errors| {
            better(errors.model, errors.roofline)
                && errors.interpolation.is_none_or(|other| better(errors.model, other))
        })
    }
}

/// Errors of a database, by group and together.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DatabaseCheck {
    /// Errors by table, framework, dtype and version.
    pub rows: Vec<CheckRow>,
    /// Errors of the rows of all held-out shapes together.
    pub together: HeldOutErrors,
}

/// Compares a database with a package, row by row.
///
/// # Errors
/// Fails if the path is no package, if a table is unusable, or if the package has no tables of the GPU.
pub fn check_database(
    database: &CostDatabase,
    path: &Path,
    progress: Progress<'_>,
) -> Result<DatabaseCheck, ImportError> {
    let package = Package::open(path)?;
    let has_entry = |_: &[MeasuredKernel], id: &KernelId| find_entry(database, id).is_some();
    let mut loads = RoutedLoads::default();
    let measured = read_gpu(&package, &database.gpu, has_entry, &mut loads, progress)?;
    let (done, total) = (AtomicUsize::new(0), measured.kernels.len());
    let compared: Vec<_> = measured
        .kernels
        .par_iter()
        .map(|kernel| {
            let id = &kernel.id;
            let (entry, is_older) = find_entry(database, id)?;
            let (scope, label) = if is_older {
                (RowScope::All, CheckScope::OlderVersion(id.version.clone()))
            } else {
                (RowScope::HeldOut, CheckScope::HeldOutShapes)
            };
            let rows = KernelRows::new(kernel, &entry.tuned_widths);
            let samples = rows.errors(entry, &loads, &database.hardware, scope);
            progress(ImportStage::Checking, done.fetch_add(1, Ordering::Relaxed) + 1, total);
            Some(((id.table, id.framework.clone(), id.dtype, label), (samples, rows.broken_rows())))
        })
        .collect();
    let mut groups: BTreeMap<_, (ErrorSamples, u64)> = BTreeMap::new();
    let mut together = ErrorSamples::default();
    for (key, (samples, broken)) in compared.into_iter().flatten() {
        if key.3 == CheckScope::HeldOutShapes {
            together.append(samples.clone());
        }
        let group = groups.entry(key).or_default();
        group.0.append(samples);
        group.1 += broken;
    }
    let row =
        |((table, framework, dtype, scope), (samples, broken_rows)): (_, (ErrorSamples, u64))| CheckRow {
            gpu: database.gpu.clone(),
            table,
            framework,
            dtype,
            scope,
            broken_rows,
            errors: samples.summarize(),
        };
    Ok(DatabaseCheck { rows: groups.into_iter().map(row).collect(), together: together.summarize() })
}

/// Returns the entry that predicts a measured kernel. For an older version it is the kernel of the same
/// name, or else that with the most rows. The flag is true for an older version.
fn find_entry<'a>(database: &'a CostDatabase, id: &KernelId) -> Option<(&'a KernelEntry, bool)> {
    let same = |entry: &&KernelEntry| {
        (entry.table, &entry.framework, entry.dtype) == (id.table, &id.framework, id.dtype)
    };
    let named = || database.kernels.iter().filter(same).filter(|entry| entry.kernel == id.kernel);
    if let Some(own) = named().find(|entry| entry.version == id.version) {
        return Some((own, false));
    }
    // A kernel of a fitted version that has too few rows has no entry and is not compared.
    if database.kernels.iter().filter(same).any(|entry| entry.version == id.version) {
        return None;
    }
    let other = named().max_by_key(|entry| entry.rows);
    other.or_else(|| database.kernel_in(id.table, &id.framework, id.dtype).ok()).map(|entry| (entry, true))
}

/// Absolute relative errors of three methods in percent, for balanced and for skewed rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct ErrorSamples {
    /// Model, roofline, interpolation; balanced first.
    errors: [[Vec<f64>; 3]; 2],
}

impl ErrorSamples {
    pub(crate) fn add(
        &mut self,
        balanced: bool,
        measured: f64,
        model: f64,
        roofline: f64,
        interpolation: Option<f64>,
    ) {
        let error = |time: f64| (time / measured - 1.0).abs() * 100.0;
        let [models, rooflines, interpolations] = &mut self.errors[usize::from(!balanced)];
        models.push(error(model));
        rooflines.push(error(roofline));
        interpolations.extend(interpolation.map(error));
    }

    fn append(&mut self, mut other: ErrorSamples) {
        let pairs = self.errors.iter_mut().flatten().zip(other.errors.iter_mut().flatten());
        pairs.for_each(|(to, from)| to.append(from));
    }

    pub(crate) fn summarize(mut self) -> HeldOutErrors {
        let [balanced, skewed] = &mut self.errors;
        let summary = |[model, roofline, interpolation]: &mut [Vec<f64>; 3]| {
            Some(MethodErrors {
                rows: model.len() as u64,
                model: quantiles(model)?,
                roofline: quantiles(roofline)?,
                interpolation: quantiles(interpolation),
            })
        };
        HeldOutErrors { balanced: summary(balanced), skewed: summary(skewed) }
    }
}

/// Returns median and 90th percentile, linear between ranks and rounded to a hundredth of a percent at
/// least.
pub(crate) fn quantiles(errors: &mut [f64]) -> Option<ErrorQuantiles> {
    let last = errors.len().checked_sub(1)?;
    errors.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * last as f64;
        let below = place.floor() as usize;
        let above = errors[(below + 1).min(last)];
        round_digits(errors[below] + (above - errors[below]) * place.fract(), 4)
    };
    Some(ErrorQuantiles { median: at(0.5), p90: at(0.9) })
}
