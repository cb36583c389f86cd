//! Times a split on this machine, by the exact solver and by other methods.
//!
//!     cargo bench -p evenkeel-cli --bench split
//!     cargo bench -p evenkeel-cli --bench split -- traces/sample-decode.csv.zst --ranks 8,16 --redundant 1,2
//!     cargo bench -p evenkeel-cli --bench split -- --help

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a benchmark"
)]

use anyhow::Context as _;
use clap::Parser;
use comfy_table::{CellAlignment, Table};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{self, PlaceRequest};
use evenkeel::trace::Trace;
use evenkeel_solver::Problem;
use evenkeel_solver::bench::corpus::{BatchSeries, CorpusSize, LoadLaw, SIZES};
use evenkeel_solver::bench::measure::{MeasurementRow, TimedSolver, list_absent_solvers, measure_solver};
use evenkeel_trace::{Batching, LayerSet, ReadOptions, RequestOrder};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Time the split of one batch, by the exact solver and by its peers, on one core
///
/// Without TRACE: a corpus of 192 batches per size, balanced, log-normal, Zipf and with a hot spot, on
/// LPLB-style replica graphs. With TRACE: its batches, on the placement that --policy computes from the whole
/// trace. Peers are restatements of LPLB's affine scaling and coordinate descent, and linear programming
/// engines. `feasible` is the share of answers that serve every token, `optimal` the share with the lowest
/// possible peak, `max gap` the worst peak relative to the lowest.
#[derive(Debug, Parser)]
#[command(name = "split", max_term_width = 110)]
struct SplitArgs {
    /// Trace files or folders
    #[arg(value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// With a trace: layers to use, by their ids in the model: 0,3,6 or 3-60
    #[arg(long, value_name = "LIST")]
    layers: Option<LayerSet>,
    /// With a per-token array: tokens of a prefill batch
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    batch_tokens: usize,
    /// With a per-token array: requests of a decode batch, one token each
    #[arg(long, value_name = "REQUESTS", conflicts_with = "batch_tokens")]
    decode_batch: Option<usize>,
    /// With a per-token array: order of the requests: recorded, or shuffled by --seed
    #[arg(long, value_name = "recorded|shuffled", default_value = "recorded")]
    order: RequestOrder,
    /// Seed of all random choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// With a trace: ranks
    #[arg(long, value_name = "R,..", value_delimiter = ',', default_value = "8")]
    ranks: Vec<usize>,
    /// With a trace: redundant slots per rank
    #[arg(long, value_name = "D,..", value_delimiter = ',', default_value = "1,2")]
    redundant: Vec<usize>,
    /// With a trace: placement policy
    #[arg(long, value_name = "NAME", default_value = "lplb:ring")]
    policy: String,
    /// Solvers to time [default: all of this build]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = parse_solver)]
    solvers: Vec<TimedSolver>,
    /// Batches per size
    #[arg(long, value_name = "N", default_value_t = 192)]
    batches: usize,
    /// Seconds per size after which a slow solver gets fewer batches
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    patience: f64,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Flag that `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

impl SplitArgs {
    fn read_options(&self) -> ReadOptions {
        ReadOptions::default()
            .layers(self.layers.clone())
            .batching(match self.decode_batch {
                Some(in_flight) => Batching::Decode { in_flight },
                None => Batching::Prefill { tokens: self.batch_tokens },
            })
            .order(self.order)
            .seed(self.seed)
    }
}

fn parse_solver(name: &str) -> Result<TimedSolver, String> {
    let names: Vec<&str> = TimedSolver::ALL.iter().map(|solver| solver.name()).collect();
    let found = TimedSolver::ALL.into_iter().find(|solver| solver.name() == name);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn main() -> anyhow::Result<()> {
    let args = SplitArgs::parse();
    // Cargo runs benchmarks in the folder of their package. Paths are those of the repository.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    let solvers = if args.solvers.is_empty() { TimedSolver::ALL.to_vec() } else { args.solvers.clone() };
    let patience = Duration::try_from_secs_f64(args.patience).context("--patience")?;
    let mut rows = Vec::new();
    for (size, corpus) in sizes(&args)? {
        for &solver in &solvers {
            match measure_solver(size, &corpus, solver, patience)? {
                Some(row) => rows.push(row),
                None if solver.is_present() => {
                    eprintln!(
                        "note: {}x{}: {} does not support this placement",
                        size.ranks,
                        size.slots,
                        solver.name()
                    );
                }
                None => {}
            }
        }
    }
    if !list_absent_solvers().is_empty() {
        eprintln!("note: {}", list_absent_solvers());
    }
    if args.json {
        let document = json!({ "rows": rows.iter().map(row_to_json).collect::<Vec<_>>() });
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{}", rows_to_text(&rows));
    }
    Ok(())
}

/// Ranks and redundant slots per rank, with the batches to time on them.
type TimedSize = (CorpusSize, Vec<BatchSeries>);

fn sizes(args: &SplitArgs) -> anyhow::Result<Vec<TimedSize>> {
    let mut sizes = Vec::new();
    if args.traces.is_empty() {
        for size in SIZES {
            // A corpus has eight series per size.
            sizes.push((size, size.build_corpus(args.batches.div_ceil(8).max(1))?));
        }
        return Ok(sizes);
    }
    let trace = evenkeel_trace::read(&args.traces, &args.read_options(), &())?;
    trace.notices().iter().for_each(|notice| eprintln!("note: {notice}"));
    for &ranks in &args.ranks {
        for &slots in &args.redundant {
            let cluster = Cluster::new(ranks, 1, trace.experts(), ranks * slots)?;
            let policy = place::policy(&args.policy, 1, &cluster)?;
            let corpus = trace_batches(&trace, &cluster, policy.as_ref(), args.batches)?;
            sizes.push((CorpusSize { ranks, slots }, corpus));
        }
    }
    Ok(sizes)
}

/// Returns about this many batches of a trace at most, spread evenly over layers and steps.
fn trace_batches(
    trace: &Trace,
    cluster: &Cluster,
    policy: &dyn place::Policy,
    batches: usize,
) -> anyhow::Result<Vec<BatchSeries>> {
    let (layers, steps) = (trace.layers().len(), trace.steps().len());
    let per_layer = batches.div_ceil(layers.max(1)).clamp(1, steps.max(1));
    let mut corpus = Vec::new();
    for layer in (0..layers).step_by(layers.div_ceil(batches.max(1)).max(1)) {
        let history = History::from_trace(trace, layer);
        let placement = policy.place(&PlaceRequest::new(&history, cluster))?.placement;
        let counts = |step: usize| -> anyhow::Result<Vec<u32>> {
            let loads = trace.loads(step, layer).iter().map(|&load| u32::try_from(load));
            loads.collect::<Result<_, _>>().with_context(|| format!("step {step}: a count beyond 32 bits"))
        };
        let picked = (0..per_layer).map(|index| index * steps / per_layer);
        let batches: Vec<Vec<u32>> = picked.map(counts).collect::<Result<_, _>>()?;
        let problem = Problem::new(placement.hosts()?);
        corpus.push(BatchSeries { law: LoadLaw::Recorded, graph: "trace", problem, batches });
    }
    Ok(corpus)
}

fn row_to_json(row: &MeasurementRow) -> serde_json::Value {
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

fn rows_to_text(rows: &[MeasurementRow]) -> String {
    let cells = |row: &MeasurementRow| {
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
    render_table(&header, rows.iter().map(cells).collect())
}

fn render_table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}
