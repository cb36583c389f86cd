//! Traces with totals only, lists of shapes, memory, and options without effect, as users run them.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::command::{document, evenkeel, refusal, stdout};
use crate::skip_support::skipped;
use crate::trace_support::{Folder, npy, stat};
use evenkeel_trace::synth::Resampling;
use serde_json::Value;

/// Writes a dump of SGLang's recorder in mode `stat`: one step of `layers` x `experts`, skewed. The first
/// layer is dense.
fn dump(folder: &Folder, layers: usize, experts: usize) -> String {
    let count = |at: usize| match (at / experts, at % experts) {
        (0, _) => 0,
        (layer, expert) => {
            1_000 + 9_000 * i64::from(expert == layer % experts) + (expert * 37 % 11) as i64 * 100
        }
    };
    let counts: Vec<i64> = (0..layers * experts).map(count).collect();
    folder.file("dump.pt", &stat(&[layers as u64, experts as u64], &counts)).to_str().unwrap().to_owned()
}

fn notes(args: &[&str]) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {stderr}");
    stderr
}

/// mixtral-8x7b is the only known model of 32 layers of 8 experts.
const MIXTRAL: (usize, usize) = (33, 8);

#[test]
fn one_dump_of_totals_is_enough() {
    let folder = Folder::new();
    let dump = dump(&folder, MIXTRAL.0, MIXTRAL.1);
    let simulate = [
        "simulate",
        &dump,
        "--ranks",
        "4",
        "--redundant",
        "4",
        "--policies",
        "contiguous,eplb",
        "--batch-tokens",
        "32",
    ];
    let d = document(&[&simulate[..], &["--json"]].concat());
    assert_eq!(d["trace"]["batching"], "128 batches of 32 tokens drawn from totals, top-k 2, seed 0");
    assert_eq!((&d["trace"]["planned_steps"], &d["trace"]["judged_steps"]), (&51.into(), &77.into()));
    let said = notes(&simulate);
    for part in [
        "a model, not a measurement",
        "dump.pt holds totals and no batches",
        "--resample 0",
        "top-k 2 is that of mixtral-8x7b (8 experts x 32 MoE layers)",
        "--expert-distribution-recorder-mode per_pass or per_token",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // mixtral-8x22b has the same top-k in 56 layers. Some of the layers determine the top-k, but not the
    // memory.
    let d = document(&[&simulate[..], &["--layers", "1-9", "--json"]].concat());
    assert_eq!(d["trace"]["batching"], "128 batches of 32 tokens drawn from totals, top-k 2, seed 0");
    assert!(d["memory"].is_null(), "{}", d["memory"]);
    // The note on the top-k states its source.
    let said = notes(&[&simulate[..], &["--model", "mixtral-8x7b"]].concat());
    assert!(said.contains("top-k 2 is that of --model mixtral-8x7b:bf16"), "{said}");
    let said = notes(&[&simulate[..], &["--top-k", "3"]].concat());
    assert!(said.contains("with top-k 3 and seed 0") && !said.contains("is that of"), "{said}");
    let d = document(&[&simulate[..], &["--resample", "10", "--seed", "4", "--json"]].concat());
    assert_eq!(d["trace"]["batching"], "10 batches of 32 tokens drawn from totals, top-k 2, seed 4");

    // An inspection of the recorded trace shows the recorded step.
    let inspected = stdout(&["trace", "inspect", &dump]);
    assert!(inspected.contains("steps      1 ") && !inspected.contains("drawn"), "{inspected}");
}

#[test]
fn a_plan_of_a_dump_keeps_its_layers_and_says_how_its_batches_were_drawn() {
    let folder = Folder::new();
    let dump = dump(&folder, MIXTRAL.0, MIXTRAL.1);
    let plan = folder.path().join("plan.json");
    let make = ["plan", &dump, "--ranks", "4", "--redundant", "4", "--policy", "eplb"];
    let d = document(&[&make[..], &["-o", plan.to_str().unwrap(), "--json"]].concat());
    assert_eq!(d["idle_layers"], serde_json::json!([0]));
    assert_eq!(d["expected"]["batches"], 128 * 32);
    assert!(d["expected"]["imbalance"]["max"].as_f64() > Some(1.05), "{}", d["expected"]);
    let written: Value = serde_json::from_str(&std::fs::read_to_string(&plan).unwrap()).unwrap();
    let words = written["provenance"]["batches"].as_str().unwrap();
    assert_eq!(words.parse::<Resampling>().unwrap().steps, 128, "{words}");
    // Policies that plan for averages use the recorded totals.
    let recorded = document(&[&make[..], &["--resample", "0", "--json"]].concat());
    assert_eq!(recorded["expected"]["batches"], 32);
    let placements = |more: &[&str]| {
        let file = folder.path().join("placed.json");
        stdout(&[&make[..], more, &["-o", file.to_str().unwrap()]].concat());
        let plan = evenkeel::plan::Plan::read(&file).unwrap();
        plan.layers.into_iter().map(|layer| layer.placement).collect::<Vec<_>>()
    };
    assert_eq!(placements(&[]), placements(&["--resample", "0"]));

    // The plan's description of its batches draws the same batches again, also for some of the layers.
    for more in [&["--batch-tokens", "40"][..], &["--layers", "3,7-9", "--seed", "5"]] {
        let more = [more, &["-o", plan.to_str().unwrap(), "--model", "mixtral-8x7b"]].concat();
        let text = stdout(&[&make[..], &more].concat());
        assert!(text.contains("memory for redundancy: 11.27 GB per rank"), "{text}");
        let text = stdout(&["plan", "check", plan.to_str().unwrap(), "--trace", &dump]);
        assert!(text.contains(": as promised"), "{text}");
    }
    // Under a budget for all layers, the memory is that of the slots that the layers receive.
    let budget = ["plan", &dump, "--ranks", "4", "--policy", "eplb", "--memory-budget", "40", "--json"];
    let d = document(&budget);
    let slots: u64 = d["redundant_by_layer"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(d["memory"]["redundant_slots"], slots);
    let message = refusal(&[&make[..7], &["recourse", "--groups", "2"]].concat());
    assert!(message.contains("--groups 2 has no effect"), "{message}");

    // Prefill and decode together: batches of both are drawn.
    let both = format!("{dump}:1:decode=16");
    let d = document(&[&make[..], &["--blend", &both, "--json"]].concat());
    assert_eq!(d["expected"]["batches"], 2 * 128 * 32);
}

#[test]
fn an_unknown_shape_needs_a_top_k() {
    let folder = Folder::new();
    let dump = dump(&folder, 5, 12);
    for command in ["simulate", "plan"] {
        let message = refusal(&[command, &dump, "--ranks", "4"]);
        for part in ["12 experts x 4 MoE layers", "--top-k", "--resample 0"] {
            assert!(message.contains(part), "{message}");
        }
    }
    let message = refusal(&["simulate", &dump, "--ranks", "4", "--model", "mixtral-8x7b"]);
    assert!(message.contains("has 8 experts per layer") && message.contains("--top-k"), "{message}");
    let message = refusal(&["simulate", &dump, "--ranks", "4", "--top-k", "13"]);
    assert!(message.contains("top-k of 13, expected 1 to the 12 experts"), "{message}");
    stdout(&["plan", &dump, "--ranks", "4", "--top-k", "2"]);
    let zeros = folder.file("zeros.pt", &stat(&[3, 12], &[0; 36]));
    let message = refusal(&["simulate", zeros.to_str().unwrap(), "--ranks", "4"]);
    assert!(message.contains("holds no tokens"), "{message}");
}

#[test]
fn lists_of_ranks_and_slots_are_one_table() {
    let folder = Folder::new();
    let dump = dump(&folder, MIXTRAL.0, MIXTRAL.1);
    let base =
        ["simulate", &dump, "--batch-tokens", "16", "--resample", "6", "--policies", "contiguous,eplb"];
    let lists = [&base[..], &["--ranks", "2,4", "--redundant", "0,2,4"]].concat();
    let output = evenkeel(&lists);
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("4 ranks and 2 redundant slots left out") && said.contains("are 0 and 4"),
        "{said}"
    );
    assert!(text.contains("5 shapes; planned on 2 steps, judged on 4"), "{text}");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with(" contiguous") || line.starts_with(" eplb"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let shapes = [("2", "0"), ("2", "2"), ("2", "4"), ("4", "0"), ("4", "4")];
    let expected: Vec<_> = shapes
        .iter()
        .flat_map(|&(r, s)| ["contiguous", "eplb"].map(|p| ["even", "exact"].map(|split| [p, split, r, s])))
        .flatten()
        .collect();
    assert_eq!(
        rows.iter().map(|row| [row[0], row[1], row[2], row[3]]).collect::<Vec<_>>(),
        expected,
        "{text}"
    );
    // 3 x 4096 x 14336 x 2 bytes x 32 layers: 11.27 GB for each redundant slot per rank.
    let memory: Vec<&str> = rows.iter().step_by(4).map(|row| *row.last().unwrap()).collect();
    assert_eq!(memory, ["0.00", "11.27", "22.55", "0.00", "11.27"], "{text}");
    assert!(text.contains("as mixtral-8x7b:bf16 (8 experts x 32 MoE layers"), "{text}");

    let d = document(&[&lists[..], &["--json"]].concat());
    let entries = d["results"].as_array().unwrap();
    assert_eq!((entries.len(), d["clusters"].as_array().unwrap().len()), (20, 5));
    assert_eq!(d["left_out"].as_array().unwrap().len(), 1);
    let last = &entries[19];
    assert_eq!((&last["ranks"], &last["redundant"]), (&4.into(), &4.into()));
    assert_eq!(last["memory"]["redundant_bytes_per_rank"], 11_274_289_152u64);
    // One shape gives the same figures.
    let one = document(&[&base[..], &["--ranks", "4", "--redundant", "4", "--json"]].concat());
    let single = &one["results"][3];
    for field in ["policy", "split", "imbalance", "excess", "lower_bound", "at_bound", "moves"] {
        assert_eq!(single[field], last[field], "{field}");
    }
    assert_eq!(one["memory"], last["memory"]);

    for (more, parts) in [
        (&["--ranks", "3,5", "--redundant", "0"][..], &["no combination", "nearest"][..]),
        (&["--ranks", "2,4", "--report", "r.html"], &["--report looks at one cluster"]),
        (&["--ranks", "2,4", "--placement", "p.json"], &["--placement looks at one cluster"]),
        (&["--redundant", "0,4"], &["--ranks is missing"]),
    ] {
        let message = refusal(&[&base[..], more].concat());
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    // Only shapes that do not fit a policy are left out for it.
    let output = evenkeel(&[
        "simulate",
        &dump,
        "--resample",
        "6",
        "--ranks",
        "2,4",
        "--redundant",
        "4",
        "--policies",
        "contiguous,lplb:ring:4",
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("lplb:ring:4 on 2 ranks"), "{said}");
    let message = refusal(&[&base[..6], &["--ranks", "2,4", "--policies", "magic"]].concat());
    assert!(message.contains("unknown policy `magic`"), "{message}");
}

#[test]
fn options_without_effect_are_errors() {
    let folder = Folder::new();
    let csv = {
        let mut text = String::from("step,layer,expert,tokens\n");
        for at in 0..64 {
            text += &format!("{},{},{},{}\n", at / 16, at / 8 % 2, at % 8, 5 + at * at % 7);
        }
        folder.file("loads.csv", text.as_bytes()).to_str().unwrap().to_owned()
    };
    let ids: Vec<u8> = (0..64u32).map(|at| (at * 5 % 8) as u8).collect();
    let tokens = folder.file("ids.npy", &npy("|u1", &[16, 2, 2], &ids)).to_str().unwrap().to_owned();
    for (trace, options, because) in [
        (&csv, "--decode-batch 4", "loads.csv (csv) holds counts, one batch per recorded step"),
        (&csv, "--batch-tokens 512", "per-token arrays (npy, npz) or drawn with --resample"),
        (&csv, "--order recorded", "without requests to put in order"),
        (&csv, "--resample 4 --top-k 2 --order shuffled", "without requests to put in order"),
        (&csv, "--seed 3", "random without --resample"),
        (&csv, "--top-k 2", "are recorded; --resample"),
        (&csv, "--resample 0 --top-k 2", "are recorded; --resample"),
        (&csv, "--arrays a", "no named arrays; expected npy or npz"),
        (&csv, "--layers 0,7", "--layers 7"),
        (&tokens, "--batch-tokens 4 --arrays a", "no array a; the file has ids"),
        (&tokens, "--batch-tokens 4 --step-column step", "has no columns; expected csv or parquet"),
        (&tokens, "--batch-tokens 4 --seed 3", "random without --order shuffled or --decode-batch"),
        (&tokens, "--batch-tokens 4 --top-k 2", "are recorded; --resample"),
    ] {
        for command in ["simulate", "plan"] {
            let options: Vec<&str> = options.split(' ').collect();
            let message = refusal(&[&[command, trace, "--ranks", "4"], &options[..]].concat());
            assert!(message.contains(because), "{options:?}: {message}");
            assert_eq!(message.matches("error: ").count(), 1, "{message}");
        }
    }
    let message = refusal(&["simulate", &csv, "--ranks", "4", "--policies", "contiguous", "--groups", "2"]);
    assert!(message.contains("--groups 2 has no effect"), "{message}");
    let out = folder.path().join("out.csv");
    let message = refusal(&["trace", "convert", &csv, "-o", out.to_str().unwrap(), "--resample", "3"]);
    assert!(message.contains("writes what is recorded") && !out.exists(), "{message}");
    let message = refusal(&["simulate", &tokens, "--ranks", "4", "--batch-tokens", "16"]);
    assert!(message.contains("fewer than 2 batches") && message.contains("--batch-tokens"), "{message}");
    // The same options are accepted if they have an effect, even with their default values.
    let served = folder.path().join("served");
    std::fs::create_dir(&served).unwrap();
    std::fs::copy(&tokens, served.join("ids.npy")).unwrap();
    std::fs::write(served.join("requests.csv"), "start,tokens\n0,8\n8,8\n").unwrap();
    let shuffled = ["--batch-tokens", "4", "--order", "shuffled", "--seed", "3"];
    stdout(&[&["simulate", served.to_str().unwrap(), "--ranks", "4"], &shuffled[..]].concat());
    stdout(&["simulate", &csv, "--ranks", "4", "--resample", "4", "--top-k", "2", "--seed", "0"]);
    // An option that another trace uses is no error on this one.
    let and = format!("{csv}:1");
    stdout(&["plan", &tokens, "--ranks", "4", "--batch-tokens", "4", "--policy", "eplb", "--blend", &and]);
    let and = format!("{csv}:1:decode=4");
    let message = refusal(&["plan", &tokens, "--ranks", "4", "--batch-tokens", "4", "--blend", &and]);
    assert!(message.contains("--decode-batch 4 has no effect"), "{message}");
}

#[test]
fn memory_of_redundancy_is_printed_where_the_model_is_known() {
    let folder = Folder::new();
    let dump = dump(&folder, MIXTRAL.0, MIXTRAL.1);
    let report = folder.path().join("report.html");
    let base = [
        "simulate",
        &dump,
        "--ranks",
        "4",
        "--redundant",
        "4",
        "--resample",
        "6",
        "--policies",
        "contiguous,eplb",
    ];
    let text = stdout(&[&base[..], &["--report", report.to_str().unwrap()]].concat());
    assert!(
        text.contains("memory for redundancy: 11.27 GB per rank (128 slots of 352.3 MB in all layers, on 4 ranks), as mixtral-8x7b:bf16"),
        "{text}"
    );
    let html = std::fs::read_to_string(&report).unwrap();
    assert!(html.contains("<b>11.27&#160;GB</b> per rank, <b>"), "no memory in the report");
    assert!(html.contains("4 redundant slots in each of 32 MoE layers, as mixtral-8x7b:bf16"));
    let text = stdout(&[&base[..], &["--model", "deepseek-r1", "--top-k", "2"]].concat());
    assert!(text.contains("memory for redundancy: 2.55 GB per rank"), "{text}");
    let d = document(&[
        "simulate",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst"),
        "--ranks",
        "8",
        "--policies",
        "contiguous",
        "--json",
    ]);
    assert!(d["memory"].is_null(), "16 of the 24 layers of gpt-oss-20b are no known model");
}

/// The sizing question of a DeepSeek-R1 user, on a published dump.
#[test]
fn a_published_dump_of_deepseek_r1_is_sized_in_one_command() {
    let Some(root) = std::env::var_os("EVENKEEL_REAL_TRACES") else {
        skipped("no real traces");
        return;
    };
    let dumps = std::path::PathBuf::from(root).join("deepseek-r1-sglang-dumps");
    let dump = dumps.join("expert_distribution_fp4_8k1k_compressed.pt");
    let dump = dump.to_str().unwrap();
    let lists = ["--ranks", "8,32", "--redundant", "0,32", "--policies", "contiguous,eplb"];
    let d = document(&[&["simulate", dump, "--json"], &lists[..]].concat());
    assert_eq!(d["trace"]["batching"], "128 batches of 512 tokens drawn from totals, top-k 8, seed 0");
    let of = |ranks: u64, redundant: u64, policy: &str, split: &str| {
        let entries = d["results"].as_array().unwrap().iter();
        let mut fitting = entries.filter(|entry| {
            (&entry["ranks"], &entry["redundant"]) == (&ranks.into(), &redundant.into())
                && (&entry["policy"], &entry["split"]) == (&policy.into(), &split.into())
        });
        fitting.next().unwrap().clone()
    };
    let mean = |entry: &Value| entry["imbalance"]["mean"].as_f64().unwrap();
    assert!(mean(&of(32, 0, "contiguous", "even")) > 3.0);
    assert!(mean(&of(32, 32, "eplb", "even")) < 2.0);
    assert!(mean(&of(32, 32, "eplb", "exact")) < mean(&of(32, 32, "eplb", "even")));
    assert_eq!(of(32, 32, "eplb", "even")["memory"]["redundant_bytes_per_rank"], 2_554_331_136u64);
    assert_eq!(of(8, 32, "eplb", "even")["memory"]["redundant_bytes_per_rank"], 4 * 2_554_331_136u64);
    // The dumps in fp8 contain only zeros. A part of the layers still identifies the only models of 256
    // experts.
    let some = ["simulate", dump, "--layers", "3,30", "--ranks", "32", "--policies", "eplb", "--json"];
    let d = document(&some);
    assert_eq!(d["trace"]["batching"], "128 batches of 512 tokens drawn from totals, top-k 8, seed 0");
    assert_eq!(d["memory"]["redundant_bytes_per_rank"], 2_554_331_136u64);
    let zero = dumps.join("expert_distribution_fp8_8k1k_compressed.pt");
    let message = refusal(&["simulate", zero.to_str().unwrap(), "--ranks", "32"]);
    assert!(message.contains("the trace holds no tokens"), "{message}");
}

/// A plan on one trace is judged on another one, which must have the same shape.
#[test]
fn other_traces_judge_a_plan() {
    let sample = |name: &str| format!("{}/../traces/sample-{name}.csv.zst", env!("CARGO_MANIFEST_DIR"));
    let (decode, prefill) = (sample("decode"), sample("prefill"));
    let base = ["simulate", &decode, "--layers", "0", "--ranks", "8", "--policies", "eplb", "--json"];
    let d = document(&[&base[..], &["--judge", &decode]].concat());
    assert_eq!((&d["trace"]["planned_steps"], &d["trace"]["judged_steps"]), (&790.into(), &790.into()));
    assert_eq!(d["trace"]["files"].as_array().unwrap().len(), 2);
    let message = refusal(&[&base[..], &["--judge", &prefill]].concat());
    assert!(message.contains("--judge") && message.contains("layers"), "{message}");
}
