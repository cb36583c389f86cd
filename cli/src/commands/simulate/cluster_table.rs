//! Several clusters in one table: benefit and cost of ranks and redundant slots.
//!
//! In: a trace and its clusters. Out: one row, or one entry of a document, per cluster, policy and split.

use super::comparison::{heading, row_to_json, run_simulation, trace_to_json};
use super::policies::PoliciesRequest;
use super::policy_selection::{UnfitPolicy, select_policies};
use crate::output::{Output, print_json, print_text};
use crate::render::cluster::cluster_to_json;
use crate::render::memory::RedundancyMemory;
use crate::render::table::render_table;
use anyhow::{Context as _, bail};
use evenkeel::trace::Trace;
use evenkeel_simulate::{SimulationConfig, SimulationResult, SimulationRow};
use serde_json::{Value, json};

/// Results of one cluster.
struct ClusterResult {
    config: SimulationConfig,
    redundant: usize,
    outcome: SimulationResult,
    unfit: Vec<UnfitPolicy>,
    memory: Option<RedundancyMemory>,
}

/// Simulates every cluster and prints all results together.
pub(super) fn compare_clusters(
    request: &PoliciesRequest,
    trace: &Trace,
    planned_steps: Option<usize>,
    output: Output,
) -> anyhow::Result<()> {
    let grid = request.grid.for_experts(trace.experts())?;
    let (args, mut omitted) = (&request.comparison, grid.omitted);
    let mut results = Vec::new();
    for cluster in &grid.clusters {
        let redundant = cluster.usable_slots().saturating_sub(trace.experts());
        let shape = format!("{} ranks and {redundant} redundant slots", cluster.ranks());
        let (policies, unfit) = select_policies(&args.policies, request.grid.groups, trace, cluster, None)?;
        omitted.extend(unfit.iter().map(|one| one.to_cluster_sentence(&shape)));
        if policies.is_empty() && !args.hindsight {
            continue;
        }
        let simulated = run_simulation(args, trace, planned_steps, *cluster, &policies);
        let (config, outcome) = simulated.with_context(|| shape.clone())?;
        let memory = RedundancyMemory::for_cluster(request.model, &request.trace, trace, cluster);
        results.push(ClusterResult { config, redundant, outcome, unfit, memory });
    }
    omitted.iter().for_each(|note| output.print_note(note));
    let Some(first) = results.first() else {
        bail!("no policy serves any of the clusters; {}", omitted.first().map_or("", String::as_str));
    };
    let batches = request.trace.describe_batches(trace);
    if output.is_json() {
        return print_json(&json!({
            "trace": trace_to_json(trace, &first.config, &first.outcome, &batches),
            "clusters": results
                .iter()
                .map(|one| cluster_to_json(&one.config.cluster, trace.experts()))
                .collect::<Vec<_>>(),
            "left_out": omitted,
            "lp_engine": evenkeel_solver::lp::LpEngine::best_available().name(),
            "results": results.iter().flat_map(cluster_rows_to_json).collect::<Vec<_>>(),
        }));
    }
    let shapes = format!("{} shapes", results.len());
    print_text(&heading(trace, &first.config, &first.outcome, &batches, &shapes))?;
    print_text(&results_to_text(&results))?;
    if let Some(memory) = &first.memory {
        let each = memory.model.expert_bytes() as f64 / 1e6;
        print_text(&format!(
            "\nGB per rank: memory for redundancy, {:.2} GB for each redundant slot per rank ({} MoE layers x {each:.1} MB), {}\n",
            memory.model.slot_bytes() as f64 / 1e9,
            memory.model.layers,
            memory.model_source(),
        ))?;
    }
    Ok(())
}

/// Returns the rows of one cluster as documents.
fn cluster_rows_to_json(result: &ClusterResult) -> impl Iterator<Item = Value> {
    let rows = result.outcome.rows.iter().map(|row| row_to_json(&result.outcome, row));
    rows.chain(result.unfit.iter().map(UnfitPolicy::to_json)).map(|mut entry| {
        if let Some(fields) = entry.as_object_mut() {
            fields.insert("ranks".into(), result.config.cluster.ranks().into());
            fields.insert("redundant".into(), result.redundant.into());
            fields.insert("memory".into(), result.memory.as_ref().map(RedundancyMemory::render_json).into());
        }
        entry
    })
}

fn results_to_text(results: &[ClusterResult]) -> String {
    let has_memory = results.iter().any(|one| one.memory.is_some());
    let row = |one: &ClusterResult, row: &SimulationRow| {
        let planned = &one.outcome.planned[row.planned];
        let (ranks, i) = (one.config.cluster.ranks(), row.imbalance);
        let mut cells = vec![planned.policy.clone(), row.method.to_string(), ranks.to_string()];
        cells.push(one.redundant.to_string());
        cells.extend([i.mean, i.p50, i.p95, i.p99, i.max, row.lower_bound.mean].map(|x| format!("{x:.3}")));
        cells.extend([format!("{:.4}", row.excess.mean), format!("{:.1}%", row.at_bound * 100.0)]);
        cells.push(planned.moves.to_string());
        cells.extend(one.memory.as_ref().map(RedundancyMemory::table_cell));
        cells
    };
    let mut header = vec!["policy", "split", "ranks", "redundant"];
    header.extend(["mean", "p50", "p95", "p99", "max", "bound", "excess", "at bound", "moves"]);
    header.extend(has_memory.then_some("GB per rank"));
    let unfit = |one: &ClusterResult, unfit: &UnfitPolicy| {
        let mut cells = unfit.table_row(header.len());
        cells[2..4].clone_from_slice(&[one.config.cluster.ranks().to_string(), one.redundant.to_string()]);
        cells
    };
    let cluster_rows = |one: &ClusterResult| {
        let ClusterResult { outcome, unfit: out, .. } = one;
        let fit: Vec<Vec<String>> = outcome.rows.iter().map(|r| row(one, r)).collect();
        fit.into_iter().chain(out.iter().map(|out| unfit(one, out)).collect::<Vec<_>>())
    };
    render_table(&header, results.iter().flat_map(cluster_rows).collect(), 2)
}
