//! Several clusters in one table: what ranks and redundant slots buy, and what they cost.
//!
//! In: a trace and its shapes. Out: one row, or one entry of a document, per shape, policy and split.

use super::memory::Memory;
use super::output::{Bar, Output, print, table};
use super::shapes::Shapes;
use super::simulate::{SimulateArgs, heading, result, trace_document};
use anyhow::{Context as _, bail};
use evenkeel::cluster::Cluster;
use evenkeel::model::Model;
use evenkeel::place::{self, PlaceError, Policy};
use evenkeel::simulate::{Config, Outcome, Row, hindsight, simulate};
use evenkeel::trace::Trace;
use serde_json::{Value, json};

/// What came of one cluster.
struct Sized {
    config: Config,
    redundant: usize,
    outcome: Outcome,
    memory: Option<Memory>,
}

/// Simulates every shape and prints all of them together.
pub(super) fn run(
    args: &SimulateArgs,
    trace: &Trace,
    shapes: &Shapes,
    model: Option<Model>,
    output: Output,
) -> anyhow::Result<()> {
    let mut left_out = shapes.left_out.clone();
    let mut sized = Vec::new();
    for cluster in &shapes.clusters {
        let redundant = cluster.usable_slots().saturating_sub(trace.experts());
        let policies = policies(args, cluster, redundant, &mut left_out)?;
        if policies.is_empty() && !args.hindsight {
            continue;
        }
        let config = Config::first_part(trace, *cluster, args.splits.clone(), args.plan_on)?;
        let bar = Bar::layers();
        let shape = || format!("{} ranks and {redundant} redundant slots", cluster.ranks());
        let mut outcome = simulate(trace, &config, &policies, &bar).with_context(shape)?;
        if args.hindsight {
            outcome.append(hindsight(trace, &config, &bar).with_context(shape)?);
        }
        drop(bar);
        sized.push(Sized {
            memory: Memory::of(model, &args.trace, trace, cluster),
            config,
            redundant,
            outcome,
        });
    }
    left_out.iter().for_each(|note| output.note(note));
    let Some(first) = sized.first() else {
        bail!("no policy serves any of the shapes; {}", left_out.first().map_or("", String::as_str));
    };
    let batches = args.trace.batches(trace);
    if output.json() {
        return super::output::document(&json!({
            "trace": trace_document(trace, &first.config, &first.outcome, &batches),
            "clusters": sized.iter().map(|one| cluster(one, trace)).collect::<Vec<_>>(),
            "left_out": left_out,
            "lp_engine": evenkeel_solver::lp::Engine::best().name(),
            "results": sized.iter().flat_map(entries).collect::<Vec<_>>(),
        }));
    }
    let on = format!("{} shapes", sized.len());
    print(&heading(trace, &first.config, &first.outcome, &batches, &on))?;
    print(&rows(&sized))?;
    if let Some(memory) = &first.memory {
        let each = memory.model.expert_bytes() as f64 / 1e6;
        print(&format!(
            "\nGB per rank: memory for redundancy, {:.2} GB for each redundant slot per rank ({} MoE layers x {each:.1} MB), {}\n",
            memory.model.slot_bytes() as f64 / 1e9,
            memory.model.layers,
            memory.whose(),
        ))?;
    }
    Ok(())
}

/// The policies that serve this cluster; the others are noted.
fn policies(
    args: &SimulateArgs,
    cluster: &Cluster,
    redundant: usize,
    left_out: &mut Vec<String>,
) -> anyhow::Result<Vec<Box<dyn Policy>>> {
    let mut policies = Vec::new();
    for name in args.policies.iter().map(|name| name.trim()) {
        match place::policy(name, args.cluster.groups, cluster) {
            Ok(policy) => policies.push(policy),
            Err(error @ PlaceError::UnknownPolicy(_)) => return Err(error.into()),
            Err(error) => left_out.push(format!(
                "{name} on {} ranks and {redundant} redundant slots left out: {error}",
                cluster.ranks()
            )),
        }
    }
    Ok(policies)
}

fn cluster(sized: &Sized, trace: &Trace) -> Value {
    super::cluster_args::document(&sized.config.cluster, trace.experts())
}

/// The rows of one cluster as documents.
fn entries(sized: &Sized) -> impl Iterator<Item = Value> {
    sized.outcome.rows.iter().map(|row| {
        let mut entry = result(&sized.outcome, row);
        if let Some(fields) = entry.as_object_mut() {
            fields.insert("ranks".into(), sized.config.cluster.ranks().into());
            fields.insert("redundant".into(), sized.redundant.into());
            fields.insert("memory".into(), sized.memory.as_ref().map(Memory::document).into());
        }
        entry
    })
}

fn rows(sized: &[Sized]) -> String {
    let memory = sized.iter().any(|one| one.memory.is_some());
    let row = |one: &Sized, row: &Row| {
        let planned = &one.outcome.planned[row.planned];
        let (ranks, i) = (one.config.cluster.ranks(), row.imbalance);
        let mut cells = vec![planned.policy.clone(), row.method.to_string(), ranks.to_string()];
        cells.push(one.redundant.to_string());
        cells.extend([i.mean, i.p50, i.p95, i.p99, i.max, row.lower_bound.mean].map(|x| format!("{x:.3}")));
        cells.extend([format!("{:.4}", row.excess.mean), format!("{:.1}%", row.at_bound * 100.0)]);
        cells.push(planned.moves.to_string());
        cells.extend(one.memory.as_ref().map(Memory::cell));
        cells
    };
    let rows = sized.iter().flat_map(|one| one.outcome.rows.iter().map(|r| row(one, r))).collect();
    let mut header = vec!["policy", "split", "ranks", "redundant"];
    header.extend(["mean", "p50", "p95", "p99", "max", "bound", "excess", "at bound", "moves"]);
    header.extend(memory.then_some("GB per rank"));
    table(&header, rows, 2)
}
