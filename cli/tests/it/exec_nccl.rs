//! Ranks as processes with a GPU each, over NCCL, as launchers start them. Results equal those of one
//! process, and the job ends if a rank is lost.
//!
//! GPUs, driver and NCCL are simulated on the host (`crates/cuda/tests/cuda-sim/driver.cpp`, `nccl.cpp`).
//! Processes, sockets, store and signals are real. If `torchrun` and a Python with PyTorch exist, torchrun
//! starts the ranks and keeps the store, and PyTorch reads our store. `EVENKEEL_TORCH` may name their folder.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::driver_support::host_driver;
use crate::processes_support::{assert_copied, assert_same, dynamic_runs, of_job, parsed};
use crate::skip_support::skipped;
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const EVENKEEL: &str = env!("CARGO_BIN_EXE_evenkeel");
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");
const SMALL: &str = "run --model qwen3-30b-a3b --hidden 64 --intermediate 48 --experts 16 --experts-per-token 3 --num-layers 2 \
                     --redundant 8 --backend cuda";
const ENDLESS: &str = "--ranks 4 --policy eplb --batch-tokens 96 --steps 1000000 --train-fraction 0.00001 --no-baseline --rank-timeout 4";

/// Returns the simulated libraries; `None` without a C++ compiler.
fn libraries() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| host_driver("nccl", &["-O2"])).as_deref()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal to a process.
fn signal(process: u32, name: &str) {
    assert!(Command::new("sh").args(["-c", &format!("kill {name} {process}")]).status().unwrap().success());
}

/// Processes of one job, identified by a mark in their environment. Dropping the job ends all remaining
/// processes.
struct Job {
    mark: String,
    port: u16,
    children: Vec<Child>,
}

impl Job {
    fn new() -> Self {
        static JOBS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("{}-{}", std::process::id(), JOBS.fetch_add(1, Ordering::Relaxed));
        Self { mark, port: free_port(), children: Vec::new() }
    }

    /// Starts a program of this job, with a limit of two minutes.
    fn start(&mut self, program: &str, args: &[&str], environment: &[(&str, &str)]) {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120", program]).args(args);
        // A launcher may have started the tests themselves, so its variables are removed.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["SLURM_", "OMPI_", "TORCHELASTIC_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env("EVENKEEL_CACHE", libraries().unwrap()).env("EVENKEEL_JOB", &self.mark);
        command.envs(environment.iter().copied());
        self.children.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    }

    /// Starts a rank for each of the arguments, on one host.
    fn ranks(args: &[String], more: &[(&str, &str)]) -> Self {
        Self::ranks_and_last(args, more, &[])
    }

    /// Starts the same ranks, with more variables in the environment of the last one.
    fn ranks_and_last(args: &[String], more: &[(&str, &str)], last: &[(&str, &str)]) -> Self {
        let mut job = Self::new();
        let (port, size) = (job.port.to_string(), args.len().to_string());
        for (rank, of_rank) in args.iter().enumerate() {
            let name = rank.to_string();
            let mut environment = vec![
                ("LD_LIBRARY_PATH", libraries().unwrap().to_str().unwrap()),
                ("RANK", name.as_str()),
                ("LOCAL_RANK", &name),
                ("WORLD_SIZE", &size),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
            ];
            environment.extend(more);
            environment.extend(last.iter().filter(|_| rank + 1 == args.len()));
            job.start(EVENKEEL, &of_rank.split_whitespace().collect::<Vec<_>>(), &environment);
        }
        job
    }

    /// Returns its evenkeel processes by their ranks.
    fn alive(&self) -> Vec<(usize, u32)> {
        // `timeout` and torchrun have the same environment, so the executable decides.
        let ours = |process: u32| {
            std::fs::read_link(format!("/proc/{process}/exe"))
                .is_ok_and(|program| program == Path::new(EVENKEEL))
        };
        of_job(&self.mark, "RANK").into_iter().filter(|&(_, process)| ours(process)).collect()
    }

    /// Returns the process of a rank, after all `ranks` have been at work for a while.
    fn at_work(&self, ranks: usize, rank: usize) -> u32 {
        let begun = Instant::now();
        while self.alive().len() < ranks {
            assert!(begun.elapsed() < Duration::from_mins(1), "it does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_secs(3));
        self.alive().into_iter().find(|(other, _)| *other == rank).unwrap().1
    }

    /// Returns the outputs of the processes after their end, in the order of their start, without the rank
    /// `stopped`.
    fn end(mut self, stopped: Option<usize>) -> Vec<Output> {
        let children = std::mem::take(&mut self.children);
        let mut all = Vec::new();
        let mut last = None;
        for (rank, child) in children.into_iter().enumerate() {
            match stopped {
                Some(stopped) if stopped == rank => last = Some(child),
                _ => all.push(child.wait_with_output().unwrap()),
            }
        }
        let ended = Instant::now();
        let left = || self.alive().into_iter().filter(|(rank, _)| Some(*rank) != stopped).collect::<Vec<_>>();
        while !left().is_empty() {
            assert!(ended.elapsed() < Duration::from_secs(5), "left over: {:?}", left());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.alive().into_iter().for_each(|(_, process)| signal(process, "-KILL"));
        if let Some(child) = last {
            child.wait_with_output().unwrap();
        }
        all
    }
}

/// Returns the error lines of our processes, all of which must have failed.
fn errors(outputs: &[Output]) -> Vec<String> {
    let mut all = Vec::new();
    for output in outputs {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{}: {stderr}", output.status);
        all.extend(stderr.lines().filter(|line| line.starts_with("error: ")).map(str::to_owned));
    }
    all
}

/// Runs the same arguments over NCCL and in one process. The results must agree to the last digit.
fn as_in_one_process(processes: usize, args: &str) -> Option<Value> {
    let libraries = libraries()?;
    let args = format!("{args} --ranks {processes} --check --json");
    let each = vec![format!("{args} --transport nccl --verify-plans"); processes];
    let nccl = parsed(&Job::ranks(&each, &[]).end(None)[0]);
    let mut alone = Command::new(EVENKEEL);
    alone.args(args.split_whitespace()).env("LD_LIBRARY_PATH", libraries).env("EVENKEEL_CACHE", libraries);
    let here = parsed(&alone.output().unwrap());
    assert_same(&nccl, &here, &args);
    assert_eq!(nccl["transport"]["name"], "nccl");
    Some(nccl)
}

#[test]
fn processes_find_what_one_process_finds() {
    let replayed = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 64 --intermediate 32 --num-layers 2 --redundant 8 --steps 6 --backend cuda"
    );
    for (processes, more) in [(2, "--policy eplb"), (4, "--policy lplb:ring --nodes 2")] {
        let Some(document) = as_in_one_process(processes, &format!("{replayed} {more}")) else { return };
        let far = document["transport"]["sent"]["dispatch"]["other_nodes_bytes"].as_u64().unwrap();
        assert_eq!(far > 0, more.contains("nodes"));
    }
    let routed = format!("{SMALL} --policy eplb --steps 3");
    for (processes, model, more) in [
        (4, "qwen3-30b-a3b", "--batch-tokens 50 --capacity 0.7"),
        // Some ranks have no tokens.
        (4, "deepseek-v2-lite", "--batch-tokens 2"),
        (4, "deepseek-v2-lite", "--batch-tokens 3 --router soft"),
        // The host computes splits and sizes of products.
        (3, "mixtral-8x7b", "--batch-tokens 40 --split even --ffn cublas --router gshard"),
        (1, "qwen3-30b-a3b", "--batch-tokens 20"),
    ] {
        as_in_one_process(processes, &format!("{} {more}", routed.replace("qwen3-30b-a3b", model)));
    }
}

#[test]
fn experts_move_between_gpus() {
    let args = format!("{SMALL} --batch-tokens 96 --steps 30 --drift 0.05 --replan-every 6 --max-moves 6");
    let Some(document) = as_in_one_process(4, &args) else { return };
    assert!(document["moves"]["copies"].as_u64().unwrap() > 0);
    let moved = &document["transport"]["sent"]["moves"]["own_node_bytes"];
    assert!(moved.as_u64() >= document["moves"]["bytes"].as_u64(), "{moved}");
}

#[test]
fn experts_are_copied_into_dynamic_slots_of_other_gpus() {
    for args in dynamic_runs(SMALL) {
        let Some(document) = as_in_one_process(4, &args) else { return };
        assert_copied(&document);
    }
}

/// Stops one of four ranks by a signal in the middle of a run with further arguments. All others must report
/// the rank and the place, and no process may remain.
fn without(victim: usize, more: &str, name: &str, within: Duration) {
    if libraries().is_none() {
        return;
    }
    let job = Job::ranks(&vec![format!("{SMALL} {ENDLESS} --transport nccl {more}"); 4], &[]);
    let process = job.at_work(4, victim);
    let begun = Instant::now();
    signal(process, name);
    let said = errors(&job.end(Some(victim)));
    assert!(begun.elapsed() < within, "{name}: {:?}", begun.elapsed());
    let survivors = (0..4).filter(|&rank| rank != victim);
    for (survivor, said) in survivors.zip(&said) {
        let (from, names) = (format!("error: rank {survivor}: "), format!("rank {victim} does not answer"));
        assert!(
            said.starts_with(&from) && said.contains(&names) && said.contains("(step "),
            "{name} {victim}: {said}"
        );
    }
    assert_eq!(said.len(), 3, "{said:?}");
}

#[test]
fn a_killed_rank_ends_the_job_and_survivors_name_it() {
    without(2, "", "-KILL", Duration::from_secs(10));
    without(2, "--dynamic 1", "-KILL", Duration::from_secs(10));
    // Rank 0 keeps the store.
    without(0, "", "-KILL", Duration::from_secs(10));
}

#[test]
fn a_hung_rank_ends_the_job_in_time() {
    // The limit covers the timeout of 4 s, 1 s for the roll, and the end.
    without(2, "", "-STOP", Duration::from_secs(15));
    without(2, "--dynamic 1", "-STOP", Duration::from_secs(15));
    without(0, "", "-STOP", Duration::from_secs(20));
}

#[test]
fn a_rank_that_fails_tells_the_others_why() {
    if libraries().is_none() {
        return;
    }
    let args = format!("{SMALL} --ranks 3 --policy eplb --batch-tokens 20 --steps 2 --transport nccl");
    let job = Job::ranks_and_last(&vec![args; 3], &[], &[("EK_MEMORY", "100000")]);
    let said = errors(&job.end(None));
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[2].starts_with("error: rank 2: memory for weights: "), "{}", said[2]);
    for others in &said[..2] {
        assert!(others.contains("rank 2 gave up: memory for weights: "), "{others}");
    }
}

#[test]
fn ranks_that_cannot_join_are_told_why() {
    if libraries().is_none() {
        return;
    }
    let good = format!(
        "{SMALL} --ranks 2 --policy eplb --batch-tokens 20 --steps 2 --transport nccl --rank-timeout 3"
    );
    let alone = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver-without-nccl");
    std::fs::create_dir_all(&alone).unwrap();
    for name in ["libcuda.so", "libnvrtc.so"] {
        let _ = std::fs::remove_file(alone.join(name));
        std::fs::copy(libraries().unwrap().join("libcuda.so"), alone.join(name)).unwrap();
    }
    let two = || vec![good.clone(); 2];
    let without_nccl = [("LD_LIBRARY_PATH", alone.to_str().unwrap())];
    let other_seed = vec![good.clone(), format!("{good} --seed 9")];
    for (args, environment, expected) in [
        (two(), &[("EK_GPU", "7")][..], "ranks 0 and 1 are on the same GPU of "),
        (two(), &without_nccl, "neither libnccl.so.2 nor libnccl.so is on the library path"),
        (two(), &[("EK_DEVICES", "0")], "no usable CUDA device"),
        (two(), &[("WORLD_SIZE", "3")], "rank 2 does not answer"),
        (two(), &[("MASTER_PORT", "0")], "MASTER_PORT=0: expected a port"),
        (two(), &[("RANK", "")], "no launcher: RANK is not set"),
        (
            two(),
            &[("LOCAL_RANK", "5"), ("EK_DEVICES", "2")],
            "of the host, which has 2: NCCL takes one rank per GPU",
        ),
        (
            two().into_iter().map(|args| args.replace("--ranks 2", "--ranks 4")).collect(),
            &[],
            "2 processes were started for 4 ranks",
        ),
        (other_seed, &[], "--seed is 0 on rank 0 and 9 on rank 1"),
        (
            two().into_iter().map(|args| args.replace("--backend cuda", "")).collect(),
            &[],
            "expected --backend cuda",
        ),
        (two().into_iter().map(|args| args + " --gpus 2").collect(), &[], "--gpus 2: expected 1"),
    ] {
        let said = errors(&Job::ranks(&args, environment).end(None));
        assert!(!said.is_empty() && said.iter().all(|said| said.contains(expected)), "{expected}: {said:?}");
    }
}

/// Returns a working program of PyTorch, if there is one. `EVENKEEL_TORCH` names the folder to search.
fn pytorch(program: &str, args: &[&str]) -> Option<String> {
    let named = std::env::var_os("EVENKEEL_TORCH").map(|folder| PathBuf::from(folder).join(program));
    let program = named.map_or_else(|| program.to_owned(), |path| path.display().to_string());
    let runs = Command::new(&program).args(args).output().is_ok_and(|output| output.status.success());
    runs.then_some(program)
}

#[test]
fn torchrun_starts_us_and_keeps_the_store() {
    if libraries().is_none() {
        return;
    }
    // Some installed versions cannot start anything, such as PyTorch 1.13 under Python 3.11.
    let port = free_port().to_string();
    let nothing = ["--no_python", "--nproc_per_node", "1", "--master_port", &port, "true"];
    let Some(torchrun) = pytorch("torchrun", &nothing) else { return skipped("no torchrun") };
    // Torchrun's Python must not load the simulated libraries.
    let run = |args: &str| {
        let mut job = Job::new();
        let (port, path) =
            (job.port.to_string(), format!("LD_LIBRARY_PATH={}", libraries().unwrap().display()));
        let before = [
            "--no_python",
            "--nproc_per_node",
            "4",
            "--monitor_interval",
            "1",
            "--master_port",
            &port,
            "env",
            &path,
            EVENKEEL,
        ];
        let args: Vec<&str> = before.into_iter().chain(args.split_whitespace()).collect();
        job.start(&torchrun, &args, &[]);
        job
    };
    let args = format!(
        "{SMALL} --ranks 4 --policy eplb --batch-tokens 20 --steps 2 --transport nccl --check --verify-plans --json"
    );
    let document = parsed(&run(&args).end(None)[0]);
    assert_eq!((&document["check"]["ok"], &document["transport"]["processes"]), (&true.into(), &4.into()));

    let job = run(&format!("{SMALL} {ENDLESS} --transport nccl"));
    signal(job.at_work(4, 2), "-KILL");
    let output = &job.end(None)[0];
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    for survivor in [0, 1, 3] {
        let from = format!("error: rank {survivor}: rank 2 does not answer");
        assert!(said.lines().any(|line| line.starts_with(&from)), "{said}");
    }
}

/// Versions before 2.1 use another protocol.
#[test]
fn the_store_of_any_pytorch_serves() {
    const KEPT: &str = r#"
import sys
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), 3, True, timeout=timedelta(seconds=60), wait_for_workers=False)
store.wait(["evenkeel///bye/0", "evenkeel///bye/1"], timedelta(seconds=60))
"#;
    if libraries().is_none() {
        return;
    }
    let mut served = 0;
    for python in ["python3", "/usr/bin/python3"] {
        let store = "import torch; from torch.distributed import TCPStore";
        let Some(python) = pytorch(python, &["-c", store]) else { continue };
        let args = format!(
            "{SMALL} --ranks 2 --policy eplb --batch-tokens 20 --steps 2 --transport nccl --check --json"
        );
        let mut job = Job::ranks(&vec![args; 2], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]);
        let port = job.port.to_string();
        job.start(&python, &["-c", KEPT, &port], &[]);
        let outputs = job.end(None);
        assert!(outputs[2].status.success(), "{}", String::from_utf8_lossy(&outputs[2].stderr));
        assert_eq!(parsed(&outputs[0])["check"]["ok"], true);
        served += 1;
    }
    if served == 0 {
        assert!(
            std::env::var_os("EVENKEEL_TORCH").is_none(),
            "no PyTorch in the folder that EVENKEEL_TORCH names"
        );
        skipped("no PyTorch");
    }
}

#[test]
fn pytorch_reads_and_writes_our_store() {
    const RANK_1: &str = r#"
import sys, json
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), 2, False, timeout=timedelta(seconds=60), wait_for_workers=False)
hello = json.loads(store.get("evenkeel///hello/0"))
assert len(hello["gpu"]) == 32, hello
assert store.add("n", 3) == 3 and store.add("n", 4) == 7 and store.get("n") == b"7"
store.set("a", "b")
store.wait(["a", "n"], timedelta(seconds=5))
assert store.compare_set("a", "b", "c") == b"c" and store.compare_set("a", "b", "d") == b"c"
assert store.check(["a"]) and not store.check(["a", "z"])
assert store.delete_key("a") and not store.check(["a"])
assert store.num_keys() >= 2
store.set("evenkeel///hello/1", json.dumps({"why": "this is Python"}))
store.set("evenkeel///bye/1", "1")
"#;
    if libraries().is_none() {
        return;
    }
    let new = "import torch; assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 1); from torch.distributed import TCPStore";
    let Some(python) = pytorch("python3", &["-c", new]) else { return skipped("no PyTorch 2.1") };
    let mut job = Job::ranks(
        &[format!("{SMALL} --ranks 2 --policy eplb --batch-tokens 20 --steps 2 --transport nccl")],
        &[("WORLD_SIZE", "2")],
    );
    let port = job.port.to_string();
    job.start(&python, &["-c", RANK_1, &port], &[]);
    let outputs = job.end(None);
    assert!(outputs[1].status.success(), "{}", String::from_utf8_lossy(&outputs[1].stderr));
    let said = errors(&outputs[..1]);
    assert!(said.len() == 1 && said[0].contains("rank 1: this is Python"), "{said:?}");
}
