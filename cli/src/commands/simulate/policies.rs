//! `evenkeel simulate policies`, the default of `simulate`: compares policies and splits.

use super::cluster_table::compare_clusters;
use super::comparison::{Comparison, ComparisonArgs, ComparisonSpec, check_steps};
use super::verdict::{MISSING_BASELINE, MISSING_MODEL, TimedComparison};
use crate::args::cluster::check_groups;
use crate::args::cluster_grid::{ClusterGridArgs, ClusterGridSpec};
use crate::args::model::{ModelArgs, ModelMaybeOnGpu, ModelOnGpu};
use crate::args::stated::StatedOptions;
use crate::args::trace::TraceArgs;
use crate::output::{Output, command_line, print_json, print_text, write_file};
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::model::MoeModel;
use evenkeel::trace::Trace;
use evenkeel_report::SimulationPage;
use evenkeel_simulate::{BatchSizeRow, ReplayRow};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Compare policies and splits, on one or several clusters (the default)
///
/// Every batch of every layer is split in whole tokens, checked, and measured by its imbalance: the busiest
/// rank's tokens over the average rank's. 1 is perfect. With 1.5, every step waits for a rank with half as
/// much load again. `bound` is ceil(tokens / ranks): no placement can have a lower peak. `excess` is the
/// distance of the peak from it, in units of the average.
///
/// A trace of totals, such as a `stat` dump of SGLang, has no batches to judge: they are drawn (--resample).
/// Lists of --ranks and --redundant give one table that shows the benefit and the memory of redundant slots.
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate traces/sample-decode.csv.zst --ranks 8 --redundant 8\n  evenkeel \
                             simulate DUMP.pt --ranks 8,16,32 --redundant 0,32,64 --policies contiguous,eplb\n  evenkeel \
                             simulate gptoss20b-decode/ --ranks 8 --redundant 8 --decode-batch 64 --policies \
                             contiguous,eplb,lplb:ring --splits even,lp,exact --report report.html"
)]
pub(super) struct PoliciesArgs {
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    grid: ClusterGridArgs,
    #[command(flatten)]
    comparison: ComparisonArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Judge on the batches of these traces, and plan on all batches of the first ones
    ///
    /// They are read with the same options. Batches that are drawn from totals have the next seed. So dumps
    /// of other workloads, or of another day, show whether a plan holds on them.
    #[arg(
        long,
        value_name = "TRACE,..",
        value_delimiter = ',',
        conflicts_with = "train_fraction",
        hide_short_help = true
    )]
    judge: Vec<PathBuf>,
    /// Write a report to this file: one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Comparison to run, from options that are valid together.
#[derive(Debug)]
pub(super) struct PoliciesRequest {
    pub(super) trace: TraceArgs,
    pub(super) grid: ClusterGridSpec,
    pub(super) comparison: ComparisonArgs,
    pub(super) model: Option<MoeModel>,
    /// Model and GPU that give the times, if both are stated.
    on: Option<ModelOnGpu>,
    /// Traces to judge on, if they are not the last part of the first ones.
    judge: Vec<PathBuf>,
    report: Option<PathBuf>,
}

impl PoliciesArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<PoliciesRequest> {
        let grid = self.grid.resolve()?;
        let of_one_cluster =
            [("--report", self.report.is_some()), ("--placement", !self.comparison.placement.is_empty())];
        if grid.is_grid()
            && let Some((option, _)) = of_one_cluster.iter().find(|(_, is_stated)| *is_stated)
        {
            bail!("{option} looks at one cluster: expected a single number each for --ranks and --redundant");
        }
        check_groups(self.trace.stated.has("groups"), grid.groups, &self.comparison.policies)?;
        Ok(PoliciesRequest {
            trace: self.trace.clone(),
            grid,
            comparison: self.comparison.clone(),
            model: self.model.model.map(|on| on.model),
            on: self.model.model.and_then(ModelMaybeOnGpu::on_gpu),
            judge: self.judge.clone(),
            report: self.report.clone(),
        })
    }
}

impl PoliciesRequest {
    /// Returns the batches, and the number of them to plan on if it is not a share of all.
    fn read(&self) -> anyhow::Result<(Trace, Option<usize>)> {
        let trace = self.trace.read_for_model(self.model)?;
        if self.judge.is_empty() {
            return Ok((trace, None));
        }
        // Options of the first traces may have no effect on these.
        let judged = TraceArgs {
            traces: self.judge.clone(),
            stated: StatedOptions::default(),
            seed: self.trace.seed.wrapping_add(1),
            top_k: self.trace.top_k.or(trace.resampling().map(|resampling| resampling.top_k)),
            ..self.trace.clone()
        };
        let judged = judged.read_for_model(self.model).context("--judge")?;
        let joined = trace.followed_by(&judged).context("--judge")?;
        Ok((joined, Some(trace.steps().len())))
    }
}

pub(super) fn run(args: &PoliciesArgs, output: Output) -> anyhow::Result<()> {
    let request = args.resolve()?;
    let (trace, planned_steps) = request.read()?;
    output.print_notices(trace.notices());
    if request.grid.is_grid() {
        check_steps(&request.trace, &trace)?;
        return compare_clusters(&request, &trace, planned_steps, output);
    }
    let spec = ComparisonSpec {
        cluster: request.grid.specs.first().cloned().context("no cluster")?,
        trace: request.trace,
        comparison: request.comparison,
        model: request.model,
        planned_steps,
        placed_speeds: None,
    };
    let comparison = Comparison::run(&spec, &trace, output)?;
    let timed = |on| TimedComparison::predict(&trace, &comparison.config, &comparison.outcome, on);
    let timed = request.on.map(timed).transpose()?.flatten();
    if let Some(path) = &request.report {
        let parts = ReportParts { timed: timed.as_ref(), ..ReportParts::default() };
        write_report(path, &comparison, &parts)?;
    }
    if output.is_json() {
        let verdict = timed.as_ref().map(|timed| timed.to_json(&comparison.outcome));
        return print_json(&comparison.to_json(Some(("verdict", json!(verdict)))));
    }
    match &timed {
        Some(timed) => print_text(&timed.to_text(&comparison.outcome))?,
        None if request.on.is_none() => print_text(MISSING_MODEL)?,
        None => print_text(MISSING_BASELINE)?,
    }
    comparison.print_table()?;
    if let Some(path) = &request.report {
        output.print_note(&format!("report written to {}", path.display()));
    }
    Ok(())
}

/// Parts of a report beyond the comparison.
#[derive(Debug, Default)]
pub(super) struct ReportParts<'a> {
    pub(super) replayed: &'a [ReplayRow],
    pub(super) timed: Option<&'a TimedComparison>,
    pub(super) batch_sizes: &'a [BatchSizeRow],
}

/// Writes the report of a comparison and of these parts.
pub(super) fn write_report(
    path: &Path,
    comparison: &Comparison<'_>,
    parts: &ReportParts<'_>,
) -> anyhow::Result<()> {
    let page = SimulationPage::new(comparison.trace, &comparison.config.cluster, &comparison.outcome)
        .title("Simulation")
        .command(command_line())
        .replayed(parts.replayed)
        .verdict(parts.timed.map(|timed| &timed.verdict))
        .batch_sizes(parts.batch_sizes);
    let memory = comparison.memory.as_ref();
    write_file(path, &memory.map_or_else(|| page.to_html(), |memory| page.to_html_for(&memory.model)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn a_report_of_several_clusters_is_refused() {
        let message = refusal("t.csv --ranks 8,16 --report r.html");
        assert!(message.starts_with("--report looks at one cluster"), "{message}");
    }

    #[test]
    fn placements_on_several_clusters_are_refused() {
        let message = refusal("policies t.csv --ranks 8 --redundant 0,8 --placement p.json");
        assert!(message.starts_with("--placement looks at one cluster"), "{message}");
    }

    #[test]
    fn groups_without_a_policy_that_uses_them_are_refused() {
        let message = refusal("t.csv --ranks 8 --groups 8 --policies recourse");
        assert!(message.starts_with("--groups 8 has no effect"), "{message}");
    }
}
