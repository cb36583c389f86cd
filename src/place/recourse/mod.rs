//! The policy `recourse`: a placement for the split that will run.
//!
//! In: a layer's batches and a cluster. Out: a placement searched on the peak that every scenario will have, by exact splits,
//! under a fixed rule, or both (two-stage programming with recourse; docs/placement.md has the model).
//!
//! **Module map.** `scenarios`: the batches to search on, laid out for pricing. `spread`: how they come from a history, as
//! they were and changed; `residuals`: on what is foreseen of a window; `dispersion`: how far batches stray where few are known.
//! `choose`: how much they are changed, found on batches held back; `against_eplb`: the same where a rule splits, with EPLB as
//! a candidate. `aim`: what is minimised. `starts`: placements to begin with. `seating`: a placement being changed; `steps`:
//! which changes are tried. `cuts`: lower bounds that price a step; `exact`: peaks and certificates; `share_rule`, `rule_loads`:
//! peaks under a rule; `score`: one integer for all scenarios; `search`: the annealing that uses them. `again`: planning from
//! what runs.

mod again;
mod against_eplb;
mod aim;
mod choose;
mod cuts;
mod dispersion;
mod exact;
mod options;
mod residuals;
mod rule_loads;
mod scenarios;
mod score;
mod search;
mod seating;
mod share_rule;
mod spread;
mod starts;
mod steps;

pub use options::Recourse;
pub use score::Objective;

use super::{PlaceError, Placement, Policy, Priced};
use crate::cluster::Cluster;
use crate::forecast::History;
use crate::split::Method;
use crate::trace::dice::Dice;
use aim::Aim;
use choose::Trust;
use evenkeel_solver::Error;
use exact::Exact;
use rule_loads::RuleLoads;
use scenarios::Scenarios;
use score::each;
use search::{Found, Limits, search};
use seating::Seating;
use spread::Part;

/// The stream of random numbers that everything of one layer is drawn from.
const STREAM: u64 = 0;

/// Draws of scenarios that are searched one after the other.
const DRAWS: u64 = 2;

/// Latest batches before the history that show how far batches stray.
const EARLIER: usize = 64;

/// The draw that they are compared on is so many times larger.
const REFEREE: usize = 2;

impl Policy for Recourse {
    fn name(&self) -> String {
        self.to_string()
    }

    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        let layer = Layer::new(self, history, cluster)?;
        let mut dice = Dice::new(self.seed, STREAM);
        let trust = layer.trust(&mut dice).map_err(|e| self.failed(e.to_string()))?;
        layer.scratch(&trust, &mut dice)
    }

    /// Searches from the previous placement with few moves, then more; without a limit from scratch as well. Of what was
    /// found, the fewest moves that are within noise of the best.
    fn replan(
        &self,
        history: &History<'_>,
        cluster: &Cluster,
        previous: &Placement,
        max_moves: Option<usize>,
    ) -> Result<Placement, PlaceError> {
        again::replan(&Layer::new(self, history, cluster)?, cluster, previous, max_moves)
    }

    /// The search itself pays for its moves, so that none is made that gains nothing; of what was found with few and with many,
    /// what is worth most on scenarios that no search has seen.
    fn replan_priced(
        &self,
        history: &History<'_>,
        cluster: &Cluster,
        previous: &Placement,
        max_moves: Option<usize>,
        price: f64,
    ) -> Result<Option<Priced>, PlaceError> {
        again::priced(&Layer::new(self, history, cluster)?, cluster, previous, max_moves, price).map(Some)
    }
}

impl Recourse {
    fn failed(&self, reason: String) -> PlaceError {
        PlaceError::Shape { policy: self.to_string(), reason }
    }
}

/// What stays the same while one layer is planned.
struct Layer<'a> {
    policy: &'a Recourse,
    cluster: &'a Cluster,
    experts: usize,
    /// Usable slots of each rank.
    slots: Vec<usize>,
    /// Tokens of each expert over the window.
    totals: &'a [u64],
    /// The batches of the history that hold a token; its totals where there are none.
    batches: Vec<&'a [u64]>,
    /// Those that do, and all before them.
    known: Vec<&'a [u64]>,
    /// Whether there are few, but enough before them to show how far batches stray.
    broken: bool,
    /// How far batches stray from what is foreseen, where there are few.
    strays: f64,
}

impl<'a> Layer<'a> {
    fn new(
        policy: &'a Recourse,
        history: &'a History<'_>,
        cluster: &'a Cluster,
    ) -> Result<Layer<'a>, PlaceError> {
        let experts = history.experts();
        if cluster.usable_slots() < experts {
            let slots = cluster.usable_slots();
            return Err(policy.failed(format!("{slots} slots cannot hold {experts} experts")));
        }
        let busy = |batch: &&[u64]| batch.iter().any(|&load| load > 0);
        let mut batches: Vec<&[u64]> = history.batches().filter(busy).collect();
        let mut known: Vec<&[u64]> = history.earlier().filter(busy).chain(batches.iter().copied()).collect();
        if batches.is_empty() {
            known.clear();
            batches.push(history.totals());
        }
        let slots = (0..cluster.ranks()).map(|rank| cluster.usable(rank)).collect();
        let (mut broken, mut strays) = (false, 0.0);
        if batches.len() < choose::FEWEST {
            let latest = &known[known.len().saturating_sub(EARLIER + batches.len())..];
            let between = dispersion::between(latest).filter(|_| latest.len() >= choose::FEWEST);
            broken = between.is_some();
            strays = between.unwrap_or_else(|| dispersion::fitted(&batches));
        }
        let totals = history.totals();
        Ok(Layer { policy, cluster, experts, slots, totals, batches, known, broken, strays })
    }

    /// How far the batches are to be trusted: as asked, or chosen.
    fn trust(&self, dice: &mut Dice) -> Result<Trust, Error> {
        match &self.policy.spread {
            Some(spread) => Ok(Trust::Search(spread.clone(), self.aim())),
            None => choose::trust(self, dice),
        }
    }

    /// What a search without a choice minimises.
    fn aim(&self) -> Aim {
        match self.policy.split {
            None => Aim::Both(against_eplb::LEAST_WEIGHT),
            Some(Method::Exact | Method::Lp | Method::Affine5) => Aim::Exact,
            Some(rule) => Aim::Rule(rule),
        }
    }

    /// The best placement without a past.
    fn scratch(&self, trust: &Trust, dice: &mut Dice) -> Result<Placement, PlaceError> {
        let failed = |error: Error| self.policy.failed(error.to_string());
        match trust {
            Trust::Search(spread, aim) => {
                let found = self.best_of_draws(spread, *aim, dice).map_err(failed)?;
                let holds = self.policy.spread.is_some() || against_eplb::holds_on_window(self, &found, *aim);
                if holds { found.placement() } else { self.scratch(&Trust::Eplb, dice) }
            }
            Trust::Graph(number) => {
                let seen = Scenarios::new(self.experts, self.slots.len(), self.batches.iter().copied());
                let starts =
                    starts::starts(&seen.shares(), &self.slots, &mut choose::graph_dice(self.policy));
                let start = starts.into_iter().nth(*number);
                start.unwrap_or_else(|| Seating::empty(self.experts, &self.slots)).placement()
            }
            Trust::Eplb => against_eplb::eplb_of(self, self.totals).ok_or_else(|| {
                self.policy.failed("EPLB's placement needs as many slots on each rank".into())
            }),
        }
    }

    /// So many scenarios by this spread.
    fn draw(&self, spread: &[Part], count: usize, dice: &mut Dice) -> Scenarios {
        spread::scenarios(self.experts, self.slots.len(), (&self.batches, self.strays), spread, count, dice)
    }

    /// Searches on several draws of scenarios, each with its part of the iterations, and takes the placement that does best on
    /// a larger draw that none has seen.
    fn best_of_draws(&self, spread: &[Part], aim: Aim, dice: &mut Dice) -> Result<Seating, Error> {
        let referee = self.draw(spread, REFEREE * self.policy.scenarios, dice);
        let iterations = self.policy.iterations(&self.slots) / DRAWS;
        let mut best: Option<Found> = None;
        for number in 0..DRAWS {
            let scenarios = self.draw(spread, self.policy.scenarios, dice);
            let dice = Dice::new(self.policy.seed, STREAM + 1 + number);
            let seating = self.found(&scenarios, aim, iterations, dice)?.seating;
            let score = self.score(&seating, &referee, aim)?;
            if best.as_ref().is_none_or(|best| score < best.score) {
                best = Some(Found { seating, score });
            }
        }
        Ok(best.map_or_else(|| Seating::empty(self.experts, &self.slots), |best| best.seating))
    }

    /// The best placement for these scenarios, searched from the best start.
    fn found(
        &self,
        scenarios: &Scenarios,
        aim: Aim,
        iterations: u64,
        mut dice: Dice,
    ) -> Result<Found, Error> {
        let objective = self.policy.objective;
        let mut best: Option<Found> = None;
        for start in starts::starts(&scenarios.shares(), &self.slots, &mut dice) {
            let score = self.score(&start, scenarios, aim)?;
            if best.as_ref().is_none_or(|best| score < best.score) {
                best = Some(Found { seating: start, score });
            }
        }
        let start = best.map_or_else(|| Seating::empty(self.experts, &self.slots), |best| best.seating);
        let limits = Limits { iterations, moves: None };
        let near = search(scenarios, (Objective::Mean, aim, self.cluster), start, limits, dice.clone())?;
        if objective == Objective::Mean {
            return Ok(near);
        }
        // A tail says nothing of most steps: the mean leads near it first.
        search(scenarios, (objective, aim, self.cluster), near.seating, limits, dice)
    }

    /// The score of a placement.
    fn score(&self, seating: &Seating, scenarios: &Scenarios, aim: Aim) -> Result<u64, Error> {
        let objective = self.policy.objective;
        let exact = if aim.exact() { Exact::default().score(seating, scenarios, objective)? } else { 0 };
        let rule = aim
            .rule(self.cluster)
            .map_or(0, |rule| objective.score(scenarios, RuleLoads::new(scenarios, rule, seating).peaks()));
        Ok(aim.total(exact, rule))
    }

    /// What a placement adds to the score in every scenario.
    fn rows(&self, seating: &Seating, scenarios: &Scenarios, aim: Aim) -> Result<Vec<u64>, Error> {
        let none = || vec![0; scenarios.len()];
        let exact = if aim.exact() {
            each(scenarios, &Exact::default().peaks(seating, scenarios)?).collect()
        } else {
            none()
        };
        let rule = aim.rule(self.cluster).map_or_else(none, |rule| {
            each(scenarios, RuleLoads::new(scenarios, rule, seating).peaks()).collect()
        });
        Ok(exact.iter().zip(&rule).map(|(&exact, &rule)| aim.total(exact, rule)).collect())
    }
}
