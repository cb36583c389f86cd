//! A folder into which dumps are written.
//!
//! New or changed files are read once the folder is unchanged between two looks. Dumps of several ranks whose
//! names show that they belong together are read together. Every other file stands alone. The first step of a
//! file gets the file's time in nanoseconds as its number, and each following step one more. The numbers are
//! therefore the same whenever the file is read again.

use super::SourceSteps;
use evenkeel_trace::{self as trace, ReadOptions, TraceError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The only run id. File times do not start again, so one run suffices.
const DUMPS_RUN: &str = "dumps";

/// The size of a file, and its time in nanoseconds.
type FileStamp = (u64, u64);

/// The known files of the folder.
#[derive(Debug, Default)]
pub(super) struct DumpFolder {
    read: BTreeMap<PathBuf, FileStamp>,
    before: BTreeMap<PathBuf, FileStamp>,
}

impl DumpFolder {
    /// Returns the content of each new group of files, in the order of their times.
    pub(super) fn read_new(&mut self, path: &Path) -> std::io::Result<Vec<Result<SourceSteps, TraceError>>> {
        let now = read_stamps(path)?;
        let settled = now == self.before;
        self.before.clone_from(&now);
        if !settled {
            return Ok(vec![]);
        }
        let mut groups: BTreeMap<String, (u64, Vec<PathBuf>)> = BTreeMap::new();
        for (path, stamp) in &now {
            let group = groups.entry(dump_group(path)).or_default();
            group.0 = group.0.max(stamp.1);
            group.1.push(path.clone());
        }
        let is_new = |path: &PathBuf| self.read.get(path) != now.get(path);
        let mut new: Vec<(u64, Vec<PathBuf>)> =
            groups.into_values().filter(|(_, paths)| paths.iter().any(is_new)).collect();
        new.sort();
        // The files count as read even after an error, so that each error is reported once.
        self.read = now;
        Ok(new.into_iter().map(|(at, paths)| read_dumps(at, &paths)).collect())
    }
}

fn read_dumps(at: u64, paths: &[PathBuf]) -> Result<SourceSteps, TraceError> {
    let trace = trace::read(paths, &ReadOptions::default(), &())?;
    let first = at & (u64::MAX >> 1);
    let ids = (0..trace.steps().len() as u64).map(|step| first.saturating_add(step)).collect();
    Ok(SourceSteps { trace, ids, run: DUMPS_RUN.to_owned() })
}

/// Returns the name of the group of a file. Names of dumps of one run end in its time and their rank, or
/// contain both. The group's name is the rest without the rank.
fn dump_group(path: &Path) -> String {
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

fn read_stamps(folder: &Path) -> std::io::Result<BTreeMap<PathBuf, FileStamp>> {
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
        let group = |name: &str| dump_group(Path::new(name));
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
