//! `evenkeel costs show`: kernels and operations of a database with their errors, and the times of a model's
//! experts.

use crate::args::expert_time::{KernelSource, read_database};
use crate::output::{Output, print_json, print_text};
use crate::render::table::render_table;
use anyhow::bail;
use clap::Args;
use evenkeel::cluster::Cluster;
use evenkeel::model::MoeModel;
use evenkeel_cost::{CostDatabase, ErrorQuantiles, KernelEntry, MethodErrors, OperationEntry, builtin_gpus};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Show the kernels and operations of a cost database, with their errors
///
/// Errors are absolute relative errors on shapes that the fit did not see, as median and 90th percentile.
/// Balanced rows have even routing, skewed rows have drawn routing. Without DATABASE, the command lists the
/// GPUs whose kernels are part of the program.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel costs show\n  evenkeel costs show h100\n  evenkeel costs show h100 --model \
                       deepseek-v3 --ranks 32 --framework trtllm"
)]
pub(crate) struct ShowArgs {
    /// GPU whose kernels are part of the program, or a file of `evenkeel costs import`
    #[arg(value_name = "DATABASE")]
    database: Option<String>,
    /// Only kernels of this framework: sglang, trtllm or vllm
    #[arg(long, value_name = "NAME")]
    framework: Option<String>,
    /// Model whose experts are timed, by tokens per expert
    #[arg(long, value_name = "MODEL", requires_all = ["database", "framework"])]
    model: Option<MoeModel>,
    /// With --model: ranks that share the experts
    #[arg(long, value_name = "R", requires = "model", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    ranks: u64,
}

/// Tokens per expert of the timed batches.
const TOKENS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 512, 2048];

pub(super) fn run(args: &ShowArgs, output: Output) -> anyhow::Result<()> {
    let Some(name) = &args.database else { return list_gpus(output) };
    let database = read_database(name)?;
    let is_shown =
        |kernel: &&KernelEntry| args.framework.as_ref().is_none_or(|name| *name == kernel.framework);
    let kernels: Vec<&KernelEntry> = database.kernels.iter().filter(is_shown).collect();
    if let (Some(framework), true) = (&args.framework, kernels.is_empty()) {
        let known: Vec<&str> = framework_names(&database).into_iter().collect();
        bail!("--framework {framework}: {name} has no such kernels, expected one of {}", known.join(", "));
    }
    if let (Some(model), Some(framework)) = (&args.model, &args.framework) {
        return show_model(&database, name, framework, (model, args.ranks as usize), output);
    }
    let of_framework = |entry: &&OperationEntry| {
        args.framework.as_ref().is_none_or(|name| *name == entry.framework || entry.framework == "nccl")
    };
    let operations: Vec<&OperationEntry> = database.operations.iter().filter(of_framework).collect();
    if output.is_json() {
        return print_json(&json!({
            "gpu": database.gpu, "hardware": database.hardware, "provenance": database.provenance,
            "kernels": kernels, "operations": operations,
        }));
    }
    let source = &database.provenance;
    print_text(&format!(
        "Kernels on {}: {} {}, {}\nErrors in percent on held-out shapes: median / 90th percentile\n\n{}\n{}",
        database.gpu,
        source.package,
        source.version,
        source.licence,
        render_table(
            &[
                "framework",
                "version",
                "dtype",
                "layer",
                "kernel",
                "rows",
                "balanced",
                "roofline",
                "interpol.",
                "skewed",
                "roofline",
                "interpol."
            ],
            kernels.into_iter().map(kernel_row).collect(),
            5
        ),
        render_table(
            &["other operation", "framework", "version", "dtype", "kernel", "rows", "error"],
            operations.into_iter().map(operation_row).collect(),
            5
        )
    ))
}

/// Returns the cells of an operation.
fn operation_row(entry: &OperationEntry) -> Vec<String> {
    vec![
        entry.operation.kind().to_string(),
        entry.framework.clone(),
        entry.version.clone(),
        entry.dtype.clone(),
        entry.kernel.clone(),
        entry.rows.to_string(),
        format!("{:.1} / {:.1}", entry.errors.median, entry.errors.p90),
    ]
}

/// Returns the cells of a kernel.
fn kernel_row(kernel: &KernelEntry) -> Vec<String> {
    let mut row = vec![
        kernel.framework.clone(),
        kernel.version.clone(),
        kernel.dtype.to_string(),
        kernel.table.to_string(),
        kernel.kernel.clone(),
        kernel.rows.to_string(),
    ];
    row.extend(error_cells(kernel.errors.balanced));
    row.extend(error_cells(kernel.errors.skewed));
    row
}

/// Returns the errors of the model, the roofline and interpolation as text.
pub(super) fn error_cells(errors: Option<MethodErrors>) -> [String; 3] {
    let text = |quantiles: Option<ErrorQuantiles>| {
        quantiles.map_or_else(|| "-".to_owned(), |error| format!("{:.1} / {:.1}", error.median, error.p90))
    };
    let method = |of: fn(MethodErrors) -> Option<ErrorQuantiles>| text(errors.and_then(of));
    [
        method(|errors| Some(errors.model)),
        method(|errors| Some(errors.roofline)),
        method(|errors| errors.interpolation),
    ]
}

fn list_gpus(output: Output) -> anyhow::Result<()> {
    let databases: Vec<CostDatabase> =
        builtin_gpus().into_iter().map(CostDatabase::builtin).collect::<Result<_, _>>()?;
    if output.is_json() {
        let row = |database: &CostDatabase| {
            json!({
                "gpu": database.gpu, "kernels": database.kernels.len(), "provenance": database.provenance,
                "frameworks": framework_names(database),
            })
        };
        return print_json(&json!({ "databases": databases.iter().map(row).collect::<Vec<Value>>() }));
    }
    let row = |database: &CostDatabase| {
        let rows: u64 = database.kernels.iter().map(|kernel| kernel.rows).sum();
        let names: Vec<&str> = framework_names(database).into_iter().collect();
        vec![database.gpu.clone(), names.join(", "), database.kernels.len().to_string(), rows.to_string()]
    };
    let header = ["gpu", "frameworks", "kernels", "measured rows"];
    print_text(&render_table(&header, databases.iter().map(row).collect(), 2))
}

/// Returns the frameworks of a database.
fn framework_names(database: &CostDatabase) -> BTreeSet<&str> {
    database.kernels.iter().map(|kernel| kernel.framework.as_str()).collect()
}

/// Prints the times of a rank's experts, by tokens per expert.
fn show_model(
    database: &CostDatabase,
    name: &str,
    framework: &str,
    (model, ranks): (&MoeModel, usize),
    output: Output,
) -> anyhow::Result<()> {
    let redundant = model.experts.next_multiple_of(ranks) - model.experts;
    let cluster = Cluster::new(ranks, 1, model.experts, redundant)?;
    let kernel = KernelSource::new(name, framework).kernel_on(model, &cluster)?;
    let times = &kernel.times;
    let slots = cluster.slots_per_rank();
    let time = |tokens: u64| {
        times.time_us(&vec![tokens; slots], times.tokens_of_rows(tokens * slots as u64, tokens))
    };
    if output.is_json() {
        let rows: Vec<Value> = TOKENS
            .iter()
            .map(|&tokens| json!({ "tokens_per_expert": tokens, "rank_us": time(tokens) }))
            .collect();
        return print_json(&json!({
            "model": model.name, "ranks": ranks, "slots_per_rank": slots, "source": kernel.to_json(),
            "launch_floor_us": times.launch_floor_us(), "rows": rows,
        }));
    }
    let rows = TOKENS.iter().map(|&tokens| {
        let us = time(tokens);
        let rows = (tokens * slots as u64) as f64;
        vec![tokens.to_string(), format!("{us:.1}"), format!("{:.3}", us / rows)]
    });
    print_text(&format!(
        "{} on {ranks} ranks with {slots} experts each, {} on {}: one layer of one rank, weights read from memory\n\n{}",
        model.name,
        kernel.describe(),
        database.gpu,
        render_table(&["tokens per expert", "rank us", "us per row"], rows.collect(), 0)
    ))
}
