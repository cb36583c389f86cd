//! Ranks as processes over MPI, as users start them. Results equal those of one process, and the job ends if
//! a rank is lost.
#![cfg(all(feature = "mpi", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::mpirun_support::{ENDLESS, EVENKEEL, Job, LAUNCHER_LIMIT, errors, plan_without_a_rank};
use crate::processes_support::{assert_copied, assert_same, parsed, variable_of};
use crate::skip_support::skipped;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");
const SMALL: &str = "run --model qwen3-30b-a3b --hidden 64 --intermediate 48 --experts 16 --experts-per-token 3 --num-layers 2";

fn mpirun(processes: usize, args: &str) -> Output {
    Job::start(&[(processes, format!("{args} --transport mpi"))], None, &[]).end()
}

/// Runs the same arguments over MPI and in one process. The results must agree to the last digit.
fn as_in_one_process(processes: usize, args: &str) -> Value {
    let args = format!("{args} --ranks {processes} --check --json");
    let mpi = parsed(&mpirun(processes, &format!("{args} --verify-plans")));
    let mut alone: Vec<&str> = args.split_whitespace().collect();
    // In one process nothing travels.
    if let Some(at) = alone.iter().position(|&arg| arg == "--chunks") {
        alone.drain(at..at + 2);
    }
    let here = parsed(&Command::new(EVENKEEL).args(alone).output().unwrap());
    assert_same(&mpi, &here, &args);
    mpi
}

#[test]
fn processes_do_what_ranks_of_one_process_do() {
    let replayed = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 64 --intermediate 32 --num-layers 2 --redundant 8 --steps 12"
    );
    for (processes, more) in [
        (4, "--policy eplb --dtype f32"),
        (4, "--policy eplb --nodes 2 --aggregate node --chunks 3"),
        (8, "--policy lplb:ring --nodes 2 --tie-break traffic"),
    ] {
        let document = as_in_one_process(processes, &format!("{replayed} {more}"));
        assert_eq!(far(&document, "dispatch") > 0, more.contains("nodes"));
    }
    let routed = format!("{SMALL} --redundant 8 --policy eplb --batch-tokens 50 --steps 4 --capacity 0.7");
    as_in_one_process(4, &routed);
    as_in_one_process(
        4,
        &routed.replace("qwen3-30b-a3b", "deepseek-v2-lite").replace("--capacity 0.7", "--router soft"),
    );
}

/// Returns the bytes to other nodes.
fn far(document: &Value, purpose: &str) -> u64 {
    document["transport"]["sent"][purpose]["other_nodes_bytes"].as_u64().unwrap()
}

#[test]
fn with_gateways_one_row_per_token_and_node_comes_back() {
    let args = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 64 --intermediate 32 --num-layers 2 --redundant 8 --policy eplb --steps 12 \
         --nodes 2 --no-baseline --replan-every 5 --max-moves 4"
    );
    for (aggregate, chunks) in [("none", 2), ("node", 1), ("node", 4)] {
        let more = format!("{args} --aggregate {aggregate} --chunks {chunks}");
        let document = as_in_one_process(8, &more);
        let rows = far(&document, "combine") / (64 * 2);
        let [nodes, ranks] = ["to_nodes", "to_ranks"].map(|what| document["sent"][what].as_u64().unwrap());
        assert!(document["moves"]["copies"].as_u64().unwrap() > 0);
        if aggregate == "node" {
            assert_eq!(rows, nodes);
        } else {
            assert!(nodes < rows && rows < ranks);
        }
    }
}

#[test]
fn experts_move_between_processes() {
    let args = format!(
        "{SMALL} --redundant 8 --batch-tokens 96 --steps 30 --drift 0.05 --replan-every 6 --max-moves 6"
    );
    let document = as_in_one_process(4, &args);
    assert!(document["moves"]["copies"].as_u64().unwrap() > 0);
    let moved = &document["transport"]["sent"]["moves"]["own_node_bytes"];
    assert!(moved.as_u64() >= document["moves"]["bytes"].as_u64(), "{moved}");
}

#[test]
fn experts_are_copied_into_dynamic_slots_of_other_processes() {
    for (model, more) in [
        ("qwen3-30b-a3b", "--dynamic 1"),
        ("deepseek-v2-lite", "--dynamic 2 --slot-memory kept --redundant 4 --nodes 2 --aggregate node"),
        ("gpt-oss-20b", "--dynamic 2 --aim copies:3 --chunks 3 --dtype f32"),
    ] {
        let small = SMALL.replace("qwen3-30b-a3b", model);
        let args = format!("{small} --policy contiguous --batch-tokens 96 --steps 40 --drift 0.05 {more}");
        assert_copied(&as_in_one_process(4, &args));
    }
}

#[test]
fn so_it_is_on_a_real_recording() {
    let Some(folder) = std::env::var_os("EVENKEEL_REAL_TRACES") else {
        skipped("no real traces");
        return;
    };
    let trace = std::path::PathBuf::from(folder).join("gptoss20b-decode");
    let args = format!(
        "run {} --decode-batch 64 --model gpt-oss-20b --hidden 64 --intermediate 32 --num-layers 2 --redundant 8 --policy lplb:ring \
         --steps 200 --no-baseline --replan-every 50 --max-moves 4",
        trace.display()
    );
    for processes in [4, 8] {
        assert!(as_in_one_process(processes, &args)["moves"]["copies"].as_u64().unwrap() > 0);
    }
}

/// Stops one of four ranks by a signal in the middle of a run that copies experts.
fn without(signal: &str, within: Duration) {
    let endless = format!("{SMALL} --redundant 8 --no-baseline --dynamic 1 {ENDLESS}");
    crate::mpirun_support::without(&endless, &[], signal, within);
}

#[test]
fn a_killed_rank_ends_the_job_and_survivors_name_it() {
    without("-KILL", Duration::from_secs(10));
}

#[test]
fn a_hung_rank_ends_the_job_in_time() {
    // The limit covers the timeout of 4 s, 1 s for the roll, and the end.
    without("-STOP", Duration::from_secs(15));
}

/// A job of four ranks after rank 2 got a signal during its start.
struct SignalledJob {
    /// Stderr of each rank.
    said: Vec<String>,
    /// Stderr of mpirun.
    mpirun: String,
    /// Survivors that watched `MPI_Init` before the signal.
    watching: Vec<usize>,
}

/// Returns the survivors that have begun to watch `MPI_Init`, according to their files in the launcher's
/// folder.
fn survivors_that_watch(job: &Job) -> Vec<usize> {
    let watches = |&(rank, process): &(usize, u32)| {
        let Some(folder) = variable_of(process, "PMIX_SERVER_TMPDIR") else { return false };
        let suffix = format!(".MPI_Init.here.{rank}");
        let mut files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files.any(|file| file.file_name().to_string_lossy().ends_with(&suffix))
    };
    let survivors = job.ranks().into_iter().filter(|(rank, _)| *rank != 2);
    survivors.filter(watches).map(|(rank, _)| rank).collect()
}

/// Runs a job of four ranks and sends rank 2 a signal `delay` after its process appears.
fn signalled_at_start(signal: &str, delay: Duration) -> SignalledJob {
    let folder = tempfile::tempdir().unwrap();
    let endless = format!("{SMALL} --redundant 8 --no-baseline {ENDLESS}");
    let job = Job::start(&[(4, endless)], Some(folder.path()), &[]);
    let begun = Instant::now();
    let victim = loop {
        if let Some((_, process)) = job.ranks().into_iter().find(|(rank, _)| *rank == 2) {
            break process;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "it does not start");
        std::thread::sleep(Duration::from_millis(1));
    };
    std::thread::sleep(delay);
    let watching = survivors_that_watch(&job);
    let signalled = Instant::now();
    assert!(Command::new("sh").args(["-c", &format!("kill {signal} {victim}")]).status().unwrap().success());
    // The limit covers the timeout of 4 s, 1 s for the roll, 1 s for the reports of the others, and the end.
    let limit = Duration::from_secs(15) + LAUNCHER_LIMIT;
    let output = job.end();
    assert!(signalled.elapsed() < limit, "{signal}, {delay:?}: {:?}", signalled.elapsed());
    assert!(!output.status.success());
    let said =
        |rank: usize| std::fs::read_to_string(folder.path().join(rank.to_string())).unwrap_or_default();
    let mpirun = String::from_utf8_lossy(&output.stderr).into_owned();
    SignalledJob { said: (0..4).map(said).collect(), mpirun, watching }
}

/// Returns whether a survivor's errors name rank 2. They must name no other rank.
fn names_rank_2(said: &str) -> bool {
    let mut named = said.lines().filter(|line| line.starts_with("error: ") && line.contains("not answer"));
    let all = named.by_ref().collect::<Vec<_>>();
    assert!(all.iter().all(|line| line.contains("rank 2 does not answer")), "{said}");
    !all.is_empty()
}

#[test]
fn a_rank_that_hangs_while_the_job_starts_is_named_by_all_others() {
    for delay in [0, 20, 50, 100, 150, 200, 300].map(Duration::from_millis) {
        let SignalledJob { said, mpirun, .. } = signalled_at_start("-STOP", delay);
        for survivor in [0, 1, 3] {
            assert!(names_rank_2(&said[survivor]), "{delay:?}: rank {survivor}: {said:?}\n{mpirun}");
        }
    }
}

#[test]
fn a_rank_that_is_killed_while_the_job_starts_is_named() {
    for delay in [0, 20, 50, 100, 150, 200, 250, 300, 600].map(Duration::from_millis) {
        let SignalledJob { said, mpirun, watching } = signalled_at_start("-KILL", delay);
        let named = [0, 1, 3].map(|survivor| names_rank_2(&said[survivor])).contains(&true);
        // If the survivors have not reached evenkeel, mpirun ends the job itself, and does not always state
        // the reason.
        assert!(named || watching.is_empty(), "{delay:?}: {watching:?} watched: {said:?}\n{mpirun}");
    }
}

#[test]
fn a_run_goes_on_without_a_lost_rank() {
    let folder = tempfile::tempdir().unwrap();
    let (after, redundant) = plan_without_a_rank(SAMPLE, folder.path());
    let run = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 32 --intermediate 32 --ranks 3 --placement {after} --steps 3 --check"
    );
    let document = parsed(&mpirun(3, &format!("{run} --redundant {redundant} --json")));
    assert_eq!(document["check"]["ok"], true);
    assert_eq!(document["imbalance"]["to_the_token"], true);
    let on = format!("{run} --redundant {redundant} --replan-every 1 --policy eplb --json");
    let document = parsed(&mpirun(3, &on));
    assert!(document["moves"]["plans"].as_u64().unwrap() > 0);
    assert_eq!(document["check"]["ok"], true);
    // All ranks find the same error when they plan.
    let errors = errors(&mpirun(3, &format!("{run} --redundant {}", redundant + 3)));
    assert!(errors.len() == 1 && errors[0].contains(" fits)"), "{errors:?}");
}

/// Writes a checkpoint of one layer in Qwen's naming. `first` is the first number of its router.
fn checkpoint(folder: &Path, first: f32) -> String {
    let (hidden, inner, experts) = (64, 48, 16);
    let numbers = |count: usize, first: f32| -> Vec<u8> {
        let numbers = (0..count).map(|at| if at == 0 { first } else { (at % 7) as f32 / 8.0 - 0.375 });
        numbers.flat_map(f32::to_le_bytes).collect()
    };
    let mut tensors = vec![
        ("post_attention_layernorm.weight".to_owned(), vec![hidden], numbers(hidden, 0.5)),
        ("mlp.gate.weight".to_owned(), vec![experts, hidden], numbers(experts * hidden, first)),
    ];
    for expert in 0..experts {
        for (name, shape) in [("gate", [inner, hidden]), ("up", [inner, hidden]), ("down", [hidden, inner])] {
            let name = format!("mlp.experts.{expert}.{name}_proj.weight");
            tensors.push((name, shape.to_vec(), numbers(inner * hidden, 0.25)));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (format!("model.layers.0.{name}"), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    folder.display().to_string()
}

#[test]
fn ranks_with_other_checkpoints_are_refused() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, other] = [(0, 0.5), (1, 0.75)].map(|(at, first)| checkpoint(folders[at].path(), first));
    let args = SMALL.replace("--num-layers 2", "--num-layers 1")
        + " --ranks 4 --redundant 8 --policy eplb --batch-tokens 40 --steps 2 --weights ";
    assert!(mpirun(4, &(args.clone() + &one)).status.success());
    let args = args + "FOLDER --transport mpi";
    let groups = [(1, args.replace("FOLDER", &one)), (3, args.replace("FOLDER", &other))];
    let errors = errors(&Job::start(&groups, None, &[]).end());
    assert!(errors.len() == 1 && errors[0].contains("weights is digest "), "{errors:?}");
    assert!(errors[0].contains("on ranks 1, 2 and 3"), "{errors:?}");
}

#[test]
fn ranks_that_would_not_run_the_same_are_refused() {
    let good = format!("{SMALL} --ranks 4 --redundant 8 --policy eplb --steps 2 --transport mpi");
    let replayed = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 32 --intermediate 32 --ranks 4 --transport mpi --steps 3"
    );
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.csv.zst");
    let text = zstd::decode_all(std::fs::File::open(SAMPLE).unwrap()).unwrap();
    let mut text = String::from_utf8(text).unwrap();
    // One more token of the first expert in the first step.
    text = text.replacen("\n0,0,0,12\n", "\n0,0,0,13\n", 1);
    std::fs::write(&other, zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap();
    let changed = replayed.replace(SAMPLE, other.to_str().unwrap());
    for (groups, expected) in [
        (vec![(3, good.clone())], "3 processes were started for 4 ranks"),
        (vec![(3, good.clone()), (1, format!("{good} --seed 9"))], "--seed is 0 on rank 0 and 9 on rank 3"),
        (vec![(1, good.clone()), (3, good.replace("qwen3-30b-a3b", "mixtral-8x7b"))], "on ranks 1, 2 and 3"),
        (vec![(3, replayed.clone()), (1, changed)], "trace is counts of top-4"),
        (
            vec![(3, good.clone()), (1, format!("{good} --nodes 2 --aggregate node"))],
            "--aggregate is none on rank 0",
        ),
        (vec![(2, replayed.clone()), (2, replayed.replace(SAMPLE, "no-such-trace"))], "ranks 2 and 3: "),
        (vec![(4, replayed.replace(SAMPLE, "no-such-trace"))], "error: no-such-trace: "),
    ] {
        let errors = errors(&Job::start(&groups, None, &[]).end());
        assert!(errors.len() == 1 && errors[0].contains(expected), "{groups:?}: {errors:?}");
    }
}
