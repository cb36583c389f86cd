//! `evenkeel trace convert`: rewrites traces as one long table.

use crate::args::trace::TraceArgs;
use crate::output::{Output, StderrBar, print_json, print_text};
use crate::render::units::{append_notices, format_decimal_bytes, group_digits};
use anyhow::bail;
use clap::Args;
use evenkeel_trace::{ReadOptions, convert};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Rewrite traces as one long table: step,layer,expert,tokens[,source]
///
/// The suffix of FILE selects its format. Rows are streamed, so traces of any size fit. Labels of steps and
/// sources are kept. Per-token arrays are cut into batches.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel trace convert expert_distribution_recorder_1.pt -o trace.parquet\n  evenkeel \
                             trace convert gptoss/ --batch-tokens 1024 -o prefill.csv.zst"
)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// File to write: .csv, .csv.gz, .csv.zst or .parquet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Conversion of files, from options that are valid together.
#[derive(Debug)]
struct ConvertRequest<'a> {
    inputs: &'a [PathBuf],
    options: ReadOptions,
    output: &'a Path,
}

impl ConvertArgs {
    /// Checks the options against each other.
    fn resolve(&self) -> anyhow::Result<ConvertRequest<'_>> {
        for (id, option) in [("resample", "--resample"), ("top_k", "--top-k")] {
            if self.trace.stated.has(id) {
                bail!("{option} has no effect: `trace convert` writes what is recorded and draws no batches");
            }
        }
        let options = self.trace.read_options();
        Ok(ConvertRequest { inputs: &self.trace.traces, options, output: &self.output })
    }
}

pub(super) fn run(args: &ConvertArgs, output: Output) -> anyhow::Result<()> {
    let request = args.resolve()?;
    let bar = StderrBar::for_reading();
    let done = convert(request.inputs, &request.options, request.output, &bar)?;
    drop(bar);
    let bytes = std::fs::metadata(request.output).map_or(0, |meta| meta.len());
    if output.is_json() {
        return print_json(&json!({
            "format": done.format.name(),
            "files": done.files.iter().map(|file| json!({"path": file.path, "sha256": file.sha256})).collect::<Vec<_>>(),
            "out": request.output,
            "rows": done.rows,
            "bytes": bytes,
            "notices": done.notices,
        }));
    }
    let mut text = format!(
        "wrote {}: {} rows, {}\n",
        request.output.display(),
        group_digits(done.rows),
        format_decimal_bytes(bytes)
    );
    append_notices(&mut text, &done.notices)?;
    print_text(&text)
}

#[cfg(test)]
mod tests {
    use super::super::TraceCommand;

    #[test]
    fn options_of_drawn_batches_are_refused() {
        for option in ["--resample", "--top-k"] {
            let command = crate::parse_line(&format!("trace convert t.csv {option} 4 -o t.parquet"));
            let crate::Command::Trace(TraceCommand::Convert(args)) = command else { panic!("{option}") };
            let message = args.resolve().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{option} has no effect")), "{message}");
        }
    }
}
