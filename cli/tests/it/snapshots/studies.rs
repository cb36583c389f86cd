//! The studies of `evenkeel simulate`: networks, re-planning, planning cost, objectives.

use super::compare_document;
use super::program::Sandbox;

const SAMPLE: &str = "traces/sample-prefill.csv.zst --layers 1-2 --ranks 8 --redundant 8";

fn compare_studies(study: &str, cases: &[(&str, &str)]) {
    let sandbox = Sandbox::new();
    for (name, args) in cases {
        compare_document(&format!("study-{name}"), &sandbox, &format!("simulate {study} {SAMPLE} {args}"));
    }
}

#[test]
fn networks() {
    compare_studies(
        "network",
        &[
            ("network", "--nodes 2 --policies eplb,lplb:ring --network h800 --model deepseek-v2-lite,h800"),
            (
                "network-node",
                "--nodes 2 --policies eplb --network h100 --model deepseek-v2-lite,h100 --one-copy-per node --overlap",
            ),
            (
                "network-visit",
                "--nodes 2 --policies eplb --network nvlink4+ib-ndr,cross.gb_s=40,cross.alpha_us=50 --model \
             deepseek-v2-lite:fp8,h200 --one-copy-per visit --row-format bf16,bf16 --extra-layer-us 80 --num-layers 4 --efficiency 0.7",
            ),
        ],
    );
}

#[test]
fn planning_again() {
    compare_studies(
        "replay",
        &[
            ("replan", "--policies contiguous,eplb --replan-every 8 --max-moves 1,4"),
            (
                "replan-window",
                "--policies eplb,recourse:even:iterations=40 --splits exact --replan-every 12 --window 8",
            ),
            ("replan-decay", "--policies eplb --splits exact --replan-every 8 --decay 6 --max-moves 2"),
            (
                "replan-pays",
                "--policies eplb --splits exact --replan-every 8 --link-gbps 400 --model deepseek-v2-lite,h100",
            ),
        ],
    );
}

#[test]
fn planning_cost_and_objectives() {
    compare_studies(
        "planning-cost",
        &[("worth", "--policies eplb,lplb:ring --model-gpu deepseek-v2-lite,h100 --plan-us 12.5")],
    );
    compare_studies(
        "objective",
        &[
            ("cost-tiles", "--policies eplb --cost tiles:32"),
            ("cost-active", "--policies eplb,lplb:ring --cost active"),
            ("cost-roofline", "--policies eplb --cost roofline:deepseek-v2-lite,h100"),
            ("vector", "--policies eplb --tie-break vector"),
            ("speeds", "--policies eplb --speeds 2,2,1,1,1,1,1,1"),
            ("speeds-placed", "--policies eplb --speeds 2,2,1,1,1,1,1,1 --place-for-speeds"),
            ("base", "--policies eplb --base-load 400,0,0,0,0,0,0,100"),
            ("shared-expert", "--policies eplb --shared-expert 6"),
            ("min-piece", "--policies eplb --min-piece 24"),
            (
                "tiles-vector",
                "--policies lplb:ring --cost tiles:16 --tie-break vector --base-load 64,0,0,0,0,0,0,0",
            ),
        ],
    );
}
