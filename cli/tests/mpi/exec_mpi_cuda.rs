//! Ranks as processes of an MPI job with GPUs. Results equal those of one process, with device memory or host
//! memory given to MPI. The job ends if a rank is lost.
//!
//! GPUs and driver are simulated on the host (`crates/cuda/tests/cuda-sim/driver.cpp`). Any MPI library can
//! read and write their device memory. MPI, processes and signals are real.
#![cfg(all(feature = "mpi", feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::driver_support::host_driver;
use crate::mpirun_support::{ENDLESS, EVENKEEL, Job, errors, plan_without_a_rank, without};
use crate::processes_support::{assert_copied, assert_same, dynamic_runs, parsed};
use serde_json::Value;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");
const SMALL: &str = "run --model qwen3-30b-a3b --hidden 64 --intermediate 48 --experts 16 --experts-per-token 3 --num-layers 2 \
                     --redundant 8 --backend cuda";
const TWO: &str = "--ranks 2 --policy eplb --batch-tokens 20 --steps 2 --transport mpi";

/// Returns the variables by which ranks find the simulated driver; `None` without a C++ compiler.
fn libraries() -> Option<[(&'static str, &'static str); 2]> {
    static FOLDER: OnceLock<Option<String>> = OnceLock::new();
    let folder = || Some(host_driver("mpi", &["-O2"])?.to_str().unwrap().to_owned());
    let folder = FOLDER.get_or_init(folder).as_deref()?;
    Some([("LD_LIBRARY_PATH", folder), ("EVENKEEL_CACHE", folder)])
}

/// Runs the same arguments over MPI and in one process. The results must agree to the last digit.
fn as_in_one_process(processes: usize, aware: &str, args: &str) -> Option<Value> {
    let libraries = libraries()?;
    let args = format!("{args} --ranks {processes} --check --json");
    let mpi = format!("{args} --transport mpi --cuda-aware {aware} --verify-plans");
    let mpi = parsed(&Job::start(&[(processes, mpi)], None, &libraries).end());
    let here =
        parsed(&Command::new(EVENKEEL).args(args.split_whitespace()).envs(libraries).output().unwrap());
    assert_same(&mpi, &here, &args);
    let (name, memory) = (&mpi["transport"]["name"], &mpi["transport"]["memory"]);
    assert_eq!((name, memory), (&"mpi".into(), &if aware == "yes" { "device" } else { "staged" }.into()));
    Some(mpi)
}

#[test]
fn processes_find_what_one_process_finds() {
    let replayed = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 64 --intermediate 32 --num-layers 2 --redundant 8 --steps 6 --backend cuda"
    );
    let routed = format!("{SMALL} --policy eplb --steps 3");
    for aware in ["yes", "no"] {
        for (processes, more) in [(2, "--policy eplb"), (4, "--policy lplb:ring --nodes 2")] {
            let Some(document) = as_in_one_process(processes, aware, &format!("{replayed} {more}")) else {
                return;
            };
            let far = document["transport"]["sent"]["dispatch"]["other_nodes_bytes"].as_u64().unwrap();
            assert_eq!(far > 0, more.contains("nodes"));
            let seconds = |purpose: &str| document["transport"]["sent"][purpose]["seconds"].as_f64().unwrap();
            assert!(["counts", "dispatch", "combine"].into_iter().all(|purpose| seconds(purpose) > 0.0));
        }
        for (processes, model, more) in [
            (4, "qwen3-30b-a3b", "--batch-tokens 50 --capacity 0.7"),
            // Some ranks have no tokens.
            (4, "deepseek-v2-lite", "--batch-tokens 2"),
            // The host computes splits and sizes of products.
            (3, "mixtral-8x7b", "--batch-tokens 40 --split even --ffn cublas --router gshard"),
            (1, "qwen3-30b-a3b", "--batch-tokens 20"),
        ] {
            let args = format!("{} {more}", routed.replace("qwen3-30b-a3b", model));
            as_in_one_process(processes, aware, &args);
        }
    }
}

#[test]
fn experts_move_between_gpus() {
    let args = format!("{SMALL} --batch-tokens 96 --steps 30 --drift 0.05 --replan-every 6 --max-moves 6");
    for aware in ["yes", "no"] {
        let Some(document) = as_in_one_process(4, aware, &args) else { return };
        assert!(document["moves"]["copies"].as_u64().unwrap() > 0);
        let moved = &document["transport"]["sent"]["moves"]["own_node_bytes"];
        assert!(moved.as_u64() >= document["moves"]["bytes"].as_u64(), "{moved}");
    }
}

#[test]
fn experts_are_copied_into_dynamic_slots_of_other_gpus() {
    for args in dynamic_runs(SMALL) {
        for aware in ["yes", "no"] {
            let Some(document) = as_in_one_process(4, aware, &args) else { return };
            assert_copied(&document);
        }
    }
}

#[test]
fn a_killed_rank_ends_the_job_and_survivors_name_it() {
    for (aware, more) in [("yes", ""), ("no", ""), ("yes", "--dynamic 1"), ("no", "--dynamic 1")] {
        let Some(libraries) = libraries() else { return };
        let endless = format!("{SMALL} --no-baseline {ENDLESS} --cuda-aware {aware} {more}");
        without(&endless, &libraries, "-KILL", Duration::from_secs(10));
    }
}

#[test]
fn a_hung_rank_ends_the_job_in_time() {
    // Weights are in transit, too.
    let moves = "--drift 0.05 --replan-every 2";
    for (aware, more) in [("yes", moves), ("no", moves), ("yes", "--dynamic 1"), ("no", "--dynamic 1")] {
        let Some(libraries) = libraries() else { return };
        let endless = format!("{SMALL} --no-baseline {ENDLESS} --cuda-aware {aware} {more}");
        // The limit covers the timeout of 4 s, 1 s for the roll, and the end.
        without(&endless, &libraries, "-STOP", Duration::from_secs(15));
    }
}

#[test]
fn several_ranks_may_share_a_gpu() {
    let Some(libraries) = libraries() else { return };
    let args = format!("{SMALL} {TWO} --check").replace("--ranks 2", "--ranks 4");
    let run = |args: &str, devices| {
        let environment = [libraries[0], libraries[1], ("EK_GPU", "7"), ("EK_DEVICES", devices)];
        Job::start(&[(4, args.to_owned())], None, &environment).end()
    };
    let output = run(&args, "1");
    let [said, printed] =
        [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("note: ranks share a GPU, and").count(), 1, "{said}");
    assert!(said.contains("ranks 0, 1, 2 and 3 of "), "{said}");
    // The output reports whether the MPI library accepts device memory.
    assert!(printed.contains("over mpi, device memory "), "{printed}");
    let document = parsed(&run(&format!("{args} --json"), "2"));
    assert_eq!(document["check"]["ok"], true);
    let notice = document["transport"]["notices"][0].as_str().unwrap();
    assert!(notice.contains("ranks 0 and 2 of ") && notice.contains("ranks 1 and 3 of "), "{notice}");
}

#[test]
fn a_run_goes_on_without_a_lost_rank() {
    let Some(libraries) = libraries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (after, redundant) = plan_without_a_rank(SAMPLE, folder.path());
    let run = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 32 --intermediate 32 --ranks 3 --placement {after} --steps 3 --check --redundant {redundant} \
         --replan-every 1 --policy eplb --json --backend cuda --transport mpi"
    );
    let document = parsed(&Job::start(&[(3, run)], None, &libraries).end());
    assert!(document["moves"]["plans"].as_u64().unwrap() > 0);
    assert_eq!(document["check"]["ok"], true);
}

#[test]
fn ranks_that_cannot_run_are_told_why() {
    let Some(libraries) = libraries() else { return };
    let good = format!("{SMALL} {TWO}");
    let all = |more: &str| vec![(2, format!("{good} {more}"))];
    let on_cpu = good.replace("--backend cuda", "");
    for (groups, more, expected) in [
        (all("--gpus 2"), None, "--transport mpi: --gpus 2: expected 1"),
        (all("--chunks 2"), None, "--chunks: expected --transport mpi and --backend cpu"),
        (all("--aggregate node"), None, "--aggregate node: expected --backend cpu"),
        (
            vec![(2, format!("{on_cpu} --cuda-aware no"))],
            None,
            "--cuda-aware: expected --transport mpi and --backend cuda",
        ),
        (
            vec![(1, good.clone()), (1, format!("{good} --cuda-aware yes"))],
            None,
            "--cuda-aware is auto on rank 0 and yes on rank 1",
        ),
        (vec![(1, good.clone()), (1, on_cpu.clone())], None, "--backend is cuda on rank 0 and cpu on rank 1"),
        (all(""), Some(("EK_DEVICES", "0")), "no usable CUDA device"),
        (all("--gpu 2"), Some(("EK_DEVICES", "2")), "there is no CUDA device 2: this machine has 2"),
        (all(""), Some(("EK_MEMORY", "100000")), "memory for weights: "),
    ] {
        let environment: Vec<_> = libraries.into_iter().chain(more).collect();
        let said = errors(&Job::start(&groups, None, &environment).end());
        assert!(!said.is_empty() && said.iter().all(|said| said.contains(expected)), "{expected}: {said:?}");
    }
}
