//! Re-planning from a previous plan and under budgets, as users run it.

#![allow(clippy::unwrap_used)]

use crate::command::{document, evenkeel, refusal, stdout, trace_file};
use serde_json::Value;
use std::fs;

#[test]
fn replanning_follows_a_drift_and_counts_its_moves() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path(), "drift.csv", 40, |step| step / 8);
    let base =
        ["simulate", "replay", &trace, "--ranks", "4", "--policies", "contiguous,eplb,lplb:ring", "--json"];
    for window in [&["--window", "auto"][..], &["--window", "4"], &["--decay", "3"]] {
        let d = document(&[&base[..], &["--replan-every", "4", "--max-moves", "1,3"], window].concat());
        let rows = d["replan"]["rows"].as_array().unwrap();
        // Three policies, two splits, and five rows: never, again, two limits, oracle.
        assert_eq!(rows.len(), 3 * 2 * 5);
        for rows in rows.chunks(5) {
            let names: Vec<&str> = rows.iter().map(|row| row["planned_again"].as_str().unwrap()).collect();
            assert_eq!(names, ["never", "yes", "yes", "yes", "oracle"]);
            for (row, limit) in rows.iter().zip([Some(0), None, Some(1), Some(3), None]) {
                assert!(row["imbalance"]["mean"].as_f64() >= Some(1.0) && row["plan_ms"].is_f64());
                if let Some(limit) = limit {
                    // The limit applies to each of two layers.
                    assert!(row["moves"].as_u64().unwrap() <= 2 * limit * row["replans"].as_u64().unwrap());
                }
            }
        }
        // The plain table equals the row that is never re-planned.
        let never = rows.iter().find(|row| row["policy"] == "eplb" && row["split"] == "exact").unwrap();
        let plain = d["results"].as_array().unwrap();
        let plain = plain.iter().find(|row| row["policy"] == "eplb" && row["split"] == "exact").unwrap();
        assert_eq!(never["imbalance"], plain["imbalance"]);
    }
    let text = stdout(&[&base[..7], &["--replan-every", "4", "--max-moves", "2"]].concat());
    assert!(text.contains("Planned again every 4 steps") && text.contains("<= 2 moves"), "{text}");
    let plain = [&base[..1], &base[2..]].concat();
    assert!(document(&plain)["replan"].is_null());
    assert!(refusal(&[&base[..], &["--replan-every", "0"]].concat()).contains("--replan-every 0"));
    assert!(refusal(&[&base[..], &["--replan-every", "2", "--decay", "0"]].concat()).contains("--decay 0"));
    let usage = evenkeel(&[&base[..], &["--replan-every", "2", "--window", "0"]].concat());
    assert!(String::from_utf8_lossy(&usage.stderr).contains("from 1 on, or auto"));
}

#[test]
fn replaying_does_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path(), "drift.csv", 30, |step| step / 5);
    let rows = |threads: &str| {
        let args = [
            "simulate",
            "replay",
            &trace,
            "--ranks",
            "4",
            "--replan-every",
            "3",
            "--max-moves",
            "2",
            "--json",
        ];
        let mut d = document(&[&args[..], &["--threads", threads]].concat());
        for row in d["replan"]["rows"].as_array_mut().unwrap() {
            row["plan_ms"] = Value::Null;
        }
        d["replan"].clone()
    };
    assert_eq!(rows("1"), rows("3"));
}

pub(crate) fn plan(trace: &str, out: &str, more: &[&str]) -> Value {
    document(&[&["plan", trace, "-o", out, "--json"], more].concat())
}

pub(crate) fn replan(previous: &str, trace: &str, out: &str, more: &[&str]) -> Value {
    document(&[&["plan", "replan", previous, trace, "-o", out, "--json"], more].concat())
}

/// Returns the ranks of every expert in every layer of a plan file: `[layer][expert]`.
pub(crate) fn hosts(path: &str) -> Vec<Vec<Vec<usize>>> {
    let plan: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let experts = plan["model"]["experts"].as_u64().unwrap() as usize;
    let layer = |layer: &Value| {
        let mut hosts = vec![vec![]; experts];
        for (rank, slots) in layer["slots"].as_array().unwrap().iter().enumerate() {
            for expert in slots.as_array().unwrap().iter().filter_map(Value::as_u64) {
                let on: &mut Vec<usize> = &mut hosts[expert as usize];
                if on.last() != Some(&rank) {
                    on.push(rank);
                }
            }
        }
        hosts
    };
    plan["layers"].as_array().unwrap().iter().map(layer).collect()
}

#[test]
fn a_plan_with_a_past_keeps_what_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (old, new) =
        (trace_file(folder.path(), "old.csv", 10, |_| 0), trace_file(folder.path(), "new.csv", 10, |_| 4));
    let (first, next) = (at("first.json"), at("next.json"));
    // Without a stated split, a search may also revise the choice that it made for the even split.
    let exact = ["--policy", "recourse:exact"];
    plan(&old, &first, &[&["--ranks", "4"], &exact[..]].concat());
    // On the same trace nothing moves.
    let same = replan(&first, &old, &next, &exact);
    assert_eq!((same["moves"]["total"].as_u64(), hosts(&next)), (Some(0), hosts(&first)));
    assert_eq!(fs::read_to_string(&next).unwrap(), fs::read_to_string(&first).unwrap());
    // On another trace with few moves, exactly the listed moves have happened.
    let moved = replan(&first, &new, &next, &[&["--max-moves", "2"], &exact[..]].concat());
    let (before, after) = (hosts(&first), hosts(&next));
    for (at, layer) in moved["moves"]["layers"].as_array().unwrap().iter().enumerate() {
        let moves = layer["moves"].as_array().unwrap();
        assert!(!moves.is_empty() && moves.len() <= 2, "{layer}");
        let mut listed: Vec<(usize, usize)> = moves
            .iter()
            .map(|m| (m["expert"].as_u64().unwrap() as usize, m["to"].as_u64().unwrap() as usize))
            .collect();
        let mut come = Vec::new();
        for expert in 0..16 {
            let new = after[at][expert].iter().filter(|rank| !before[at][expert].contains(rank));
            come.extend(new.map(|&rank| (expert, rank)));
        }
        listed.sort_unstable();
        assert_eq!(listed, come);
    }
    let imbalance = |d: &Value| d["expected"]["imbalance"]["mean"].as_f64().unwrap();
    let stayed = replan(&first, &new, &next, &[&["--max-moves", "0"], &exact[..]].concat());
    assert!(imbalance(&moved) < imbalance(&stayed));
    let table = stdout(&["plan", "replan", &first, &new, "-v"]);
    assert!(table.contains("moves in 2 layers") && table.contains("from rank"), "{table}");

    // The plan determines the cluster.
    for option in ["--ranks", "--redundant", "--nodes"] {
        let usage = evenkeel(&["plan", "replan", &first, &new, option, "4"]);
        assert_eq!(usage.status.code(), Some(2), "{option}");
    }
    assert!(refusal(&["plan", "replan", "/nowhere.json", &new]).contains("/nowhere.json"));
    assert!(refusal(&["plan", &new]).contains("--ranks is missing"));
}

#[test]
fn a_move_is_made_only_if_it_pays() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let old = trace_file(folder.path(), "old.csv", 10, |_| 0);
    let new = trace_file(folder.path(), "new.csv", 10, |_| 4);
    let (first, next) = (at("first.json"), at("next.json"));
    plan(&old, &first, &["--ranks", "4"]);
    let pays = |policy: &str, steps: &str| {
        let more = ["--link-gbps", "400", "--model", "deepseek-v3,h100", "--max-moves", "2"];
        let options = ["--policy", policy, "--horizon-steps", steps];
        replan(&first, &new, &next, &[&options, &more[..]].concat())
    };
    let layers = |d: &Value| d["moves"]["layers"].as_array().unwrap().clone();
    for layer in layers(&pays("eplb", "1")) {
        assert_eq!(
            (layer["pays"]["made"].as_bool(), layer["moves"].as_array().unwrap().len()),
            (Some(false), 0)
        );
        // 44 MB over 400 Gb/s: 881 us per expert that the busiest rank receives.
        let cost = layer["pays"]["cost_us"].as_f64().unwrap();
        assert!(
            (cost / 880.8).round() >= 1.0 && (cost / 880.803_84 - (cost / 880.8).round()).abs() < 1e-3,
            "{cost}"
        );
    }
    assert_eq!(hosts(&next), hosts(&first));
    // A policy that supports prices proposes no such move.
    for layer in layers(&pays("recourse:exact", "1")) {
        assert_eq!(
            (layer["pays"]["considered"].as_u64(), layer["moves"].as_array().unwrap().len()),
            (Some(0), 0)
        );
    }
    assert_eq!(hosts(&next), hosts(&first));
    for layer in ["eplb", "recourse:exact"].map(|policy| layers(&pays(policy, "100000000"))).concat() {
        let pays = &layer["pays"];
        let [gain, cost] = ["gain_us", "cost_us"].map(|key| pays[key].as_f64().unwrap());
        assert_eq!(pays["made"].as_bool(), Some(gain > cost || pays["considered"] == 0), "{layer}");
        let moves = layer["moves"].as_array().unwrap().len() as u64;
        let made = if pays["made"] == true { pays["considered"].as_u64() } else { Some(0) };
        assert_eq!(Some(moves), made, "{layer}");
    }
    let text = stdout(&[
        "plan",
        "replan",
        &first,
        &new,
        "--policy",
        "eplb",
        "--horizon-steps",
        "10",
        "--link-gbps",
        "400",
        "--model",
        "deepseek-v3,h100",
    ]);
    assert!(text.contains("over 10 steps for") && text.contains("it does not pay in 2 layers"), "{text}");
    let usage = evenkeel(&["plan", "replan", &first, &new, "--horizon-steps", "100"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn secure_plans_survive_every_loss() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trace = trace_file(folder.path(), "old.csv", 10, |step| step % 2);
    let out = at("plan.json");
    for policy in [
        "contiguous",
        "eplb",
        "eplb:trtllm",
        "lplb:ring:4",
        "lplb:designed:2",
        "recourse:iterations=500",
        "lp-round",
    ] {
        let d = plan(
            &trace,
            &out,
            &["--ranks", "4", "--redundant", "16", "--policy", policy, "--survive-rank-loss", "1"],
        );
        assert_eq!(d["after_loss"]["every_expert_survives"], true, "{policy}");
        assert!(d["after_loss"]["worst_imbalance"]["mean"].as_f64() >= Some(1.0));
        // Exhaustive check: after the loss of any rank, every expert has another replica.
        for layer in hosts(&out) {
            for lost in 0..4 {
                assert!(layer.iter().all(|ranks| ranks.iter().any(|&rank| rank != lost)), "{policy} {lost}");
            }
        }
        assert_eq!(document(&["plan", "check", &out, "--json"])["survives_any_loss"], true);
    }
    assert!(stdout(&["plan", "check", &out]).contains("every expert survives the loss of any one rank"));
    // With the trace, the check reports the consequences of each loss, equal to those of planning.
    let d = plan(
        &trace,
        &out,
        &["--ranks", "4", "--redundant", "16", "--policy", "eplb", "--survive-rank-loss", "1"],
    );
    let checked = document(&["plan", "check", &out, "--trace", &trace, "--json"]);
    assert_eq!(checked["after_loss"], d["after_loss"]);
    let text = stdout(&["plan", "check", &out, "--trace", &trace]);
    assert!(text.contains("after the loss of a rank: mean imbalance"), "{text}");
    let few = ["plan", &trace, "--ranks", "4", "--redundant", "8", "-o", &out, "--survive-rank-loss"];
    let wrong = refusal(&[&few[..], &["1"]].concat());
    assert!(wrong.contains("16 experts need 32 slots (--redundant 16 or more), there are 24"), "{wrong}");
    let best = document(&[&few[..], &["best", "--json"]].concat());
    assert_eq!(best["after_loss"]["every_expert_survives"], false);
    assert!(best["after_loss"]["most_at_risk"]["tokens"].as_u64() > Some(0));
    // Eight of sixteen are covered, including the heaviest.
    for layer in hosts(&out) {
        assert!(layer.iter().filter(|ranks| ranks.len() >= 2).count() >= 8);
    }
    assert_eq!(document(&["plan", "check", &out, "--json"])["survives_any_loss"], false);
    // Fault tolerance with a previous plan.
    plan(&trace, &out, &["--ranks", "4", "--redundant", "16", "--survive-rank-loss", "1"]);
    let again = replan(&out, &trace, &at("next.json"), &["--survive-rank-loss", "1"]);
    assert_eq!(
        (&again["moves"]["total"], &again["after_loss"]["every_expert_survives"]),
        (&0.into(), &true.into())
    );
}

#[test]
fn slots_need_not_divide() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trace = trace_file(folder.path(), "old.csv", 10, |_| 0);
    let out = at("plan.json");
    let uneven = ["--ranks", "6", "--redundant", "4", "--uneven"];
    let wrong = refusal(&[&["plan", &trace, "--policy", "eplb"], &uneven[..]].concat());
    assert!(
        wrong.contains("eplb: 20 slots do not divide over 6 ranks: expected the same number on each"),
        "{wrong}"
    );
    let d = plan(
        &trace,
        &out,
        &[&["--policy", "contiguous", "--survive-rank-loss", "best"], &uneven[..]].concat(),
    );
    assert_eq!(
        (d["cluster"]["slots_per_rank"].as_u64(), d["cluster"]["usable_slots"].as_u64()),
        (Some(4), Some(20))
    );
    assert_eq!(document(&["plan", "check", &out, "--json"])["empty_slots"], 2 * 4);
    // A plan records its unusable slots.
    let text = fs::read_to_string(&out).unwrap();
    let damaged = at("damaged.json");
    fs::write(&damaged, text.replace("\"usable_slots\":20", "\"usable_slots\":19")).unwrap();
    assert!(refusal(&["plan", "check", &damaged]).contains("cannot use slot 3"), "{text}");
    fs::write(&damaged, text.replace("\"usable_slots\":20", "\"usable_slots\":18")).unwrap();
    assert!(refusal(&["plan", "check", &damaged]).contains("cluster.usable_slots"));
    // Such a plan can be a previous plan.
    let again = replan(&out, &trace, &at("next.json"), &["--policy", "contiguous"]);
    assert_eq!(again["cluster"]["usable_slots"], 20);
}

#[test]
fn a_budget_goes_where_it_helps() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // Layer 0 is balanced, layer 1 is not.
    let mut text = String::from("step,layer,expert,tokens\n");
    for step in 0..6 {
        for expert in 0..16 {
            let heavy = 300 * u64::from(expert == 3) + 100 * u64::from(expert == 9);
            text += &format!("{step},0,{expert},50\n{step},1,{expert},{}\n", 50 + heavy);
        }
    }
    let trace = at("two.csv");
    fs::write(&trace, text).unwrap();
    let out = at("plan.json");
    let with = |budget: &str| plan(&trace, &out, &["--ranks", "4", "--memory-budget", budget]);
    let d = with("8");
    assert_eq!(d["redundant_by_layer"], serde_json::json!([0, 4]), "four slots are enough: {d}");
    assert_eq!(document(&["plan", "check", &out, "--json"])["empty_slots"], 4);
    assert_eq!(with("0")["redundant_by_layer"], serde_json::json!([0, 0]));
    // Slots are added for all ranks at once.
    assert_eq!(with("3")["redundant_by_layer"], serde_json::json!([0, 0]));
    let few = refusal(&["plan", &trace, "--ranks", "4", "--policy", "lplb:ring:4", "--memory-budget", "7"]);
    assert!(few.contains("need at least 8 redundant slots"), "{few}");
    assert!(
        stdout(&["plan", &trace, "--ranks", "4", "--memory-budget", "8", "-v"])
            .contains("4 redundant slots in all")
    );
}

#[test]
fn two_kinds_of_traffic_are_planned_for_together() {
    let folder = tempfile::tempdir().unwrap();
    let prefill = trace_file(folder.path(), "prefill.csv", 12, |_| 0);
    let decode = trace_file(folder.path(), "decode.csv", 6, |_| 7);
    let with = |more: &[&str]| {
        let base = ["plan", &prefill, "--ranks", "4", "--policy", "recourse:iterations=2000", "--json"];
        document(&[&base[..], more].concat())
    };
    let (apart, both) = (with(&[]), with(&["--blend", &format!("{decode}:1")]));
    assert!(apart["on_each_trace"].is_null());
    let on = |d: &Value, which: usize| d["on_each_trace"][which]["imbalance"]["mean"].as_f64().unwrap();
    assert_eq!(both["on_each_trace"].as_array().unwrap().len(), 2);
    assert_eq!(both["expected"]["batches"], 2 * 24, "two layers, as many batches of each");
    // A plan for prefill alone is worse on decode.
    let out = folder.path().join("plan.json");
    let out = out.to_str().unwrap();
    with(&["-o", out]);
    let alone = evenkeel(&["plan", "check", out, "--trace", &decode, "--json"]);
    let alone: Value = serde_json::from_slice(&alone.stdout).unwrap();
    assert!(on(&both, 1) < alone["judged_again"]["mean"].as_f64().unwrap(), "{both} {alone}");
    // A light weight gives one batch of twelve.
    assert_eq!(with(&["--blend", &format!("{decode}:0.1")])["expected"]["batches"], 2 * 13);
    let text =
        stdout(&["plan", &prefill, "--ranks", "4", "--policy", "eplb", "--blend", &format!("{decode}:2")]);
    assert!(text.contains("decode.csv alone: mean") && text.contains("weight 2"), "{text}");
    for wrong in ["decode.csv", "decode.csv:0", "decode.csv:x", "decode.csv:1:both=3"] {
        let usage = evenkeel(&["plan", &prefill, "--ranks", "4", "--blend", wrong]);
        let said = String::from_utf8_lossy(&usage.stderr).into_owned();
        assert!(usage.status.code() == Some(2) && said.contains("TRACE:WEIGHT"), "{said}");
    }
}

#[test]
fn programmes_place_small_cases_beside_the_search() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::from("step,layer,expert,tokens\n");
    for step in 0..10u64 {
        for expert in 0..6u64 {
            let tokens = 50 + 200 * u64::from(expert == step % 2) + (step * 29 + expert * 17) % 40;
            text += &format!("{step},0,{expert},{tokens}\n");
        }
    }
    let trace = folder.path().join("small.csv");
    fs::write(&trace, text).unwrap();
    let trace = trace.to_str().unwrap();
    // Bounds and linear programmes refer to exact splits.
    let exact = ["--for", "evenkeel", "--json"];
    let plan =
        |policy: &str| document(&[&["plan", trace, "--ranks", "6", "--policy", policy], &exact[..]].concat());
    let mean = |d: &Value| d["expected"]["imbalance"]["mean"].as_f64().unwrap();
    let rounded = plan("lp-round");
    // With ten batches of six experts, all placements are evaluated.
    let bound = &rounded["layers"][0]["placement_bound"];
    assert_eq!(bound["proof"], "all placements tried");
    let bound = bound["imbalance"].as_f64().unwrap();
    assert!(mean(&rounded) >= bound - 1e-9 && mean(&plan("recourse")) >= bound - 1e-9);
    let said = stdout(&["plan", trace, "--ranks", "6", "--policy", "lp-round", "-v"]);
    assert!(said.contains("placement_bound") && said.contains("1 by trying all placements"), "{said}");
    if cfg!(feature = "highs") {
        assert!((mean(&plan("milp")) - bound).abs() < 1e-9, "both are proved");
        let d =
            document(&["simulate", trace, "--ranks", "6", "--policies", "recourse,lp-round,milp", "--json"]);
        assert_eq!(d["results"].as_array().unwrap().len(), 6);
    } else {
        let wrong = refusal(&["plan", trace, "--ranks", "6", "--policy", "milp"]);
        assert!(wrong.contains("--features highs"), "{wrong}");
    }
    let wrong = refusal(&["plan", trace, "--ranks", "6", "--policy", "simplex"]);
    assert!(wrong.contains("lp-round or milp"), "{wrong}");
}

#[test]
fn replaying_moves_only_where_that_pays() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path(), "drift.csv", 40, |step| step / 8);
    let base =
        ["simulate", "replay", &trace, "--ranks", "4", "--policies", "eplb", "--splits", "exact", "--json"];
    let moves = |gbps: &str| {
        let pays = ["--replan-every", "4", "--link-gbps", gbps, "--model", "deepseek-v3,h100"];
        let d = document(&[&base[..], &pays].concat());
        let rows = d["replan"]["rows"].as_array().unwrap().clone();
        let row = rows.iter().find(|row| row["planned_again"] == "where it pays").unwrap();
        (row["moves"].as_u64().unwrap(), rows[1]["moves"].as_u64().unwrap())
    };
    // Four steps cannot pay for 44 MB over 1 Gbit/s.
    assert_eq!(moves("1").0, 0);
    let (fast, always) = moves("1000000000");
    assert!(fast <= always);
    let usage = evenkeel(&[&base[..], &["--replan-every", "4", "--link-gbps", "400"]].concat());
    assert_eq!(usage.status.code(), Some(2));
    assert!(
        refusal(
            &[&base[..], &["--replan-every", "4", "--link-gbps", "0", "--model", "deepseek-v3,h100"]]
                .concat()
        )
        .contains("--link-gbps 0")
    );
}
