//! The files below the paths of a command line, folder by folder.
//!
//! Input is files and folders. Output is [`FileGroup`]s. All files named individually form one group, and
//! every folder forms one. The folders of a partitioned table, such as `step=7`, form one group with
//! everything below them.

use super::TraceError;
use evenkeel::trace::build::io_error_at;
use std::path::{Path, PathBuf};

/// The most nested folders.
const MAX_DEPTH: usize = 16;
/// The most files in all.
const MAX_FILES: usize = 1 << 20;

/// Files that are considered together.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileGroup {
    /// The folder; empty for individually named files.
    pub(crate) folder: PathBuf,
    pub(crate) files: Vec<PathBuf>,
    /// Flag that is set if the folders below it hold columns.
    pub(crate) partitioned: bool,
    /// The index of the path to which the group belongs.
    pub(crate) path: usize,
}

/// Returns all files below the paths, and their total size.
pub(crate) fn expand_paths(paths: &[PathBuf]) -> Result<(Vec<FileGroup>, u64), TraceError> {
    if paths.is_empty() {
        return Err(TraceError::Options("no trace given, expected a file or folder".into()));
    }
    let mut groups: Vec<FileGroup> = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        if std::fs::metadata(path).map_err(io_error_at(path))?.is_dir() {
            walk_folder(path, at, 0, &mut groups)?;
        } else if let Some(group) = groups.last_mut().filter(|group| group.folder.as_os_str().is_empty()) {
            // Individually named files form one group, as the `*` of a shell names them.
            group.files.push(path.clone());
        } else {
            groups.push(FileGroup { files: vec![path.clone()], path: at, ..FileGroup::default() });
        }
    }
    let mut total = 0;
    for file in groups.iter().flat_map(|group| &group.files) {
        total += std::fs::metadata(file).map_err(io_error_at(file))?.len();
    }
    Ok((groups, total))
}

/// Returns the files and the folders in a folder, sorted by name. Skips hidden ones, and those that Spark and
/// Hadoop write about a table, such as `_metadata`.
fn list_entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), TraceError> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(io_error_at(folder))? {
        let path = entry.map_err(io_error_at(folder))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_'])) {
            continue;
        }
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() {
            folders.push(path);
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}

fn walk_folder(
    folder: &Path,
    path: usize,
    depth: usize,
    groups: &mut Vec<FileGroup>,
) -> Result<(), TraceError> {
    let (mut files, folders) = list_entries(folder)?;
    let holds_column =
        |folder: &PathBuf| folder.file_name().is_some_and(|name| name.to_string_lossy().contains('='));
    let partitioned = folders.iter().any(holds_column);
    if partitioned {
        collect_files(&folders, depth + 1, &mut files)?;
        files.sort();
    }
    groups.push(FileGroup { folder: folder.to_path_buf(), files, partitioned, path });
    check_limits(folder, depth, groups.iter().map(|group| group.files.len()).sum())?;
    if !partitioned {
        for inner in &folders {
            walk_folder(inner, path, depth + 1, groups)?;
        }
    }
    Ok(())
}

fn collect_files(folders: &[PathBuf], depth: usize, files: &mut Vec<PathBuf>) -> Result<(), TraceError> {
    for folder in folders {
        let (inner, below) = list_entries(folder)?;
        files.extend(inner);
        check_limits(folder, depth, files.len())?;
        collect_files(&below, depth + 1, files)?;
    }
    Ok(())
}

fn check_limits(folder: &Path, depth: usize, files: usize) -> Result<(), TraceError> {
    if depth <= MAX_DEPTH && files <= MAX_FILES {
        return Ok(());
    }
    Err(TraceError::Options(format!(
        "{}: {files} files, {depth} folders deep: expected at most {MAX_FILES} files and {MAX_DEPTH} nested folders",
        folder.display()
    )))
}
