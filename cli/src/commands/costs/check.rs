//! `evenkeel costs check`: compares a cost database with measurements.

use super::show::error_cells;
use crate::args::expert_time::read_database;
use crate::output::{Output, StderrBar, print_json, print_text};
use crate::render::table::render_table;
use clap::Args;
use evenkeel_cost::check::{
    CheckRow, CheckScope, DatabaseCheck, OperationCheckRow, check_database, check_operations,
};
use evenkeel_cost::{HeldOutErrors, MethodErrors};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Compare a cost database with measured kernel times
///
/// Errors are absolute relative errors on rows that the fit did not use, as median and 90th percentile. These
/// are shapes that were held out, and older versions of a framework. `limits` is yes if the median is at most
/// 8 % and the 90th percentile at most 25 % for balanced routing, and 12 % and 35 % for skewed routing. A
/// line below the kernels has the errors of all held-out rows of the GPU together.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  evenkeel costs check h100 aiconfigurator_core-0.12.0-*.whl")]
pub(crate) struct CheckArgs {
    /// GPU whose kernels are part of the program, or a file of `evenkeel costs import`
    #[arg(value_name = "DATABASE")]
    database: String,
    /// Wheel or folder of aiconfigurator-core
    #[arg(value_name = "PATH")]
    package: PathBuf,
}

pub(super) fn run(args: &CheckArgs, output: Output) -> anyhow::Result<()> {
    let database = read_database(&args.database)?;
    let bar = StderrBar::for_kernels();
    let DatabaseCheck { rows, together, .. } =
        check_database(&database, &args.package, &|_, done, total| bar.report_done(done, total))?;
    let operations =
        check_operations(&database, &args.package, &|_, done, total| bar.report_done(done, total))?;
    drop(bar);
    if output.is_json() {
        return print_json(&json!({
            "gpu": database.gpu,
            "rows": rows.iter().map(row_to_json).collect::<Vec<_>>(),
            "together": { "errors": together, "meets_limits": together.meets_limits() },
            "operations": operations.iter().map(operation_to_json).collect::<Vec<_>>(),
        }));
    }
    let header = [
        "framework",
        "dtype",
        "layer",
        "rows of",
        "broken",
        "balanced",
        "roofline",
        "interpol.",
        "skewed",
        "roofline",
        "interpol.",
        "limits",
        "better",
    ];
    print_text(&format!(
        "Kernels on {}: errors in percent, median / 90th percentile\n\n{}\n{}\n\n{}",
        database.gpu,
        render_table(&header, rows.iter().map(row_cells).collect(), 4),
        describe_together(&together),
        render_table(
            &["other operation", "framework", "dtype", "kernel", "rows of", "rows", "error"],
            operations.iter().map(operation_cells).collect(),
            5
        )
    ))
}

/// Returns a line with the errors of all held-out rows.
fn describe_together(errors: &HeldOutErrors) -> String {
    let part = |name: &str, errors: Option<MethodErrors>| match errors {
        Some(MethodErrors { rows, model, .. }) => {
            format!("{name} {:.1} / {:.1} ({rows} rows)", model.median, model.p90)
        }
        None => format!("no {name} rows"),
    };
    format!(
        "All rows of held-out shapes: {}, {}. Within the limits: {}",
        part("balanced", errors.balanced),
        part("skewed", errors.skewed),
        answer(errors.meets_limits())
    )
}

fn answer(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn operation_cells(row: &OperationCheckRow) -> Vec<String> {
    vec![
        row.kind.to_string(),
        row.framework.clone(),
        row.dtype.clone(),
        row.kernel.clone(),
        scope_name(&row.scope),
        row.rows.to_string(),
        format!("{:.1} / {:.1}", row.errors.median, row.errors.p90),
    ]
}

fn operation_to_json(row: &OperationCheckRow) -> Value {
    json!({
        "operation": row.kind.to_string(), "framework": row.framework, "dtype": row.dtype, "kernel": row.kernel,
        "scope": scope_name(&row.scope), "rows": row.rows, "errors": row.errors,
    })
}

fn scope_name(scope: &CheckScope) -> String {
    match scope {
        CheckScope::OlderVersion(version) => version.clone(),
        _ => "held-out shapes".to_owned(),
    }
}

fn row_cells(row: &CheckRow) -> Vec<String> {
    let mut cells = vec![
        row.framework.clone(),
        row.dtype.to_string(),
        row.table.to_string(),
        scope_name(&row.scope),
        row.broken_rows.to_string(),
    ];
    cells.extend(error_cells(row.errors.balanced));
    cells.extend(error_cells(row.errors.skewed));
    cells.extend([answer(row.meets_limits()), answer(row.beats_simpler_methods())]);
    cells
}

fn row_to_json(row: &CheckRow) -> Value {
    json!({
        "framework": row.framework, "dtype": row.dtype, "table": row.table, "scope": scope_name(&row.scope),
        "broken_rows": row.broken_rows, "errors": row.errors, "meets_limits": row.meets_limits(),
        "beats_simpler_methods": row.beats_simpler_methods(),
    })
}
