//! The fast loop: the split of one batch's tokens over the replicas of each expert.
//!
//! In: a [`Placement`] (once) and the tokens per expert of a batch, `[E]`. Out: a [`Split`] with whole tokens
//! per slot, `[R * S]`, and per rank, `[R]`. Each method is one file. Every method serves every token, by a
//! slot that holds its expert.

#[cfg(feature = "baselines")]
mod affine5;
mod batched;
mod cost_model;
mod economics;
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
mod stack;

pub use batched::LayerSplitters;
pub use cost_model::{TILE_TOKENS, expert_roofline, step_time};
pub use economics::{Horizon, MoveVerdict};
pub use evenkeel_solver::Peak;
pub use evenkeel_solver::objective::Roofline;
pub use evenkeel_solver::objective::{Cost, PrimaryObjective};
pub use lazy::{LazySplitter, ReuseDecision};
pub use min_traffic::MinTrafficSplitter;
pub use objective::{ObjectiveSplit, ObjectiveSplitter, SplitObjective};
pub use source_shares::{SourceShares, TokenTraffic};
pub(crate) use stack::{ReplicaShares, batch_seed};
pub use stack::{StackDispatch, StackRouter, StackRouterError, StackRouterOptions};

use crate::place::Placement;
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
pub struct Split {
    /// Tokens that each slot serves, `[R * S]`.
    pub quotas: Vec<u64>,
    /// Tokens that each rank serves, `[R]`.
    pub rank_loads: Vec<u64>,
    /// Certificate of [`SplitMethod::Exact`]: the ranks whose confined experts prove that the peak cannot be
    /// lower.
    pub certificate: Vec<u32>,
}

impl Split {
    /// Returns the tokens of the busiest rank.
    pub fn peak(&self) -> u64 {
        self.rank_loads.iter().copied().max().unwrap_or(0)
    }
}

/// Splitter of successive batches on one placement by one method.
#[derive(Debug)]
pub struct Splitter {
    placement: Placement,
    method: SplitMethod,
    engine: SplitEngine,
}

#[derive(Debug)]
enum SplitEngine {
    Even,
    #[cfg(feature = "baselines")]
    Lp(lp::LpSplitter),
    Exact(Box<exact::ExactSplitter>),
    #[cfg(feature = "baselines")]
    Affine5(Box<affine5::Affine5Splitter>),
    Stack(Box<stack::StackQuotas>),
}

impl Splitter {
    /// Prepares a method for a placement on one node.
    ///
    /// # Errors
    /// Fails if the solver refuses the shape of the placement.
    pub fn new(placement: Placement, method: SplitMethod) -> Result<Self, SplitError> {
        Self::on_nodes(placement, method, 1)
    }

    /// Prepares a method for a placement on nodes of equally many consecutive ranks. Only SGLang's rules
    /// depend on the nodes.
    ///
    /// # Errors
    /// Fails if the solver refuses the shape of the placement, or if the ranks do not divide over the nodes.
    pub fn on_nodes(placement: Placement, method: SplitMethod, nodes: usize) -> Result<Self, SplitError> {
        if nodes == 0 || !placement.ranks().is_multiple_of(nodes) {
            return Err(SplitError::Nodes { ranks: placement.ranks(), nodes });
        }
        let engine = match method {
            SplitMethod::Even => SplitEngine::Even,
            #[cfg(feature = "baselines")]
            SplitMethod::Lp => SplitEngine::Lp(lp::LpSplitter::new(&placement)?),
            SplitMethod::Exact => SplitEngine::Exact(Box::new(exact::ExactSplitter::new(&placement)?)),
            #[cfg(feature = "baselines")]
            SplitMethod::Affine5 => {
                SplitEngine::Affine5(Box::new(affine5::Affine5Splitter::new(&placement)?))
            }
            #[cfg(not(feature = "baselines"))]
            SplitMethod::Lp | SplitMethod::Affine5 => return Err(SplitError::NotBuilt(method)),
            SplitMethod::Stack(stack) => {
                SplitEngine::Stack(Box::new(stack::StackQuotas::new(&placement, stack, nodes)))
            }
        };
        Ok(Self { placement, method, engine })
    }

    /// Returns the placement on which batches are split.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Splits one batch of `[E]` tokens per expert into `split`, whose memory is reused.
    ///
    /// # Errors
    /// Fails if the loads are not `[E]`, if their sum overflows, or if an LP engine fails.
    pub fn split(&mut self, loads: &[u64], split: &mut Split) -> Result<(), SplitError> {
        if loads.len() != self.placement.experts() {
            return Err(SplitError::Shape { given: loads.len(), experts: self.placement.experts() });
        }
        split.quotas.clear();
        split.quotas.resize(self.placement.slots().len(), 0);
        split.certificate.clear();
        // The exact solver checks the sum itself.
        let exact = matches!(self.engine, SplitEngine::Exact(_));
        if !exact && loads.iter().try_fold(0u64, |sum, &load| sum.checked_add(load)).is_none() {
            return Err(evenkeel_solver::SolverError::Overflow.into());
        }
        match &mut self.engine {
            SplitEngine::Even => even::split(&self.placement, loads, &mut split.quotas),
            #[cfg(feature = "baselines")]
            SplitEngine::Lp(lp) => lp.split(&self.placement, loads, &mut split.quotas)?,
            SplitEngine::Exact(exact) => return exact.split(loads, split),
            #[cfg(feature = "baselines")]
            SplitEngine::Affine5(affine) => affine.split(&self.placement, loads, &mut split.quotas)?,
            SplitEngine::Stack(stack) => stack.split(loads, &mut split.quotas),
        }
        split.rank_loads.clear();
        split.rank_loads.extend(
            split.quotas.chunks(self.placement.slots_per_rank()).map(|rank| rank.iter().sum::<u64>()),
        );
        Ok(())
    }

    /// Checks that every token of the batch is served, by slots that hold its expert. For the exact method it
    /// also checks that the certificate proves the peak.
    ///
    /// # Errors
    /// Returns [`SplitError::Broken`] with the violated property.
    pub fn check(&self, loads: &[u64], split: &Split) -> Result<(), SplitError> {
        let broken = |reason: String| Err(SplitError::Broken { method: self.method, reason });
        for (expert, &load) in loads.iter().enumerate() {
            let served: u64 =
                self.placement.replicas(expert).iter().map(|&slot| split.quotas[slot as usize]).sum();
            if served != load {
                return broken(format!("expert {expert}: {served} of {load} tokens served"));
            }
        }
        if let Some(slot) =
            (0..split.quotas.len()).find(|&s| self.placement.slots()[s].is_none() && split.quotas[s] > 0)
        {
            return broken(format!("empty slot {slot} serves tokens"));
        }
        match &self.engine {
            SplitEngine::Exact(exact) => exact.check(loads, split).or_else(broken),
            _ => Ok(()),
        }
    }
}
