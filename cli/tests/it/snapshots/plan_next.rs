//! `evenkeel plan replan`: a plan that starts from another one.

use super::compare_plan;
use super::program::Sandbox;

#[test]
fn plans_that_come_from_a_plan() {
    let sandbox = Sandbox::new();
    let sample = "traces/sample-prefill.csv.zst --layers 1-3";
    sandbox.run(&format!("plan {sample} --ranks 8 --redundant 8 --policy eplb -o [folder]/eplb.json"));
    for (name, args) in [
        ("previous", ""),
        ("max-moves", "--max-moves 2"),
        ("max-moves-even", "--max-moves 3 --policy recourse:even"),
        ("eplb-max-moves", "--max-moves 2 --policy eplb"),
        ("link-budget", "--link-budget 64 --model deepseek-v2-lite --policy eplb"),
        ("horizon", "--horizon-steps 100000 --link-gbps 400 --model deepseek-v2-lite,h100"),
    ] {
        let args = format!("plan replan [folder]/eplb.json {sample} {args}");
        compare_plan(&format!("plan-next-{name}"), &sandbox, &args);
    }
}

#[test]
fn plans_after_a_loss() {
    let sandbox = Sandbox::new();
    let sample = "traces/sample-prefill.csv.zst --layers 1-3";
    sandbox.run(&format!("plan {sample} --ranks 8 --redundant 24 --policy eplb -o [folder]/eplb.json"));
    for (name, args) in [
        ("without-rank", "--lost-ranks 3"),
        ("without-ranks", "--lost-ranks 0,5 --max-moves 40 --policy recourse:even"),
    ] {
        let args = format!("plan replan [folder]/eplb.json {sample} {args}");
        compare_plan(&format!("plan-next-{name}"), &sandbox, &args);
    }
}
