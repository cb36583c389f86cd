//! Files of NVIDIA's package `aiconfigurator-core`: in its wheel, unzipped, or in any folder above the
//! tables.
//!
//! In: a path. Out: the tables with GPU, framework and version, which the last folders of their paths
//! state: `GPU/KIND/FRAMEWORK/VERSION/NAME.parquet`. Kernels have the kind `moe`.

use super::parquet_columns::{ContentError, guard_panics};
use super::{ImportError, ImportStage, Progress};
use crate::kernel_entry::KernelTable;
use rayon::prelude::*;
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// One table of the package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PackageTable {
    /// Folder of the GPU, such as `h100_sxm`.
    pub(crate) gpu_folder: String,
    pub(crate) framework: String,
    pub(crate) version: String,
    pub(crate) table: KernelTable,
    /// Path inside the package, with slashes.
    pub(crate) name: String,
}

/// Content of a table of other operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TableContent {
    LowLatency,
    Normal,
    MoeAllToAll,
    NvlinkAllToAll,
    Nccl,
    AllReduce,
    DecodeAttention,
    PrefillAttention,
    MlaDecode,
    MlaPrefill,
    MlaBlockDecode,
    MlaBlockPrefill,
    MlaBmm,
    Gemm,
}

/// One table of another operation than the experts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationTable {
    /// Folder of the GPU, such as `h100_sxm`.
    pub(crate) gpu_folder: String,
    pub(crate) framework: String,
    pub(crate) version: String,
    pub(crate) content: TableContent,
    /// Path inside the package, with slashes.
    pub(crate) name: String,
}

/// An opened package.
#[derive(Debug)]
pub(crate) struct Package {
    path: PathBuf,
    is_wheel: bool,
    pub(crate) tables: Vec<PackageTable>,
    pub(crate) operation_tables: Vec<OperationTable>,
    pub(crate) version: String,
}

/// The most bytes of one table. The largest published one has 2 MB.
const MAX_TABLE_BYTES: u64 = 256 << 20;

impl Package {
    /// Lists the tables of a wheel or folder.
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let metadata = std::fs::metadata(path).map_err(|error| ImportError::read(path, &error))?;
        let is_wheel = !metadata.is_dir();
        let names = if is_wheel { wheel_names(path)? } else { folder_names(path)? };
        let mut tables: Vec<PackageTable> = names.iter().filter_map(|name| parse_name(name)).collect();
        tables.sort();
        let mut operation_tables: Vec<OperationTable> =
            names.iter().filter_map(|name| parse_operation_name(name)).collect();
        operation_tables.sort();
        if tables.is_empty() {
            return Err(ImportError::NoTables { path: path.to_owned() });
        }
        // A folder below the package does not name its version; its own path may.
        let own_path = path.to_string_lossy();
        let version = names.iter().map(String::as_str).chain([&*own_path]).find_map(package_version);
        let version = version.unwrap_or("unknown").to_owned();
        Ok(Self { path: path.to_owned(), is_wheel, tables, operation_tables, version })
    }

    /// Reads a table by its path inside the package.
    fn read(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let place = self.place(name);
        let io_error = |error: std::io::Error| ImportError::read(&place, &error);
        let mut bytes = Vec::new();
        if self.is_wheel {
            let mut archive = open_wheel(&self.path)?;
            let entry = archive.by_name(name).map_err(|error| ImportError::zip(&self.path, &error))?;
            entry.take(MAX_TABLE_BYTES + 1).read_to_end(&mut bytes).map_err(io_error)?;
        } else {
            File::open(&place)
                .and_then(|file| file.take(MAX_TABLE_BYTES + 1).read_to_end(&mut bytes))
                .map_err(io_error)?;
        }
        if bytes.len() as u64 > MAX_TABLE_BYTES {
            let found = format!("over {MAX_TABLE_BYTES} bytes");
            return Err(ImportError::Table { path: place, found, expected: "a smaller table".into() });
        }
        Ok(bytes)
    }

    /// Reads tables at the same time, in their order. `name` returns the path of a table inside the package,
    /// and `read` its content.
    pub(crate) fn read_tables<T: Sync, R: Send>(
        &self,
        tables: &[&T],
        name: fn(&T) -> &str,
        read: impl Fn(&T, Vec<u8>) -> Result<R, ContentError> + Sync,
        progress: Progress<'_>,
    ) -> Result<Vec<R>, ImportError> {
        let done = AtomicUsize::new(0);
        let read_one = |table: &&T| {
            let bytes = self.read(name(table))?;
            let content = guard_panics(|| read(table, bytes)).map_err(|(found, expected)| {
                ImportError::Table { path: self.place(name(table)), found, expected }
            });
            progress(ImportStage::Reading, done.fetch_add(1, Ordering::Relaxed) + 1, tables.len());
            content
        };
        tables.par_iter().map(read_one).collect()
    }

    /// Returns the path of a table for messages: in a folder that of its file.
    fn place(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

type Wheel = zip::ZipArchive<BufReader<File>>;

fn open_wheel(path: &Path) -> Result<Wheel, ImportError> {
    let file = File::open(path).map_err(|error| ImportError::read(path, &error))?;
    zip::ZipArchive::new(BufReader::new(file)).map_err(|error| ImportError::zip(path, &error))
}

fn wheel_names(path: &Path) -> Result<Vec<String>, ImportError> {
    let archive = open_wheel(path)?;
    let names = archive.file_names().map(|name| name.map(Cow::into_owned));
    names.collect::<Result<_, _>>().map_err(|error| ImportError::zip(path, &error))
}

fn folder_names(root: &Path) -> Result<Vec<String>, ImportError> {
    let mut names = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        let read_error = |error: std::io::Error| ImportError::read(&folder, &error);
        for entry in std::fs::read_dir(&folder).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let path = entry.path();
            if entry.file_type().map_err(read_error)?.is_dir() {
                open.push(path.clone());
            }
            let parts = path.strip_prefix(root).unwrap_or(&path).iter();
            names.push(parts.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/"));
        }
    }
    Ok(names)
}

fn parse_name(name: &str) -> Option<PackageTable> {
    let mut parts = name.rsplit('/');
    let table = match parts.next()? {
        "moe_perf.parquet" => KernelTable::Moe,
        "wideep_moe_perf.parquet" => KernelTable::WideEp,
        "wideep_context_moe_perf.parquet" => KernelTable::WideEpContext,
        "wideep_generation_moe_perf.parquet" => KernelTable::WideEpGeneration,
        _ => return None,
    };
    let (version, framework, moe, gpu) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let [gpu_folder, framework, version] = [gpu, framework, version].map(str::to_owned);
    (moe == "moe").then(|| PackageTable { gpu_folder, framework, version, table, name: name.to_owned() })
}

fn parse_operation_name(name: &str) -> Option<OperationTable> {
    let mut parts = name.rsplit('/');
    let file = parts.next()?.strip_suffix("_perf.parquet")?;
    let (version, framework, kind, gpu) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let content = match (kind, file) {
        ("comm", "wideep_deepep_ll") => TableContent::LowLatency,
        ("comm", "wideep_deepep_normal") => TableContent::Normal,
        ("comm", "moe_a2a") => TableContent::MoeAllToAll,
        ("comm", "trtllm_alltoall") => TableContent::NvlinkAllToAll,
        ("comm", "nccl") if framework == "nccl" => TableContent::Nccl,
        ("comm", "custom_allreduce") => TableContent::AllReduce,
        ("attention", "generation_attention") => TableContent::DecodeAttention,
        ("attention", "context_attention") => TableContent::PrefillAttention,
        ("mla", "generation_mla") => TableContent::MlaDecode,
        ("mla", "context_mla") => TableContent::MlaPrefill,
        ("mla", "mla_generation_module" | "wideep_generation_mla") => TableContent::MlaBlockDecode,
        ("mla", "mla_context_module" | "wideep_context_mla") => TableContent::MlaBlockPrefill,
        ("mla_bmm", "mla_bmm") => TableContent::MlaBmm,
        ("gemm", "gemm") => TableContent::Gemm,
        _ => return None,
    };
    let [gpu_folder, framework, version] = [gpu, framework, version].map(str::to_owned);
    Some(OperationTable { gpu_folder, framework, version, content, name: name.to_owned() })
}

/// Returns the version in the name of a wheel or of its folder of metadata.
fn package_version(path: &str) -> Option<&str> {
    let (_, rest) = path.split_once("aiconfigurator_core-")?;
    let version = rest.split(['-', '/']).next()?;
    Some(version.strip_suffix(".dist").unwrap_or(version)).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_state_the_table() {
        let table = parse_name("x/systems/data/gb200/moe/trtllm/1.3.0rc10/wideep_moe_perf.parquet").unwrap();
        let parts = (&*table.gpu_folder, &*table.framework, &*table.version, table.table);
        assert_eq!(parts, ("gb200", "trtllm", "1.3.0rc10", KernelTable::WideEp));
        assert_eq!(parse_name("gb200/comm/trtllm/1.3.0rc10/moe_perf.parquet"), None);
        let table =
            parse_operation_name("data/gb200/comm/trtllm/1.3.0rc10/trtllm_alltoall_perf.parquet").unwrap();
        assert_eq!((&*table.version, table.content), ("1.3.0rc10", TableContent::NvlinkAllToAll));
        assert_eq!(parse_operation_name("data/gb200/gemm/trtllm/1.3.0rc10/other_perf.parquet"), None);
        for name in
            ["aiconfigurator_core-0.12.0.dist-info/METADATA", "/tmp/aiconfigurator_core-0.12.0-cp311.whl"]
        {
            assert_eq!(package_version(name), Some("0.12.0"));
        }
    }
}
