//! The command line program as users run it: documents, tables, errors and exit codes.

#![allow(clippy::unwrap_used)]

use crate::command::{document, evenkeel, stdout};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the message of a command that must fail with exit code 1 and one line.
fn refusal(args: &[&str]) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let errors: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(errors[0].starts_with("error: "), "{stderr}");
    errors[0].to_owned()
}

/// Writes a trace of 20 steps x 2 layers (ids 3 and 5) x 16 experts with a heavy and a drifting expert.
fn trace_file(folder: &Path) -> PathBuf {
    let mut text = String::from("step,layer,expert,tokens\n");
    for step in 0..20u64 {
        for layer in [3, 5] {
            for expert in 0..16u64 {
                let tokens =
                    10 + 90 * u64::from(expert == layer) + step * expert % 7 + 5 * (expert + step) % 11;
                text += &format!("{step},{layer},{expert},{tokens}\n");
            }
        }
    }
    let path = folder.join("loads.csv");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn simulate_document_has_the_promised_keys() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path());
    let report = folder.path().join("deep/report.html");
    let d = document(&[
        "simulate",
        trace.to_str().unwrap(),
        "--ranks",
        "4",
        "--redundant",
        "4",
        "--policies",
        "contiguous,eplb,eplb:trtllm,lplb:ring",
        "--splits",
        "even,affine5,lp,exact",
        "--report",
        report.to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(d["trace"]["planned_steps"], 8);
    assert_eq!(d["trace"]["judged_steps"], 12);
    assert_eq!(d["trace"]["layers"], serde_json::json!([3, 5]));
    assert_eq!(d["cluster"]["slots_per_rank"], 5);
    let results = d["results"].as_array().unwrap();
    assert_eq!(results.len(), 16);
    for row in results {
        for key in ["mean", "p50", "p95", "p99", "max"] {
            assert!(row["imbalance"][key].as_f64().unwrap() >= 1.0, "{row}");
        }
        assert!(row["excess"]["mean"].as_f64().unwrap() >= 0.0 && row["excess"]["p95"].is_f64());
        assert!(row["lower_bound"]["mean"].as_f64().unwrap() >= 1.0);
        assert!(row["moves"].is_u64() && row["plan_ms"].is_f64());
        assert!(row["split_us"]["p50"].is_f64() && row["split_us"]["p99"].is_f64());
    }
    let mean = |policy: &str, split: &str| {
        let row = results.iter().find(|r| r["policy"] == policy && r["split"] == split).unwrap();
        row["imbalance"]["mean"].as_f64().unwrap()
    };
    for policy in ["contiguous", "eplb", "eplb:trtllm", "lplb:ring"] {
        for split in ["even", "affine5", "lp"] {
            assert!(mean(policy, "exact") <= mean(policy, split), "{policy} {split}");
        }
    }
    assert_eq!(results[0]["moves"], 0, "contiguous comes first and moves nothing");
    assert!(fs::read_to_string(report).unwrap().contains("lplb:ring"));
}

#[test]
fn results_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path());
    let plan = |threads: &str| {
        let out = folder.path().join(format!("plan{threads}.json"));
        stdout(&[
            "plan",
            trace.to_str().unwrap(),
            "--ranks",
            "4",
            "--threads",
            threads,
            "-o",
            out.to_str().unwrap(),
        ]);
        fs::read(out).unwrap()
    };
    assert_eq!(plan("1"), plan("3"));
}

#[test]
fn a_plan_is_written_checked_and_judged_again() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path());
    let plan = folder.path().join("plan.json");
    let (trace, plan) = (trace.to_str().unwrap(), plan.to_str().unwrap());
    let report = folder.path().join("plan.html");
    stdout(&[
        "plan",
        trace,
        "--ranks",
        "4",
        "--redundant",
        "8",
        "-o",
        plan,
        "--report",
        report.to_str().unwrap(),
    ]);
    assert!(fs::read_to_string(report).unwrap().contains("<svg"));
    let checked = document(&["plan", "check", plan, "--trace", trace, "--json"]);
    assert_eq!(checked["valid"], true);
    assert!(checked["judged_again"]["mean"].is_f64());
    assert_eq!(
        stdout(&["plan", trace, "--ranks", "4", "--redundant", "8", "-o", "-"]),
        fs::read_to_string(plan).unwrap()
    );

    let text = fs::read_to_string(plan).unwrap();
    let damaged = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let path = folder.path().join("damaged.json");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        refusal(&["plan", "check", path.to_str().unwrap()])
    };
    assert!(damaged("plan/1", "plan/9").contains("expected \"evenkeel.plan/1\""));
    assert!(damaged("\"layer\":5", "\"layer\":3").contains("layer 3 is out of order or repeated"));
    assert!(damaged("\"slots_per_rank\":6", "\"slots_per_rank\":7").contains("rank 0 has 6 slots"));
    assert!(damaged("\"experts\":16", "\"experts\":17").contains("expert 16 has no replica"));
    assert!(damaged("\"nodes\":1", "\"nodes\":3").contains("3 nodes"));
    assert!(damaged("\"policy\"", "\"polizei\"").contains("unknown field `polizei`"));
    let truncated = folder.path().join("half.json");
    fs::write(&truncated, &text[..text.len() / 2]).unwrap();
    assert!(refusal(&["plan", "check", truncated.to_str().unwrap()]).contains("line"));
    let lying = text.replacen("\"mean\": 1.", "\"mean\": 2.", 1);
    fs::write(&truncated, lying).unwrap();
    assert!(refusal(&["plan", "check", truncated.to_str().unwrap(), "--trace", trace]).contains("promises"));
}

#[test]
fn refusals_name_what_is_wrong_and_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path());
    let trace = trace.to_str().unwrap();
    let simulate = |more: &[&str]| refusal(&[&["simulate", trace], more].concat());
    assert!(simulate(&["--ranks", "4", "--policies", "magic"]).contains("unknown policy `magic`: expected"));
    assert!(
        simulate(&["--ranks", "8", "--policies", "lplb:cube"])
            .contains("needs 2 redundant slots per rank (16")
    );
    assert!(simulate(&["--ranks", "4", "--policies", "lplb:cube"]).contains("groups of 8"));
    assert!(
        simulate(&["--ranks", "4", "--redundant", "5"])
            .contains("nearest numbers of redundant slots that do are 4 and 8")
    );
    assert!(simulate(&["--ranks", "0"]).contains("0 ranks: expected 1 to 1024"));
    assert!(simulate(&["--ranks", "4", "--nodes", "3"]).contains("divisor"));
    assert!(simulate(&["--ranks", "4", "--train-fraction", "1"]).contains("more than 0 and less than 1"));
    assert!(refusal(&["plan", "/nowhere.csv", "--ranks", "4"]).contains("/nowhere.csv"));
    let usage = evenkeel(&["simulate", trace, "--ranks", "4", "--splits", "half"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usage.stderr).contains("expected even, lp, exact or affine5"));
}

#[test]
fn one_step_and_no_tokens_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one.csv");
    fs::write(&one, "layer,expert,tokens\n0,0,5\n0,1,6\n0,2,1\n0,3,2\n").unwrap();
    let one = one.to_str().unwrap();
    let message = refusal(&["simulate", one, "--ranks", "2", "--resample", "0"]);
    assert!(message.contains("at least 2 are needed") && message.contains("--resample 0"), "{message}");
    stdout(&["plan", one, "--ranks", "2", "--resample", "0"]);
    let none = folder.path().join("none.csv");
    fs::write(&none, "step,layer,expert,tokens\n0,0,0,0\n1,0,3,0\n").unwrap();
    let none = none.to_str().unwrap();
    assert!(refusal(&["simulate", none, "--ranks", "2"]).contains("holds no tokens"));
    assert!(refusal(&["plan", none, "--ranks", "2"]).contains("holds no tokens"));
}

#[test]
fn topologies_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pairs.json");
    fs::write(&file, "[[1,2],[0,3],[3,0],[2,1]]").unwrap();
    let d = document(&["plan", "topology", file.to_str().unwrap(), "torus:8x4", "--json"]);
    assert_eq!(d["topologies"][0]["group"], 4);
    assert_eq!(d["topologies"][0]["parallel_edges"], 4);
    assert_eq!(d["topologies"][1]["edge_connectivity"], 4);
    fs::write(&file, "[[1],[0,3]]").unwrap();
    assert!(
        refusal(&["plan", "topology", file.to_str().unwrap()]).contains("row 1 has 2 entries, row 0 has 1")
    );
    fs::write(&file, "{}").unwrap();
    assert!(refusal(&["plan", "topology", file.to_str().unwrap()]).contains("one row per rank"));
}

#[test]
fn output_may_be_cut_short() {
    let mut child = Command::new("sh")
        .args(["-c", &format!("'{}' plan topology ring -v | true", env!("CARGO_BIN_EXE_evenkeel"))])
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn other_goals_are_measured_beside_the_usual_splits() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path());
    let trace = trace.to_str().unwrap();
    let plain = ["simulate", trace, "--ranks", "4", "--redundant", "4", "--policies", "lplb:ring"];
    let base = [&["simulate", "objective"], &plain[1..]].concat();
    for goal in [
        &["--cost", "tokens"][..],
        &["--cost", "tiles:16"],
        &["--cost", "tiles:16", "--tie-break", "vector"],
        &["--cost", "active"],
        &["--cost", "roofline:qwen3-30b-a3b,h20"],
        &["--tie-break", "vector"],
        &["--speeds", "1,2,3,4"],
        &["--base-load", "0,50,0,9"],
        &["--shared-expert", "2"],
        &["--min-piece", "8"],
        &["--cost", "active", "--speeds", "1,2,2,1", "--shared-expert", "4"],
    ] {
        let d = document(&[&base[..], goal, &["--json"]].concat());
        let rows = d["goal"].as_array().unwrap();
        let splits: Vec<&str> = rows.iter().map(|row| row["split"].as_str().unwrap()).collect();
        assert_eq!(splits, ["even", "exact in tokens", "for this goal"], "{goal:?}");
        let mean = |row: usize| rows[row]["imbalance"]["mean"].as_f64().unwrap();
        let bound = rows[2]["bound"]["mean"].as_f64().unwrap();
        assert!(bound <= mean(2) + 1e-9 && bound > 0.0, "{goal:?}: {rows:?}");
        let exact = !goal.contains(&"--min-piece") && !goal.iter().any(|arg| arg.starts_with("roofline"));
        if exact {
            assert!(mean(2) <= mean(1) + 1e-9 && mean(2) <= mean(0) + 1e-9, "{goal:?}: {rows:?}");
            assert_eq!(rows[2]["at_bound"], 1.0, "{goal:?}");
        }
    }
    assert!(document(&[&plain[..], &["--json"]].concat())["goal"].is_null());
    assert!(refusal(&base).contains("no objective is stated"));
    // Placement for the speeds is another policy, and no worse under them.
    let d = document(&[&base[..], &["--speeds", "1,2,3,4", "--place-for-speeds", "--json"]].concat());
    let rows = d["goal"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[5]["policy"]), (6, &"lplb:ring, for speeds".into()));
    assert!(rows[5]["imbalance"]["mean"].as_f64() < rows[2]["imbalance"]["mean"].as_f64(), "{rows:?}");
    let plan = ["plan", trace, "--ranks", "4", "--redundant", "4", "--policy", "eplb"];
    let d = document(&[&plan[..], &["--speeds", "1,2,3,4", "--json"]].concat());
    let by_speed = d["by_speed"]["imbalance"]["mean"].as_f64().unwrap();
    assert!((1.0..1.5).contains(&by_speed), "{by_speed}");
    let text = stdout(&[&plan[..], &["--speeds", "1,2,3,4"]].concat());
    assert!(text.contains("by speeds [1, 2, 3, 4]: mean imbalance"), "{text}");
    assert!(text.contains("placement_bound") && text.contains("eplb, for speeds"), "{text}");
    let wrong = refusal(&[&plan[..], &["--speeds", "1,2"]].concat());
    assert!(wrong.contains("2 speeds for 4 ranks"), "{wrong}");
    let wrong = refusal(&[&base[..], &["--speeds", "1,2"]].concat());
    assert!(wrong.contains("2 speeds") && wrong.contains('4'), "{wrong}");
    let wrong = refusal(&[&base[..], &["--speeds", "1,2,0,1"]].concat());
    assert!(wrong.contains("speed") && wrong.contains('2'), "{wrong}");
    let wrong = refusal(&[&base[..], &["--min-piece", "3", "--tie-break", "vector"]].concat());
    assert!(wrong.contains("vector"), "{wrong}");
}

#[test]
fn planning_less_never_costs_more_and_tables_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path());
    let trace = trace.to_str().unwrap();
    let base = ["simulate", "planning-cost", trace, "--ranks", "4", "--redundant", "4", "--policies", "eplb"];
    let d =
        document(&[&base[..], &["--model-gpu", "deepseek-v3,h20", "--plan-us", "1000", "--json"]].concat());
    let row = &d["worth"][0];
    // 12 judged steps of 2 layers. The first step of each layer has to be planned.
    assert_eq!((row["batches"].as_u64(), row["planned_batches"].as_u64()), (Some(24), Some(2)), "{row}");
    assert!(row["rule_us"].as_f64() < row["always_us"].as_f64());
    let text = stdout(&[&base[..], &["--model-gpu", "deepseek-v3:bf16,h100"]].concat());
    assert!(text.contains("deepseek-v3:bf16 on h100, 20 us per plan"), "{text}");
    let wrong = refusal(&[&base[..], &["--model-gpu", "deepseek-v3,h20", "--plan-us", "nan"]].concat());
    assert!(wrong.contains("--plan-us"), "{wrong}");
    let wrong = evenkeel(&[&base[..], &["--model-gpu", "deepseek-v9,h20"]].concat());
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("kimi-k2"));
}

/// Writes 64 tokens of two layers, top-2 of eight experts, in NumPy's format.
fn token_file(folder: &Path) -> PathBuf {
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (64, 2, 2), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    let padded = format!("{header:<117}\n");
    bytes.extend(u16::try_from(padded.len()).unwrap().to_le_bytes());
    bytes.extend(padded.bytes());
    for token in 0..64u32 {
        for layer in 0..2 {
            let first = token * token / 7 % 5;
            bytes.extend([first as u8, ((first + 1 + (token + layer) % 7) % 8) as u8]);
        }
    }
    let path = folder.join("routed.npy");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn every_token_is_followed_where_ids_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = token_file(folder.path());
    let base = ["--ranks", "4", "--nodes", "2", "--redundant", "4", "--policies", "lplb:ring", "--json"];
    let d = document(
        &[&["simulate", "traffic", tokens.to_str().unwrap(), "--batch-tokens", "8"], &base[..]].concat(),
    );
    let rows = d["locality"].as_array().unwrap();
    let splits: Vec<&str> = rows.iter().map(|row| row["split"].as_str().unwrap()).collect();
    assert_eq!(splits, ["peak", "peak, traffic", "peak, vector, traffic"]);
    // 8 steps with 3 to plan on, 8 tokens, 2 layers, top-2.
    for row in rows {
        let pairs: u64 =
            ["own_rank", "own_node", "elsewhere"].iter().map(|k| row["pairs"][k].as_u64().unwrap()).sum();
        assert_eq!((pairs, row["copies"]["tokens"].as_u64()), (5 * 8 * 2 * 2, Some(5 * 8 * 2)));
        assert_eq!(row["sum_of_peaks"], rows[0]["sum_of_peaks"]);
        assert!(row["copies"]["to_ranks"].as_u64() <= Some(pairs));
    }
    let elsewhere = |row: usize| rows[row]["pairs"]["elsewhere"].as_u64().unwrap();
    assert!(elsewhere(1) <= elsewhere(0) && elsewhere(1) <= elsewhere(2));
    let counts = trace_file(folder.path());
    let wrong = refusal(&[&["simulate", "traffic", counts.to_str().unwrap()], &base[..8]].concat());
    assert!(wrong.contains("no ids of single tokens"), "{wrong}");
}

#[test]
fn files_of_serving_stacks_are_checked_and_judged_beside_the_policies() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path());
    let (trace, plan) = (trace.to_str().unwrap(), folder.path().join("plan.json"));
    let shape = ["--ranks", "4", "--redundant", "4"];
    let run = [&["plan", trace, "--policy", "eplb", "-o", plan.to_str().unwrap()], &shape[..]].concat();
    stdout(&run);
    let mut files = vec![plan.to_str().unwrap().to_owned()];
    for dialect in ["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"] {
        let file = folder.path().join(dialect);
        let file = file.to_str().unwrap();
        // The trace has no data on layer 4.
        stdout(&[
            "plan",
            "export",
            plan.to_str().unwrap(),
            "--to",
            dialect,
            "--moe-layers",
            "3,5",
            "-o",
            file,
        ]);
        let checked = document(&["plan", "check", file, "--ranks", "4", "--json"]);
        assert_eq!((&checked["dialect"], &checked["ranks"]), (&dialect.into(), &4.into()), "{checked}");
        files.push(file.to_owned());
    }
    let sglang = files[1].as_str();
    let message = refusal(&["plan", "check", sglang]);
    assert!(message.contains("--ranks"), "{message}");
    let message = refusal(&["plan", "check", sglang, "--ranks", "7"]);
    assert!(message.contains("ranks"), "{message}");

    let all = files.join(",");
    let run = [
        &["simulate", trace, "--policies", "contiguous", "--splits", "exact", "--placement", &all, "--json"],
        &shape[..],
    ];
    let rows = document(&run.concat());
    let rows = rows["results"].as_array().unwrap();
    assert_eq!(rows.len(), 1 + files.len());
    assert!(rows[1..].iter().all(|row| row["imbalance"] == rows[1]["imbalance"]), "{rows:?}");
    let wrong = ["simulate", trace, "--placement", sglang, "--ranks", "4", "--redundant", "8"];
    let message = refusal(&wrong);
    assert!(message.contains("sglang: it places") && message.contains("--redundant 4 fits"), "{message}");
}
