//! Splits for other objectives than the lowest peak in tokens on equal ranks.
//!
//! In: a placement and a [`SplitObjective`] (once), then the loads of each batch. Out: a [`Split`] with
//! [`ObjectiveFigures`]: the cost of every rank and a bound on the peak. The methods are those of
//! [`evenkeel_solver::objective`]. This file passes them speeds, base loads and the shared expert.

use super::cost_model::CostModel as _;
use super::exact::slots_of_hosts;
use super::{Split, SplitError};
use crate::place::Placement;
use evenkeel_solver::objective::{Cost, Objective, ObjectiveResult, ObjectiveSolver};
use evenkeel_solver::{Hosts, Peak, Problem};

/// Objective of a split.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
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

/// Figures of a split under an objective.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ObjectiveFigures {
    /// Tokens of the shared expert that each rank serves, `[R]`. Empty if none joins the split.
    pub shared: Vec<u64>,
    /// Cost of each rank with its base load, `[R]`.
    pub rank_costs: Vec<u64>,
    /// Highest ratio of cost to speed.
    pub peak: Peak,
    /// Bound below which no split has its peak. It equals the peak if the method is exact.
    pub bound: Peak,
}

impl SplitObjective {
    /// Sets [`Self::cost`](#structfield.cost).
    #[must_use]
    pub fn cost(mut self, cost: Cost) -> Self {
        self.cost = cost;
        self
    }

    /// Sets [`Self::vector`](#structfield.vector).
    #[must_use]
    pub fn vector(mut self, vector: bool) -> Self {
        self.vector = vector;
        self
    }

    /// Sets [`Self::speeds`](#structfield.speeds).
    #[must_use]
    pub fn speeds(mut self, speeds: Vec<u32>) -> Self {
        self.speeds = speeds;
        self
    }

    /// Sets [`Self::base`](#structfield.base).
    #[must_use]
    pub fn base(mut self, base: Vec<u64>) -> Self {
        self.base = base;
        self
    }

    /// Sets [`Self::shared`](#structfield.shared).
    #[must_use]
    pub fn shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Returns the peak of any split of a batch on a placement, as the highest ratio of cost to speed.
    /// `quotas` is `[R * S]`. `shared` is `[R]`, or empty.
    pub fn peak_cost(&self, placement: &Placement, quotas: &[u64], shared: &[u64]) -> Peak {
        let base = |rank: usize| self.base.get(rank).copied().unwrap_or(0);
        let ranks = quotas.chunks(placement.slots_per_rank()).enumerate().map(|(rank, slots)| {
            let own = slots
                .iter()
                .chain(shared.get(rank))
                .fold(0u64, |sum, &q| sum.saturating_add(self.piece_cost(q)));
            // The solver counts active experts of the batch alone, so the base load does not count.
            let base = if self.cost == Cost::Active { 0 } else { self.piece_cost(base(rank)) };
            Peak { load: own.saturating_add(base), speed: self.speeds.get(rank).copied().unwrap_or(1) }
        });
        ranks.max().unwrap_or(Peak { load: 0, speed: 1 })
    }

    /// Returns the mean cost of a batch on `ranks` ranks: the cost of every expert in one piece, plus base
    /// loads, divided by the sum of all speeds. `loads` are those of [`Splitter::split`](super::Splitter).
    pub fn mean_cost(&self, ranks: usize, loads: &[u64]) -> f64 {
        let base = if self.cost == Cost::Active { &[] } else { self.base.as_slice() };
        let all = loads.iter().chain(base).map(|&load| self.piece_cost(load) as f64).sum::<f64>();
        let speeds: u64 = self.speeds.iter().map(|&speed| u64::from(speed)).sum();
        all / if speeds == 0 { ranks as f64 } else { speeds as f64 }
    }

    fn piece_cost(&self, tokens: u64) -> u64 {
        match self.cost {
            Cost::Tokens | Cost::MinPiece(_) => tokens,
            Cost::Tiles(tile) => tokens.div_ceil(tile.max(1)),
            Cost::Active => u64::from(tokens > 0),
            Cost::Roofline(time) => time.expert_ps(tokens),
        }
    }
}

/// Engine of [`SplitterBuilder::objective`](super::SplitterBuilder::objective).
#[derive(Debug)]
pub(super) struct ObjectiveEngine {
    goal: SplitObjective,
    objectives: ObjectiveSolver,
    slot_of: Vec<u32>,
}

impl ObjectiveEngine {
    pub(super) fn new(placement: &Placement, goal: SplitObjective) -> Result<Self, SplitError> {
        let routed = placement.hosts()?;
        let slot_of = slots_of_hosts(placement, &Problem::new(routed.clone()));
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
        Ok(Self { goal, objectives, slot_of })
    }

    pub(super) fn goal(&self) -> &SplitObjective {
        &self.goal
    }

    /// Splits one batch: `[E]`, and the tokens of the shared expert if it joins. All quotas of `split` are
    /// zero before.
    pub(super) fn split(
        &mut self,
        placement: &Placement,
        loads: &[u64],
        split: &mut Split,
    ) -> Result<(), SplitError> {
        let ObjectiveResult { quotas: pairs, rank_loads, peak, bound, .. } = self.objectives.solve(loads)?;
        for (&slot, &quota) in self.slot_of.iter().zip(&pairs) {
            split.quotas[slot as usize] = quota;
        }
        split.sum_ranks(placement.slots_per_rank());
        // The pairs of the shared expert, the last item, follow all others.
        let shared = pairs[self.slot_of.len()..].to_vec();
        split.objective = Some(ObjectiveFigures { shared, rank_costs: rank_loads, peak, bound });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Roofline, Splitter};
    use super::*;

    fn placement() -> Placement {
        // Expert 0 is on both ranks, experts 1 and 2 are on one each.
        Placement::new(3, 2, vec![Some(0), Some(1), Some(0), Some(2)]).unwrap()
    }

    fn solve(goal: &SplitObjective, loads: &[u64]) -> (Split, ObjectiveFigures) {
        let mut splitter = Splitter::builder(placement()).objective(goal.clone()).build().unwrap();
        let mut split = Split::default();
        splitter.split(loads, &mut split).unwrap();
        splitter.check(loads, &split).unwrap();
        let figures = split.objective.clone().unwrap();
        (split, figures)
    }

    #[test]
    fn a_shared_expert_fills_the_light_ranks() {
        let goal = SplitObjective { shared: true, ..SplitObjective::default() };
        // 70 routed pairs at top-1 mean that 70 tokens visit the shared expert.
        let (split, aimed) = solve(&goal, &[10, 50, 10, 70]);
        assert_eq!((aimed.peak.load, aimed.rank_costs.as_slice()), (70, &[70, 70][..]));
        assert_eq!(aimed.shared.iter().sum::<u64>(), 70);
        assert_eq!(split.quotas[0] + split.quotas[2], 10);
        assert_eq!(goal.peak_cost(&placement(), &split.quotas, &aimed.shared), aimed.peak);
    }

    #[test]
    fn speeds_and_base_loads_count() {
        let goal = SplitObjective { speeds: vec![1, 3], base: vec![4, 0], ..SplitObjective::default() };
        let (_, aimed) = solve(&goal, &[40, 2, 2]);
        assert_eq!(aimed.rank_costs, [12, 36]);
        assert!((goal.mean_cost(2, &[40, 2, 2]) - 12.0).abs() < 1e-12);
        let wrong = SplitObjective { speeds: vec![1], ..SplitObjective::default() };
        assert!(Splitter::builder(placement()).objective(wrong).build().is_err());
    }

    #[test]
    fn every_cost_is_what_cost_of_says() {
        let roofline = Roofline { read: 100, token: 3, tile: 16 };
        for cost in
            [Cost::Tokens, Cost::Tiles(16), Cost::Active, Cost::Roofline(roofline), Cost::MinPiece(30)]
        {
            for (vector, base) in [(false, vec![]), (false, vec![5, 0])] {
                let goal = SplitObjective { cost, vector, base, ..SplitObjective::default() };
                let (split, aimed) = solve(&goal, &[90, 33, 7]);
                assert_eq!(goal.peak_cost(&placement(), &split.quotas, &[]), aimed.peak, "{cost:?}");
                assert!(aimed.bound <= aimed.peak, "{cost:?}");
            }
        }
    }
}
