//! `evenkeel plan check`: a plan alone, a plan with its trace, and the files of serving stacks.

use super::compare_document;
use super::program::Sandbox;

#[test]
fn plans_are_checked() {
    let sandbox = Sandbox::new();
    let trace = "traces/sample-prefill.csv.zst";
    let shape = "--layers 1-3 --ranks 8 --redundant 8";
    sandbox.run(&format!("plan {trace} {shape} --for sglang -o [folder]/plan.json"));
    compare_document("plan-check", &sandbox, "plan check [folder]/plan.json");
    compare_document("plan-check-trace", &sandbox, &format!("plan check [folder]/plan.json --trace {trace}"));
    sandbox
        .run(&format!("plan {trace} {shape} --policy eplb --resample 12 --top-k 6 -o [folder]/drawn.json"));
    compare_document(
        "plan-check-drawn",
        &sandbox,
        &format!("plan check [folder]/drawn.json --trace {trace}"),
    );
    for dialect in ["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"] {
        sandbox.run(&format!("plan export [folder]/plan.json --to {dialect} -o [folder]/{dialect}"));
        let args = format!("plan check [folder]/{dialect} --ranks 8");
        compare_document(&format!("plan-check-{dialect}"), &sandbox, &args);
    }
}
