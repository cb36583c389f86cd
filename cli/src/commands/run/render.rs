//! Results of a run, as tables and as a document.

use super::args::{BackendName, FfnName, TransportName};
use super::request::RunRequest;
use crate::args::dynamic_slots::MemoryName;
use crate::output::command_line;
use crate::render::cluster::cluster_to_json;
use crate::render::table::render_table;
use evenkeel::evaluate::SummaryStats;
use evenkeel_exec::LayerStage;
use evenkeel_exec::batch_source::BatchSource;
use evenkeel_exec::run::{ExecRun, RunReport, RunVariant};
use evenkeel_exec::weights::Dtype;
use evenkeel_report::RunPage;
use serde_json::{Value, json};
use std::ops::Range;
use std::time::Duration;

/// Returns the variants that ran.
fn executed_variants(run: &ExecRun<'_>) -> Vec<RunVariant> {
    RunVariant::ALL.into_iter().filter(|&variant| variant == RunVariant::Plan || run.compare).collect()
}

fn variant_imbalance(outcome: &RunReport, variant: RunVariant) -> Option<SummaryStats> {
    match variant {
        RunVariant::None => Some(outcome.unplanned_imbalance()),
        RunVariant::Plan => Some(outcome.measured_imbalance()),
        RunVariant::Balanced => None,
    }
}

/// Returns the setting of the run in one line.
fn run_setting(request: &RunRequest, run: &ExecRun<'_>, plan_on: &Range<usize>) -> String {
    let (exec, model) = (&run.exec, &run.exec.model);
    let routing = match run.feed {
        BatchSource::Tokens(_) => "replayed token by token".to_owned(),
        BatchSource::Counts { .. } => "replayed from counts, dealt to tokens".to_owned(),
        BatchSource::Synthetic { .. } => format!("router {}", exec.router),
    };
    format!(
        "{} of {} in {}: {} experts of {} x {}, top-{}; {routing}\n{} ranks x {} slots, {}, {} split; planned on {} steps, \
         ran {} on the {}\n",
        if run.layers.len() == 1 { "1 layer".to_owned() } else { format!("{} layers", run.layers.len()) },
        model.name,
        exec.dtype,
        model.experts,
        model.hidden,
        model.intermediate,
        run.feed.top_k().or(exec.router.fixed_top_k()).unwrap_or(model.top_k),
        exec.cluster.ranks(),
        exec.cluster.slots_per_rank(),
        request.policy_name(),
        request.split,
        plan_on.len(),
        run.steps.len(),
        match request.backend {
            BackendName::Cpu if request.transport == TransportName::Mpi =>
                "cpu, a process per rank (mpi)".to_owned(),
            BackendName::Cpu => "cpu".to_owned(),
            BackendName::Cuda =>
                format!("gpu (cuda, {} products)", if request.ffn == FfnName::Own { "own" } else { "cublas" }),
        },
    )
}

pub(super) fn run_to_text(
    request: &RunRequest,
    run: &ExecRun<'_>,
    plan_on: &Range<usize>,
    outcome: &RunReport,
) -> String {
    let mut text = run_setting(request, run, plan_on);
    let bound = run.exec.dtype.error_bound();
    if let Some(check) = outcome.check {
        let verdict = if check.within_bounds(run.exec.dtype) { "ok" } else { "FAILED" };
        text += &format!(
            "\ncheck {verdict}: largest error of a token {:.1e} of {bound:.0e} allowed, of its logits {:.1e} of {:.0e}\n",
            check.output,
            check.logits,
            Dtype::F32.error_bound()
        );
    }
    let batches = outcome.steps.len() * run.layers.len();
    text += &format!(
        "\nLoads equal to the split, to the token: {} of {batches} batches\n\n",
        if outcome.matches_prediction() { batches.to_string() } else { "not all".to_owned() }
    );
    let row = |&variant: &RunVariant| {
        let number = |x: Option<f64>, digits: usize| x.map_or("-".into(), |x| format!("{x:.digits$}"));
        let imbalance = variant_imbalance(outcome, variant);
        vec![
            variant.name().to_owned(),
            number(imbalance.map(|i| i.mean), 3),
            number(imbalance.map(|i| i.p95), 3),
            number(imbalance.map(|i| i.max), 3),
            number(outcome.token_rate(variant, |time| time.modelled), 0),
            number(outcome.share_of_balanced(variant).map(|share| share * 100.0), 1),
            number(outcome.token_rate(variant, |time| time.wall), 0),
        ]
    };
    let header = ["", "imbalance", "p95", "max", "tokens/s modelled", "% of balanced", "tokens/s wall"];
    text += &render_table(&header, executed_variants(run).iter().map(row).collect(), 1);
    text += &speed_verdict(run, outcome);
    text += &format!(
        "\nMilliseconds per step on the plan, each rank timed alone ({} steps)\n{}",
        outcome.timed_steps().len(),
        phase_table(run, outcome)
    );
    if let Some(slots) = run.exec.dynamic {
        let copies: u64 = outcome.steps.iter().map(|step| step.expert_copies).sum();
        let waited: Duration = outcome.steps.iter().map(|step| step.copy_wait).sum();
        let steps = outcome.steps.len().max(1) as u32;
        text += &format!(
            "\n{} dynamic slots per rank, {}: {:.2} experts copied per layer and step, {:.1} MiB per step; the slowest rank \
             waited {:.3} ms per step\n",
            slots.per_rank,
            MemoryName(slots.memory),
            copies as f64 / batches.max(1) as f64,
            copies as f64 / f64::from(steps) * expert_bytes(run) as f64 / f64::from(1 << 20),
            (waited / steps).as_secs_f64() * 1e3
        );
    }
    if run.replan.is_some() {
        let moves = outcome.total_moves();
        text += &format!(
            "\n{} plans while running; {} experts copied, {:.1} MiB, {} layer switches; waited {:.1} ms for copies in all\n",
            outcome.replans,
            moves.copies,
            moves.bytes as f64 / f64::from(1 << 20),
            moves.switched.len(),
            moves.waited.as_secs_f64() * 1e3
        );
    }
    text
}

/// Returns the bytes of one expert.
fn expert_bytes(run: &ExecRun<'_>) -> u64 {
    run.exec.model.expert_parameters() * run.exec.dtype.bytes()
}

/// Returns the modelled speed of the plan over that of no plan; `None` if one of them did not run.
fn speedup(outcome: &RunReport) -> Option<f64> {
    let rate = |variant| outcome.token_rate(variant, |time| time.modelled);
    Some(rate(RunVariant::Plan)? / rate(RunVariant::None)?)
}

/// Returns one line on whether the plan pays on this machine.
fn speed_verdict(run: &ExecRun<'_>, outcome: &RunReport) -> String {
    let Some(ratio) = speedup(outcome) else { return String::new() };
    let tokens: usize = outcome.steps.iter().map(|step| step.tokens).sum();
    let model = &run.exec.model;
    let top_k = run.feed.top_k().or(run.exec.router.fixed_top_k()).unwrap_or(model.top_k);
    let visits = tokens as f64 * top_k as f64 / (outcome.steps.len().max(1) * model.experts) as f64;
    let change = 100.0 * (ratio - 1.0);
    match change {
        _ if change >= 3.0 => format!("\nthe plan is {change:.0} % faster than no plan on this machine\n"),
        _ if change > -3.0 => "\nthe plan is about as fast as no plan on this machine\n".to_owned(),
        _ => format!(
            "\nthe plan is {:.0} % slower than no plan on this machine: with {visits:.0} tokens per expert, a rank's time follows the \
             experts that it reads more than its tokens\n",
            -change
        ),
    }
}

fn phase_table(run: &ExecRun<'_>, outcome: &RunReport) -> String {
    let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
    let moves = outcome.total_moves();
    let row = |rank: usize| {
        let mut cells = vec![rank.to_string()];
        cells.extend(LayerStage::ALL.map(|phase| ms(outcome.stage_time(RunVariant::Plan, rank, phase))));
        cells.push(ms(moves.copied[rank] / outcome.steps.len().max(1) as u32));
        let memory = outcome.memory[rank];
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        cells.extend([memory.in_use, memory.staged].map(mib));
        cells
    };
    let mut header = vec!["rank"];
    header.extend(LayerStage::ALL.map(LayerStage::name));
    header.extend(["moves (background)", "MiB", "staging MiB"]);
    render_table(&header, (0..run.exec.cluster.ranks()).map(row).collect(), 0)
}

pub(super) fn run_to_json(
    request: &RunRequest,
    run: &ExecRun<'_>,
    plan_on: &Range<usize>,
    outcome: &RunReport,
) -> Value {
    let (exec, model) = (&run.exec, &run.exec.model);
    let rates = |of: fn(&evenkeel_exec::run::StepTime) -> Duration| {
        let of = |&variant: &RunVariant| (variant.name().to_owned(), json!(outcome.token_rate(variant, of)));
        Value::Object(executed_variants(run).iter().map(of).collect())
    };
    let rank = |rank: usize| {
        let ms = |phase: LayerStage| outcome.stage_time(RunVariant::Plan, rank, phase).as_secs_f64() * 1e3;
        let mut of_rank: serde_json::Map<String, Value> =
            LayerStage::ALL.iter().map(|&phase| (format!("{phase}_ms"), json!(ms(phase)))).collect();
        let moves =
            outcome.total_moves().copied[rank].as_secs_f64() * 1e3 / outcome.steps.len().max(1) as f64;
        of_rank.insert("moves_ms".into(), json!(moves));
        of_rank.insert("memory_bytes".into(), json!(outcome.memory[rank].in_use));
        of_rank.insert("staging_bytes".into(), json!(outcome.memory[rank].staged));
        Value::Object(of_rank)
    };
    let moves = outcome.total_moves();
    json!({
        "check": outcome.check.map(|check| json!({
            "ok": check.within_bounds(exec.dtype),
            "max_rel_err": check.output,
            "bound": exec.dtype.error_bound(),
            "max_rel_err_of_logits": check.logits,
            "misrouted_sources": check.misrouted,
        })),
        "imbalance": {
            "none": run.compare.then(|| outcome.unplanned_imbalance()),
            "plan": outcome.measured_imbalance(),
            "simulated": outcome.predicted_imbalance(),
            "to_the_token": outcome.matches_prediction(),
        },
        "share_of_balanced": outcome.share_of_balanced(RunVariant::Plan),
        "share_of_balanced_without_plan": outcome.share_of_balanced(RunVariant::None),
        "speedup_over_no_plan": speedup(outcome),
        "tokens_per_s": { "modelled_parallel": rates(|time| time.modelled), "wall_clock": rates(|time| time.wall) },
        "ranks": (0..exec.cluster.ranks()).map(rank).collect::<Vec<_>>(),
        "moves": {
            "plans": outcome.replans,
            "copies": moves.copies,
            "bytes": moves.bytes,
            "budget_bytes_per_step": run.replan.as_ref().map(|replan| replan.budget),
            "max_moves": run.replan.as_ref().and_then(|replan| replan.max_moves),
            "switches": moves.switched.len(),
            "waited_ms": moves.waited.as_secs_f64() * 1e3,
        },
        "dynamic": exec.dynamic.map(|slots| json!({
            "slots": slots.per_rank,
            "memory": MemoryName(slots.memory).to_string(),
            "copies": outcome.steps.iter().map(|step| step.expert_copies).sum::<u64>(),
            "expert_bytes": expert_bytes(run),
            "waited_ms": outcome.steps.iter().map(|step| step.copy_wait.as_secs_f64() * 1e3).sum::<f64>(),
        })),
        "router": {
            "name": if run.feed.trace().is_some() { "replay".to_owned() } else { exec.router.to_string() },
            "dropped": outcome.dropped,
            "balance_loss": outcome.loss.balance,
            "z_loss": outcome.loss.z,
        },
        "sent": {
            "tokens": outcome.copies.tokens,
            "pairs": outcome.copies.pairs,
            "to_ranks": outcome.copies.to_ranks,
            "to_nodes": outcome.copies.to_nodes,
        },
        "model": {
            "name": model.name,
            "hidden": model.hidden,
            "intermediate": model.intermediate,
            "experts": model.experts,
            "top_k": model.top_k,
            "shared": model.shared,
            "dtype": exec.dtype.to_string(),
        },
        "cluster": cluster_to_json(&exec.cluster, model.experts),
        "policy": request.policy_name(),
        "split": request.split.to_string(),
        "backend": request.backend.name(),
        "layers": outcome.load_trace().map(|trace| trace.layers().to_vec()).unwrap_or_default(),
        "planned_steps": plan_on.len(),
        "steps": outcome.steps.iter().map(|step| json!({
            "tokens": step.tokens,
            "peaks": step.served.iter().map(|loads| loads.iter().max()).collect::<Vec<_>>(),
            "modelled_ms": RunVariant::ALL.map(|variant| step.time(variant).modelled.as_secs_f64() * 1e3),
            "wall_ms": RunVariant::ALL.map(|variant| step.time(variant).wall.as_secs_f64() * 1e3),
            "moved_bytes": step.moved.bytes,
        })).collect::<Vec<_>>(),
    })
}

/// Returns the report page.
pub(super) fn report_page(request: &RunRequest, run: &ExecRun<'_>, outcome: &RunReport) -> String {
    let page = RunPage {
        title: format!("Run of {}", run.exec.model.name),
        command: command_line(),
        setting: run_setting(request, run, &(0..0)),
        run,
        outcome,
    };
    page.to_html()
}
