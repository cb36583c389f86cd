//! Calls the roll among the ranks of one host through files, while the MPI library blocks.
//!
//! The files are in the folder that the launcher keeps for the job on each host. The launcher removes the
//! folder after the job.

use std::collections::BTreeSet;
use std::path::PathBuf;

/// The marks of a rank, in the order of the constants:
///
/// - It has begun the call.
/// - It answers the roll.
/// - It has reported why it ends.
/// - It has finished the call.
pub(super) const CALL_BEGUN: &str = "here";
pub(super) const ROLL_ANSWERED: &str = "there";
pub(super) const REASON_REPORTED: &str = "said";
pub(super) const CALL_FINISHED: &str = "done";

/// The files through which the ranks of one host communicate about one call.
#[derive(Debug, Clone)]
pub(super) struct RollFiles {
    pub(super) folder: PathBuf,
    /// Prefix of the names of all files of this call.
    pub(super) name: String,
    pub(super) rank: usize,
    pub(super) ranks: usize,
    /// Ranks of the job on this host, if the launcher states it.
    pub(super) on_host: Option<usize>,
}

impl RollFiles {
    /// Returns the board of this process, or `None` if the launcher does not set the variables of Open MPI
    /// and PMIx.
    pub(super) fn from_environment(call: &str, variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |names: &[&str]| names.iter().find_map(|name| variable(name)?.parse::<usize>().ok());
        let (rank, ranks) = (number(RANK_VARIABLES)?, number(RANKS_VARIABLES)?);
        let folder = PathBuf::from(variable("PMIX_SERVER_TMPDIR")?);
        let namespace = variable("PMIX_NAMESPACE")?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let on_host = number(&["OMPI_COMM_WORLD_LOCAL_SIZE"]);
        (rank < ranks && folder.is_dir() && namespace.chars().all(fits)).then(|| Self {
            folder,
            name: format!("evenkeel.{namespace}.{call}"),
            rank,
            ranks,
            on_host,
        })
    }

    pub(super) fn mark_path(&self, word: &str, rank: usize) -> PathBuf {
        self.folder.join(format!("{}.{word}.{rank}", self.name))
    }

    fn roll_path(&self) -> PathBuf {
        self.folder.join(format!("{}.roll", self.name))
    }

    /// Sets a mark for this rank. Returns whether the other ranks can read it.
    pub(super) fn set_mark(&self, word: &str) -> bool {
        std::fs::write(self.mark_path(word, self.rank), "").is_ok()
    }

    pub(super) fn call_roll(&self) {
        let _ = std::fs::write(self.roll_path(), "");
    }

    pub(super) fn is_roll_called(&self) -> bool {
        self.roll_path().exists()
    }

    /// Returns the ranks that have set a mark.
    pub(super) fn ranks_with_mark(&self, word: &str) -> BTreeSet<usize> {
        (0..self.ranks).filter(|&rank| self.mark_path(word, rank).exists()).collect()
    }

    /// Returns whether all ranks of the job are on this host.
    pub(super) fn has_all_ranks(&self) -> bool {
        self.on_host == Some(self.ranks)
    }

    /// Returns the ranks expected to answer on this host: all if it runs all ranks, otherwise those that have
    /// begun the call.
    pub(super) fn expected_ranks(&self) -> BTreeSet<usize> {
        if self.has_all_ranks() { (0..self.ranks).collect() } else { self.ranks_with_mark(CALL_BEGUN) }
    }

    pub(super) fn answered_ranks(&self) -> BTreeSet<usize> {
        &self.ranks_with_mark(ROLL_ANSWERED) | &self.ranks_with_mark(CALL_FINISHED)
    }
}

const RANK_VARIABLES: &[&str] = &["OMPI_COMM_WORLD_RANK", "PMIX_RANK"];
const RANKS_VARIABLES: &[&str] = &["OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Option<RollFiles> {
        RollFiles::from_environment("MPI_Init", |name| {
            pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_launcher_states_who_is_on_a_host() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().to_str().unwrap();
        let of = |rank, ranks, namespace| {
            variables(&[
                ("PMIX_SERVER_TMPDIR", place),
                ("PMIX_NAMESPACE", namespace),
                ("OMPI_COMM_WORLD_RANK", rank),
                ("OMPI_COMM_WORLD_SIZE", ranks),
                ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ])
        };
        let board = of("1", "4", "123").unwrap();
        assert_eq!((board.rank, board.ranks, board.on_host, board.has_all_ranks()), (1, 4, Some(2), false));
        assert!(of("0", "2", "123").unwrap().has_all_ranks());
        assert!(of("4", "4", "123").is_none() && of("x", "4", "123").is_none());
        assert!(of("1", "4", "../1").is_none());
        assert!(variables(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]).is_none());
    }
}
