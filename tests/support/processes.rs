//! Ranks as processes: the processes of a job, and the comparison of their results with those of one process.

use serde_json::Value;
use std::process::Output;

/// Returns the value of a variable in the environment of a process, if both exist.
pub(crate) fn variable_of(process: u32, name: &str) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{process}/environ")).ok()?;
    let mut all = environment.split(|&byte| byte == 0).filter_map(|one| std::str::from_utf8(one).ok());
    all.find_map(|one| one.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

/// Returns the processes with `EVENKEEL_JOB=mark` in their environment, by the rank in the variable `rank`.
pub(crate) fn of_job(mark: &str, rank: &str) -> Vec<(usize, u32)> {
    let of = |entry: std::fs::DirEntry| {
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        (variable_of(process, "EVENKEEL_JOB")? == mark).then_some(())?;
        Some((variable_of(process, rank)?.parse().ok()?, process))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

/// Returns the document of a successful run.
pub(crate) fn parsed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that processes with proved plans have the results of one process with the same arguments, to the
/// last digit.
pub(crate) fn assert_same(processes: &Value, here: &Value, args: &str) {
    for what in ["check", "imbalance", "sent", "router", "layers", "model"] {
        assert_eq!(processes[what], here[what], "{what}: {args}");
    }
    let peaks = |document: &Value| -> Vec<Value> {
        document["steps"].as_array().unwrap().iter().map(|step| step["peaks"].clone()).collect()
    };
    assert_eq!(peaks(processes), peaks(here), "{args}");
    for moved in ["plans", "copies", "bytes", "switches"] {
        assert_eq!(processes["moves"][moved], here["moves"][moved], "{moved}: {args}");
    }
    assert_eq!(processes["dynamic"]["copies"], here["dynamic"]["copies"], "{args}");
    for bytes in ["memory_bytes", "staging_bytes"] {
        for (rank, of_rank) in here["ranks"].as_array().unwrap().iter().enumerate() {
            assert_eq!(processes["ranks"][rank][bytes], of_rank[bytes], "{bytes} of rank {rank}: {args}");
        }
    }
    assert_eq!(processes["check"]["ok"], true, "{}", processes["check"]);
    assert_eq!(processes["imbalance"]["to_the_token"], true, "{args}");
    assert_eq!(processes["transport"]["plans_proved_identical"], true, "{args}");
}

/// Returns the arguments of runs with dynamic slots, of each model, memory and aim. `small` names
/// qwen3-30b-a3b and 8 redundant slots.
pub(crate) fn dynamic_runs(small: &str) -> [String; 3] {
    [
        ("qwen3-30b-a3b", "--dynamic 1 --redundant 8"),
        ("deepseek-v2-lite", "--dynamic 2 --slot-memory kept --nodes 2"),
        ("gpt-oss-20b", "--dynamic 2 --aim copies:3 --ffn cublas"),
    ]
    .map(|(model, more)| {
        let small = small.replace("qwen3-30b-a3b", model).replace("--redundant 8", "");
        format!("{small} --policy contiguous --batch-tokens 96 --steps 8 --drift 0.05 {more}")
    })
}

/// Asserts that processes copied experts into dynamic slots, and counted the bytes of their weights.
pub(crate) fn assert_copied(processes: &Value) {
    let (dynamic, moved) = (&processes["dynamic"], &processes["transport"]["sent"]["moves"]);
    let copies = dynamic["copies"].as_u64().unwrap();
    assert!(copies > 10, "{dynamic}");
    let fields = moved.as_object().unwrap().iter();
    let bytes: u64 =
        fields.filter(|(name, _)| name.ends_with("_bytes")).filter_map(|(_, bytes)| bytes.as_u64()).sum();
    assert!(bytes >= copies * dynamic["expert_bytes"].as_u64().unwrap(), "{moved}");
    assert!(moved["seconds"].as_f64().unwrap() > 0.0, "{moved}");
}
