//! The fast loop: how one batch's tokens are shared between the copies of each expert.
//!
//! In: a [`Placement`] (once) and the tokens per expert of a batch, `[E]`. Out: a [`Split`]: whole tokens per slot,
//! `[R * S]`, and per rank, `[R]`. Each method is one file; whatever it computes, every token is served, by a slot
//! that holds its expert.

mod affine5;
mod even;
mod exact;
mod goal;
mod layers;
mod local;
mod lp;
mod pays;
mod rounding;
mod shares;
mod stack;
mod time;
mod worth;

pub use evenkeel_solver::Peak;
pub use evenkeel_solver::objective::Roofline;
pub use evenkeel_solver::objective::{Cost, Keep};
pub use goal::{Aimed, Goal, GoalSplitter};
pub use layers::Layers;
pub use local::Local;
pub use pays::{Horizon, Verdict};
pub use shares::{Shares, Traffic};
pub(crate) use stack::{ReplicaShares, batch_seed};
pub use stack::{RouterError, RouterOptions, StackDispatch, StackRouter};
pub use time::{TILE, roofline, step_time};
pub use worth::{Decision, WorthIt};

use crate::place::Placement;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A way of sharing tokens between copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// The same number for every copy, what EPLB assumes: `floor(N / c)`, one more for the lowest slots.
    Even,
    /// The linear programme by a general engine (HiGHS where built, microlp otherwise), largest remainders.
    Lp,
    /// The integer optimum with its certificate, by [`evenkeel_solver::solve`].
    Exact,
    /// LPLB's five iterations of affine scaling in `f32` with a correct step length, largest remainders.
    Affine5,
    /// A serving stack's own rule, as far as counts determine it: nothing plans the batch. [`StackRouter`]
    /// applies the same rules to ids.
    Stack(StackDispatch),
}

impl Method {
    /// The methods of this program, in the order in which tables show them. Those of stacks are
    /// [`StackDispatch::ALL`].
    pub const ALL: [Method; 4] = [Method::Even, Method::Affine5, Method::Lp, Method::Exact];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::Even => "even",
            Method::Lp => "lp",
            Method::Exact => "exact",
            Method::Affine5 => "affine5",
            Method::Stack(stack) => stack.name(),
        })
    }
}

impl FromStr for Method {
    type Err = SplitError;

    fn from_str(name: &str) -> Result<Self, SplitError> {
        let stacks = StackDispatch::ALL.map(Method::Stack);
        Method::ALL
            .into_iter()
            .chain(stacks)
            .find(|method| method.to_string() == name)
            .ok_or_else(|| SplitError::UnknownMethod(name.to_owned()))
    }
}

/// Why a batch could not be split.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SplitError {
    /// No method has this name.
    #[error(
        "unknown split `{0}`: expected even, lp, exact or affine5, or a stack's rule: sglang-static, \
         sglang-dynamic, sglang-random, vllm, vllm-ascend or trtllm"
    )]
    UnknownMethod(String),
    /// No stack's rule has this name.
    #[error(
        "unknown stack `{0}`: expected sglang-static, sglang-dynamic, sglang-random, vllm, vllm-ascend or \
         trtllm"
    )]
    UnknownDispatch(String),
    /// Ranks do not divide over the nodes.
    #[error("{ranks} ranks do not divide over {nodes} nodes: expected a divisor of {ranks}")]
    Nodes {
        /// Ranks of the placement.
        ranks: usize,
        /// Nodes given.
        nodes: usize,
    },
    /// Loads for another number of experts.
    #[error("{given} loads for {experts} experts")]
    Shape {
        /// Loads given.
        given: usize,
        /// Experts of the placement.
        experts: usize,
    },
    /// The sources' counts of an expert do not add up to its quotas.
    #[error("the sources' counts of expert {expert} do not add up to its quotas")]
    Counts {
        /// The expert.
        expert: usize,
    },
    /// The solver refused the batch (overflow).
    #[error(transparent)]
    Solver(#[from] evenkeel_solver::Error),
    /// The affine-scaling restatement refused the batch.
    #[error("affine5: {0}")]
    Affine(String),
    /// The LP engine failed.
    #[error("lp: {0}")]
    Lp(#[from] evenkeel_solver::lp::LpError),
    /// What a method returned does not hold; a defect of this program.
    #[error("the {method} split broke its promise: {reason}")]
    Broken {
        /// The method.
        method: Method,
        /// What does not hold.
        reason: String,
    },
}

/// The quotas of one batch of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Split {
    /// Tokens that each slot serves, `[R * S]`.
    pub quotas: Vec<u64>,
    /// Tokens that each rank serves, `[R]`.
    pub rank_loads: Vec<u64>,
    /// For [`Method::Exact`]: the ranks whose own experts prove that the peak cannot be lower.
    pub certificate: Vec<u32>,
}

impl Split {
    /// The busiest rank's tokens.
    pub fn peak(&self) -> u64 {
        self.rank_loads.iter().copied().max().unwrap_or(0)
    }
}

/// Splits batch after batch on one placement by one method.
#[derive(Debug)]
pub struct Splitter {
    placement: Placement,
    method: Method,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    Even,
    Lp(lp::Lp),
    Exact(Box<exact::Exact>),
    Affine5(Box<affine5::Affine5>),
    Stack(Box<stack::StackQuotas>),
}

impl Splitter {
    /// Prepares a method for a placement on one node.
    ///
    /// # Errors
    /// When the solver cannot take the placement's shape.
    pub fn new(placement: Placement, method: Method) -> Result<Self, SplitError> {
        Self::on_nodes(placement, method, 1)
    }

    /// Prepares a method for a placement on nodes of equally many consecutive ranks. SGLang's rules look at
    /// them; to the other methods all nodes are one.
    ///
    /// # Errors
    /// When the solver cannot take the placement's shape, or the ranks do not divide over the nodes.
    pub fn on_nodes(placement: Placement, method: Method, nodes: usize) -> Result<Self, SplitError> {
        if nodes == 0 || !placement.ranks().is_multiple_of(nodes) {
            return Err(SplitError::Nodes { ranks: placement.ranks(), nodes });
        }
        let engine = match method {
            Method::Even => Engine::Even,
            Method::Lp => Engine::Lp(lp::Lp::new(&placement)?),
            Method::Exact => Engine::Exact(Box::new(exact::Exact::new(&placement)?)),
            Method::Affine5 => Engine::Affine5(Box::new(affine5::Affine5::new(&placement)?)),
            Method::Stack(stack) => {
                Engine::Stack(Box::new(stack::StackQuotas::new(&placement, stack, nodes)))
            }
        };
        Ok(Self { placement, method, engine })
    }

    /// The placement that batches are split on.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Shares out one batch, `[E]` tokens per expert, into `split` (whose memory is used again).
    ///
    /// # Errors
    /// When the loads are not `[E]`, their sum overflows, or an LP engine fails.
    pub fn split(&mut self, loads: &[u64], split: &mut Split) -> Result<(), SplitError> {
        if loads.len() != self.placement.experts() {
            return Err(SplitError::Shape { given: loads.len(), experts: self.placement.experts() });
        }
        split.quotas.clear();
        split.quotas.resize(self.placement.slots().len(), 0);
        split.certificate.clear();
        // The solver checks the sum itself.
        let exact = matches!(self.engine, Engine::Exact(_));
        if !exact && loads.iter().try_fold(0u64, |sum, &load| sum.checked_add(load)).is_none() {
            return Err(evenkeel_solver::Error::Overflow.into());
        }
        match &mut self.engine {
            Engine::Even => even::split(&self.placement, loads, &mut split.quotas),
            Engine::Lp(lp) => lp.split(&self.placement, loads, &mut split.quotas)?,
            Engine::Exact(exact) => return exact.split(loads, split),
            Engine::Affine5(affine) => affine.split(&self.placement, loads, &mut split.quotas)?,
            Engine::Stack(stack) => stack.split(loads, &mut split.quotas),
        }
        split.rank_loads.clear();
        split.rank_loads.extend(
            split.quotas.chunks(self.placement.slots_per_rank()).map(|rank| rank.iter().sum::<u64>()),
        );
        Ok(())
    }

    /// Checks that every token of the batch is served, by slots that hold its expert, and, for the exact method,
    /// that the certificate proves the peak.
    ///
    /// # Errors
    /// [`SplitError::Broken`] says what does not hold.
    pub fn check(&self, loads: &[u64], split: &Split) -> Result<(), SplitError> {
        let broken = |reason: String| Err(SplitError::Broken { method: self.method, reason });
        for (expert, &load) in loads.iter().enumerate() {
            let served: u64 =
                self.placement.copies(expert).iter().map(|&slot| split.quotas[slot as usize]).sum();
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
            Engine::Exact(exact) => exact.check(loads, split).or_else(broken),
            _ => Ok(()),
        }
    }
}
