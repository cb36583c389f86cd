//! `evenkeel bench`; `split`: how long a split takes here, by this solver and by its peers.

use super::output::{Output, print, table};
use super::trace_args::TraceArgs;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place;
use evenkeel::trace::Trace;
use evenkeel_solver::Problem;
use evenkeel_solver::bench::corpus::{Law, SIZES, Series};
use evenkeel_solver::bench::measure::{Row, Solver, absent, measure};
use serde_json::json;
use std::time::Duration;

/// Measure on this machine
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Split(Box<SplitArgs>),
    #[cfg(feature = "serve")]
    Online(Box<super::bench_online::OnlineArgs>),
}

/// Time the split of one batch, by the exact solver and by its peers, on one core.
///
/// Without TRACE: a corpus of 192 batches per size, balanced, log-normal, Zipf and with a hot spot, on LPLB-style
/// replica graphs. With TRACE: its batches, on the placement that --policy makes of the whole trace. Peers are LPLB's
/// affine scaling and coordinate descent, restated, and linear programming engines. `feasible`: share of answers that
/// serve every token; `optimal`: share with the least possible peak; `max gap`: the worst peak, relative to the least.
#[derive(Debug, Args)]
#[command(
    mut_arg("traces", |arg| arg.required(false)),
    after_help = "Examples:\n  evenkeel bench split\n  evenkeel bench split traces/sample-decode.csv.zst --ranks 8,16 \
                  --redundant 1,2"
)]
pub(crate) struct SplitArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// With a trace: ranks
    #[arg(long, value_name = "R,..", value_delimiter = ',', default_value = "8")]
    ranks: Vec<usize>,
    /// With a trace: redundant slots per rank
    #[arg(long, value_name = "D,..", value_delimiter = ',', default_value = "1,2")]
    redundant: Vec<usize>,
    /// With a trace: the placement policy
    #[arg(long, value_name = "NAME", default_value = "lplb:ring")]
    policy: String,
    /// Solvers to time [default: all of this build]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = solver)]
    solvers: Vec<Solver>,
    /// Batches per size
    #[arg(long, value_name = "N", default_value_t = 192)]
    batches: usize,
    /// Seconds that a slow solver may take per size before it gets fewer batches
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    patience: f64,
}

fn solver(name: &str) -> Result<Solver, String> {
    let names: Vec<&str> = Solver::ALL.iter().map(|solver| solver.name()).collect();
    let found = Solver::ALL.into_iter().find(|solver| solver.name() == name);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

pub(crate) fn run(command: &BenchCommand, output: Output) -> anyhow::Result<()> {
    let args = match command {
        BenchCommand::Split(args) => args,
        #[cfg(feature = "serve")]
        BenchCommand::Online(args) => return super::bench_online::run(args, output),
    };
    let solvers = if args.solvers.is_empty() { Solver::ALL.to_vec() } else { args.solvers.clone() };
    let patience = Duration::try_from_secs_f64(args.patience).context("--patience")?;
    let mut rows = Vec::new();
    for (size, corpus) in sizes(args, output)? {
        for &solver in &solvers {
            match measure(size, &corpus, solver, patience)? {
                Some(row) => rows.push(row),
                None if solver.present() => {
                    output.note(&format!(
                        "{}x{}: {} cannot take this placement",
                        size.0,
                        size.1,
                        solver.name()
                    ));
                }
                None => {}
            }
        }
    }
    if !absent().is_empty() {
        output.note(&absent());
    }
    if output.json() {
        return super::output::document(&json!({ "rows": rows.iter().map(document).collect::<Vec<_>>() }));
    }
    print(&text(&rows))
}

/// Ranks by redundant slots per rank, with the batches to time there.
type Sized = ((usize, usize), Vec<Series>);

fn sizes(args: &SplitArgs, output: Output) -> anyhow::Result<Vec<Sized>> {
    let mut sizes = Vec::new();
    if args.trace.traces.is_empty() {
        for size in SIZES {
            // Eight series per size.
            sizes.push(((size.ranks, size.slots), size.corpus(args.batches.div_ceil(8).max(1))?));
        }
        return Ok(sizes);
    }
    let trace = args.trace.read()?;
    output.notices(trace.notices());
    for &ranks in &args.ranks {
        for &slots in &args.redundant {
            let cluster = Cluster::new(ranks, 1, trace.experts(), ranks * slots)?;
            let policy = place::policy(&args.policy, 1, &cluster)?;
            sizes.push(((ranks, slots), of_trace(&trace, &cluster, policy.as_ref(), args.batches)?));
        }
    }
    Ok(sizes)
}

/// Up to about so many batches of a trace, evenly from all layers and steps.
fn of_trace(
    trace: &Trace,
    cluster: &Cluster,
    policy: &dyn place::Policy,
    batches: usize,
) -> anyhow::Result<Vec<Series>> {
    let (layers, steps) = (trace.layers().len(), trace.steps().len());
    let per_layer = batches.div_ceil(layers.max(1)).clamp(1, steps.max(1));
    let mut corpus = Vec::new();
    for layer in (0..layers).step_by(layers.div_ceil(batches.max(1)).max(1)) {
        let placement = policy.place(&History::whole(trace, layer), cluster)?;
        let counts = |step: usize| -> anyhow::Result<Vec<u32>> {
            let loads = trace.loads(step, layer).iter().map(|&load| u32::try_from(load));
            loads.collect::<Result<_, _>>().with_context(|| format!("step {step}: a count beyond 32 bits"))
        };
        let picked = (0..per_layer).map(|index| index * steps / per_layer);
        let batches: Vec<Vec<u32>> = picked.map(counts).collect::<Result<_, _>>()?;
        let problem = Problem::new(placement.hosts()?);
        corpus.push(Series { law: Law::Recorded, graph: "trace", problem, batches });
    }
    Ok(corpus)
}

fn document(row: &Row) -> serde_json::Value {
    json!({
        "ranks": row.ranks,
        "slots": row.slots,
        "instances": row.instances,
        "solver": row.solver,
        "p50_us": row.p50_us,
        "p99_us": row.p99_us,
        "feasible": row.feasible,
        "optimal": row.optimal,
        "max_gap": row.max_gap,
    })
}

fn text(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        vec![
            format!("{}x{}", row.ranks, row.slots),
            row.solver.to_owned(),
            row.instances.to_string(),
            format!("{:.2}", row.p50_us),
            format!("{:.2}", row.p99_us),
            format!("{:.1}%", row.feasible * 100.0),
            format!("{:.1}%", row.optimal * 100.0),
            format!("{:.4}%", row.max_gap * 100.0),
        ]
    };
    let header = ["size", "solver", "batches", "p50 us", "p99 us", "feasible", "optimal", "max gap"];
    table(&header, rows.iter().map(cells).collect(), 2)
}
