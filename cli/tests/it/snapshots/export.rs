//! `evenkeel plan export`: the files of every dialect, and the document on each.

use super::program::Sandbox;
use super::{compare_document, compare_file};

/// Writes each dialect of a plan and compares the files and the documents.
fn compare_dialects(sandbox: &Sandbox, plan: &str, more: &str) {
    for dialect in ["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"] {
        let args =
            format!("plan export [folder]/{plan}.json --to {dialect} {more} -o [folder]/{plan}.{dialect}");
        compare_document(&format!("export-{plan}-{dialect}"), sandbox, &args);
        let file = sandbox.text(&format!("{plan}.{dialect}"));
        compare_file(&format!("export-{plan}-{dialect}-file"), &file);
    }
}

#[test]
fn dialects() {
    let sandbox = Sandbox::new();
    let sample = "plan traces/sample-prefill.csv.zst --ranks 8 --redundant 8";
    sandbox.run(&format!("{sample} --layers 1-2 --for sglang -o [folder]/sglang-plan.json"));
    compare_dialects(&sandbox, "sglang-plan", "");
    sandbox.run(&format!("{sample} --layers 1,3 --policy eplb -o [folder]/eplb-plan.json"));
    compare_dialects(&sandbox, "eplb-plan", "--moe-layers 1-4");
}

/// A cluster with empty slots, which most dialects fill.
#[test]
fn dialects_of_a_plan_with_empty_slots() {
    let sandbox = Sandbox::new();
    sandbox.run("plan traces/sample-prefill.csv.zst --ranks 8 --layers 1-2 --memory-budget 6 -o [folder]/budget-plan.json");
    compare_dialects(&sandbox, "budget-plan", "");
}
