//! Text and JSON of an advice.

use crate::render::table::render_table;
use evenkeel_advise::{Advice, AdviceRequest, Deployment, LaunchCommand, MemoryUse};
use serde_json::{Value, json};

/// Highest number of deployments of the Pareto front that a table shows.
const MAX_ROWS: usize = 12;

/// Returns the deployments to list: the Pareto front, best rate first, or all.
fn listed(advice: &Advice, all: bool) -> Vec<usize> {
    if all {
        return (0..advice.search.deployments.len()).collect();
    }
    let mut found: Vec<usize> = advice.search.front.iter().rev().copied().collect();
    for extra in [Some(advice.best), advice.nothing].into_iter().flatten() {
        if !found.contains(&extra) {
            found.push(extra);
        }
    }
    found.sort_unstable();
    found
}

/// Thins a list to a number of rows at equal distances, and keeps the marked ones.
fn thin(list: Vec<usize>, keep: &[usize]) -> Vec<usize> {
    let stride = list.len().div_ceil(MAX_ROWS).max(1);
    let kept = |(at, index): &(usize, usize)| at.is_multiple_of(stride) || keep.contains(index);
    list.into_iter().enumerate().filter(kept).map(|(_, index)| index).collect()
}

/// Returns the kind of parallelism that divides the experts.
fn experts_by(found: &Deployment) -> String {
    match (found.parallel.is_expert_parallel(), found.parallel.expert_tp) {
        (false, _) => "tensor".to_owned(),
        (true, 1) => "expert".to_owned(),
        (true, tp) => format!("expert, tp {tp}"),
    }
}

fn mark(advice: &Advice, index: usize) -> &'static str {
    match index {
        _ if index == advice.best => "advised",
        _ if Some(index) == advice.nothing => "nothing",
        _ => "",
    }
}

pub(super) fn to_text(
    advice: &Advice,
    request: &AdviceRequest<'_>,
    launch: &[LaunchCommand],
    framework: &str,
    all: bool,
) -> String {
    let mut text = format!("{}\n\n", advice.sentences.join("\n"));
    let mut rows = listed(advice, all);
    if !all {
        let marked: Vec<usize> = [Some(advice.best), advice.nothing].into_iter().flatten().collect();
        rows = thin(rows, &marked);
    }
    let cells = |&index: &usize| {
        let found = &advice.search.deployments[index];
        let kind = experts_by(found);
        vec![
            mark(advice, index).to_owned(),
            found.choice.policy.name().to_owned(),
            found.choice.split().to_string(),
            found.parallel.gpus().to_string(),
            kind,
            found.parallel.attention_tp.to_string(),
            found.parallel.pp.to_string(),
            found.choice.redundant.to_string(),
            found.batch.to_string(),
            format!("{:.0}", found.tokens_per_s_per_gpu),
            format!("{:.1}", found.tpot_ms),
            format!("{:.0}", found.prefill.ttft_ms),
            format!("{:.0}", found.memory.total() / 1e9),
            format!("{:.2}", found.imbalance),
        ]
    };
    let header = [
        "",
        "policy",
        "split",
        "GPUs",
        "experts by",
        "attention tp",
        "pp",
        "redundant",
        "batch",
        "tokens/s/GPU",
        "TPOT ms",
        "TTFT ms",
        "GB",
        "imbalance",
    ];
    text.push_str(&render_table(&header, rows.iter().map(cells).collect(), 3));
    text.push_str(&format!(
        "{} deployments priced, {} too large for memory. Batch is requests per GPU, GB the memory of a decoding GPU.\n\n",
        advice.search.priced, advice.search.too_large
    ));
    text.push_str(&compared_text(advice));
    text.push_str(&sources_text(advice));
    for command in launch.iter().filter(|command| command.stack == framework) {
        text.push_str(&format!("\n{} ({}):\n{}\n", command.stack, command.role, command.text));
        for note in &command.notes {
            text.push_str(&format!("  note: {note}\n"));
        }
    }
    if request.is_mixed() {
        return text;
    }
    let prefill = &advice.best().prefill;
    text.push_str(&format!(
        "\nPrefill instances: {} GPUs, {} tokens per GPU and pass, {:.0} tokens/s per GPU.\n",
        prefill.parallel.gpus(),
        prefill.tokens,
        prefill.tokens_per_s_per_gpu
    ));
    text
}

fn compared_text(advice: &Advice) -> String {
    let cells = |row: &evenkeel_advise::ComparedPolicy| {
        let step = &row.decode;
        let mut cells = vec![row.name.clone(), row.redundant.to_string()];
        let parts = [
            step.attention_ms,
            step.dense_ms,
            step.experts_ms,
            step.exchange_ms,
            step.imbalance_ms,
            step.planning_ms,
            step.total_ms(),
        ];
        cells.extend(parts.map(|ms| format!("{ms:.2}")));
        cells.push(format!("{:.0}", row.tokens_per_s_per_gpu));
        cells
    };
    let header = [
        "a decode step, ms",
        "redundant",
        "attention",
        "dense",
        "experts",
        "exchange",
        "imbalance",
        "planning",
        "total",
        "tokens/s/GPU",
    ];
    render_table(&header, advice.compared.iter().map(cells).collect(), 1)
}

fn sources_text(advice: &Advice) -> String {
    let line = |source: &evenkeel_advise::TimeSource| {
        format!("  {}: {} ({:.0} % off)\n", source.part, source.kernel, 100.0 * source.median_error)
    };
    format!("\nTimes:\n{}", advice.sources.iter().map(line).collect::<String>())
}

fn memory_to_json(memory: &MemoryUse) -> Value {
    let gb = |bytes: f64| bytes / 1e9;
    json!({
        "weights": gb(memory.weights),
        "redundant": gb(memory.redundant),
        "kv_cache": gb(memory.kv_cache),
        "activations": gb(memory.activations),
        "framework": gb(memory.framework),
    })
}

fn deployment_to_json(found: &Deployment) -> Value {
    json!({
        "ranks": found.parallel.ranks,
        "tp": found.parallel.attention_tp,
        "dp": found.parallel.attention_dp(),
        "pp": found.parallel.pp,
        "experts_by": experts_by(found),
        "expert_tp": found.parallel.expert_tp,
        "redundant": found.choice.redundant,
        "dynamic_slots": 0,
        "policy": found.choice.policy.name(),
        "split": found.choice.split().to_string(),
        "batch": found.batch,
        "overlap": found.overlap,
        "attention_tiles": found.prefill.attention_tiles,
        "tokens_per_s_per_gpu": found.tokens_per_s_per_gpu,
        "tpot_ms": found.tpot_ms,
        "ttft_ms": found.prefill.ttft_ms,
        "memory_gb": found.memory.total() / 1e9,
        "memory": memory_to_json(&found.memory),
        "imbalance": found.imbalance,
        "is_within_limits": found.within_limits,
        "decode_step": found.decode,
        "prefill": {
            "ranks": found.prefill.parallel.ranks,
            "tp": found.prefill.parallel.attention_tp,
            "pp": found.prefill.parallel.pp,
            "redundant": found.prefill.choice.redundant,
            "tokens": found.prefill.tokens,
            "tokens_per_s_per_gpu": found.prefill.tokens_per_s_per_gpu,
            "pass": found.prefill.pass,
            "imbalance": found.prefill.imbalance,
            "memory_gb": found.prefill.memory.total() / 1e9,
        },
    })
}

pub(super) fn to_json(
    advice: &Advice,
    request: &AdviceRequest<'_>,
    launch: &[LaunchCommand],
    all: bool,
) -> Value {
    let rows = listed(advice, all);
    let option = |&index: &usize| {
        let mut option = deployment_to_json(&advice.search.deployments[index]);
        option["is_advised"] = json!(index == advice.best);
        option["is_on_front"] = json!(advice.search.front.contains(&index));
        option
    };
    let compared = |row: &evenkeel_advise::ComparedPolicy| {
        json!({
            "name": row.name,
            "redundant": row.redundant,
            "decode_step": row.decode,
            "step_ms": row.decode.total_ms(),
            "tokens_per_s_per_gpu": row.tokens_per_s_per_gpu,
            "imbalance": row.imbalance,
        })
    };
    let worst = advice.sources.iter().map(|source| source.median_error).fold(0.0, f64::max);
    let names: Vec<String> =
        advice.sources.iter().map(|source| format!("{}: {}", source.part, source.kernel)).collect();
    json!({
        "verdict": {
            "text": advice.text(),
            "is_worth_it": advice.is_worth_it,
            "gain": advice.gain.is_finite().then_some(advice.gain),
            "error": advice.error,
        },
        "model": request.model.name,
        "gpu": request.times.gpu().name,
        "options": rows.iter().map(option).collect::<Vec<_>>(),
        "nothing": advice.nothing.map(|at| deployment_to_json(&advice.search.deployments[at])),
        "compared": advice.compared.iter().map(compared).collect::<Vec<_>>(),
        "costs": { "source": names.join("; "), "median_error": worst, "parts": advice.sources },
        "launch": launch,
        "priced": advice.search.priced,
        "too_large": advice.search.too_large,
        "placements": advice.search.planned,
    })
}
