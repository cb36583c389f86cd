//! Import of measured kernel times: NVIDIA's package `aiconfigurator-core` in, databases out.
//!
//! In: the wheel, an unzipped package, or a folder of its tables. Out: one [`CostDatabase`] per GPU. An
//! import reads the rows and draws the routing of each ([`crate::routing`]). It leaves out rows that
//! contradict others, and holds out a fifth of the shapes. It fits the rest, and measures errors on the
//! held-out shapes. The other operations of a step are fitted to tables of their own ([`crate::operations`]).
//!
//! The main version of a framework is the newest with at least 30 % as many rows as its largest. Kernels of
//! the main version and later ones are fitted. Rows of older versions are held out altogether;
//! [`crate::check`] compares them.

mod broken_rows;
mod collector;
mod fit;
mod hold_out;
mod interpolation;
pub(crate) mod kernel_rows;
pub(crate) mod measurements;
pub(crate) mod operations;
pub(crate) mod package;
mod parquet_columns;
pub(crate) mod routed_loads;
mod tuned_widths;

use crate::database::{CostDatabase, Provenance};
use crate::hardware::{Hardware, KNOWN_GPUS};
use crate::kernel_entry::{KernelTable, version_key};
use kernel_rows::KernelRows;
use measurements::{KernelId, MeasuredKernel, read_kernels, routing_keys};
use operations::{MeasuredOperation, fit_operation, read_operations, retain_current};
use package::{OperationTable, Package, PackageTable};
use rayon::prelude::*;
use routed_loads::RoutedLoads;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use thiserror::Error;
use tuned_widths::tuned_widths;

/// Stage of an import or check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImportStage {
    /// Tables are read.
    Reading,
    /// Routings are drawn.
    Routing,
    /// Kernels are fitted.
    Fitting,
    /// Kernels are compared with their rows.
    Checking,
}

/// Receiver of progress: stage, finished items, and all items of the stage. Each GPU begins again.
pub type Progress<'a> = &'a (dyn Fn(ImportStage, usize, usize) + Sync);

/// Error of an import.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A file is neither a folder nor a wheel.
    #[error("{path}: found {found}, expected a folder or wheel of aiconfigurator-core", path = path.display())]
    Wheel {
        /// The file.
        path: PathBuf,
        /// Description of the content.
        found: String,
    },
    /// The package has no tables of kernels.
    #[error(
        "{path}: no tables of MoE kernels: expected files GPU/moe/FRAMEWORK/VERSION/moe_perf.parquet",
        path = path.display()
    )]
    NoTables {
        /// The package.
        path: PathBuf,
    },
    /// A table has unusable content.
    #[error("{path}: found {found}, expected {expected}", path = path.display())]
    Table {
        /// The table.
        path: PathBuf,
        /// Description of the content.
        found: String,
        /// Description of usable content.
        expected: String,
    },
    /// The package has no table of a requested GPU, or no figures of its hardware are known.
    #[error("no tables of GPU \"{gpu}\" in the package: expected one of {known}")]
    UnknownGpu {
        /// The requested GPU.
        gpu: String,
        /// GPUs with tables and figures.
        known: String,
    },
}

impl ImportError {
    fn read(path: &Path, source: &std::io::Error) -> Self {
        let source = std::io::Error::new(source.kind(), source.to_string());
        ImportError::Read { path: path.to_owned(), source }
    }

    fn zip(path: &Path, error: &zip::result::ZipError) -> Self {
        ImportError::Wheel { path: path.to_owned(), found: error.to_string() }
    }
}

/// Returns the GPUs of a package for which hardware figures are known.
///
/// # Errors
/// Fails if the path is no package.
pub fn package_gpus(path: &Path) -> Result<Vec<&'static str>, ImportError> {
    Ok(gpus_of(&Package::open(path)?).map(|(gpu, ..)| gpu).collect())
}

fn gpus_of(package: &Package) -> impl Iterator<Item = (&'static str, &'static str, Hardware)> + '_ {
    KNOWN_GPUS
        .into_iter()
        .filter(|(_, folder, _)| package.tables.iter().any(|table| table.gpu_folder == *folder))
}

/// The tables of one GPU.
pub(crate) struct GpuMeasurements {
    pub(crate) hardware: Hardware,
    pub(crate) kernels: Vec<MeasuredKernel>,
    provenance: Provenance,
}

/// Reads the tables of one GPU, and draws the routings that `loads` lacks. `keep` chooses kernels by their
/// identity, given all of them.
pub(crate) fn read_gpu(
    package: &Package,
    gpu: &str,
    keep: impl Fn(&[MeasuredKernel], &KernelId) -> bool,
    loads: &mut RoutedLoads,
    progress: Progress<'_>,
) -> Result<GpuMeasurements, ImportError> {
    let Some((_, folder, hardware)) = gpus_of(package).find(|(name, ..)| *name == gpu) else {
        let known = gpus_of(package).map(|(name, ..)| name).collect::<Vec<_>>().join(", ");
        return Err(ImportError::UnknownGpu { gpu: gpu.to_owned(), known });
    };
    let tables: Vec<&PackageTable> =
        package.tables.iter().filter(|table| table.gpu_folder == folder).collect();
    let mut kernels = read_kernels(package, &tables, progress)?;
    let kept: Vec<bool> = kernels.iter().map(|kernel| keep(&kernels, &kernel.id)).collect();
    let mut kept = kept.into_iter();
    kernels.retain(|_| kept.next().unwrap_or(false));
    loads.draw_missing(&routing_keys(&kernels), progress);
    let used = |table: &&&PackageTable| {
        kernels.iter().any(|kernel| {
            let id = &kernel.id;
            (id.table, &id.framework, &id.version) == (table.table, &table.framework, &table.version)
        })
    };
    let provenance = Provenance {
        package: "aiconfigurator-core".to_owned(),
        version: package.version.clone(),
        licence: "Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES".to_owned(),
        files: tables.iter().filter(used).map(|table| table.name.clone()).collect(),
    };
    Ok(GpuMeasurements { hardware, kernels, provenance })
}

/// Fits databases to the tables of a package, for some of its GPUs or, without names, for all.
///
/// # Errors
/// Fails if the path is no package, if a table is unusable, or if it has no tables of a GPU.
pub fn import_package(
    path: &Path,
    gpus: &[&str],
    progress: Progress<'_>,
) -> Result<Vec<CostDatabase>, ImportError> {
    let package = Package::open(path)?;
    let all: Vec<&str> = gpus_of(&package).map(|(gpu, ..)| gpu).collect();
    if all.is_empty() {
        return Err(ImportError::NoTables { path: path.to_owned() });
    }
    let gpus = if gpus.is_empty() { &all } else { gpus };
    // GPUs share most routings.
    let mut loads = RoutedLoads::default();
    gpus.iter().map(|gpu| import_gpu(&package, gpu, &mut loads, progress)).collect()
}

fn import_gpu(
    package: &Package,
    gpu: &str,
    loads: &mut RoutedLoads,
    progress: Progress<'_>,
) -> Result<CostDatabase, ImportError> {
    let GpuMeasurements { hardware, kernels, mut provenance } =
        read_gpu(package, gpu, is_current, loads, progress)?;
    let loads = &*loads;
    let (done, total) = (AtomicUsize::new(0), kernels.len());
    let entries: Vec<_> = kernels
        .into_par_iter()
        .map(|kernel| {
            let tuned = tuned_widths(gpu, &kernel);
            let entry = KernelRows::new(&kernel, &tuned).fit(loads, &hardware);
            progress(ImportStage::Fitting, done.fetch_add(1, Ordering::Relaxed) + 1, total);
            entry
        })
        .collect();
    let mut operations = read_gpu_operations(package, gpu, progress)?;
    retain_current(&mut operations);
    let files: BTreeSet<&String> = operations.iter().flat_map(|operation| &operation.files).collect();
    provenance.files.extend(files.into_iter().cloned());
    let (done, total) = (AtomicUsize::new(0), operations.len());
    let fitted: Vec<_> = operations
        .into_par_iter()
        .map(|operation| {
            let entry = fit_operation(&operation, &hardware);
            progress(ImportStage::Fitting, done.fetch_add(1, Ordering::Relaxed) + 1, total);
            entry
        })
        .collect();
    let kernels = entries.into_iter().flatten().collect();
    Ok(CostDatabase::new(gpu, hardware, provenance, kernels).with_operations(fitted.into_iter().flatten()))
}

/// Reads the tables of a GPU's other operations. A package may have none.
pub(crate) fn read_gpu_operations(
    package: &Package,
    gpu: &str,
    progress: Progress<'_>,
) -> Result<Vec<MeasuredOperation>, ImportError> {
    let folder = KNOWN_GPUS.iter().find(|(name, ..)| *name == gpu).map(|(_, folder, _)| *folder);
    let of_gpu = |table: &&OperationTable| Some(table.gpu_folder.as_str()) == folder;
    let tables: Vec<&OperationTable> = package.operation_tables.iter().filter(of_gpu).collect();
    read_operations(package, &tables, progress)
}

/// Share of the rows of a framework's largest version that its main version has at least.
const MAIN_VERSION_SHARE: f64 = 0.3;

/// Returns true if a kernel belongs to the main version of its framework, or to a later one.
pub(crate) fn is_current(kernels: &[MeasuredKernel], id: &KernelId) -> bool {
    let mut rows: BTreeMap<Vec<u64>, usize> = BTreeMap::new();
    let same = |other: &KernelId| (other.table, &other.framework) == (id.table, &id.framework);
    for kernel in kernels.iter().filter(|kernel| same(&kernel.id)) {
        *rows.entry(version_key(&kernel.id.version)).or_default() += kernel.rows.len();
    }
    main_version(&rows).is_none_or(|main| version_key(&id.version) >= *main)
}

/// Returns the newest version with enough rows, by the rows of each.
fn main_version(rows: &BTreeMap<Vec<u64>, usize>) -> Option<&Vec<u64>> {
    let most = rows.values().copied().max().unwrap_or(0) as f64;
    let main = rows.iter().rev().find(|(_, rows)| **rows as f64 >= MAIN_VERSION_SHARE * most);
    main.map(|(version, _)| version)
}

/// Returns true if the shape of a row is held out of the fit.
pub(crate) fn is_held_out(table: KernelTable, row: &measurements::Measurement) -> bool {
    match table {
        // These tables have a single model, so one number of ranks is held out.
        KernelTable::WideEpContext | KernelTable::WideEpGeneration => row.ranks == 32,
        _ => hold_out::is_held_out(&row.shape_key()),
    }
}
