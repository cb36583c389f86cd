//! The policy `recourse`: a placement for batches that will each be split exactly.
//!
//! In: a layer's batches and a cluster. Out: a placement searched on the exact peak that every scenario will have
//! (two-stage programming with recourse; docs/placement.md has the model).
//!
//! **Module map.** `scenarios`: the batches to search on, laid out for pricing. `spread`: how they come from a history, as
//! they were and changed. `choose`: how much they are changed, found on batches held back. `starts`: placements to begin
//! with. `seating`: a placement being changed; `steps`: which changes are tried. `cuts`: lower bounds that price a step;
//! `exact`: peaks and certificates; `score`: one integer for all scenarios; `search`: the annealing that uses them.

mod choose;
mod cuts;
mod exact;
mod options;
mod scenarios;
mod score;
mod search;
mod seating;
mod spread;
mod starts;
mod steps;

pub use options::Recourse;
pub use score::Objective;

use super::{PlaceError, Placement, Policy};
use crate::cluster::Cluster;
use crate::forecast::History;
use crate::trace::dice::Dice;
use exact::Exact;
use scenarios::Scenarios;
use search::{Found, Limits, search};
use seating::Seating;
use spread::Part;

/// The stream of random numbers that everything of one layer is drawn from.
const STREAM: u64 = 0;

/// Draws of scenarios that are searched one after the other.
const DRAWS: u64 = 3;

/// The draw that they are compared on is so many times larger.
const REFEREE: usize = 4;

impl Policy for Recourse {
    fn name(&self) -> String {
        self.to_string()
    }

    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        let (experts, ranks) = (history.experts(), cluster.ranks());
        let fail = |reason: String| PlaceError::Shape { policy: self.to_string(), reason };
        if cluster.slots() < experts {
            return Err(fail(format!("{} slots cannot hold {experts} experts", cluster.slots())));
        }
        let busy = |batch: &&[u64]| batch.iter().any(|&load| load > 0);
        let mut batches: Vec<&[u64]> = history.batches().filter(busy).collect();
        if batches.is_empty() {
            batches.push(history.totals());
        }
        let layer = Layer { policy: self, experts, slots: vec![cluster.slots_per_rank(); ranks] };
        let previous = self.running(experts, cluster)?;
        let mut dice = Dice::new(self.seed, STREAM);
        let spread = match &self.spread {
            Some(spread) => spread.clone(),
            None => choose::spread(&layer, &batches, &mut dice).map_err(|e| fail(e.to_string()))?,
        };
        let found = layer.best_of_draws(&batches, &spread, previous.as_ref(), &mut dice);
        let found = found.map_err(|e| fail(e.to_string()))?;
        match &self.previous {
            Some((placement, _)) => found.kept_in(placement),
            None => found.placement(),
        }
    }
}

/// What stays the same while one layer is planned.
struct Layer<'a> {
    policy: &'a Recourse,
    experts: usize,
    /// Usable slots of each rank.
    slots: Vec<usize>,
}

impl Layer<'_> {
    /// Searches on several draws of scenarios, each with its part of the iterations, and takes the placement that does best on
    /// a larger draw that none has seen.
    fn best_of_draws(
        &self,
        batches: &[&[u64]],
        spread: &[Part],
        previous: Option<&Seating>,
        dice: &mut Dice,
    ) -> Result<Seating, evenkeel_solver::Error> {
        let mut draw =
            |count: usize| spread::scenarios(self.experts, self.slots.len(), batches, spread, count, dice);
        let referee = draw(REFEREE * self.policy.scenarios);
        let iterations = self.policy.iterations(&self.slots) / DRAWS;
        let mut best: Option<Found> = None;
        for number in 0..DRAWS {
            let scenarios = draw(self.policy.scenarios);
            let dice = Dice::new(self.policy.seed, STREAM + 1 + number);
            let seating = self.found(&scenarios, previous, iterations, dice)?.seating;
            let score = Exact::default().score(&seating, &referee, self.policy.objective)?;
            if best.as_ref().is_none_or(|best| score < best.score) {
                best = Some(Found { seating, score });
            }
        }
        Ok(best.map_or_else(|| Seating::empty(self.experts, &self.slots), |best| best.seating))
    }

    /// The best placement for these scenarios: searched from the best start, or from the placement that is running.
    fn found(
        &self,
        scenarios: &Scenarios,
        previous: Option<&Seating>,
        iterations: u64,
        mut dice: Dice,
    ) -> Result<Found, evenkeel_solver::Error> {
        let objective = self.policy.objective;
        let mut exact = Exact::default();
        let mut moves = None;
        let starts = match (previous, &self.policy.previous) {
            (Some(from), Some((_, most))) => {
                moves = Some((from, *most));
                vec![from.clone()]
            }
            _ => starts::starts(&scenarios.shares(), &self.slots, &mut dice),
        };
        let mut best: Option<Found> = None;
        for start in starts {
            let score = exact.score(&start, scenarios, objective)?;
            if best.as_ref().is_none_or(|best| score < best.score) {
                best = Some(Found { seating: start, score });
            }
        }
        let start = best.map_or_else(|| Seating::empty(self.experts, &self.slots), |best| best.seating);
        search(scenarios, objective, start, Limits { iterations, heat: self.policy.heat, moves }, dice)
    }
}
