//! The policy `recourse`: a placement for the split that will run.
//!
//! In: a layer's batches and a cluster. Out: a placement found by a search on the peaks of scenarios. Peaks
//! are those of exact splits, of a fixed rule, or both (two-stage programming with recourse;
//! docs/placement.md has the model).
//!
//! **Module map.**
//!
//! - `scenarios`: the batches of a search in the layout for pricing.
//! - `perturb`: scenarios from a history, unchanged and changed. `residual_bootstrap`: scenarios from a
//!   forecast and past residuals. `overdispersion`: variation of batches if few are known.
//! - `model_selection`: the amount of change. `against_eplb`: the same if a rule splits, chosen on held-out
//!   batches with EPLB as a candidate. `search_aim`: the objective.
//! - `initial`: initial placements. `incumbent`: a placement under change. `neighbourhood`: the proposed
//!   changes.
//! - `cuts`: lower bounds that price a step. `evaluate`: peaks and certificates. `share_rule`, `rule_loads`:
//!   peaks under a rule. `score`: one integer for all scenarios.
//! - `copy_score`, `copy_search`: the same for dynamic slots, with copies as score.
//! - `search`: the annealing that uses them. `layer_search`: the search of a layer from its best start.
//!   `totals_limit`: EPLB's peak on recorded totals as a limit. `replan`: re-planning from the current
//!   placement.

mod against_eplb;
mod copy_score;
mod copy_search;
mod cuts;
mod evaluate;
mod incumbent;
mod initial;
mod layer_search;
mod model_selection;
mod neighbourhood;
mod options;
mod overdispersion;
mod perturb;
mod replan;
mod residual_bootstrap;
mod rule_loads;
mod scenarios;
mod score;
mod search;
mod search_aim;
mod share_rule;
mod totals_limit;

pub use options::Recourse;
pub use score::ScenarioObjective;

use super::node_assignment::assign_ranks_to_nodes;
use super::{PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use crate::cluster::Cluster;
use crate::forecast::History;
use crate::rng::SeededRng;
use evenkeel_solver::SolverError;
use model_selection::ScenarioModel;
use perturb::PerturbationPart;
use scenarios::ScenarioSet;
use search_aim::SearchAim;
use totals_limit::TotalsLimit;

/// Stream of random numbers for all draws of one layer.
const RNG_STREAM: u64 = 0;

/// Highest number of batches before the history that are used to estimate their variation.
const MAX_EARLIER_BATCHES: usize = 64;

/// Factor by which the draw of the comparison is larger than that of a search.
const COMPARISON_FACTOR: usize = 2;

impl Policy for Recourse {
    fn name(&self) -> String {
        self.to_string()
    }

    /// Searches from the previous placement with few moves, then with more. Without a limit it also searches
    /// from scratch. Returns the result with the fewest moves that is within noise of the best.
    ///
    /// With a price of moves, the price is part of the objective, so that no move without gain is made. Of
    /// the results with few and with many moves, it returns the most valuable on scenarios that no search has
    /// used.
    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        let (cluster, max_moves) = (request.cluster, request.max_moves);
        let layer = LayerProblem::new(self, request.history, cluster)?;
        let Some(previous) = request.previous else {
            let mut dice = SeededRng::new(self.seed, RNG_STREAM);
            let trust = layer.scenario_model(&mut dice).map_err(|e| self.shape_error(e.to_string()))?;
            return Ok(PlaceResponse::new(layer.place_from_scratch(&trust, &mut dice)?));
        };
        match request.move_price {
            Some(price) => replan::replan_priced(&layer, cluster, previous, max_moves, price),
            None => Ok(PlaceResponse::new(replan::replan(&layer, cluster, previous, max_moves)?)),
        }
    }
}

impl Recourse {
    fn shape_error(&self, reason: String) -> PlaceError {
        PlaceError::Shape { policy: self.to_string(), reason }
    }
}

/// Constant input of the planning of one layer.
struct LayerProblem<'a> {
    policy: &'a Recourse,
    cluster: &'a Cluster,
    experts: usize,
    /// Usable slots of each rank.
    slots: Vec<usize>,
    /// Tokens of each expert over the window.
    totals: &'a [u64],
    /// Batches of the history that hold a token. If there are none, the totals of the history.
    batches: Vec<&'a [u64]>,
    /// Batches of the history, and all earlier batches, that hold a token.
    known: Vec<&'a [u64]>,
    /// True if the batches were drawn from totals.
    are_batches_drawn: bool,
    /// True if only totals are recorded, whether batches were drawn from them or not.
    holds_totals: bool,
    /// True if there are few batches, but enough earlier ones to show their variation.
    has_earlier_batches: bool,
    /// Dispersion of the batches around the forecast, if there are few.
    rho: f64,
}

impl<'a> LayerProblem<'a> {
    fn new(
        policy: &'a Recourse,
        history: &'a History<'_>,
        cluster: &'a Cluster,
    ) -> Result<LayerProblem<'a>, PlaceError> {
        let experts = history.experts();
        if cluster.usable_slots() < experts {
            let slots = cluster.usable_slots();
            return Err(policy.shape_error(format!("{slots} slots cannot hold {experts} experts")));
        }
        let busy = |batch: &&[u64]| batch.iter().any(|&load| load > 0);
        let mut batches: Vec<&[u64]> = history.batches().filter(busy).collect();
        let mut known: Vec<&[u64]> =
            history.earlier_batches().filter(busy).chain(batches.iter().copied()).collect();
        if batches.is_empty() {
            known.clear();
            batches.push(history.totals());
        }
        let slots = (0..cluster.ranks()).map(|rank| cluster.slots_of(rank)).collect();
        let (mut broken, mut strays) = (false, 0.0);
        if batches.len() < model_selection::MIN_BATCHES_TO_HOLD_OUT {
            let latest = &known[known.len().saturating_sub(MAX_EARLIER_BATCHES + batches.len())..];
            let between = overdispersion::fit_rho_robustly(latest)
                .filter(|_| latest.len() >= model_selection::MIN_BATCHES_TO_HOLD_OUT);
            broken = between.is_some();
            strays = between.unwrap_or_else(|| overdispersion::fit_rho(&batches));
        }
        let totals = history.totals();
        Ok(LayerProblem {
            policy,
            cluster,
            experts,
            slots,
            totals,
            batches,
            known,
            are_batches_drawn: history.are_batches_drawn(),
            holds_totals: history.holds_totals(),
            has_earlier_batches: broken,
            rho: strays,
        })
    }

    /// Returns the trust in the batches, as set by the options or chosen.
    fn scenario_model(&self, dice: &mut SeededRng) -> Result<ScenarioModel, SolverError> {
        match &self.policy.spread {
            Some(spread) => Ok(ScenarioModel::Search(spread.clone(), self.default_aim())),
            None => model_selection::choose_model(self, dice),
        }
    }

    /// Returns the objective of a search without a choice.
    fn default_aim(&self) -> SearchAim {
        match self.policy.split {
            None => SearchAim::Both(against_eplb::MIN_EVEN_WEIGHT),
            Some(_) if self.policy.is_for_exact_split() => {
                self.policy.dynamic.map_or(SearchAim::Exact, SearchAim::Copies)
            }
            Some(rule) => SearchAim::Rule(rule),
        }
    }

    /// Returns the best placement without a previous one. With several nodes, it is the one of equal ranks
    /// exchanged that lets most tokens stay on their node.
    fn place_from_scratch(
        &self,
        trust: &ScenarioModel,
        dice: &mut SeededRng,
    ) -> Result<Placement, PlaceError> {
        let placement = self.place_on_one_node(trust, dice)?;
        Ok(assign_ranks_to_nodes(&placement, self.cluster, self.totals)?)
    }

    /// Returns the best placement without a previous one, without regard to nodes.
    fn place_on_one_node(
        &self,
        trust: &ScenarioModel,
        dice: &mut SeededRng,
    ) -> Result<Placement, PlaceError> {
        let failed = |error: SolverError| self.policy.shape_error(error.to_string());
        match trust {
            ScenarioModel::Search(spread, aim) => {
                let iterations = self.policy.iterations(&self.slots);
                let scenarios = self.draw_scenarios(spread, self.policy.scenarios(iterations), dice);
                let search_rng = SeededRng::new(self.policy.seed, RNG_STREAM + 1);
                let found =
                    self.search_best_start(&scenarios, *aim, iterations, search_rng).map_err(failed)?.seating;
                let found = match TotalsLimit::of_layer(self, *aim)? {
                    Some(limit) => limit.search_within(found, &scenarios, *aim)?,
                    None => found,
                };
                let holds =
                    self.policy.spread.is_some() || against_eplb::holds_on_window_batches(self, &found, *aim);
                if holds { found.placement() } else { self.place_on_one_node(&ScenarioModel::Eplb, dice) }
            }
            ScenarioModel::Eplb => against_eplb::eplb_for_totals(self, self.totals).ok_or_else(|| {
                self.policy.shape_error("EPLB's placement needs the same number of slots on each rank".into())
            }),
        }
    }

    /// Draws `count` scenarios of this spread.
    fn draw_scenarios(&self, spread: &[PerturbationPart], count: usize, dice: &mut SeededRng) -> ScenarioSet {
        perturb::draw_scenarios(
            (self.totals, self.slots.len()),
            (&self.batches, self.rho),
            spread,
            count,
            dice,
        )
    }
}
