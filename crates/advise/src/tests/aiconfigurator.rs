//! Twenty deployments, compared with NVIDIA's AIConfigurator, with balanced routing and without overlap.
//!
//! `scripts/compare_aiconfigurator.py` computes the figures of the other side.

use super::{even_step, parts, times_of};
use crate::step::{Phase, StepWork};
use crate::{ExchangeMode, ModelSpec, Parallelism};
use evenkeel::model::{MoeModel, Precision};
use evenkeel_cost::Dtype;
use serde::Deserialize;

#[derive(Deserialize)]
struct Document {
    deployments: Vec<Deployment>,
}

#[derive(Deserialize)]
struct Deployment {
    name: String,
    model: String,
    gpu: String,
    framework: String,
    gemm: String,
    experts: Dtype,
    kv_cache: String,
    tp: u64,
    pp: u64,
    dp: u64,
    moe_tp: u64,
    deepep: bool,
    decode: Decode,
    prefill: Prefill,
}

#[derive(Deserialize)]
struct Decode {
    batch: u64,
    context: u64,
    ms: f64,
    parts: Parts,
}

#[derive(Deserialize)]
struct Prefill {
    prompts: u64,
    tokens: u64,
    ms: f64,
    parts: Parts,
}

#[derive(Deserialize)]
struct Parts {
    attention: f64,
    dense: f64,
    experts: f64,
    exchange: f64,
}

impl Parts {
    fn text(&self) -> String {
        format!("{:8.2} {:8.2} {:8.2} {:8.2}", self.attention, self.dense, self.experts, self.exchange)
    }
}

fn deployments() -> Vec<Deployment> {
    let document: Document = serde_json::from_str(include_str!("aiconfigurator.json")).unwrap();
    document.deployments
}

fn model_of(row: &Deployment) -> ModelSpec {
    let name = match row.model.as_str() {
        "deepseek-ai/DeepSeek-V3" => "deepseek-v3",
        "mistralai/Mixtral-8x7B-v0.1" => "mixtral-8x7b",
        name if name.contains("235B") => "qwen3-235b-a22b",
        _ => "qwen3-30b-a3b",
    };
    let known: MoeModel = name.parse().unwrap();
    let precision = if row.gemm.starts_with("fp8") { Precision::Fp8 } else { Precision::Bf16 };
    let mut model = ModelSpec::of_known(MoeModel { precision, ..known }).unwrap();
    model.dtype = row.experts;
    // AIConfigurator counts dense layers as MoE layers.
    model.moe.layers += model.dense_layers as usize;
    model.dense_layers = 0;
    model
}

#[test]
fn twenty_deployments_agree_with_balanced_routing() {
    println!(
        "{:34} {:8} {:>9} {:>9} {:>7}   attention, dense, experts, exchange: ours | theirs, ms",
        "deployment", "phase", "theirs ms", "ours ms", "off"
    );
    let mut errors = Vec::new();
    for row in deployments() {
        let model = model_of(&row);
        let kv_bytes = if row.kv_cache == "fp8" { 1.0 } else { 2.0 };
        let exchange = if row.deepep { ExchangeMode::AllToAll } else { ExchangeMode::Gather };
        let times = times_of(&model, &row.gpu, &row.gpu, &row.framework, kv_bytes).with_exchange(exchange);
        let ranks = row.tp * row.dp;
        let parallel = Parallelism { ranks, attention_tp: row.tp, pp: row.pp, expert_tp: row.moe_tp };
        let work = StepWork {
            phase: Phase::Decode { context: row.decode.context },
            tokens: row.decode.batch as f64 / row.tp as f64,
            tokens_per_request: 1.0,
            attention_tiles: 1,
            attention_imbalance: 1.0,
            overlap: false,
            planned: false,
            kv_bytes,
        };
        let prefill = StepWork {
            phase: Phase::Prefill { prompt: row.prefill.tokens },
            tokens: (row.prefill.prompts * row.prefill.tokens) as f64 / row.tp as f64,
            ..work
        };
        for (phase, work, ms, theirs) in [
            ("decode", work, row.decode.ms, &row.decode.parts),
            ("prefill", prefill, row.prefill.ms, &row.prefill.parts),
        ] {
            let step = even_step(&model, &parallel, &times, &work, model.moe.experts as u64);
            let off = step.total_ms() / ms - 1.0;
            println!(
                "{:34} {phase:8} {ms:9.2} {:9.2} {:+6.1} %  {} | {}",
                row.name,
                step.total_ms(),
                100.0 * off,
                parts(&step),
                theirs.text()
            );
            errors.push((row.name.clone(), phase, off));
        }
    }
    let within = errors.iter().filter(|(.., off)| off.abs() <= 0.15).count();
    println!("{within} of {} within 15 %", errors.len());
    assert!(within * 10 >= errors.len() * 6, "{errors:?}");
}
