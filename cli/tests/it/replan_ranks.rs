//! Re-planning on other ranks: after losses, with ranks that join, and from files of serving stacks.

#![allow(clippy::unwrap_used)]

use crate::command::{document, refusal, stdout, trace_file};
use crate::replan::{hosts, plan, replan};

#[test]
fn after_a_loss_the_others_keep_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trace = trace_file(folder.path(), "old.csv", 10, |_| 0);
    let (first, next) = (at("first.json"), at("next.json"));
    plan(&trace, &first, &["--ranks", "8", "--redundant", "8", "--nodes", "2"]);
    let d = replan(&first, &trace, &next, &["--lost-ranks", "5"]);
    assert_eq!((d["cluster"]["ranks"].as_u64(), d["cluster"]["usable_slots"].as_u64()), (Some(7), Some(21)));
    let (before, after) = (hosts(&first), hosts(&next));
    for (at, layer) in d["moves"]["layers"].as_array().unwrap().iter().enumerate() {
        assert!(layer["moves"].as_array().unwrap().len() <= 3);
        let homeless = (0..16).filter(|&e| before[at][e] == [5]).count();
        assert_eq!(layer["lost_experts"].as_u64(), Some(homeless as u64));
        for expert in 0..16 {
            for &rank in &after[at][expert] {
                let was = rank + usize::from(rank >= 5);
                let moves = layer["moves"].as_array().unwrap();
                let listed = moves.iter().any(|m| m["expert"] == expert && m["to"] == rank);
                assert_eq!(before[at][expert].contains(&was), !listed);
            }
        }
    }
    assert_eq!(document(&["plan", "check", &next, "--json"])["valid"], true);
    let wrong = |more: &[&str]| refusal(&[&["plan", "replan", &first, &trace], more].concat());
    assert!(wrong(&["--lost-ranks", "8"]).contains("rank 8 of only 8"));
    assert!(wrong(&["--lost-ranks", "0,1,2"]).contains("15 slots are left, 16 experts need one each"));
}

#[test]
fn ranks_may_join_and_ranks_that_stay_keep_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trace = trace_file(folder.path(), "old.csv", 10, |_| 0);
    let (first, next) = (at("first.json"), at("next.json"));
    plan(&trace, &first, &["--ranks", "8", "--redundant", "8", "--nodes", "2"]);
    let d = replan(&first, &trace, &next, &["--add-ranks", "4"]);
    // Each rank keeps its three slots, and each node its four ranks.
    assert_eq!(
        (&d["cluster"]["ranks"], &d["cluster"]["usable_slots"], &d["cluster"]["nodes"]),
        (&12.into(), &36.into(), &3.into())
    );
    assert!(d["moves"]["total"].as_u64() > Some(0));
    let (before, after) = (hosts(&first), hosts(&next));
    for (at, layer) in d["moves"]["layers"].as_array().unwrap().iter().enumerate() {
        for m in layer["moves"].as_array().unwrap() {
            assert!(m["from"].is_u64(), "{m}");
        }
        for expert in 0..16 {
            for &rank in after[at][expert].iter().filter(|rank| !before[at][expert].contains(rank)) {
                let moves = layer["moves"].as_array().unwrap();
                assert!(moves.iter().any(|m| m["expert"] == expert && m["to"] == rank), "{expert} {rank}");
            }
        }
    }
    // A rank fails and two others take over, in one plan.
    let d = replan(&first, &trace, &next, &["--lost-ranks", "5", "--add-ranks", "2"]);
    assert_eq!(d["cluster"]["ranks"], 9);
    assert_eq!(document(&["plan", "check", &next, "--json"])["valid"], true);
    // The slots of each rank may change too.
    let d = replan(&first, &trace, &next, &["--add-ranks", "4", "--slots-per-rank", "2"]);
    assert_eq!((&d["cluster"]["slots_per_rank"], &d["cluster"]["usable_slots"]), (&2.into(), &24.into()));
    let few = refusal(&["plan", "replan", &first, &trace, "--slots-per-rank", "1"]);
    assert!(few.contains("8 ranks x 1 slots cannot hold 16 experts"), "{few}");
}

#[test]
fn a_previous_plan_may_be_a_stacks_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trace = trace_file(folder.path(), "old.csv", 10, |_| 0);
    let new = trace_file(folder.path(), "new.csv", 10, |_| 4);
    let (first, file) = (at("first.json"), at("stack"));
    // Without redundancy no expert is twice on a rank, which vllm-ascend refuses, so that all files hold the
    // plan.
    plan(&trace, &first, &["--ranks", "4", "--redundant", "0", "--policy", "eplb"]);
    for dialect in ["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"] {
        stdout(&["plan", "export", &first, "--to", dialect, "--moe-layers", "3,5", "-o", &file]);
        let again = |previous: &str, more: &[&str]| {
            document(&[&["plan", "replan", previous, &new, "--max-moves", "2", "--json"], more].concat())
        };
        let (plan, stack) = (again(&first, &[]), again(&file, &["--from-ranks", "4"]));
        assert_eq!((&plan["moves"], &plan["layers"]), (&stack["moves"], &stack["layers"]), "{dialect}");
        let grown = again(&file, &["--from-ranks", "4", "--add-ranks", "1"]);
        assert_eq!(grown["cluster"]["ranks"], 5, "{dialect}");
        let wrong = refusal(&["plan", "replan", &file, &new]);
        assert!(wrong.contains("expected --from-ranks"), "{dialect}: {wrong}");
    }
}
