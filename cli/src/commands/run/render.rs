//! What a run found, as tables and as a document.

use super::args::{BackendName, FfnName, RunArgs, TransportName};
use crate::cli::output::table;
use evenkeel::exec::Phase;
use evenkeel::exec::feed::Feed;
use evenkeel::exec::run::{Outcome, Run, Variant};
use evenkeel::exec::weights::Dtype;
use evenkeel::report::RunPage;
use evenkeel::simulate::Summary;
use serde_json::{Value, json};
use std::ops::Range;
use std::time::Duration;

/// Which variants ran.
fn variants(run: &Run<'_>) -> Vec<Variant> {
    Variant::ALL.into_iter().filter(|&variant| variant == Variant::Plan || run.compare).collect()
}

fn imbalance(outcome: &Outcome, variant: Variant) -> Option<Summary> {
    match variant {
        Variant::None => Some(outcome.unplanned()),
        Variant::Plan => Some(outcome.measured()),
        Variant::Balanced => None,
    }
}

/// What ran, in one line.
fn setting(args: &RunArgs, run: &Run<'_>, plan_on: &Range<usize>) -> String {
    let (exec, model) = (&run.exec, &run.exec.model);
    let routing = match run.feed {
        Feed::Tokens(_) => "replayed token by token".to_owned(),
        Feed::Counts { .. } => "replayed from counts, dealt out to tokens".to_owned(),
        Feed::Made { .. } => format!("router {}", exec.router),
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
        args.policy_name(),
        args.split,
        plan_on.len(),
        run.steps.len(),
        match args.backend {
            BackendName::Cpu if args.transport == TransportName::Mpi =>
                "cpu, a process per rank (mpi)".to_owned(),
            BackendName::Cpu => "cpu".to_owned(),
            BackendName::Cuda =>
                format!("gpu (cuda, {} products)", if args.ffn == FfnName::Own { "own" } else { "cublas" }),
        },
    )
}

pub(super) fn text(args: &RunArgs, run: &Run<'_>, plan_on: &Range<usize>, outcome: &Outcome) -> String {
    let mut text = setting(args, run, plan_on);
    let bound = run.exec.dtype.bound();
    if let Some(check) = outcome.check {
        let verdict = if check.ok(run.exec.dtype) { "ok" } else { "FAILED" };
        text += &format!(
            "\ncheck {verdict}: largest error of a token {:.1e} of {bound:.0e} allowed, of its logits {:.1e} of {:.0e}\n",
            check.output,
            check.logits,
            Dtype::F32.bound()
        );
    }
    let batches = outcome.steps.len() * run.layers.len();
    text += &format!(
        "\nServed as the split says, to the token: {} of {batches} batches\n\n",
        if outcome.to_the_token() { batches.to_string() } else { "not all".to_owned() }
    );
    let row = |&variant: &Variant| {
        let number = |x: Option<f64>, digits: usize| x.map_or("-".into(), |x| format!("{x:.digits$}"));
        let imbalance = imbalance(outcome, variant);
        vec![
            variant.name().to_owned(),
            number(imbalance.map(|i| i.mean), 3),
            number(imbalance.map(|i| i.p95), 3),
            number(imbalance.map(|i| i.max), 3),
            number(outcome.rate(variant, |time| time.modelled), 0),
            number(outcome.share_of_balanced(variant).map(|share| share * 100.0), 1),
            number(outcome.rate(variant, |time| time.wall), 0),
        ]
    };
    let header = ["", "imbalance", "p95", "max", "tokens/s modelled", "% of balanced", "tokens/s wall"];
    text += &table(&header, variants(run).iter().map(row).collect(), 1);
    text += &verdict(run, outcome);
    text += &format!(
        "\nMilliseconds per step on the plan, each rank timed alone ({} steps)\n{}",
        outcome.timed().len(),
        phases(run, outcome)
    );
    if run.replan.is_some() {
        let moves = outcome.moves();
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

/// Modelled speed of the plan over that of no plan; `None` where one of them did not run.
fn speedup(outcome: &Outcome) -> Option<f64> {
    let rate = |variant| outcome.rate(variant, |time| time.modelled);
    Some(rate(Variant::Plan)? / rate(Variant::None)?)
}

/// Whether the plan pays on this machine, in one line.
fn verdict(run: &Run<'_>, outcome: &Outcome) -> String {
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

fn phases(run: &Run<'_>, outcome: &Outcome) -> String {
    let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
    let moves = outcome.moves();
    let row = |rank: usize| {
        let mut cells = vec![rank.to_string()];
        cells.extend(Phase::ALL.map(|phase| ms(outcome.phase(Variant::Plan, rank, phase))));
        cells.push(ms(moves.copied[rank] / outcome.steps.len().max(1) as u32));
        cells.extend(outcome.memory[rank].map(|bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20))));
        cells
    };
    let mut header = vec!["rank"];
    header.extend(Phase::ALL.map(Phase::name));
    header.extend(["moves (beside)", "MiB", "staging MiB"]);
    table(&header, (0..run.exec.cluster.ranks()).map(row).collect(), 0)
}

pub(super) fn document(args: &RunArgs, run: &Run<'_>, plan_on: &Range<usize>, outcome: &Outcome) -> Value {
    let (exec, model) = (&run.exec, &run.exec.model);
    let rates = |of: fn(&evenkeel::exec::run::Timed) -> Duration| {
        let of = |&variant: &Variant| (variant.name().to_owned(), json!(outcome.rate(variant, of)));
        Value::Object(variants(run).iter().map(of).collect())
    };
    let rank = |rank: usize| {
        let ms = |phase: Phase| outcome.phase(Variant::Plan, rank, phase).as_secs_f64() * 1e3;
        let mut of_rank: serde_json::Map<String, Value> =
            Phase::ALL.iter().map(|&phase| (format!("{phase}_ms"), json!(ms(phase)))).collect();
        let moves = outcome.moves().copied[rank].as_secs_f64() * 1e3 / outcome.steps.len().max(1) as f64;
        of_rank.insert("moves_ms".into(), json!(moves));
        of_rank.insert("memory_bytes".into(), json!(outcome.memory[rank][0]));
        of_rank.insert("staging_bytes".into(), json!(outcome.memory[rank][1]));
        Value::Object(of_rank)
    };
    let moves = outcome.moves();
    json!({
        "check": outcome.check.map(|check| json!({
            "ok": check.ok(exec.dtype),
            "max_rel_err": check.output,
            "bound": exec.dtype.bound(),
            "max_rel_err_of_logits": check.logits,
            "misrouted_sources": check.misrouted,
        })),
        "imbalance": {
            "none": run.compare.then(|| outcome.unplanned()),
            "plan": outcome.measured(),
            "simulated": outcome.predicted(),
            "to_the_token": outcome.to_the_token(),
        },
        "share_of_balanced": outcome.share_of_balanced(Variant::Plan),
        "share_of_balanced_without_plan": outcome.share_of_balanced(Variant::None),
        "speedup_over_no_plan": speedup(outcome),
        "tokens_per_s": { "modelled_parallel": rates(|time| time.modelled), "wall_clock": rates(|time| time.wall) },
        "ranks": (0..exec.cluster.ranks()).map(rank).collect::<Vec<_>>(),
        "moves": {
            "plans": outcome.replans,
            "copies": moves.copies,
            "bytes": moves.bytes,
            "budget_bytes_per_step": run.replan.map(|replan| replan.budget),
            "max_moves": run.replan.and_then(|replan| replan.max_moves),
            "switches": moves.switched.len(),
            "waited_ms": moves.waited.as_secs_f64() * 1e3,
        },
        "router": {
            "name": if run.feed.trace().is_some() { "replay".to_owned() } else { exec.router.to_string() },
            "dropped": outcome.dropped,
            "balance_loss": outcome.loss[0],
            "z_loss": outcome.loss[1],
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
        "cluster": crate::cli::cluster_args::document(&exec.cluster, model.experts),
        "policy": args.policy_name(),
        "split": args.split.to_string(),
        "backend": args.backend.name(),
        "layers": outcome.trace().map(|trace| trace.layers().to_vec()).unwrap_or_default(),
        "planned_steps": plan_on.len(),
        "steps": outcome.steps.iter().map(|step| json!({
            "tokens": step.tokens,
            "peaks": step.served.iter().map(|loads| loads.iter().max()).collect::<Vec<_>>(),
            "modelled_ms": step.times.map(|time| time.modelled.as_secs_f64() * 1e3),
            "wall_ms": step.times.map(|time| time.wall.as_secs_f64() * 1e3),
            "moved_bytes": step.moved.bytes,
        })).collect::<Vec<_>>(),
    })
}

/// The report.
pub(super) fn page(args: &RunArgs, run: &Run<'_>, outcome: &Outcome) -> String {
    let page = RunPage {
        title: format!("Run of {}", run.exec.model.name),
        command: crate::cli::command_line(),
        setting: setting(args, run, &(0..0)),
        run,
        outcome,
    };
    page.html()
}
