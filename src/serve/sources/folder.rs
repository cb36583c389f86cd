//! A folder into which dumps are written.
//!
//! Files that are new or changed are read together once the folder has not changed from one look to the next, so that dumps of
//! several ranks find each other. A step's number is the time of its file, in milliseconds, times 4096, and its place in the file.

use super::Found;
use crate::trace::{self, ReadOptions, TraceError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Steps that have numbers of their own in one set of files.
const PLACES: u64 = 4096;

/// Size and time in milliseconds.
type Stamp = (u64, u64);

/// What is known of the folder.
#[derive(Debug, Default)]
pub(super) struct Folder {
    read: BTreeMap<PathBuf, Stamp>,
    before: BTreeMap<PathBuf, Stamp>,
}

impl Folder {
    pub(super) fn look(&mut self, path: &Path) -> Result<Option<Found>, TraceError> {
        let now = stamps(path);
        let settled = now == self.before;
        self.before.clone_from(&now);
        let new: Vec<PathBuf> = now
            .iter()
            .filter(|(path, stamp)| self.read.get(*path) != Some(stamp))
            .map(|(path, _)| path.clone())
            .collect();
        if new.is_empty() || !settled {
            return Ok(None);
        }
        // Whatever comes of it: a file that cannot be read is told once.
        let latest = new.iter().filter_map(|path| now.get(path)).map(|&(_, at)| at).max().unwrap_or(0);
        self.read = now;
        let trace = trace::read(&new, &ReadOptions::default(), &())?;
        let first = latest.saturating_mul(PLACES) & (u64::MAX >> 1);
        let ids = (0..trace.steps().len() as u64).map(|at| first.saturating_add(at)).collect();
        Ok(Some(Found { trace, ids }))
    }
}

fn stamps(folder: &Path) -> BTreeMap<PathBuf, Stamp> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    let files = entries.flatten().filter_map(|entry| {
        let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let at = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64;
        (!hidden).then_some((entry.path(), (meta.len(), at)))
    });
    files.collect()
}
