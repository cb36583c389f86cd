//! Objectives in lexicographic order: a measure of load, then further objectives.
//!
//! In: a problem, an [`Objective`], batches. Out: quotas in tokens with their figures ([`ObjectiveResult`]).
//! Unsupported combinations are refused when the planner is built, not when a batch arrives.
//!
//! | cost | peak | vector | traffic |
//! |---|---|---|---|
//! | [`Cost::Tokens`] | exact | exact | exact, within either |
//! | [`Cost::Tiles`] | exact | exact, always (it is free) | – |
//! | [`Cost::Active`] | exact | exact, always | – |
//! | [`Cost::Roofline`] | heuristic with bound | – | – |
//! | [`Cost::MinPiece`] | heuristic with bound | – | – |
//!
//! Traffic combined with tiles is no network flow. Traffic combined with active items would be one, but is
//! not built. The vector of a heuristic proves nothing. Every rank starts without active items. For other
//! starts, see [`ActiveSplitter::with_base_counts`].

use super::{
    ActiveSplit, ActiveSplitter, BalanceWorkspace, MinPieceSplitter, PrimaryObjective, Roofline,
    RooflineSplitter, TileSplit, TileSplitter, TrafficSplit, TrafficSplitter, balance_into,
};
use crate::{Peak, Problem, RankSplit, SolverError, solve_into};

/// Measure of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cost {
    /// Tokens.
    #[default]
    Tokens,
    /// Tiles of the given number of tokens.
    Tiles(u64),
    /// Items that a rank serves at all.
    Active,
    /// Reads or tiles, whichever costs more.
    Roofline(Roofline),
    /// Tokens, in pieces of at least the given number.
    MinPiece(u64),
}

impl Cost {
    fn name(self) -> &'static str {
        match self {
            Cost::Tokens => "tokens",
            Cost::Tiles(_) => "tiles",
            Cost::Active => "active items",
            Cost::Roofline(_) => "the roofline",
            Cost::MinPiece(_) => "a least piece",
        }
    }
}

/// Objective in lexicographic order: the peak of a cost, then optionally the whole vector, then optionally
/// traffic.
///
/// ```
/// use evenkeel_solver::objective::{Cost, Objective, ObjectiveSolver};
/// use evenkeel_solver::{Hosts, Problem};
///
/// let problem = Problem::new(Hosts::new(4, [&[0, 1][..], &[1, 2], &[2, 3]])?);
/// let objective = Objective::new(Cost::Tokens).then_vector().then_traffic(vec![0, 0, 1, 1]);
/// let mut objectives = ObjectiveSolver::new(problem, objective)?;
/// // Rows are sources: ranks 0 and 1 hold tokens of item 1, rank 3 those of items 0 and 2.
/// let outcome = objectives.solve(&[0, 4, 0, 0, 8, 0, 0, 0, 0, 6, 0, 10])?;
/// assert_eq!(outcome.peak.load, 8);
/// assert_eq!(outcome.traffic.map(|traffic| traffic.off_node), Some(10));
/// # Ok::<(), evenkeel_solver::SolverError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objective {
    cost: Cost,
    vector: bool,
    nodes: Option<Vec<u32>>,
}

impl Objective {
    /// Creates the objective of minimising the peak of this cost.
    pub fn new(cost: Cost) -> Objective {
        Objective { cost, vector: false, nodes: None }
    }

    /// Adds the whole vector, decreasingly minimal, as the next objective.
    #[must_use]
    pub fn then_vector(self) -> Objective {
        Objective { vector: true, ..self }
    }

    /// Adds traffic as the next objective. `nodes` holds the node of every rank. Batches are then counts
    /// `[source][item]`.
    #[must_use]
    pub fn then_traffic(self, nodes: Vec<u32>) -> Objective {
        Objective { nodes: Some(nodes), ..self }
    }
}

/// Result of one batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ObjectiveResult {
    /// Quota of every (item, host) pair in tokens.
    pub quotas: Vec<u64>,
    /// Load of every rank in units of the cost, base loads included.
    pub rank_loads: Vec<u64>,
    /// Highest ratio of these loads to speed.
    pub peak: Peak,
    /// Lower bound of all peaks. It equals the peak if the method is exact.
    pub bound: Peak,
    /// Ranks that prove the bound, for the problem in units of the cost. Empty for the roofline, whose bound
    /// has more than one kind of proof.
    pub certificate: Vec<u32>,
    /// Remaining traffic, if it is an objective.
    pub traffic: Option<TrafficTotals>,
}

/// Tokens served away from their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrafficTotals {
    /// Tokens on another node.
    pub off_node: u64,
    /// Tokens on another rank, other nodes included.
    pub off_rank: u64,
}

/// Splitter of successive batches for one problem and objective.
#[derive(Debug, Clone)]
pub struct ObjectiveSolver {
    problem: Problem,
    method: ObjectiveMethod,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one per problem")]
enum ObjectiveMethod {
    Peak(crate::Workspace),
    Vector(BalanceWorkspace),
    Traffic(TrafficSplitter, PrimaryObjective),
    Tiles(TileSplitter),
    Active(ActiveSplitter),
    Roofline(RooflineSplitter),
    MinPiece(MinPieceSplitter),
}

impl ObjectiveSolver {
    /// Prepares an objective for a problem.
    ///
    /// # Errors
    /// Returns [`SolverError::Combination`] if the objective is an unsupported combination, and the errors of
    /// the cost's own type.
    pub fn new(problem: Problem, objective: Objective) -> Result<ObjectiveSolver, SolverError> {
        let Objective { cost, vector, nodes } = objective;
        let refuse = |then| SolverError::Combination { cost: cost.name(), then };
        if nodes.is_some() && cost != Cost::Tokens {
            return Err(refuse("traffic"));
        }
        if vector && matches!(cost, Cost::Roofline(_) | Cost::MinPiece(_)) {
            return Err(refuse("the whole vector"));
        }
        let method = match (cost, nodes) {
            (Cost::Tokens, Some(nodes)) => {
                let keep = if vector { PrimaryObjective::Vector } else { PrimaryObjective::Peak };
                ObjectiveMethod::Traffic(TrafficSplitter::new(problem.clone(), &nodes)?, keep)
            }
            (Cost::Tokens, None) if vector => ObjectiveMethod::Vector(BalanceWorkspace::default()),
            (Cost::Tokens, None) => ObjectiveMethod::Peak(crate::Workspace::new(&problem)),
            (Cost::Tiles(tile), _) => ObjectiveMethod::Tiles(TileSplitter::new(problem.clone(), tile)?),
            (Cost::Active, _) => ObjectiveMethod::Active(ActiveSplitter::new(problem.clone())),
            (Cost::Roofline(roofline), _) => {
                ObjectiveMethod::Roofline(RooflineSplitter::new(problem.clone(), roofline)?)
            }
            (Cost::MinPiece(least), _) => {
                ObjectiveMethod::MinPiece(MinPieceSplitter::new(problem.clone(), least))
            }
        };
        Ok(ObjectiveSolver { problem, method })
    }

    /// Splits one batch: one load per item or, with traffic, counts `[source][item]`.
    ///
    /// # Errors
    /// Fails as [`solve`](crate::solve) does, and with the errors of the cost's own type.
    pub fn solve(&mut self, batch: &[u64]) -> Result<ObjectiveResult, SolverError> {
        let mut split = RankSplit::default();
        match &mut self.method {
            ObjectiveMethod::Peak(workspace) => solve_into(&self.problem, batch, workspace, &mut split)?,
            ObjectiveMethod::Vector(workspace) => balance_into(&self.problem, batch, workspace, &mut split)?,
            ObjectiveMethod::Traffic(traffic, keep) => {
                let TrafficSplit { split, off_node, off_rank, .. } = traffic.solve(batch, *keep)?;
                return Ok(ObjectiveResult {
                    traffic: Some(TrafficTotals { off_node, off_rank }),
                    ..ObjectiveResult::from_exact(split)
                });
            }
            ObjectiveMethod::Tiles(tiles) => {
                let TileSplit { in_tiles, quotas, .. } = tiles.solve(batch)?;
                return Ok(ObjectiveResult { quotas, ..ObjectiveResult::from_exact(in_tiles) });
            }
            ObjectiveMethod::Active(active) => {
                let ActiveSplit { active, quotas, .. } = active.solve(batch)?;
                return Ok(ObjectiveResult { quotas, ..ObjectiveResult::from_exact(active) });
            }
            ObjectiveMethod::Roofline(rooflines) => {
                let answer = rooflines.solve(batch)?;
                let (quotas, rank_loads) = (answer.quotas, answer.rank_costs);
                let (peak, bound) = (answer.peak, answer.bound);
                return Ok(ObjectiveResult {
                    quotas,
                    rank_loads,
                    peak,
                    bound,
                    certificate: vec![],
                    traffic: None,
                });
            }
            ObjectiveMethod::MinPiece(pieces) => {
                let answer = pieces.solve(batch)?;
                return Ok(ObjectiveResult {
                    bound: answer.bound,
                    ..ObjectiveResult::from_exact(answer.split)
                });
            }
        }
        Ok(ObjectiveResult::from_exact(split))
    }
}

impl ObjectiveResult {
    fn from_exact(split: RankSplit) -> ObjectiveResult {
        let RankSplit { quotas, rank_loads, peak, certificate, .. } = split;
        ObjectiveResult { quotas, rank_loads, peak, bound: peak, certificate, traffic: None }
    }
}
