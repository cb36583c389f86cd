//! Options that have no effect on the trace. Each is an error that states the reason.
//!
//! In: the stated options and the trace. Out: nothing, or one message with the option, the trace, its format,
//! and a way to make the option effective.

use crate::args::trace::TraceArgs;
use anyhow::bail;
use evenkeel::trace::{RequestOrder, Trace, TraceFormat};

/// Refuses the first stated option that the trace cannot follow. `drawn` states that batches are drawn from
/// the trace.
pub(crate) fn check_used(args: &TraceArgs, trace: &Trace, drawn: bool) -> anyhow::Result<()> {
    let stated = |id| args.stated.has(id);
    let has = |formats: &[TraceFormat]| trace.formats().iter().any(|format| formats.contains(format));
    let counts = !trace.formats().iter().any(|format| format.holds_tokens());
    let names: Vec<String> = trace.formats().iter().map(ToString::to_string).collect();
    let read = format!("{} ({})", args.display_name(), names.join(", "));

    let size = match args.decode_batch {
        Some(requests) if stated("decode_batch") => Some(format!("--decode-batch {requests}")),
        None if stated("batch_tokens") => Some(format!("--batch-tokens {}", args.batch_tokens)),
        _ => None,
    };
    if let Some(size) = size.filter(|_| counts && !drawn) {
        bail!(
            "{size} has no effect: {read} holds counts, one batch per recorded step; batches of a size are cut from \
             per-token arrays (npy, npz) or drawn with --resample STEPS"
        );
    }
    if stated("order") && counts {
        bail!(
            "--order {} has no effect: {read} holds counts, without requests to put in order; expected per-token \
             arrays (npy, npz)",
            args.order
        );
    }
    let shuffled = args.order == RequestOrder::Shuffled || args.decode_batch.is_some();
    if stated("seed") && !drawn && (counts || !shuffled) {
        let instead = if counts { "--resample STEPS" } else { "--order shuffled or --decode-batch REQUESTS" };
        bail!(
            "--seed {} has no effect: nothing about the batches of {read} is random without {instead}",
            args.seed
        );
    }
    if let Some(top_k) = args.top_k.filter(|_| stated("top_k") && !drawn) {
        bail!(
            "--top-k {top_k} has no effect: the batches of {read} are recorded; --resample STEPS draws batches"
        );
    }
    if stated("arrays") && counts {
        bail!(
            "--arrays {} has no effect: {read} has no named arrays; expected npy or npz",
            args.arrays.join(",")
        );
    }
    if let Some(column) = args.step_column.as_ref().filter(|_| stated("step_column"))
        && !has(&[TraceFormat::Csv, TraceFormat::Parquet])
    {
        bail!("--step-column {column} has no effect: {read} has no columns; expected csv or parquet");
    }
    if let Some(layers) = args.layers.as_ref().filter(|_| stated("layers"))
        && let Some(part) = layers.first_unmatched(trace.layers())
    {
        bail!("--layers {part}: {read} has no such layer");
    }
    Ok(())
}
