//! `evenkeel costs import`: fits a cost database to measured kernel times.

use crate::output::{Output, StderrBar, is_stdout, print_json, write_file};
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel_cost::import::{import_package, package_gpus};
use serde_json::json;
use std::path::PathBuf;

/// Fit a cost database to measured kernel times
///
/// PATH is the wheel of NVIDIA's package aiconfigurator-core, its unzipped folder, or a folder of its tables.
/// A fifth of the shapes is held out of the fit. `evenkeel costs show FILE` shows the errors on them.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  pip download --no-deps aiconfigurator-core\n  evenkeel costs import \
                       aiconfigurator_core-*.whl --gpu h100 -o h100.json\n  evenkeel simulate network TRACE --ranks 32 \
                       --network h100 --model deepseek-v3 --expert-time h100.json:trtllm"
)]
pub(crate) struct ImportArgs {
    /// Wheel or folder of aiconfigurator-core
    #[arg(value_name = "PATH")]
    package: PathBuf,
    /// GPU whose kernels are fitted; needed if the package has several
    #[arg(long, value_name = "GPU")]
    gpu: Option<String>,
    /// Write the database to this file, as JSON; `-` is stdout
    #[arg(short, long, value_name = "FILE", required = true)]
    output: PathBuf,
}

pub(super) fn run(args: &ImportArgs, output: Output) -> anyhow::Result<()> {
    let gpus = package_gpus(&args.package)?;
    let gpu = match (&args.gpu, &gpus[..]) {
        (Some(gpu), _) => gpu.as_str(),
        (None, [only]) => only,
        (None, _) => bail!(
            "{}: found tables of {}, expected --gpu with one of them",
            args.package.display(),
            gpus.join(", ")
        ),
    };
    let bar = StderrBar::for_kernels();
    let databases = import_package(&args.package, &[gpu], &|_, done, total| bar.report_done(done, total))?;
    drop(bar);
    let database = databases.first().with_context(|| format!("{gpu}: no database was fitted"))?;
    write_file(&args.output, &database.to_json()?)?;
    if is_stdout(&args.output) {
        return Ok(());
    }
    let kernels = database.kernels.len();
    let rows: u64 = database.kernels.iter().map(|kernel| kernel.rows).sum();
    if output.is_json() {
        return print_json(&json!({ "gpu": gpu, "kernels": kernels, "rows": rows, "output": args.output }));
    }
    output.print_note(&format!(
        "{kernels} kernels of {gpu} from {rows} rows, written to {}",
        args.output.display()
    ));
    Ok(())
}
