//! `evenkeel simulate`: policies and splits, sizes, and inputs.

use super::program::Sandbox;
use super::{compare_document, token_ids};

fn compare_simulations(sandbox: &Sandbox, cases: &[(&str, &str)]) {
    for (name, args) in cases {
        compare_document(&format!("simulate-{name}"), sandbox, &format!("simulate {args}"));
    }
}

#[test]
fn policies_and_splits() {
    compare_simulations(
        &Sandbox::new(),
        &[
            (
                "policies",
                "traces/sample-prefill.csv.zst --layers 1-4 --ranks 8 --redundant 8 --policies \
                 contiguous,eplb,eplb:trtllm,lplb:ring,recourse,recourse:even --splits even,affine5,exact",
            ),
            (
                "stacks",
                "traces/sample-prefill.csv.zst --layers 1-4 --ranks 8 --nodes 2 --redundant 16 --policies eplb --splits \
                 sglang-static,sglang-dynamic,sglang-random,vllm,vllm-ascend,trtllm,exact",
            ),
            (
                "decode",
                "traces/sample-decode.csv.zst --layers 0-1 --ranks 8 --redundant 8 --policies contiguous,eplb,lplb:cube \
                 --splits even,exact",
            ),
            (
                "hindsight",
                "traces/sample-prefill.csv.zst --layers 1-2 --ranks 8 --redundant 8 --policies eplb --hindsight --train-fraction 0.6",
            ),
            (
                "sizes",
                "traces/sample-prefill.csv.zst --layers 1-2 --ranks 4,8,12 --redundant 0,8 --policies eplb,lplb:ring",
            ),
        ],
    );
}

#[test]
fn linear_programme() {
    let sandbox = Sandbox::new();
    let args = "simulate traces/sample-prefill.csv.zst --layers 1 --ranks 8 --redundant 8 --policies lplb:ring,lp-round --splits lp";
    // Engines may return different vertices of one optimum.
    if sandbox.document(args)["lp_engine"] != "HiGHS" {
        return crate::skip_support::skipped("no HiGHS");
    }
    compare_document("simulate-lp", &sandbox, args);
}

#[test]
fn placements_of_files() {
    let sandbox = Sandbox::new();
    let shape = "traces/sample-prefill.csv.zst --layers 1-2 --ranks 8 --redundant 8";
    sandbox.run(&format!("plan {shape} --policy eplb -o [folder]/plan.json"));
    let mut files = vec!["[folder]/plan.json".to_owned()];
    for dialect in ["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"] {
        files.push(format!("[folder]/{dialect}"));
        sandbox.run(&format!("plan export [folder]/plan.json --to {dialect} -o [folder]/{dialect}"));
    }
    let args = format!("{shape} --policies contiguous --splits exact --placement {}", files.join(","));
    compare_simulations(&sandbox, &[("placements", &args)]);
}

#[test]
fn batches_of_single_tokens() {
    let sandbox = Sandbox::new();
    token_ids::write(&sandbox);
    let shape = "[folder]/ids --ranks 4 --nodes 2 --redundant 4 --policies eplb,lplb:ring";
    compare_simulations(
        &sandbox,
        &[
            ("prefill-batches", &format!("{shape} --batch-tokens 32")),
            ("shuffled", &format!("{shape} --batch-tokens 32 --order shuffled --seed 4")),
            ("decode-batches", &format!("{shape} --decode-batch 12 --order shuffled --seed 4")),
            ("resampled", &format!("{shape} --resample 20 --batch-tokens 64 --top-k 2")),
            ("locality", &format!("traffic {shape} --batch-tokens 32")),
            (
                "network-counted",
                &format!(
                    "network {shape} --batch-tokens 32 --network h800 --model mixtral-8x7b,h800 --one-copy-per node"
                ),
            ),
        ],
    );
}
