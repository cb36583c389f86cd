//! `evenkeel run` on the CPU: a few steps of a small model.
//!
//! Routers run in f32 on one layer: rounding to bf16 could turn the last digit of a sum into another choice
//! of experts.

use super::program::Sandbox;
use super::{compare_document, compare_file, token_ids};

#[test]
fn replayed_traces() {
    let sandbox = Sandbox::new();
    token_ids::write(&sandbox);
    let small = "--model gpt-oss-20b --hidden 64 --intermediate 32 --ranks 8 --redundant 8 --steps 3";
    let sample = "traces/sample-decode.csv.zst";
    for (name, args) in [
        ("replay", format!("{sample} {small} --num-layers 2 --check")),
        (
            "replay-even",
            format!("{sample} {small} --policy eplb --split even --dtype f32 --check --no-baseline --nodes 2"),
        ),
        (
            "replay-replan",
            format!(
                "{sample} {small} --policy eplb --steps 12 --replan-every 4 --max-moves 3 --move-budget 1 --check --no-baseline"
            )
            .replace("--steps 3 ", ""),
        ),
        (
            "replay-traffic",
            format!("{sample} {small} --policy lplb:ring --nodes 2 --tie-break vector,traffic --aggregate node --no-baseline"),
        ),
        (
            "replay-tokens",
            "[folder]/ids --batch-tokens 32 --model mixtral-8x7b --hidden 32 --intermediate 48 --ranks 4 --redundant 4 \
             --num-layers 2 --steps 3 --check"
                .to_owned(),
        ),
    ] {
        compare_document(&format!("run-{name}"), &sandbox, &format!("run {args}"));
    }
}

#[test]
fn routers() {
    let sandbox = Sandbox::new();
    let small = "run --model qwen3-30b-a3b --hidden 64 --intermediate 48 --experts 16 --experts-per-token 3 --ranks 4 \
                 --redundant 8 --batch-tokens 64 --dtype f32";
    for router in
        ["switch", "gshard", "noisy", "softmax", "softmax-renorm", "topk-softmax", "sigmoid", "soft"]
    {
        let args = format!("{small} --router {router} --steps 2 --policy eplb --check");
        compare_document(&format!("run-router-{router}"), &sandbox, &args);
    }
    for (name, args) in [
        ("capacity", "--router softmax-renorm --capacity 1.1 --overflow next --steps 3 --policy eplb"),
        ("drop", "--router gshard --capacity 1.0 --steps 3 --policy eplb --no-baseline"),
        (
            "replan",
            "--router softmax-renorm --steps 12 --drift 0.2 --replan-every 4 --move-budget 1 --record [folder]/loads.csv \
             --no-baseline --check",
        ),
    ] {
        compare_document(&format!("run-{name}"), &sandbox, &format!("{small} {args}"));
    }
    compare_file("run-record-file", &sandbox.text("loads.csv"));
}
