//! Objectives in lexicographic order: what load is, then what else counts.
//!
//! In: a problem, an [`Objective`], batches. Out: quotas in tokens with what was reached ([`Outcome`]). What does not combine
//! is refused when the planner is built, not when a batch is there.
//!
//! | cost | peak | vector | traffic |
//! |---|---|---|---|
//! | [`Cost::Tokens`] | exact | exact | exact, within either |
//! | [`Cost::Tiles`] | exact | exact, always (it is free) | – |
//! | [`Cost::Active`] | exact | exact, always | – |
//! | [`Cost::Roofline`] | heuristic with bound | – | – |
//! | [`Cost::MinPiece`] | heuristic with bound | – | – |
//!
//! Traffic beside tiles is no network flow; beside active items it would be one, and is not built; the vector of a heuristic
//! proves nothing. Active items start from none on every rank: for others, see [`Active::with_base_counts`].

use super::{
    Active, ActiveSplit, Keep, MinPiece, Roofline, Rooflines, TileSplit, Tiles, Traffic, TrafficSplit,
    Workspace, balance_into,
};
use crate::{Error, Peak, Problem, Split, solve_into};

/// What counts as load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cost {
    /// Tokens.
    #[default]
    Tokens,
    /// Tiles of so many tokens.
    Tiles(u64),
    /// Items that a rank serves at all.
    Active,
    /// Reads or tiles, whichever is more.
    Roofline(Roofline),
    /// Tokens, in pieces of at least so many.
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

/// What is minimised, in lexicographic order: the peak of a cost, then perhaps the whole vector, then perhaps traffic.
///
/// ```
/// use evenkeel_solver::objective::{Cost, Objective, Objectives};
/// use evenkeel_solver::{Hosts, Problem};
///
/// let problem = Problem::new(Hosts::new(4, [&[0, 1][..], &[1, 2], &[2, 3]])?);
/// let objective = Objective::new(Cost::Tokens).then_vector().then_traffic(vec![0, 0, 1, 1]);
/// let mut objectives = Objectives::new(problem, objective)?;
/// // Rows are sources: ranks 0 and 1 hold tokens of item 1, rank 3 those of items 0 and 2.
/// let outcome = objectives.solve(&[0, 4, 0, 0, 8, 0, 0, 0, 0, 6, 0, 10])?;
/// assert_eq!(outcome.peak.load, 8);
/// assert_eq!(outcome.traffic.map(|traffic| traffic.off_node), Some(10));
/// # Ok::<(), evenkeel_solver::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objective {
    cost: Cost,
    vector: bool,
    nodes: Option<Vec<u32>>,
}

impl Objective {
    /// The peak of this cost.
    pub fn new(cost: Cost) -> Objective {
        Objective { cost, vector: false, nodes: None }
    }

    /// Then the whole vector, decreasingly minimal.
    #[must_use]
    pub fn then_vector(self) -> Objective {
        Objective { vector: true, ..self }
    }

    /// Then traffic; `nodes` holds the node of every rank. Batches are then counts `[source][item]`.
    #[must_use]
    pub fn then_traffic(self, nodes: Vec<u32>) -> Objective {
        Objective { nodes: Some(nodes), ..self }
    }
}

/// What was reached in one batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// The quota of every (item, host) pair in tokens.
    pub quotas: Vec<u64>,
    /// The load of every rank in units of the cost, base loads included.
    pub rank_loads: Vec<u64>,
    /// The largest ratio of these loads to speed.
    pub peak: Peak,
    /// No split has a lower peak: the peak itself where the method is exact.
    pub bound: Peak,
    /// The ranks that prove the bound, for the problem in units of the cost; empty for the roofline, whose bound has more
    /// than one kind of proof.
    pub certificate: Vec<u32>,
    /// What traffic is left, if it was asked for.
    pub traffic: Option<Left>,
}

/// Tokens served away from where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// On another node.
    pub off_node: u64,
    /// On another rank, other nodes included.
    pub off_rank: u64,
}

/// An objective for one problem, batch after batch.
#[derive(Debug, Clone)]
pub struct Objectives {
    problem: Problem,
    method: Method,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one per problem")]
enum Method {
    Peak(crate::Workspace),
    Vector(Workspace),
    Traffic(Traffic, Keep),
    Tiles(Tiles),
    Active(Active),
    Roofline(Rooflines),
    MinPiece(MinPiece),
}

impl Objectives {
    /// Prepares an objective for a problem.
    ///
    /// # Errors
    /// [`Error::Combination`] if the objective asks for what does not combine; those of the cost's own type.
    pub fn new(problem: Problem, objective: Objective) -> Result<Objectives, Error> {
        let Objective { cost, vector, nodes } = objective;
        let refuse = |then| Error::Combination { cost: cost.name(), then };
        if nodes.is_some() && cost != Cost::Tokens {
            return Err(refuse("traffic"));
        }
        if vector && matches!(cost, Cost::Roofline(_) | Cost::MinPiece(_)) {
            return Err(refuse("the whole vector"));
        }
        let method = match (cost, nodes) {
            (Cost::Tokens, Some(nodes)) => {
                let keep = if vector { Keep::Vector } else { Keep::Peak };
                Method::Traffic(Traffic::new(problem.clone(), &nodes)?, keep)
            }
            (Cost::Tokens, None) if vector => Method::Vector(Workspace::default()),
            (Cost::Tokens, None) => Method::Peak(crate::Workspace::new(&problem)),
            (Cost::Tiles(tile), _) => Method::Tiles(Tiles::new(problem.clone(), tile)?),
            (Cost::Active, _) => Method::Active(Active::new(problem.clone())),
            (Cost::Roofline(roofline), _) => Method::Roofline(Rooflines::new(problem.clone(), roofline)?),
            (Cost::MinPiece(least), _) => Method::MinPiece(MinPiece::new(problem.clone(), least)),
        };
        Ok(Objectives { problem, method })
    }

    /// Splits one batch: one load per item or, with traffic, counts `[source][item]`.
    ///
    /// # Errors
    /// As [`solve`](crate::solve), and those of the cost's own type.
    pub fn solve(&mut self, batch: &[u64]) -> Result<Outcome, Error> {
        let mut split = Split::default();
        match &mut self.method {
            Method::Peak(workspace) => solve_into(&self.problem, batch, workspace, &mut split)?,
            Method::Vector(workspace) => balance_into(&self.problem, batch, workspace, &mut split)?,
            Method::Traffic(traffic, keep) => {
                let TrafficSplit { split, off_node, off_rank, .. } = traffic.solve(batch, *keep)?;
                return Ok(Outcome { traffic: Some(Left { off_node, off_rank }), ..Outcome::exact(split) });
            }
            Method::Tiles(tiles) => {
                let TileSplit { in_tiles, quotas, .. } = tiles.solve(batch)?;
                return Ok(Outcome { quotas, ..Outcome::exact(in_tiles) });
            }
            Method::Active(active) => {
                let ActiveSplit { active, quotas, .. } = active.solve(batch)?;
                return Ok(Outcome { quotas, ..Outcome::exact(active) });
            }
            Method::Roofline(rooflines) => {
                let answer = rooflines.solve(batch)?;
                let (quotas, rank_loads) = (answer.quotas, answer.rank_costs);
                let (peak, bound) = (answer.peak, answer.bound);
                return Ok(Outcome { quotas, rank_loads, peak, bound, certificate: vec![], traffic: None });
            }
            Method::MinPiece(pieces) => {
                let answer = pieces.solve(batch)?;
                return Ok(Outcome { bound: answer.bound, ..Outcome::exact(answer.split) });
            }
        }
        Ok(Outcome::exact(split))
    }
}

impl Outcome {
    fn exact(split: Split) -> Outcome {
        let Split { quotas, rank_loads, peak, certificate, .. } = split;
        Outcome { quotas, rank_loads, peak, bound: peak, certificate, traffic: None }
    }
}
