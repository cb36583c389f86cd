//! Splits for other ends than the fewest tokens on the busiest of equal ranks.
//!
//! In: a placement and a [`Goal`] (once), then one batch's loads. Out: an [`Aimed`]: tokens per slot, what every rank
//! carries in units of the cost, and a bound that proves how good that is. The methods are
//! [`evenkeel_solver::objective`]'s; this file gives them speeds, base loads and the shared expert.

use super::SplitError;
use super::exact::slots;
use super::time::expert_time;
use crate::place::Placement;
use evenkeel_solver::objective::{Cost, Objective, Objectives, Outcome};
use evenkeel_solver::{Hosts, Peak, Problem};

/// What a split is to achieve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Goal {
    /// What counts as load.
    pub cost: Cost,
    /// After the peak, the whole load vector: decreasingly minimal.
    pub vector: bool,
    /// How fast each rank is, `[R]`, one at least 1 each; empty where all are equal.
    pub speeds: Vec<u32>,
    /// Tokens that each rank serves anyway, `[R]`; empty for none.
    pub base: Vec<u64>,
    /// Whether a shared expert, held by every rank, serves every token and joins the split.
    pub shared: bool,
}

/// A split that was aimed at a goal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Aimed {
    /// Tokens that each slot serves, `[R * S]`.
    pub quotas: Vec<u64>,
    /// Tokens of the shared expert that each rank serves, `[R]`; empty where none joins.
    pub shared: Vec<u64>,
    /// What each rank carries in units of the cost, base loads included, `[R]`.
    pub rank_costs: Vec<u64>,
    /// The largest ratio of cost to speed.
    pub peak: Peak,
    /// No split has a lower one; the peak itself where the method is exact.
    pub bound: Peak,
}

/// Splits batch after batch for one goal.
#[derive(Debug)]
pub struct GoalSplitter {
    placement: Placement,
    goal: Goal,
    objectives: Objectives,
    slot_of: Vec<u32>,
    loads: Vec<u64>,
}

impl GoalSplitter {
    /// Prepares a placement for a goal.
    ///
    /// # Errors
    /// When there is not one speed or base load per rank, or the goal asks for what does not combine.
    pub fn new(placement: Placement, goal: Goal) -> Result<Self, SplitError> {
        let routed = placement.hosts()?;
        let slot_of = slots(&placement, &Problem::new(routed.clone()));
        let hosts = if goal.shared {
            let everywhere: Vec<u32> = (0..placement.ranks() as u32).collect();
            let experts = (0..routed.items()).map(|expert| routed.of(expert));
            Hosts::new(placement.ranks(), experts.chain([everywhere.as_slice()]))?
        } else {
            routed
        };
        let mut problem = Problem::new(hosts);
        if !goal.speeds.is_empty() {
            problem = problem.with_speeds(goal.speeds.clone())?;
        }
        if !goal.base.is_empty() {
            problem = problem.with_base(goal.base.clone())?;
        }
        let objective = Objective::new(goal.cost);
        let objective = if goal.vector { objective.then_vector() } else { objective };
        let objectives = Objectives::new(problem, objective)?;
        Ok(Self { placement, goal, objectives, slot_of, loads: Vec::new() })
    }

    /// Splits one batch: `[E]` tokens per expert, and for a shared expert how many tokens there are.
    ///
    /// # Errors
    /// When the loads are not `[E]` or their sum, in tokens or in cost, overflows.
    pub fn split(&mut self, loads: &[u64], tokens: u64) -> Result<Aimed, SplitError> {
        if loads.len() != self.placement.experts() {
            return Err(SplitError::Shape { given: loads.len(), experts: self.placement.experts() });
        }
        self.loads.clear();
        self.loads.extend_from_slice(loads);
        self.loads.extend(self.goal.shared.then_some(tokens));
        let Outcome { quotas: pairs, rank_loads, peak, bound, .. } = self.objectives.solve(&self.loads)?;
        let mut quotas = vec![0; self.placement.slots().len()];
        for (&slot, &quota) in self.slot_of.iter().zip(&pairs) {
            quotas[slot as usize] = quota;
        }
        // The pairs of the shared expert, the last item, follow all others.
        let shared = pairs[self.slot_of.len()..].to_vec();
        Ok(Aimed { quotas, shared, rank_costs: rank_loads, peak, bound })
    }

    /// What another split of the same batch costs: the largest ratio of cost to speed. `shared` is `[R]`, or empty.
    pub fn cost_of(&self, quotas: &[u64], shared: &[u64]) -> Peak {
        let base = |rank: usize| self.goal.base.get(rank).copied().unwrap_or(0);
        let ranks = quotas.chunks(self.placement.slots_per_rank()).enumerate().map(|(rank, slots)| {
            let own =
                slots.iter().chain(shared.get(rank)).fold(0u64, |sum, &q| sum.saturating_add(self.piece(q)));
            // Active experts are counted before the batch from none.
            let base = if self.goal.cost == Cost::Active { 0 } else { self.piece(base(rank)) };
            Peak { load: own.saturating_add(base), speed: self.goal.speeds.get(rank).copied().unwrap_or(1) }
        });
        ranks.max().unwrap_or(Peak { load: 0, speed: 1 })
    }

    /// The cost of the whole batch spread perfectly: each expert in one piece, over all speeds.
    pub fn mean_cost(&self, loads: &[u64], tokens: u64) -> f64 {
        let base = if self.goal.cost == Cost::Active { &[] } else { self.goal.base.as_slice() };
        let shared = self.goal.shared.then_some(tokens);
        let all = loads.iter().chain(base).chain(&shared).map(|&load| self.piece(load) as f64).sum::<f64>();
        let speeds: u64 = self.goal.speeds.iter().map(|&speed| u64::from(speed)).sum();
        all / if speeds == 0 { self.placement.ranks() as f64 } else { speeds as f64 }
    }

    fn piece(&self, tokens: u64) -> u64 {
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
        // Expert 0 on both ranks, 1 and 2 on one each.
        Placement::new(3, 2, vec![Some(0), Some(1), Some(0), Some(2)]).unwrap()
    }

    #[test]
    fn a_shared_expert_fills_the_light_ranks() {
        let goal = Goal { shared: true, ..Goal::default() };
        let mut splitter = GoalSplitter::new(placement(), goal).unwrap();
        // 70 routed pairs at top-1: 70 tokens visit the shared expert.
        let aimed = splitter.split(&[10, 50, 10], 70).unwrap();
        assert_eq!((aimed.peak.load, aimed.rank_costs.as_slice()), (70, &[70, 70][..]));
        assert_eq!(aimed.shared.iter().sum::<u64>(), 70);
        assert_eq!(aimed.quotas[0] + aimed.quotas[2], 10);
        assert_eq!(splitter.cost_of(&aimed.quotas, &aimed.shared), aimed.peak);
    }

    #[test]
    fn speeds_and_base_loads_count() {
        let goal = Goal { speeds: vec![1, 3], base: vec![4, 0], ..Goal::default() };
        let mut splitter = GoalSplitter::new(placement(), goal).unwrap();
        let aimed = splitter.split(&[40, 2, 2], 0).unwrap();
        assert_eq!(aimed.rank_costs, [12, 36]);
        assert!((splitter.mean_cost(&[40, 2, 2], 0) - 12.0).abs() < 1e-12);
        assert!(GoalSplitter::new(placement(), Goal { speeds: vec![1], ..Goal::default() }).is_err());
    }

    #[test]
    fn every_cost_is_what_cost_of_says() {
        let roofline = Roofline { read: 100, token: 3, tile: 16 };
        for cost in
            [Cost::Tokens, Cost::Tiles(16), Cost::Active, Cost::Roofline(roofline), Cost::MinPiece(30)]
        {
            for (vector, base) in [(false, vec![]), (false, vec![5, 0])] {
                let goal = Goal { cost, vector, base, ..Goal::default() };
                let mut splitter = GoalSplitter::new(placement(), goal).unwrap();
                let aimed = splitter.split(&[90, 33, 7], 0).unwrap();
                assert_eq!(splitter.cost_of(&aimed.quotas, &[]), aimed.peak, "{cost:?}");
                assert!(aimed.bound <= aimed.peak, "{cost:?}");
            }
        }
    }
}
