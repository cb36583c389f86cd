//! Splits for other objectives than the lowest peak in tokens on equal ranks.
//!
//! In: a placement and a [`SplitObjective`] (once), then the loads of each batch. Out: an [`ObjectiveSplit`].
//! It holds the tokens per slot, the cost of every rank and a bound on the peak. The methods are those of
//! [`evenkeel_solver::objective`]. This file passes them speeds, base loads and the shared expert.

use super::SplitError;
use super::cost_model::expert_time;
use super::exact::slots_of_hosts;
use crate::place::Placement;
use evenkeel_solver::objective::{Cost, Objective, ObjectiveResult, ObjectiveSolver};
use evenkeel_solver::{Hosts, Peak, Problem};

/// Objective of a split.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SplitObjective {
    /// Measure of load.
    pub cost: Cost,
    /// True if the whole load vector is minimised after the peak, so that it is decreasingly minimal.
    pub vector: bool,
    /// Speed of each rank, `[R]`, at least 1. Empty if all are equal.
    pub speeds: Vec<u32>,
    /// Base load of each rank in tokens, `[R]`. Empty for none.
    pub base: Vec<u64>,
    /// True if a shared expert on every rank serves every token and joins the split.
    pub shared: bool,
}

/// Split for a goal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectiveSplit {
    /// Tokens that each slot serves, `[R * S]`.
    pub quotas: Vec<u64>,
    /// Tokens of the shared expert that each rank serves, `[R]`. Empty if none joins the split.
    pub shared: Vec<u64>,
    /// Cost of each rank with its base load, `[R]`.
    pub rank_costs: Vec<u64>,
    /// Highest ratio of cost to speed.
    pub peak: Peak,
    /// Bound below which no split has its peak. It equals the peak if the method is exact.
    pub bound: Peak,
}

/// Splitter of successive batches for one goal.
#[derive(Debug)]
pub struct ObjectiveSplitter {
    placement: Placement,
    goal: SplitObjective,
    objectives: ObjectiveSolver,
    slot_of: Vec<u32>,
    loads: Vec<u64>,
}

impl ObjectiveSplitter {
    /// Prepares a placement for a goal.
    ///
    /// # Errors
    /// Fails if the number of speeds or base loads differs from the number of ranks. Fails if the parts of
    /// the goal cannot be combined.
    pub fn new(placement: Placement, goal: SplitObjective) -> Result<Self, SplitError> {
        let routed = placement.hosts()?;
        let slot_of = slots_of_hosts(&placement, &Problem::new(routed.clone()));
        let hosts = if goal.shared {
            let everywhere: Vec<u32> = (0..placement.ranks() as u32).collect();
            let experts = (0..routed.items()).map(|expert| routed.ranks_of(expert));
            Hosts::new(placement.ranks(), experts.chain([everywhere.as_slice()]))?
        } else {
            routed
        };
        let mut problem = Problem::new(hosts);
        if !goal.speeds.is_empty() {
            problem = problem.with_speeds(goal.speeds.clone())?;
        }
        if !goal.base.is_empty() {
            problem = problem.with_base_loads(goal.base.clone())?;
        }
        let objective = Objective::new(goal.cost);
        let objective = if goal.vector { objective.then_vector() } else { objective };
        let objectives = ObjectiveSolver::new(problem, objective)?;
        Ok(Self { placement, goal, objectives, slot_of, loads: Vec::new() })
    }

    /// Splits one batch of `[E]` tokens per expert. `tokens` is the load of the shared expert.
    ///
    /// # Errors
    /// Fails if the loads are not `[E]`, or if their sum overflows in tokens or in cost.
    pub fn split(&mut self, loads: &[u64], tokens: u64) -> Result<ObjectiveSplit, SplitError> {
        if loads.len() != self.placement.experts() {
            return Err(SplitError::Shape { given: loads.len(), experts: self.placement.experts() });
        }
        self.loads.clear();
        self.loads.extend_from_slice(loads);
        self.loads.extend(self.goal.shared.then_some(tokens));
        let ObjectiveResult { quotas: pairs, rank_loads, peak, bound, .. } =
            self.objectives.solve(&self.loads)?;
        let mut quotas = vec![0; self.placement.slots().len()];
        for (&slot, &quota) in self.slot_of.iter().zip(&pairs) {
            quotas[slot as usize] = quota;
        }
        // The pairs of the shared expert, the last item, follow all others.
        let shared = pairs[self.slot_of.len()..].to_vec();
        Ok(ObjectiveSplit { quotas, shared, rank_costs: rank_loads, peak, bound })
    }

    /// Returns the peak of another split of the same batch, as the highest ratio of cost to speed. `shared`
    /// is `[R]`, or empty.
    pub fn peak_cost(&self, quotas: &[u64], shared: &[u64]) -> Peak {
        let base = |rank: usize| self.goal.base.get(rank).copied().unwrap_or(0);
        let ranks = quotas.chunks(self.placement.slots_per_rank()).enumerate().map(|(rank, slots)| {
            let own = slots
                .iter()
                .chain(shared.get(rank))
                .fold(0u64, |sum, &q| sum.saturating_add(self.piece_cost(q)));
            // The solver counts active experts of the batch alone, so the base load does not count.
            let base = if self.goal.cost == Cost::Active { 0 } else { self.piece_cost(base(rank)) };
            Peak { load: own.saturating_add(base), speed: self.goal.speeds.get(rank).copied().unwrap_or(1) }
        });
        ranks.max().unwrap_or(Peak { load: 0, speed: 1 })
    }

    /// Returns the mean cost of the batch: the cost of every expert in one piece, plus base loads, divided by
    /// the sum of all speeds.
    pub fn mean_cost(&self, loads: &[u64], tokens: u64) -> f64 {
        let base = if self.goal.cost == Cost::Active { &[] } else { self.goal.base.as_slice() };
        let shared = self.goal.shared.then_some(tokens);
        let all =
            loads.iter().chain(base).chain(&shared).map(|&load| self.piece_cost(load) as f64).sum::<f64>();
        let speeds: u64 = self.goal.speeds.iter().map(|&speed| u64::from(speed)).sum();
        all / if speeds == 0 { self.placement.ranks() as f64 } else { speeds as f64 }
    }

    fn piece_cost(&self, tokens: u64) -> u64 {
        match self.goal.cost {
            Cost::Tokens | Cost::MinPiece(_) => tokens,
            Cost::Tiles(tile) => tokens.div_ceil(tile.max(1)),
            Cost::Active => u64::from(tokens > 0),
            Cost::Roofline(time) => expert_time(&time, tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Roofline;
    use super::*;

    fn placement() -> Placement {
        // Expert 0 is on both ranks, experts 1 and 2 are on one each.
        Placement::new(3, 2, vec![Some(0), Some(1), Some(0), Some(2)]).unwrap()
    }

    #[test]
    fn a_shared_expert_fills_the_light_ranks() {
        let goal = SplitObjective { shared: true, ..SplitObjective::default() };
        let mut splitter = ObjectiveSplitter::new(placement(), goal).unwrap();
        // 70 routed pairs at top-1 mean that 70 tokens visit the shared expert.
        let aimed = splitter.split(&[10, 50, 10], 70).unwrap();
        assert_eq!((aimed.peak.load, aimed.rank_costs.as_slice()), (70, &[70, 70][..]));
        assert_eq!(aimed.shared.iter().sum::<u64>(), 70);
        assert_eq!(aimed.quotas[0] + aimed.quotas[2], 10);
        assert_eq!(splitter.peak_cost(&aimed.quotas, &aimed.shared), aimed.peak);
    }

    #[test]
    fn speeds_and_base_loads_count() {
        let goal = SplitObjective { speeds: vec![1, 3], base: vec![4, 0], ..SplitObjective::default() };
        let mut splitter = ObjectiveSplitter::new(placement(), goal).unwrap();
        let aimed = splitter.split(&[40, 2, 2], 0).unwrap();
        assert_eq!(aimed.rank_costs, [12, 36]);
        assert!((splitter.mean_cost(&[40, 2, 2], 0) - 12.0).abs() < 1e-12);
        assert!(
            ObjectiveSplitter::new(
                placement(),
                SplitObjective { speeds: vec![1], ..SplitObjective::default() }
            )
            .is_err()
        );
    }

    #[test]
    fn every_cost_is_what_cost_of_says() {
        let roofline = Roofline { read: 100, token: 3, tile: 16 };
        for cost in
            [Cost::Tokens, Cost::Tiles(16), Cost::Active, Cost::Roofline(roofline), Cost::MinPiece(30)]
        {
            for (vector, base) in [(false, vec![]), (false, vec![5, 0])] {
                let goal = SplitObjective { cost, vector, base, ..SplitObjective::default() };
                let mut splitter = ObjectiveSplitter::new(placement(), goal).unwrap();
                let aimed = splitter.split(&[90, 33, 7], 0).unwrap();
                assert_eq!(splitter.peak_cost(&aimed.quotas, &[]), aimed.peak, "{cost:?}");
                assert!(aimed.bound <= aimed.peak, "{cost:?}");
            }
        }
    }
}
