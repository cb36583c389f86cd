//! `evenkeel simulate planning-cost`: compares the benefit of planning each batch with its time.

use super::comparison::{Comparison, ComparisonSpec, StudyArgs};
use crate::args::model::ModelOnGpu;
use crate::output::Output;
use crate::render::table::render_table;
use anyhow::bail;
use clap::Args;
use evenkeel::split::{PLANNING_US, expert_roofline};
use evenkeel_simulate::{PlanningCostRow, SimulationResult, compare_planning_cost};
use serde_json::{Value, json};

/// Compare the time that planning each batch saves with the time that it takes
///
/// The table shows the time of all batches if none, all, or those that may pay are planned. Times are those
/// of a roofline: an expert takes the longer of reading its weights and multiplying its tokens.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate planning-cost traces/sample-decode.csv.zst --ranks 8 --redundant 8 \
                       --layers 0-3 --model-gpu gpt-oss-20b,h100\n  evenkeel simulate planning-cost TRACE --ranks 32 --model-gpu \
                       deepseek-v3:bf16,h800 --plan-us 100"
)]
pub(super) struct PlanningCostArgs {
    #[command(flatten)]
    study: StudyArgs,
    /// Model and GPU that determine the times, as in deepseek-v3,h100
    ///
    /// MODEL is one of mixtral-8x7b, qwen3-30b-a3b, gpt-oss-20b, deepseek-v2-lite, deepseek-v3, kimi-k2 and
    /// others, optionally with :fp8 or :bf16. GPU is one of a100, h100, h800, h200, h20, b200, b300, gb200,
    /// gb300, l40s, mi300x, mi355x.
    #[arg(long, value_name = "MODEL,GPU", required = true, help_heading = "Times")]
    model_gpu: ModelOnGpu,
    /// Microseconds that planning one batch of one layer takes, from counting to redirected tokens
    #[arg(long, value_name = "US", default_value_t = PLANNING_US, help_heading = "Times")]
    plan_us: f64,
}

/// Planning cost to study, from options that are valid together.
#[derive(Debug)]
pub(super) struct PlanningCostRequest {
    comparison: ComparisonSpec,
    plan_ps: u64,
}

impl PlanningCostArgs {
    /// Checks the options.
    pub(super) fn resolve(&self) -> anyhow::Result<PlanningCostRequest> {
        if !(self.plan_us >= 0.0 && self.plan_us < 1e9) {
            bail!("--plan-us {}: expected 0 to 1e9 microseconds", self.plan_us);
        }
        let plan_ps = (self.plan_us * 1e6).round() as u64;
        Ok(PlanningCostRequest { comparison: self.study.resolve(None)?, plan_ps })
    }
}

pub(super) fn run(args: &PlanningCostArgs, output: Output) -> anyhow::Result<()> {
    let request = args.resolve()?;
    let trace = request.comparison.trace.read()?;
    output.print_notices(trace.notices());
    let comparison = Comparison::run(&request.comparison, &trace, output)?;
    let Comparison { config, outcome, .. } = &comparison;
    let ModelOnGpu { model, gpu } = args.model_gpu;
    let rows =
        compare_planning_cost(&trace, config, outcome, expert_roofline(&model, &gpu), request.plan_ps)?;
    let text = format!(
        "Microseconds per batch of one layer, {model} on {gpu}, {} us per plan\n{}",
        args.plan_us,
        cost_table(outcome, &rows)
    );
    comparison.print_study("worth", (text, rows_to_json(outcome, &rows)), output)
}

fn rows_to_json(outcome: &SimulationResult, rows: &[PlanningCostRow]) -> Value {
    let row = |row: &PlanningCostRow| {
        let us = |ps: u64| ps as f64 / 1e6;
        json!({
            "policy": outcome.planned[row.planned].policy,
            "batches": row.batches,
            "planned_batches": row.planned_batches,
            "even_us": us(row.even_ps),
            "always_us": us(row.always_ps),
            "rule_us": us(row.rule_ps),
            "bound_us": us(row.bound_ps),
        })
    };
    rows.iter().map(row).collect()
}

fn cost_table(outcome: &SimulationResult, rows: &[PlanningCostRow]) -> String {
    let rows = rows.iter().map(|row| {
        let each = |ps: u64| format!("{:.2}", ps as f64 / 1e6 / row.batches.max(1) as f64);
        vec![
            outcome.planned[row.planned].policy.clone(),
            each(row.even_ps),
            each(row.always_ps),
            each(row.rule_ps),
            format!("{:.1}%", 100.0 * row.planned_batches as f64 / row.batches.max(1) as f64),
            each(row.bound_ps),
        ]
    });
    let header = ["policy", "even split", "always planned", "if it may pay", "planned", "bound"];
    render_table(&header, rows.collect(), 1)
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn planning_times_out_of_range_are_refused() {
        for us in ["nan", "-1", "1e9"] {
            let message = refusal(&format!(
                "planning-cost t.csv --ranks 8 --model-gpu deepseek-v3,h100 --plan-us={us}"
            ));
            assert!(message.starts_with("--plan-us"), "{message}");
        }
    }
}
