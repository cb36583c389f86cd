//! `evenkeel plan` from scratch: policies, shapes of clusters, runtimes; the plan file.

use super::program::Sandbox;
use super::{compare, compare_plan};

/// Arguments for three layers of 64 experts.
const SAMPLE: &str = "plan traces/sample-prefill.csv.zst --layers 1-3 --ranks 8";

/// Compares the documents of `SAMPLE` with additional arguments, each under its name.
fn compare_plans(cases: &[(&str, &str)]) {
    let sandbox = Sandbox::new();
    for (name, args) in cases {
        compare_plan(&format!("plan-{name}"), &sandbox, &format!("{SAMPLE} {args}"));
    }
}

#[test]
fn classic_policies() {
    compare_plans(&[
        ("contiguous", "--policy contiguous --redundant 8"),
        ("eplb", "--policy eplb --redundant 8"),
        ("eplb-trtllm", "--policy eplb:trtllm --redundant 16"),
        ("eplb-groups", "--policy eplb --redundant 8 --nodes 2 --groups 4"),
        ("lplb-ring", "--policy lplb:ring --redundant 8"),
        ("lplb-cube", "--policy lplb:cube --redundant 24"),
        ("uneven", "--policy contiguous --redundant 5 --uneven"),
    ]);
}

#[test]
fn recourse() {
    compare_plans(&[
        ("recourse", "--policy recourse --redundant 8"),
        ("recourse-even", "--policy recourse:even --redundant 8"),
        ("recourse-exact", "--policy recourse:exact --redundant 8"),
        ("recourse-cvar", "--policy recourse:exact:cvar=0.9:iterations=40 --redundant 8"),
        ("recourse-worst", "--policy recourse:worst:seed=5:iterations=60 --redundant 8"),
        ("recourse-uneven", "--policy recourse --redundant 5 --uneven"),
    ]);
}

#[test]
fn studies() {
    compare_plans(&[
        ("secure-1", "--redundant 64 --survive-rank-loss 1 --policy eplb"),
        ("secure-best", "--redundant 16 --survive-rank-loss best"),
        ("speeds", "--redundant 8 --speeds 2,2,1,1,1,1,1,1"),
        ("memory-budget", "--memory-budget 20"),
        ("model", "--redundant 8 --policy eplb --model deepseek-v2-lite"),
        ("blend", "--redundant 8 --policy recourse --blend traces/sample-prefill.csv.zst:0.5"),
        ("resampled", "--redundant 8 --policy recourse --resample 12 --top-k 6 --seed 3"),
    ]);
}

#[test]
fn runtimes() {
    compare_plans(&[
        ("for-evenkeel", "--redundant 8 --for evenkeel"),
        ("for-sglang", "--redundant 8 --for sglang"),
        ("for-sglang-exact", "--redundant 8 --for sglang:exact"),
        ("for-sglang-static", "--redundant 8 --for sglang:static"),
        (
            "for-sglang-flags",
            "--redundant 8 --for sglang:moe-a2a-backend=deepep,ep-dispatch-algorithm=dynamic",
        ),
        ("for-vllm", "--redundant 8 --for vllm"),
        ("for-vllm-exact", "--redundant 8 --for vllm:exact"),
        ("for-vllm-ascend", "--redundant 8 --for vllm-ascend"),
        ("for-trtllm", "--redundant 8 --for trtllm"),
    ]);
}

#[test]
fn plan_file() {
    let sandbox = Sandbox::new();
    sandbox.run(&format!("{SAMPLE} --redundant 8 --moe-layers 1-4 --for sglang -o [folder]/plan.json"));
    let file = sandbox.text("plan.json");
    // The version changes with every release.
    let version = concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"");
    assert!(file.contains(version), "{file}");
    compare("plan-file", &file.replace(version, "\"version\": \"[version]\""));
    let [printed, _] = sandbox.run(&format!("{SAMPLE} --redundant 8 --moe-layers 1-4 --for sglang -o -"));
    assert_eq!(printed, file);
}
