//! `evenkeel simulate traffic`: redirects every token, and reports the distances that tokens travel.

use super::comparison::{Comparison, ComparisonSpec, StudyArgs};
use crate::args::model::ModelArgs;
use crate::output::Output;
use crate::render::table::render_table;
use anyhow::bail;
use clap::Args;
use evenkeel::split::PrimaryObjective;
use evenkeel_simulate::{SimulationResult, TrafficLocality, measure_locality};
use serde_json::{Value, json};

/// Redirect every token, and report the distances that tokens travel
///
/// TRACE is a per-token array. A batch's tokens belong to the ranks in equal consecutive parts. Every source
/// redirects its own tokens, and the replicas meet their quotas to the token. Rows with `traffic` have the
/// same peaks and, among such splits, the fewest tokens off their node, then off their rank. `vector,
/// traffic` first evens out the ranks below the peak.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate traffic gptoss20b-decode/ --decode-batch 64 --layers 0-3 --ranks 8 --nodes 2 \
                       --redundant 8"
)]
pub(super) struct TrafficArgs {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    model: ModelArgs,
}

impl TrafficArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<ComparisonSpec> {
        if self.study.trace.resample.is_some_and(|steps| steps > 0) {
            bail!("--resample draws batches without tokens: expected a per-token array, without --resample");
        }
        self.study.resolve(self.model.model.map(|on| on.model))
    }
}

pub(super) fn run(args: &TrafficArgs, output: Output) -> anyhow::Result<()> {
    let spec = args.resolve()?;
    let tokens = spec.trace.read_tokens()?;
    output.print_notices(tokens.trace().notices());
    let comparison = Comparison::run(&spec, tokens.trace(), output)?;
    let Comparison { config, outcome, .. } = &comparison;
    let rows = measure_locality(&tokens, config, outcome)?;
    let title = format!("Distance from tokens to their experts, on {} nodes", config.cluster.nodes());
    let text = format!("{title}\n{}", travel_table(outcome, &rows));
    comparison.print_study("locality", (text, rows_to_json(outcome, &rows)), output)
}

fn rows_to_json(outcome: &SimulationResult, rows: &[TrafficLocality]) -> Value {
    let row = |row: &TrafficLocality| {
        json!({
            "policy": outcome.planned[row.planned].policy,
            "split": split_name(row.keep),
            "pairs": { "own_rank": row.traffic.own_rank, "own_node": row.traffic.own_node,
                       "elsewhere": row.traffic.elsewhere },
            "copies": { "tokens": row.copies.tokens, "to_ranks": row.copies.to_ranks,
                        "to_nodes": row.copies.to_nodes },
            "batches": row.batches,
            "sum_of_peaks": row.peaks,
        })
    };
    rows.iter().map(row).collect()
}

fn split_name(keep: Option<PrimaryObjective>) -> &'static str {
    match keep {
        None => "peak",
        Some(PrimaryObjective::Peak) => "peak, traffic",
        Some(PrimaryObjective::Vector) => "peak, vector, traffic",
    }
}

fn travel_table(outcome: &SimulationResult, rows: &[TrafficLocality]) -> String {
    let rows = rows.iter().map(|row| {
        let share = |pairs: u64| format!("{:.1}%", 100.0 * pairs as f64 / row.traffic.pairs().max(1) as f64);
        let each = |copies: u64| format!("{:.3}", copies as f64 / row.copies.tokens.max(1) as f64);
        vec![
            outcome.planned[row.planned].policy.clone(),
            split_name(row.keep).into(),
            share(row.traffic.own_rank),
            share(row.traffic.own_node),
            share(row.traffic.elsewhere),
            each(row.copies.to_ranks),
            each(row.copies.to_nodes),
            format!("{} of {}", row.batches, row.batches),
            row.peaks.to_string(),
        ]
    });
    let header = [
        "policy",
        "split",
        "own rank",
        "own node",
        "elsewhere",
        "to ranks",
        "to nodes",
        "quotas met",
        "sum of peaks",
    ];
    render_table(&header, rows.collect(), 2)
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn drawn_batches_are_refused() {
        assert!(
            refusal("traffic ids.npy --ranks 4 --resample 8")
                .starts_with("--resample draws batches without tokens")
        );
    }
}
