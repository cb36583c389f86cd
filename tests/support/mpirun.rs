//! Jobs of mpirun: started, observed while they run, and ended without remaining processes.

use super::processes_support::{of_job, variable_of};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(crate) const EVENKEEL: &str = env!("CARGO_BIN_EXE_evenkeel");
/// Arguments of a run of four ranks that does not end by itself.
pub(crate) const ENDLESS: &str = "--ranks 4 --policy eplb --batch-tokens 96 --steps 1000000 --train-fraction 0.00001 --transport mpi \
                                  --rank-timeout 4";

/// A job, and the mark that exactly its processes have in their environment.
pub(crate) struct Job {
    child: Child,
    mark: String,
}

impl Job {
    /// Starts `groups` of processes, each with its own arguments, and adds `environment` to ours. If `errors`
    /// is given, rank `R` writes its errors to the file `R` in it. The files are complete, whereas mpirun may
    /// lose output that it has not read before it ends.
    pub(crate) fn start(
        groups: &[(usize, String)],
        errors: Option<&Path>,
        environment: &[(&str, &str)],
    ) -> Self {
        static JOBS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("{}-{}", std::process::id(), JOBS.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "300", "mpirun", "--oversubscribe"]);
        for (at, (processes, args)) in groups.iter().enumerate() {
            command.args((at > 0).then_some(":")).args(["-n", &processes.to_string()]);
            if let Some(folder) = errors {
                let to = format!("exec \"$0\" \"$@\" 2>'{}'/$OMPI_COMM_WORLD_RANK", folder.display());
                command.args(["sh", "-c", &to]);
            }
            // The variables are for the ranks alone: mpirun must not find the libraries of the ranks.
            command.arg("env").args(environment.iter().map(|(name, value)| format!("{name}={value}")));
            command.arg(EVENKEEL).args(args.split_whitespace());
        }
        // Open MPI refuses to run as root without these variables.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("EVENKEEL_JOB", &mark).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), mark }
    }

    /// Returns its running ranks with their process ids.
    pub(crate) fn ranks(&self) -> Vec<(usize, u32)> {
        of_job(&self.mark, "OMPI_COMM_WORLD_RANK")
    }

    /// Returns its output after all of its processes have ended.
    pub(crate) fn end(self) -> Output {
        let Self { child, mark } = self;
        let left = || of_job(&mark, "OMPI_COMM_WORLD_RANK");
        let is_over = AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            scope.spawn(|| end_launcher_without_ranks(&mark, &is_over));
            let output = child.wait_with_output();
            is_over.store(true, Ordering::Relaxed);
            output.unwrap()
        });
        let ended = Instant::now();
        while !left().is_empty() {
            assert!(ended.elapsed() < Duration::from_secs(5), "left over: {:?}", left());
            std::thread::sleep(Duration::from_millis(20));
        }
        output
    }
}

/// The time that mpirun has to end after its last rank.
pub(crate) const LAUNCHER_LIMIT: Duration = Duration::from_secs(5);

/// Kills the mpirun of a job that stays for [`LAUNCHER_LIMIT`] after its last rank. PMIx 4.2.2 can hang in
/// `PMIx_server_finalize` if a rank was killed while it connected. Then mpirun ignores SIGTERM too.
fn end_launcher_without_ranks(mark: &str, is_over: &AtomicBool) {
    let mut last_seen: Option<Instant> = None;
    while !is_over.load(Ordering::Relaxed) {
        if !of_job(mark, "OMPI_COMM_WORLD_RANK").is_empty() {
            last_seen = Some(Instant::now());
        } else if last_seen.is_some_and(|seen| seen.elapsed() > LAUNCHER_LIMIT) {
            for process in launchers_of_job(mark) {
                eprintln!("mpirun {process} hangs although all ranks have ended: killed");
                let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns the processes of mpirun with `EVENKEEL_JOB=mark` in their environment.
fn launchers_of_job(mark: &str) -> Vec<u32> {
    let of = |entry: std::fs::DirEntry| {
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
        (name.trim_end() == "mpirun" && variable_of(process, "EVENKEEL_JOB")? == mark).then_some(process)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

/// Plans four ranks for `trace`, with 32 experts, and re-plans into `folder` without rank 2. Returns the file
/// of the new plan and its redundant slots.
pub(crate) fn plan_without_a_rank(trace: &str, folder: &Path) -> (String, u64) {
    let [before, after] = ["plan.json", "plan3.json"].map(|name| folder.join(name).display().to_string());
    for args in [
        format!("plan {trace} --ranks 4 --redundant 16 --policy eplb -o {before}"),
        format!("plan replan {before} {trace} --lost-ranks 2 -o {after}"),
    ] {
        assert!(Command::new(EVENKEEL).args(args.split_whitespace()).output().unwrap().status.success());
    }
    let plan: Value = serde_json::from_slice(&std::fs::read(&after).unwrap()).unwrap();
    (after, plan["cluster"]["slots_per_rank"].as_u64().unwrap() * 3 - 32)
}

/// Returns the error lines of our processes.
pub(crate) fn errors(output: &Output) -> Vec<String> {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{stderr}");
    stderr.lines().filter(|line| line.starts_with("error: ")).map(str::to_owned).collect()
}

/// Stops one of four ranks by a signal in the middle of an endless run. All others must report the rank and
/// the place, and no process may remain.
pub(crate) fn without(endless: &str, environment: &[(&str, &str)], signal: &str, within: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let job = Job::start(&[(4, endless.to_owned())], Some(folder.path()), environment);
    let begun = Instant::now();
    while job.ranks().len() < 4 {
        assert!(begun.elapsed() < Duration::from_mins(1), "it does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(3));
    let victim = job.ranks().into_iter().find(|(rank, _)| *rank == 2).unwrap().1;
    let killed = Instant::now();
    assert!(Command::new("sh").args(["-c", &format!("kill {signal} {victim}")]).status().unwrap().success());
    let output = job.end();
    assert!(killed.elapsed() < within + LAUNCHER_LIMIT, "{signal}: {:?}", killed.elapsed());
    assert!(!output.status.success());
    // Plans are made between steps, so such an error has no step number.
    let at = if endless.contains("--replan-every") { "layer " } else { "(step " };
    for survivor in [0, 1, 3] {
        let said = std::fs::read_to_string(folder.path().join(survivor.to_string())).unwrap();
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{signal}: rank {survivor}: {said}");
        let from = format!("error: rank {survivor}: ");
        assert!(
            errors[0].starts_with(&from)
                && errors[0].contains("rank 2 does not answer")
                && errors[0].contains(at),
            "{signal}: {said}"
        );
    }
}
