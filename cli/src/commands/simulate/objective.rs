//! `evenkeel simulate objective`: measures splits by another objective than tokens.

use super::comparison::{Comparison, ComparisonSpec, StudyArgs};
use crate::args::model::{ModelArgs, ModelOnGpu, ModelOnGpuError};
use crate::output::Output;
use crate::render::table::render_table;
use anyhow::bail;
use clap::Args;
use evenkeel::split::{Cost, SplitObjective, TILE_TOKENS, expert_roofline};
use evenkeel_exec::calibrate;
use evenkeel_simulate::{ObjectiveRow, SimulationResult, SplitAim, evaluate_objective};
use serde_json::{Value, json};
use std::str::FromStr;
use thiserror::Error;

/// Argument of the form `tokens`, `tiles:BM`, `active`, `roofline:MODEL,GPU` or `roofline:FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CostSpec {
    name: String,
    cost: Cost,
}

/// Error of text that names no cost.
#[derive(Debug, Error)]
enum CostSpecError {
    #[error("tiles of \"{0}\" tokens: expected a number from 1")]
    Tile(String),
    #[error(transparent)]
    ModelOnGpu(#[from] ModelOnGpuError),
    #[error("{file}: {error}; expected MODEL,GPU or a file of `calibrate experts`")]
    Unreadable { file: String, error: std::io::Error },
    #[error("{file}: {reason}")]
    Roofline { file: String, reason: String },
    #[error("expected tokens, tiles:TOKENS, active, roofline:MODEL,GPU or roofline:FILE")]
    Form,
}

impl FromStr for CostSpec {
    type Err = CostSpecError;

    fn from_str(text: &str) -> Result<Self, CostSpecError> {
        let cost = match text.split_once(':') {
            None if text == "tokens" => Cost::Tokens,
            None if text == "active" => Cost::Active,
            None if text == "tiles" => Cost::Tiles(TILE_TOKENS),
            Some(("tiles", tile)) => match tile.parse() {
                Ok(tile) if tile > 0 => Cost::Tiles(tile),
                _ => return Err(CostSpecError::Tile(tile.into())),
            },
            Some(("roofline", on)) if on.contains(',') => {
                let on: ModelOnGpu = on.parse()?;
                Cost::Roofline(expert_roofline(&on.model, &on.gpu))
            }
            Some(("roofline", file)) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| CostSpecError::Unreadable { file: file.into(), error })?;
                let roofline = calibrate::RooflineFile::parse_roofline(&text);
                Cost::Roofline(
                    roofline.map_err(|reason| CostSpecError::Roofline { file: file.into(), reason })?,
                )
            }
            _ => return Err(CostSpecError::Form),
        };
        Ok(CostSpec { name: text.into(), cost })
    }
}

/// Measure splits by another objective, and split for it
///
/// Rows `even` and `exact in tokens` are the usual splits, measured by the objective. Row `for this goal` is
/// the split that minimises it. State at least one option of the objective.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate objective traces/sample-decode.csv.zst --ranks 8 --layers 0-3 --cost \
                       active\n  evenkeel simulate objective traces/sample-prefill.csv.zst --ranks 8 --layers 1-4 --cost \
                       tiles:64 --tie-break vector\n  evenkeel simulate objective traces/sample-prefill.csv.zst --ranks 8 --layers \
                       1-4 --speeds 2,2,2,1,1,1,1,1 --place-for-speeds"
)]
pub(super) struct ObjectiveArgs {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Cost that counts as load, as in tiles:64 [default: tokens]
    ///
    /// Costs are tokens, tiles:TOKENS, active, roofline:MODEL,GPU and roofline:FILE.
    /// tiles:64 counts rows of a grouped matrix multiplication in blocks of 64. active counts the experts
    /// that a rank reads, which bind small decode batches. roofline takes the longer of reading and
    /// multiplying, in picoseconds, by data sheets or by FILE of `evenkeel calibrate experts`. Its split is a
    /// heuristic with a proved bound. All other splits are exact.
    #[arg(long, value_name = "COST", help_heading = "Objective")]
    cost: Option<CostSpec>,
    /// Objective after the peak: vector evens out all loads
    #[arg(
        long,
        value_name = "vector",
        value_parser = ["vector"],
        hide_possible_values = true,
        help_heading = "Objective"
    )]
    tie_break: Option<String>,
    /// Speed of each rank, one whole number per rank
    ///
    /// A rank of speed 2 does twice the work.
    #[arg(long, value_name = "N,..", value_delimiter = ',', help_heading = "Objective")]
    speeds: Vec<u32>,
    /// With --speeds: add every policy placing for these speeds
    ///
    /// The policies by themselves place for equal ranks.
    #[arg(long, requires = "speeds", help_heading = "Objective")]
    place_for_speeds: bool,
    /// Tokens that each rank serves in addition, one number per rank
    #[arg(
        long,
        value_name = "TOKENS,..",
        value_delimiter = ',',
        hide_short_help = true,
        help_heading = "Objective"
    )]
    base_load: Vec<u64>,
    /// Split a shared expert too; a token visits K routed ones
    ///
    /// Every rank holds the shared expert.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Objective")]
    shared_expert: Option<u64>,
    /// Minimum of tokens per replica
    ///
    /// A replica with fewer tokens has all of the expert's. The gap to the bound shows the price.
    #[arg(long, value_name = "TOKENS", conflicts_with = "cost", help_heading = "Objective")]
    min_piece: Option<u64>,
}

/// Objective to study, from options that are valid together.
#[derive(Debug)]
pub(super) struct ObjectiveRequest {
    comparison: ComparisonSpec,
    goal: SplitObjective,
    name: String,
    top_k: u64,
}

impl ObjectiveArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<ObjectiveRequest> {
        let has_objective = self.cost.is_some()
            || self.tie_break.is_some()
            || self.min_piece.is_some()
            || self.shared_expert.is_some()
            || !self.speeds.is_empty()
            || !self.base_load.is_empty();
        if !has_objective {
            bail!(
                "no objective is stated: expected --cost, --tie-break, --speeds, --base-load, --shared-expert or --min-piece"
            );
        }
        let mut comparison = self.study.resolve(self.model.model.map(|on| on.model))?;
        comparison.placed_speeds = self.place_for_speeds.then(|| self.speeds.clone());
        let (goal, name) = self.goal();
        Ok(ObjectiveRequest { comparison, goal, name, top_k: self.shared_expert.unwrap_or(1) })
    }

    /// Returns the objective and its name.
    fn goal(&self) -> (SplitObjective, String) {
        let (cost, mut name) = match (&self.cost, self.min_piece) {
            (Some(cost), _) => (cost.cost, cost.name.clone()),
            (None, Some(least)) => (Cost::MinPiece(least), format!("tokens, in pieces of at least {least}")),
            (None, None) => (Cost::Tokens, "tokens".into()),
        };
        if self.tie_break.is_some() {
            name += ", then the vector";
        }
        if self.shared_expert.is_some() {
            name += ", with a shared expert";
        }
        let goal = SplitObjective::default()
            .cost(cost)
            .vector(self.tie_break.is_some())
            .speeds(self.speeds.clone())
            .base(self.base_load.clone())
            .shared(self.shared_expert.is_some());
        (goal, name)
    }
}

pub(super) fn run(args: &ObjectiveArgs, output: Output) -> anyhow::Result<()> {
    let request = args.resolve()?;
    let spec = &request.comparison;
    let trace = spec.trace.read_for_model(spec.model)?;
    output.print_notices(trace.notices());
    let comparison = Comparison::run(spec, &trace, output)?;
    let Comparison { config, outcome, .. } = &comparison;
    let rows = evaluate_objective(&trace, config, outcome, &request.goal, request.top_k)?;
    let title = format!("Measured by {}; 1 is a perfect spread", request.name);
    let text = format!("{title}\n{}", goal_table(outcome, &rows));
    comparison.print_study("goal", (text, rows_to_json(outcome, &rows)), output)
}

fn rows_to_json(outcome: &SimulationResult, rows: &[ObjectiveRow]) -> Value {
    let row = |row: &ObjectiveRow| {
        json!({
            "policy": outcome.planned[row.planned].policy,
            "split": aim_name(row.aim),
            "imbalance": row.imbalance,
            "bound": row.bound,
            "at_bound": row.at_bound,
            "split_us": { "p50": row.split_us.p50, "p99": row.split_us.p99 },
        })
    };
    rows.iter().map(row).collect()
}

fn aim_name(aim: SplitAim) -> &'static str {
    match aim {
        SplitAim::Even => "even",
        SplitAim::Tokens => "exact in tokens",
        SplitAim::Objective => "for this goal",
    }
}

fn goal_table(outcome: &SimulationResult, reached: &[ObjectiveRow]) -> String {
    let rows = reached.iter().map(|row| {
        let i = row.imbalance;
        let mut cells = vec![outcome.planned[row.planned].policy.clone(), aim_name(row.aim).to_owned()];
        cells.extend([i.mean, i.p50, i.p95, i.max, row.bound.mean].map(|x| format!("{x:.3}")));
        cells.push(format!("{:.1}%", 100.0 * row.at_bound));
        cells.extend([row.split_us.p50, row.split_us.p99].map(|us| format!("{us:.1}")));
        cells
    });
    let header = ["policy", "split", "mean", "p50", "p95", "max", "bound", "at bound", "split us", "p99 us"];
    render_table(&header, rows.collect(), 2)
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn a_study_without_an_objective_is_refused() {
        assert!(refusal("objective t.csv --ranks 8").starts_with("no objective is stated"));
    }
}
