//! The description of a process by its launcher: its rank, the number of ranks, and the meeting point.
//!
//! | | rank | ranks | rank on its host | meeting point |
//! |---|---|---|---|---|
//! | torchrun | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` | `MASTER_ADDR`, `MASTER_PORT` |
//! | Slurm | `SLURM_PROCID` | `SLURM_NTASKS` | `SLURM_LOCALID` | these, else the first host of the job |
//! | Open MPI | `OMPI_COMM_WORLD_RANK` | `.._SIZE` | `.._LOCAL_RANK` | these, else this host where all ranks are on it |

use std::fmt;
use thiserror::Error;

/// The default port, which is PyTorch's.
const DEFAULT_PORT: u16 = 29_500;

/// The host and port of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreAddress {
    /// Name or address of the host.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One process of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Launch {
    /// This rank, `0..R`.
    pub rank: usize,
    /// Ranks, `R`.
    pub ranks: usize,
    /// Index among the ranks of this host.
    pub local_rank: usize,
    /// The address of the store.
    pub store_address: StoreAddress,
    /// True if the launcher runs a store there. Otherwise rank 0 must.
    pub has_store: bool,
    /// Prefix of all keys, which differs between jobs and between attempts.
    pub job: String,
}

/// An error in the environment of a launcher.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// No launcher has set its variables.
    #[error(
        "no launcher: RANK is not set (torchrun --no-python --nproc-per-node 8 evenkeel run .., srun or mpirun start the ranks; or set \
         RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process)"
    )]
    None,
    /// One variable is missing although others are set.
    #[error("{missing} is not set, although {present} is (expected {use_of})")]
    Missing {
        /// The missing variable.
        missing: &'static str,
        /// A variable that is set.
        present: &'static str,
        /// The purpose of the missing variable.
        use_of: &'static str,
    },
    /// A variable has an invalid value.
    #[error("{name}={value}: expected {expected}")]
    Wrong {
        /// The variable.
        name: &'static str,
        /// Value of the variable.
        value: String,
        /// The expected value.
        expected: String,
    },
}

/// Names of a launcher's variables: rank, ranks, rank on its host.
type LauncherVariables = [&'static str; 3];

const LAUNCHERS: [LauncherVariables; 3] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
];

impl Launch {
    /// Reads the launcher's variables from the environment of this process.
    ///
    /// # Errors
    /// Fails if a variable is missing or invalid.
    pub fn from_environment() -> Result<Self, LaunchError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Reads the launcher's variables through `get`.
    ///
    /// # Errors
    /// Fails as [`Launch::from_environment`] does.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        let get =
            |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        // Slurm's variables come last: within a Slurm job, processes that mpirun starts have them too.
        let launcher = LAUNCHERS.iter().find(|names| get(names[0]).is_some()).ok_or(LaunchError::None)?;
        let [rank_name, ranks_name, local_name] = *launcher;
        let number = |name: &'static str, most: usize, use_of| match get(name) {
            None => Err(LaunchError::Missing { missing: name, present: rank_name, use_of }),
            Some(value) => match value.parse() {
                Ok(number) if number <= most => Ok(number),
                _ => Err(LaunchError::Wrong { name, value, expected: format!("a number of 0 to {most}") }),
            },
        };
        let most = evenkeel::cluster::MAX_RANKS;
        let ranks: usize = number(ranks_name, most, "the number of ranks")?;
        let rank: usize = number(rank_name, most, "the rank of this process")?;
        if rank >= ranks {
            let expected = format!("less than {ranks_name}={ranks}");
            return Err(LaunchError::Wrong { name: rank_name, value: rank.to_string(), expected });
        }
        let local_rank: usize =
            number(local_name, most, "the index among the ranks of the host, which selects the GPU")?;
        let kept =
            get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let job = ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "OMPI_MCA_ess_base_jobid"];
        let job = job.iter().find_map(|name| get(name)).unwrap_or_default();
        let attempt = ["TORCHELASTIC_RESTART_COUNT", "SLURM_STEP_ID"].iter().find_map(|name| get(name));
        Ok(Self {
            rank,
            ranks,
            local_rank,
            store_address: StoreAddress {
                host: store_host(&get, rank_name, ranks)?,
                port: store_port(&get)?,
            },
            has_store: kept,
            job: format!("evenkeel/{job}/{}/", attempt.unwrap_or_default()),
        })
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}, meeting at {}", self.rank, self.ranks, self.store_address)
    }
}

fn store_port(get: &impl Fn(&str) -> Option<String>) -> Result<u16, LaunchError> {
    let Some(value) = get("MASTER_PORT") else { return Ok(DEFAULT_PORT) };
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(LaunchError::Wrong { name: "MASTER_PORT", value, expected: "a port of 1 to 65535".into() }),
    }
}

fn store_host(
    get: &impl Fn(&str) -> Option<String>,
    present: &'static str,
    ranks: usize,
) -> Result<String, LaunchError> {
    let lacking = LaunchError::Missing {
        missing: "MASTER_ADDR",
        present,
        use_of: "the host of rank 0, where all ranks meet",
    };
    if let Some(host) = get("MASTER_ADDR") {
        return Ok(host);
    }
    let all_here = match present {
        "SLURM_PROCID" => {
            return get("SLURM_STEP_NODELIST")
                .or_else(|| get("SLURM_NODELIST"))
                .and_then(|list| first_host(&list))
                .ok_or(lacking);
        }
        "OMPI_COMM_WORLD_RANK" => get("OMPI_COMM_WORLD_LOCAL_SIZE"),
        _ => get("LOCAL_WORLD_SIZE"),
    };
    if ranks == 1 || all_here.is_some_and(|here| here == ranks.to_string()) {
        return Ok("127.0.0.1".into());
    }
    Err(lacking)
}

/// Returns the first host of a list in Slurm's notation: `node[03-06,9],other` begins with `node03`.
fn first_host(list: &str) -> Option<String> {
    let Some((prefix, rest)) = list.split_once('[').filter(|(prefix, _)| !prefix.contains(',')) else {
        return list.split(',').next().filter(|host| !host.is_empty()).map(str::to_owned);
    };
    let (numbers, suffix) = rest.split_once(']')?;
    let first = numbers.split([',', '-']).next().filter(|number| !number.is_empty())?;
    Some(format!("{prefix}{first}{}", suffix.split(',').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read(variables: &str) -> Result<Launch, LaunchError> {
        let all: Vec<(&str, &str)> =
            variables.split_whitespace().filter_map(|one| one.split_once('=')).collect();
        Launch::from_variables(|name| {
            all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_say_who_we_are() {
        let torchrun = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=77 TORCHELASTIC_USE_AGENT_STORE=True \
                        TORCHELASTIC_RUN_ID=x TORCHELASTIC_RESTART_COUNT=2 SLURM_PROCID=0";
        let expected = Launch {
            rank: 3,
            ranks: 8,
            local_rank: 1,
            store_address: StoreAddress { host: "a".into(), port: 77 },
            has_store: true,
            job: "evenkeel/x/2/".into(),
        };
        assert_eq!(read(torchrun).unwrap(), expected);
        let slurm = read("SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_STEP_NODELIST=gpu[007-008,12]")
            .unwrap();
        assert_eq!(
            (slurm.store_address, slurm.local_rank, slurm.has_store),
            (StoreAddress { host: "gpu007".into(), port: 29_500 }, 1, false)
        );
        let mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1";
        assert_eq!(
            read(&format!("{mpi} OMPI_COMM_WORLD_LOCAL_SIZE=2")).unwrap().store_address.host,
            "127.0.0.1"
        );
        for (list, host) in
            [("a,b", "a"), ("rack1-n[3,5].local,b", "rack1-n3.local"), ("one", "one"), ("a,n[1-2]", "a")]
        {
            assert_eq!(first_host(list).unwrap(), host);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0";
        for (variables, expected) in [
            ("", "no launcher: RANK is not set"),
            ("RANK=0", "WORLD_SIZE is not set, although RANK is"),
            ("RANK=0 WORLD_SIZE=2", "LOCAL_RANK is not set, although RANK is"),
            ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0", "MASTER_ADDR is not set, although RANK is"),
            ("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0", "RANK=2: expected less than WORLD_SIZE=2"),
            ("RANK=-1 WORLD_SIZE=2 LOCAL_RANK=0", "RANK=-1: expected a number of 0 to "),
            ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_PORT=0", "MASTER_PORT=0: expected a port"),
            (
                "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_LOCALID=0",
                "MASTER_ADDR is not set, although SLURM_PROCID is",
            ),
            (mpi, "MASTER_ADDR is not set, although OMPI_COMM_WORLD_RANK is"),
        ] {
            let said = read(variables).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{variables}: {said}");
        }
    }
}
