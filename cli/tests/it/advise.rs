//! `evenkeel advise`: deployments, the verdict, files for stacks, and refusals.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::{command, real_traces, trace_support};
use serde_json::Value;

const PREFILL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-prefill.csv.zst");
const ON_H200: &str = "--model deepseek-v2-lite --gpu h200 --gpus 2..8 --context 2000:500";

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn document(line: &str) -> Value {
    command::document(&words(line))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// Returns a trace whose experts, 32 in 3 layers, have nearly equal loads, or one of which a third goes to
/// one expert.
fn trace(is_skewed: bool) -> trace_support::Folder {
    let folder = trace_support::Folder::new();
    let mut text = String::from("step,layer,expert,tokens\n");
    for step in 0..12 {
        for layer in 0..3 {
            for expert in 0..32 {
                let tokens =
                    if is_skewed && expert == 3 { 4_000 } else { 250 + (step * 7 + expert * 5) % 11 };
                text += &format!("{step},{layer},{expert},{tokens}\n");
            }
        }
    }
    folder.file("trace.csv", text.as_bytes());
    folder
}

#[test]
fn the_front_and_the_advice_are_consistent() {
    let advice = document(&format!("advise {PREFILL} {ON_H200} --json --all"));
    let options = advice["options"].as_array().unwrap();
    let point = |option: &Value| (number(&option["tokens_per_s_per_gpu"]), number(&option["tpot_ms"]));
    let front: Vec<&Value> = options.iter().filter(|option| option["is_on_front"] == true).collect();
    assert!(front.len() > 3 && options.len() > front.len());
    for on_front in &front {
        let (rate, wait) = point(on_front);
        let is_better = |option: &&Value| point(option).0 > rate && point(option).1 < wait;
        assert!(!options.iter().any(|option| is_better(&option)), "{on_front}");
    }
    for option in options {
        assert!(number(&option["memory_gb"]) < 141.0 && number(&option["imbalance"]) >= 1.0, "{option}");
        let step = &option["decode_step"];
        let parts = [
            "attention_ms",
            "dense_ms",
            "experts_ms",
            "exchange_ms",
            "imbalance_ms",
            "planning_ms",
            "streaming_ms",
        ];
        let sum: f64 = parts.iter().map(|part| number(&step[*part])).sum();
        assert!((sum / number(&option["tpot_ms"]) - 1.0).abs() < 1e-9, "{option}");
    }
    let advised: Vec<&Value> = options.iter().filter(|option| option["is_advised"] == true).collect();
    assert_eq!(advised.len(), 1);
    // A gain within its own error is none.
    let verdict = &advice["verdict"];
    let is_worth_it = number(&verdict["gain"]) > number(&verdict["error"]);
    assert_eq!(verdict["is_worth_it"], is_worth_it);
    assert_eq!(advised[0]["policy"] != "contiguous", is_worth_it);
    assert!(advice["costs"]["source"].as_str().unwrap().contains("sglang"));
}

#[test]
fn the_advice_does_not_depend_on_threads() {
    let line = |threads: usize| format!("advise {PREFILL} {ON_H200} --json --threads {threads}");
    assert_eq!(document(&line(1)), document(&line(3)));
}

#[test]
fn even_loads_are_not_worth_balancing_and_skewed_ones_are() {
    let advice = |is_skewed| {
        let folder = trace(is_skewed);
        let trace = folder.path().join("trace.csv");
        document(&format!(
            "advise {} --model gpt-oss-20b --gpu h100 --gpus 8 --context 4000:20 --ttft-ms 4000 --json",
            trace.display()
        ))
    };
    let (even, skewed) = (advice(false), advice(true));
    assert_eq!(even["verdict"]["is_worth_it"], false, "{}", even["verdict"]);
    assert!(even["verdict"]["text"].as_str().unwrap().starts_with("Not worth it"), "{}", even["verdict"]);
    assert!(number(&skewed["verdict"]["gain"]) > 2.0 * number(&even["verdict"]["gain"]).max(0.0));
}

#[test]
fn plans_and_files_of_stacks_are_written() {
    let folder = trace(true);
    let (trace, out) = (folder.path().join("trace.csv"), folder.path().join("out"));
    let line = format!(
        "advise {} --model gpt-oss-20b --gpu h100 --gpus 8 --context 8000:10 --json -o {} --report {}",
        trace.display(),
        out.display(),
        out.join("advice.html").display()
    );
    let advice = document(&line);
    let report = std::fs::read_to_string(out.join("advice.html")).unwrap();
    for heading in ["Where a decode step goes", "The effect of the batch", "How to start it"] {
        assert!(report.contains(heading), "{heading}");
    }
    let launch = advice["launch"].as_array().unwrap();
    let of = |stack: &str, role: &str| {
        let found = launch.iter().find(|one| one["stack"] == stack && one["role"] == role);
        found.unwrap()["text"].as_str().unwrap().to_owned()
    };
    assert!(of("sglang", "prefill").contains("--disaggregation-mode prefill"));
    assert!(of("vllm", "decode").starts_with("vllm serve") || of("vllm", "decode").contains(" vllm serve"));
    assert!(of("trtllm", "decode").contains("moe_expert_parallel_size"));
    if advice["verdict"]["is_worth_it"] == true {
        let plan = out.join("decode.plan.json");
        command::stdout(&["plan", "check", plan.to_str().unwrap()]);
        assert!(of("sglang", "decode").contains("decode.sglang.json"));
    }
}

#[test]
fn a_config_json_is_a_model() {
    let folder = trace(false);
    let config = br#"{"hidden_size":2880,"num_hidden_layers":24,"num_local_experts":32,"num_experts_per_tok":4,
        "intermediate_size":2880,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":64,"vocab_size":201088}"#;
    let config = folder.file("config.json", config);
    let trace = folder.path().join("trace.csv");
    let line = |model: &str| {
        format!("advise {} --model {model} --gpu l40s --gpus 2,4 --context 500:100 --json", trace.display())
    };
    let advice = document(&line(&config.display().to_string()));
    assert_eq!(advice["gpu"], "l40s");
    let known = document(&line("gpt-oss-20b"));
    assert_ne!(known["options"], advice["options"]);
    assert_eq!(document(&line("gpt-oss-20b,l40s").replace("--gpu l40s ", "")), known);
    let broken = folder.file("broken.json", b"{\"hidden_size\": 1}");
    let refused = command::refusal(&words(&line(&broken.display().to_string())));
    assert!(refused.contains("broken.json") && refused.contains("num_hidden_layers"), "{refused}");
}

#[test]
fn questions_without_an_answer_say_why() {
    let refusal = |options: &str| command::refusal(&words(&format!("advise {PREFILL} {options}")));
    let on = |gpus: &str, rest: &str| {
        format!("--model deepseek-v2-lite --gpu h200 --gpus {gpus} --context 2000:500 {rest}")
    };
    assert!(refusal(&on("8", "--tpot-ms 0.01")).contains("0.01 ms per output token: the fastest takes"));
    assert!(refusal(&on("8", "--ttft-ms 0.01")).contains("--ttft-ms"));
    assert!(refusal(&on("8", "--tpot-ms 0")).contains("expected more than 0"));
    assert!(refusal(&on("8", "--drafts 2:3")).contains("as many accepted"));
    let experts = refusal("--model deepseek-v3 --gpu h100 --gpus 8 --context 10:10");
    assert!(experts.contains("256 experts per layer, the trace 64"), "{experts}");
    assert!(refusal("--model deepseek-v2-lite --gpus 8 --context 10:10").contains("--gpu is missing"));
    let unknown = refusal("--model switch-c --gpu h100 --gpus 8 --context 10:10");
    assert!(unknown.contains("config.json"), "{unknown}");
    let memory = refusal("--model deepseek-v2-lite --gpu l40s --gpus 1 --context 1000000:1000");
    assert!(memory.contains("fits into 1 GPUs of 48 GB"), "{memory}");
}

#[test]
fn the_recorded_totals_of_deepseek_are_worth_balancing() {
    let Some(folder) = real_traces::folder("deepseek-r1-sglang-dumps") else { return };
    let dump = folder.join("expert_distribution_fp4_8k1k_compressed.pt");
    let line = "--model deepseek-r1 --gpu h100 --gpus 16,32,64 --context 4096:1024 --tpot-ms 50 --json";
    let advice = document(&format!("advise {} {line}", dump.display()));
    assert_eq!(advice["verdict"]["is_worth_it"], true, "{}", advice["verdict"]);
    assert!(advice["verdict"]["text"].as_str().unwrap().contains("cannot be judged"));
    let nothing = number(&advice["nothing"]["imbalance"]);
    assert!(nothing > 2.0, "{nothing}");
}
