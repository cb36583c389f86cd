//! What a split is to achieve, as given on the command line.

use super::model_args::ModelOnGpu;
use clap::Args;
use evenkeel::exec::calibrate;
use evenkeel::split::{Cost, Goal, TILE, roofline};
use std::str::FromStr;

/// `tokens`, `tiles:BM`, `active`, `roofline:MODEL,GPU`, `roofline:FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CostName {
    pub(crate) name: String,
    cost: Cost,
}

impl FromStr for CostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cost = match text.split_once(':') {
            None if text == "tokens" => Cost::Tokens,
            None if text == "active" => Cost::Active,
            None if text == "tiles" => Cost::Tiles(TILE),
            Some(("tiles", tile)) => match tile.parse() {
                Ok(tile) if tile > 0 => Cost::Tiles(tile),
                _ => return Err(format!("tiles of \"{tile}\" tokens: expected a number from 1")),
            },
            Some(("roofline", on)) if on.contains(',') => {
                let on: ModelOnGpu = on.parse()?;
                Cost::Roofline(roofline(&on.model, &on.gpu))
            }
            Some(("roofline", file)) => {
                let text = std::fs::read_to_string(file).map_err(|error| {
                    format!("{file}: {error}; expected MODEL,GPU or a file of `calibrate`")
                })?;
                Cost::Roofline(calibrate::File::roofline(&text).map_err(|error| format!("{file}: {error}"))?)
            }
            _ => {
                return Err(
                    "expected tokens, tiles:TOKENS, active, roofline:MODEL,GPU or roofline:FILE".into()
                );
            }
        };
        Ok(CostName { name: text.into(), cost })
    }
}

/// What counts as load, and what else counts.
#[derive(Debug, Clone, Args)]
pub(crate) struct GoalArgs {
    /// What counts as load: tokens, tiles:TOKENS, active, roofline:MODEL,GPU or roofline:FILE
    ///
    /// tiles:64 counts rows of a grouped matrix multiplication in blocks of 64. active counts the experts that a rank reads
    /// at all: small decode batches are bound by reading weights. roofline takes reading or multiplying, whichever is more,
    /// in picoseconds, by data sheets or as `evenkeel calibrate` measured it in FILE; its split is a heuristic with a proved bound,
    /// all others are exact.
    #[arg(long, value_name = "COST", help_heading = "Goal")]
    pub(crate) cost: Option<CostName>,
    /// After the peak, even out the whole load vector
    #[arg(long, value_name = "vector", value_parser = ["vector"], help_heading = "Goal")]
    then: Option<String>,
    /// How fast each rank is, one whole number per rank: a rank of speed 2 does twice the work
    #[arg(long, value_name = "N,..", value_delimiter = ',', help_heading = "Goal")]
    pub(crate) speeds: Vec<u32>,
    /// With --speeds: also show every policy placing for these speeds, instead of equal ranks
    #[arg(long, requires = "speeds", help_heading = "Goal")]
    pub(crate) place_for_speeds: bool,
    /// Tokens that each rank serves anyway, one number per rank
    #[arg(long, value_name = "TOKENS,..", value_delimiter = ',', help_heading = "Goal")]
    base: Vec<u64>,
    /// A shared expert, held by every rank, joins the split; K is how many routed experts a token visits
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Goal")]
    pub(crate) shared_expert: Option<u64>,
    /// Send no copy fewer tokens than this, unless they are all of the expert; the price is printed as the gap to the bound
    #[arg(long, value_name = "TOKENS", conflicts_with = "cost", help_heading = "Goal")]
    min_piece: Option<u64>,
}

impl GoalArgs {
    /// The goal and its name, if any other than the default was asked for.
    pub(crate) fn goal(&self) -> Option<(Goal, String)> {
        let asked = self.cost.is_some() || self.then.is_some() || self.min_piece.is_some();
        let asked = asked || self.shared_expert.is_some() || !self.speeds.is_empty() || !self.base.is_empty();
        let cost = match (&self.cost, self.min_piece) {
            (Some(cost), _) => cost.cost,
            (None, Some(least)) => Cost::MinPiece(least),
            (None, None) => Cost::Tokens,
        };
        let mut name = match (&self.cost, self.min_piece) {
            (Some(cost), _) => cost.name.clone(),
            (None, Some(least)) => format!("tokens, in pieces of at least {least}"),
            (None, None) => "tokens".into(),
        };
        if self.then.is_some() {
            name += ", then the vector";
        }
        if self.shared_expert.is_some() {
            name += ", with a shared expert";
        }
        let goal = Goal {
            cost,
            vector: self.then.is_some(),
            speeds: self.speeds.clone(),
            base: self.base.clone(),
            shared: self.shared_expert.is_some(),
        };
        asked.then_some((goal, name))
    }
}
