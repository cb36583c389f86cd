//! Imbalance of a plan and of EPLB under every split that may run.
//!
//! In: a plan's [`Provenance`]. Out: a table, the option that selects a split at run time, and JSON.

use crate::render::table::render_table;
use evenkeel::plan::{PlanProvenance, SplitFigure};
use serde_json::{Value, json};

/// Returns the figures as a table, the split of the target first.
pub(crate) fn figures_to_text(provenance: &PlanProvenance) -> String {
    let figures = &provenance.figures;
    if figures.is_empty() {
        // A plan of an earlier version has no figures.
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
        vec![figure.split.clone(), split_runtime(&figure.split).to_owned(), own, eplb]
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
        render_table(&header, rows.collect(), 2)
    )
}

/// Returns one line with the figure of the plan's split, and EPLB's.
pub(crate) fn figure_line(provenance: &PlanProvenance, split: &str) -> String {
    let Some(figure) = provenance.figures.iter().find(|figure| figure.split == split) else {
        return format!(
            "expected imbalance {}",
            describe_imbalance(provenance.imbalance.mean, &provenance.split, None)
        );
    };
    let exact = provenance.figures.iter().find(|figure| figure.split == "exact" && figure.split != split);
    let exact = exact.map_or(String::new(), |exact| format!("; {}", describe_figure(exact)));
    format!("expected imbalance {}{exact}", describe_figure(figure))
}

fn describe_figure(figure: &SplitFigure) -> String {
    describe_imbalance(figure.imbalance.mean, &figure.split, figure.eplb.map(|eplb| eplb.mean))
}

fn describe_imbalance(mean: f64, split: &str, eplb: Option<f64>) -> String {
    let eplb = eplb.map_or(String::new(), |eplb| format!(" (EPLB {eplb:.3})"));
    format!("with the {split} split: {mean:.3}{eplb}")
}

/// Returns the figures as a document.
pub(crate) fn figures_to_json(provenance: &PlanProvenance) -> Value {
    let each = provenance.figures.iter().map(|figure| {
        json!({
            "split": figure.split,
            "imbalance": figure.imbalance,
            "eplb": figure.eplb,
            "runs_in": split_runtime(&figure.split),
        })
    });
    json!(each.collect::<Vec<_>>())
}

/// Returns the runtime that performs a split.
fn split_runtime(split: &str) -> &'static str {
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
