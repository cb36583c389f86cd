//! What a plan makes of its batches under every split that may run, and what EPLB does.
//!
//! In: a plan's [`Provenance`]. Out: a table, the switch that realises a split, and JSON.

use super::output::table;
use evenkeel::plan::{Provenance, SplitFigure};
use serde_json::{Value, json};

/// The figures as a table, the split of the target first.
pub(super) fn words(provenance: &Provenance) -> String {
    let figures = &provenance.figures;
    if figures.is_empty() {
        // A plan of an earlier version.
        let i = provenance.imbalance;
        return format!(
            "expected imbalance with the {} split: mean {:.3}, p95 {:.3}; EPLB was not compared\n",
            provenance.split, i.mean, i.p95
        );
    }
    let rows = figures.iter().map(|figure| {
        let cell = |mean: f64, p95: f64| format!("{mean:.3} ({p95:.3})");
        let eplb = figure.eplb.map_or("cannot".into(), |eplb| cell(eplb.mean, eplb.p95));
        let own = cell(figure.imbalance.mean, figure.imbalance.p95);
        vec![figure.split.clone(), switch(&figure.split).to_owned(), own, eplb]
    });
    let header = ["split", "runs in", "this plan", "EPLB"];
    let made_for = match (&provenance.target, provenance.split.as_str()) {
        (Some(target), split) => format!("for {target}, which does the {split} split"),
        (None, _) => "--for names no runtime: held against EPLB under the even split".to_owned(),
    };
    format!(
        "expected imbalance, mean (p95), of {} batches, {} ({made_for})\n{}",
        provenance.judged,
        provenance.batches,
        table(&header, rows.collect(), 2)
    )
}

/// One line: the figure that counts, and EPLB's.
pub(super) fn line(provenance: &Provenance, split: &str) -> String {
    let Some(figure) = provenance.figures.iter().find(|figure| figure.split == split) else {
        return format!("expected imbalance {}", one(provenance.imbalance.mean, &provenance.split, None));
    };
    let exact = provenance.figures.iter().find(|figure| figure.split == "exact" && figure.split != split);
    let exact = exact.map_or(String::new(), |exact| format!("; {}", of(exact)));
    format!("expected imbalance {}{exact}", of(figure))
}

fn of(figure: &SplitFigure) -> String {
    one(figure.imbalance.mean, &figure.split, figure.eplb.map(|eplb| eplb.mean))
}

fn one(mean: f64, split: &str, eplb: Option<f64>) -> String {
    let eplb = eplb.map_or(String::new(), |eplb| format!(" (EPLB {eplb:.3})"));
    format!("with the {split} split: {mean:.3}{eplb}")
}

/// The figures as a document.
pub(super) fn document(provenance: &Provenance) -> Value {
    let each = provenance.figures.iter().map(|figure| {
        json!({
            "split": figure.split,
            "imbalance": figure.imbalance,
            "eplb": figure.eplb,
            "runs_in": switch(&figure.split),
        })
    });
    json!(each.collect::<Vec<_>>())
}

/// What has to run for a split to be done.
fn switch(split: &str) -> &'static str {
    match split {
        "even" => "serving stacks, on average",
        "exact" => "EVENKEEL_SPLIT=exact without CUDA graphs, evenkeel run",
        "sglang-dynamic" => "SGLang, --moe-a2a-backend none",
        "sglang-static" => "SGLang with an all-to-all",
        "sglang-random" => "SGLang with an all-to-all, --ep-dispatch-algorithm dynamic",
        "vllm" => "vLLM, --enable-eplb",
        "vllm-ascend" => "vllm-ascend",
        "trtllm" => "TensorRT-LLM",
        _ => "",
    }
}
