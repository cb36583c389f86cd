//! The split that a plan is computed for, from `--for` to the stack's file, compared with EPLB.

#![allow(clippy::unwrap_used)]

use crate::command::{document, evenkeel};
use crate::skip_support::skipped;
use serde_json::Value;
use std::path::Path;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");
const SHAPE: [&str; 6] = ["--ranks", "8", "--redundant", "8", "--policy", "recourse:iterations=2000"];

fn notes(args: &[&str]) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {stderr}");
    stderr
}

fn plan(out: &Path, more: &[&str]) -> Value {
    let mut args = vec!["plan", SAMPLE, "-o", out.to_str().unwrap(), "--json"];
    args.extend(SHAPE);
    args.extend(more);
    document(&args)
}

fn figure<'a>(figures: &'a Value, split: &str) -> &'a Value {
    figures.as_array().unwrap().iter().find(|figure| figure["split"] == split).unwrap()
}

#[test]
fn without_a_target_both_figures_are_shown_and_eplb_is_not_better_under_the_even_split() {
    let folder = tempfile::tempdir().unwrap();
    let (out, file) = (folder.path().join("p.json"), folder.path().join("init.json"));
    let d = plan(&out, &[]);
    assert_eq!((&d["for"], &d["expected"]["split"]), (&Value::Null, &Value::from("even")));
    let even = figure(&d["figures"], "even");
    let mean = |value: &Value| value["mean"].as_f64().unwrap();
    assert!(mean(&even["imbalance"]) <= 1.002 * mean(&even["eplb"]), "{even}");
    let exact = figure(&d["figures"], "exact");
    assert!(mean(&exact["imbalance"]) < mean(&exact["eplb"]), "{exact}");
    assert!(exact["runs_in"].as_str().unwrap().contains("EVENKEEL_SPLIT=exact"));

    // A note on the stack's file has the figure of the stack's split, and EPLB's.
    let notes =
        notes(&["plan", "export", out.to_str().unwrap(), "--to", "sglang", "-o", file.to_str().unwrap()]);
    let said =
        format!("with the even split: {:.3} (EPLB {:.3})", mean(&even["imbalance"]), mean(&even["eplb"]));
    assert!(notes.contains(&said), "{said}: {notes}");
    assert!(notes.contains("--ep-num-redundant-experts 8 --init-expert-location"), "{notes}");
    let check = document(&["plan", "check", out.to_str().unwrap(), "--trace", SAMPLE, "--json"]);
    assert_eq!(check["figures"], d["figures"]);
    assert_eq!(check["judged_again"]["mean"], even["imbalance"]["mean"]);
}

#[test]
fn the_target_decides_what_is_planned_and_judged() {
    let folder = tempfile::tempdir().unwrap();
    for (target, policy, split) in [
        ("sglang", "recourse:sglang-dynamic:iterations=2000", "sglang-dynamic"),
        ("sglang:moe-a2a-backend=deepep", "recourse:sglang-static:iterations=2000", "sglang-static"),
        ("vllm", "recourse:vllm:iterations=2000", "vllm"),
        ("vllm:exact", "recourse:exact:iterations=2000", "exact"),
        ("vllm-ascend", "recourse:vllm-ascend:iterations=2000", "vllm-ascend"),
        ("trtllm", "recourse:trtllm:iterations=2000", "trtllm"),
        ("evenkeel", "recourse:exact:iterations=2000", "exact"),
    ] {
        let out = folder.path().join("p.json");
        let d = plan(&out, &["--for", target]);
        assert_eq!((&d["policy"], &d["expected"]["split"]), (&Value::from(policy), &Value::from(split)));
        let own = &d["figures"][0];
        assert_eq!((&own["split"], &own["imbalance"]), (&Value::from(split), &d["expected"]["imbalance"]));
        let [found, eplb] = ["imbalance", "eplb"].map(|of| own[of]["mean"].as_f64().unwrap());
        assert!(found <= 1.005 * eplb, "{own}");
    }
    // A plan for one stack that is written for another causes a note.
    let out = folder.path().join("p.json");
    plan(&out, &["--for", "evenkeel"]);
    let notes = notes(&["plan", "export", out.to_str().unwrap(), "--to", "vllm", "-o", "-"]);
    assert!(notes.contains("the plan was made for evenkeel; vllm does the vllm split"), "{notes}");
}

#[test]
fn a_recorded_dump_goes_to_sglang_with_the_even_figure() {
    let Some(traces) = std::env::var_os("EVENKEEL_REAL_TRACES") else {
        skipped("no real traces");
        return;
    };
    let dump = Path::new(&traces).join("deepseek-r1-sglang-dumps/expert_distribution_fp4_8k1k_compressed.pt");
    let folder = tempfile::tempdir().unwrap();
    let (out, file) = (folder.path().join("p.json"), folder.path().join("init.json"));
    let (dump, out) = (dump.to_str().unwrap(), out.to_str().unwrap());
    let d = document(&[
        "plan",
        dump,
        "--ranks",
        "32",
        "--redundant",
        "32",
        "--layers",
        "3,30,60",
        "-o",
        out,
        "--json",
    ]);
    let even = figure(&d["figures"], "even");
    let mean = |value: &Value| value["mean"].as_f64().unwrap();
    assert!(mean(&even["imbalance"]) <= 1.002 * mean(&even["eplb"]), "{even}");
    let notes = notes(&["plan", "export", out, "--to", "sglang", "-o", file.to_str().unwrap()]);
    assert!(
        notes.contains(&format!(
            "even split: {:.3} (EPLB {:.3})",
            mean(&even["imbalance"]),
            mean(&even["eplb"])
        )),
        "{notes}"
    );
    assert!(notes.contains("--ep-num-redundant-experts 32"), "{notes}");
    // Batches are drawn from the totals, and the check draws the same ones.
    assert_eq!(d["memory"]["redundant_bytes_per_rank"], 2_554_331_136u64);
    let check = document(&["plan", "check", out, "--trace", dump, "--json"]);
    assert_eq!(check["judged_again"]["mean"], even["imbalance"]["mean"]);
}
