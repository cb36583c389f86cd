//! A folder into which dumps are written.
//!
//! Files that are new or changed are read once the folder has not changed from one look to the next. Dumps of several ranks, which
//! tell by their names that they belong together, are read together; every other file is one of its own. A step's number is the
//! time of its file in nanoseconds, and its place in the file more: the same whenever the file is read again.

use super::Found;
use crate::trace::{self, ReadOptions, TraceError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Size, and time in nanoseconds.
type Stamp = (u64, u64);

/// What is known of the folder.
#[derive(Debug, Default)]
pub(super) struct Folder {
    read: BTreeMap<PathBuf, Stamp>,
    before: BTreeMap<PathBuf, Stamp>,
}

impl Folder {
    /// What is new, each group of files for itself, in the order of their times.
    pub(super) fn look(&mut self, path: &Path) -> std::io::Result<Vec<Result<Found, TraceError>>> {
        let now = stamps(path)?;
        let settled = now == self.before;
        self.before.clone_from(&now);
        if !settled {
            return Ok(vec![]);
        }
        let mut groups: BTreeMap<String, (u64, Vec<PathBuf>)> = BTreeMap::new();
        for (path, stamp) in &now {
            let group = groups.entry(group_of(path)).or_default();
            group.0 = group.0.max(stamp.1);
            group.1.push(path.clone());
        }
        let is_new = |path: &PathBuf| self.read.get(path) != now.get(path);
        let mut new: Vec<(u64, Vec<PathBuf>)> =
            groups.into_values().filter(|(_, paths)| paths.iter().any(is_new)).collect();
        new.sort();
        // Whatever comes of it: a file that cannot be read is told once.
        self.read = now;
        Ok(new.into_iter().map(|(at, paths)| found(at, &paths)).collect())
    }
}

fn found(at: u64, paths: &[PathBuf]) -> Result<Found, TraceError> {
    let trace = trace::read(paths, &ReadOptions::default(), &())?;
    let first = at & (u64::MAX >> 1);
    let ids = (0..trace.steps().len() as u64).map(|step| first.saturating_add(step)).collect();
    Ok(Found { trace, ids })
}

/// Dumps of one run end in its time and their rank, or have both in their name; they share what is left without the rank.
fn group_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let parts: Vec<&str> = stem.split('_').collect();
    let number = |part: &str| part.parse::<f64>().is_ok();
    match parts.as_slice() {
        [rest @ .., time, rank] if number(time) && number(rank) => format!("{}_{time}", rest.join("_")),
        [rest @ .., rank, time] if rank.starts_with("rank") && time.starts_with("timestamp") => {
            format!("{}_{time}", rest.join("_"))
        }
        _ => name,
    }
}

fn stamps(folder: &Path) -> std::io::Result<BTreeMap<PathBuf, Stamp>> {
    let files = std::fs::read_dir(folder)?.flatten().filter_map(|entry| {
        let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let at = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64;
        (!hidden).then_some((entry.path(), (meta.len(), at)))
    });
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_run_belong_together() {
        let group = |name: &str| group_of(Path::new(name));
        let run = group("expert_distribution_recorder_1760000000.5_0.pt");
        assert_eq!(run, group("expert_distribution_recorder_1760000000.5_3.pt"));
        assert_ne!(run, group("expert_distribution_recorder_1760000009.5_0.pt"));
        assert_ne!(group("expert_distribution_recorder_1.pt"), group("expert_distribution_recorder_2.pt"));
        assert_eq!(
            group("expert_distribution_rank0_timestamp7.csv"),
            group("expert_distribution_rank1_timestamp7.csv")
        );
    }
}
