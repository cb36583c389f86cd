//! The fast loop: the split of one batch's tokens over the replicas of each expert.
//!
//! In: a [`Placement`](crate::place::Placement) (once) and the tokens per expert of a batch, `[E]`. Out: a
//! [`Split`] with whole tokens per slot, `[R * S]`, and per rank, `[R]`. [`Splitter::builder`] selects the
//! method, the objective, the tie-break, the reuse of an old split and dynamic slots. Each of them is one
//! file. Every method serves every token, by a slot that holds its expert.

#[cfg(feature = "baselines")]
mod affine5;
mod batched;
mod cost_model;
mod dynamic;
mod even;
mod exact;
mod lazy;
#[cfg(feature = "baselines")]
mod lp;
mod min_traffic;
mod objective;
#[cfg(feature = "baselines")]
mod rounding;
mod source_shares;
mod splitter;
mod stack;

pub use batched::LayerSplitters;
pub use cost_model::{
    CostModel, LinkedCost, MeasuredCost, NoMeasuredTime, PLANNING_US, TILE_TOKENS, expert_roofline,
    step_time, transfer_ps,
};
pub use dynamic::{BatchCopies, CopyAim, DynamicSlots, SlotMemory};
pub(crate) use dynamic::{ONE_PERCENT, peak_limit};
pub use evenkeel_solver::Peak;
pub use evenkeel_solver::copies::CopyTimes;
pub use evenkeel_solver::objective::Roofline;
pub use evenkeel_solver::objective::{Cost, PrimaryObjective};
pub use lazy::ReuseDecision;
pub use min_traffic::CrossingTokens;
pub use objective::{ObjectiveFigures, SplitObjective};
pub use source_shares::{SourceShares, TokenTraffic};
pub use splitter::{Splitter, SplitterBuilder};
pub use stack::{LayerShape, StackDispatch, StackRouter, StackRouterError, StackRouterOptions};
pub(crate) use stack::{ReplicaShares, batch_seed};

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Method of splitting tokens over replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SplitMethod {
    /// Even split, which EPLB assumes: `floor(N / c)` tokens for each replica, one more for the lowest slots.
    Even,
    /// Linear programme solved by a general engine (HiGHS if built, else microlp), rounded by largest
    /// remainder.
    Lp,
    /// Exact split with its certificate, by [`evenkeel_solver::solve`].
    Exact,
    /// LPLB's five iterations of affine scaling in `f32` with a correct step length, rounded by largest
    /// remainder.
    Affine5,
    /// Rule of a serving stack without planning, as far as counts determine it. [`StackRouter`] applies the
    /// same rules to ids.
    Stack(StackDispatch),
}

impl SplitMethod {
    /// Methods of this program, in the order of tables. [`StackDispatch::ALL`] lists the rules of the stacks.
    pub const ALL: [SplitMethod; 4] =
        [SplitMethod::Even, SplitMethod::Affine5, SplitMethod::Lp, SplitMethod::Exact];
}

impl fmt::Display for SplitMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SplitMethod::Even => "even",
            SplitMethod::Lp => "lp",
            SplitMethod::Exact => "exact",
            SplitMethod::Affine5 => "affine5",
            SplitMethod::Stack(stack) => stack.name(),
        })
    }
}

impl FromStr for SplitMethod {
    type Err = SplitError;

    fn from_str(name: &str) -> Result<Self, SplitError> {
        let stacks = StackDispatch::ALL.map(SplitMethod::Stack);
        SplitMethod::ALL
            .into_iter()
            .chain(stacks)
            .find(|method| method.to_string() == name)
            .ok_or_else(|| SplitError::UnknownMethod(name.to_owned()))
    }
}

/// Reasons for which a batch cannot be split.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SplitError {
    /// The name is no known method.
    #[error(
        "unknown split `{0}`: expected even, lp, exact or affine5, or a stack's rule: sglang-static, \
         sglang-dynamic, sglang-random, vllm, vllm-ascend or trtllm"
    )]
    UnknownMethod(String),
    /// The name is no rule of a stack.
    #[error(
        "unknown stack `{0}`: expected sglang-static, sglang-dynamic, sglang-random, vllm, vllm-ascend or \
         trtllm"
    )]
    UnknownDispatch(String),
    /// The ranks do not divide over the nodes.
    #[error("{ranks} ranks do not divide over {nodes} nodes: expected a divisor of {ranks}")]
    Nodes {
        /// Ranks of the placement.
        ranks: usize,
        /// Requested nodes.
        nodes: usize,
    },
    /// The loads are for another number of experts.
    #[error("{given} loads for {experts} experts")]
    Shape {
        /// Number of loads found.
        given: usize,
        /// Number of experts of the placement.
        experts: usize,
    },
    /// Parts of a splitter exclude each other.
    #[error("{0}")]
    Combination(&'static str),
    /// The sources' counts of an expert do not add up to its quotas.
    #[error("the sources' counts of expert {expert} do not add up to its quotas")]
    Counts {
        /// Expert in question.
        expert: usize,
    },
    /// The solver refused the batch because of an overflow.
    #[error(transparent)]
    Solver(#[from] evenkeel_solver::SolverError),
    /// The affine-scaling method refused the batch.
    #[error("affine5: {0}")]
    Affine(String),
    /// There are more dynamic slots than a placement may have.
    #[error(
        "{per_rank} dynamic slots per rank: expected {} slots of all ranks at most",
        crate::cluster::MAX_SLOTS
    )]
    DynamicSlots {
        /// Requested dynamic slots of each rank.
        per_rank: usize,
    },
    /// The method is a baseline, which this build lacks.
    #[error("{0}: this build is without the feature `baselines`; expected even, exact or a stack's rule")]
    NotBuilt(SplitMethod),
    /// The LP engine failed.
    #[cfg(feature = "baselines")]
    #[error("lp: {0}")]
    Lp(#[from] evenkeel_solver::lp::LpError),
    /// The result of a method violates its contract. This is a defect of this program.
    #[error("internal error: the {method} split is invalid: {reason}")]
    Broken {
        /// Method in question.
        method: SplitMethod,
        /// Violated property.
        reason: String,
    },
}

/// Quotas of one batch of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Split {
    /// Tokens that each slot serves, `[R * S]`.
    pub quotas: Vec<u64>,
    /// Tokens that each rank serves, `[R]`.
    pub rank_loads: Vec<u64>,
    /// Certificate of an exact split of the lowest peak in tokens: the ranks whose confined experts prove
    /// that the peak cannot be lower. Empty for all other splits.
    pub certificate: Vec<u32>,
    /// Costs and bound under the objective of [`SplitterBuilder::objective`].
    pub objective: Option<ObjectiveFigures>,
    /// Tokens that cross ranks and nodes, for [`SplitterBuilder::least_traffic`].
    pub crossing: Option<CrossingTokens>,
    /// Decision between a new split and the old shares, for [`SplitterBuilder::lazy`].
    pub reuse: Option<ReuseDecision>,
    /// Copies before the batch, for [`SplitterBuilder::dynamic_slots`].
    pub copies: Option<BatchCopies>,
}

impl Split {
    /// Returns the tokens of the busiest rank.
    pub fn peak(&self) -> u64 {
        self.rank_loads.iter().copied().max().unwrap_or(0)
    }

    /// Sets all quotas of `slots` slots to zero and removes everything else.
    fn reset(&mut self, slots: usize) {
        self.quotas.clear();
        self.quotas.resize(slots, 0);
        self.certificate.clear();
        (self.objective, self.crossing, self.reuse, self.copies) = (None, None, None, None);
    }

    /// Sums the quotas of each rank.
    fn sum_ranks(&mut self, slots_per_rank: usize) {
        self.rank_loads.clear();
        let ranks = self.quotas.chunks(slots_per_rank);
        self.rank_loads.extend(ranks.map(|rank| rank.iter().fold(0u64, |sum, &q| sum.saturating_add(q))));
    }
}
