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

/// The stream of random numbers that everything of one layer is drawn from.
const STREAM: u64 = 0;

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
        let spread = match self.spread {
            Some(spread) => spread,
            None => choose::spread(&layer, &batches, &mut dice).map_err(|e| fail(e.to_string()))?,
        };
        let scenarios = spread::scenarios(experts, ranks, &batches, spread, self.scenarios, &mut dice);
        let found = layer.found(&scenarios, previous.as_ref(), self.iterations(&layer.slots), dice);
        let found = found.map_err(|e| fail(e.to_string()))?.seating;
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
