//! The policy `milp`: small cases solved to proof by HiGHS.
//!
//! **The programme.** A part `P` is a set of experts as large as a rank has slots. The number of ranks that
//! hold each part is a whole number `y[P]`. A set `X` of experts lives on `n[X]` ranks, and the peak of batch
//! `b` is the largest `ceil(load[b](X) / n[X])`. This is the max-flow theorem read from the experts' side, so
//! that no flow is needed. `1 / n` is convex, so at whole numbers it is the largest of its chords, and those
//! are linear:
//!
//! ```text
//!   min  Σ_b weight_b · T_b
//!        Σ_P y_P = ranks                                             for every kind of rank
//!        n_X = Σ (y_P with P ∩ X ≠ ∅)  ≥ 1                           for every set X of experts
//!        T_b ≥ load_b(X) · (1/n − (n_X − n) / (n (n + 1)))           for every b, X and whole n
//!        T_b ≥ ceil(total_b / ranks),  y and T whole
//! ```
//!
//! Chords that lie below the mean are left out. Ranks have no names in the programme, so there is no symmetry
//! to break.

use super::super::{PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use super::policy_error;
use crate::cluster::Cluster;
use crate::forecast::History;

/// Policy by a mixed-integer programme, for up to 8 experts and up to 16 batches. It needs the feature
/// `highs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Milp;

/// Highest number of experts, because the programme has at least a row for each of their subsets.
const MAX_EXPERTS: usize = 8;

/// Placement of [`Milp::solve`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MilpSolution {
    /// Best placement found.
    pub placement: Placement,
    /// True if it is proved to be optimal for the batches of the programme.
    pub proved: bool,
}

impl Milp {
    /// Returns the best placement for the batches of the programme. These are 16 batches of the history,
    /// evenly spaced, or all.
    ///
    /// # Errors
    /// Fails if the case is too large, if the engine fails, or if it is not compiled in.
    pub fn solve(self, history: &History<'_>, cluster: &Cluster) -> Result<MilpSolution, PlaceError> {
        let experts = history.experts();
        if experts > MAX_EXPERTS {
            let reason = format!(
                "supports {MAX_EXPERTS} experts at most, there are {experts}: try lp-round or recourse"
            );
            return Err(policy_error("milp", reason));
        }
        if cluster.usable_slots() < experts {
            let reason = format!("{} slots cannot hold {experts} experts", cluster.usable_slots());
            return Err(policy_error("milp", reason));
        }
        engine::solve(history, cluster)
    }
}

impl Policy for Milp {
    fn name(&self) -> String {
        "milp".into()
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        request.respond_with(self.solve(request.history, request.cluster)?.placement)
    }
}

#[cfg(not(feature = "highs"))]
mod engine {
    use super::{Cluster, History, MilpSolution, PlaceError, policy_error};

    pub(super) fn solve(_: &History<'_>, _: &Cluster) -> Result<MilpSolution, PlaceError> {
        let reason =
            "needs HiGHS, which is not compiled in: build with `--features highs` (CMake and libclang)";
        Err(policy_error("milp", reason.into()))
    }
}

#[cfg(feature = "highs")]
mod engine {
    use super::super::columns::{RankKind, chord_range, rank_kinds};
    use super::super::{MAX_BATCHES, sample_batches};
    use super::{Cluster, History, MilpSolution, PlaceError, Placement, policy_error};
    use crate::place::Contiguous;
    use good_lp::solvers::SolutionStatus;
    use good_lp::solvers::highs::highs;
    use good_lp::{Expression, ProblemVariables, Solution as _, SolverModel as _, Variable, variable};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Highest number of parts of all kinds of ranks together.
    const MAX_PARTS: usize = 256;
    /// Highest number of visited branches. A count, unlike a clock, keeps the result reproducible.
    const MAX_NODES: i32 = 50_000;

    pub(super) fn solve(history: &History<'_>, cluster: &Cluster) -> Result<MilpSolution, PlaceError> {
        let experts = history.experts();
        let batches = sample_batches(history, MAX_BATCHES);
        if batches.is_empty() {
            return Ok(MilpSolution { placement: Contiguous::placement(experts, cluster)?, proved: true });
        }
        let Some(kinds) = rank_kinds(experts, cluster, MAX_PARTS) else {
            return Err(policy_error(
                "milp",
                format!("a rank could hold more than {MAX_PARTS} sets of experts"),
            ));
        };
        // An engine that panics has failed, and nothing of it is used afterwards.
        let answer = catch_unwind(AssertUnwindSafe(|| run(&batches, &kinds, experts, cluster.ranks())));
        let (counts, proved) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(policy_error("milp", format!("HiGHS failed: {error}"))),
            Err(_) => return Err(policy_error("milp", "HiGHS failed: it panicked".into())),
        };
        let mut slots = vec![None; cluster.slots()];
        for (kind, counts) in kinds.iter().zip(&counts) {
            let held = kind.parts.iter().zip(counts).flat_map(|(&part, &n)| std::iter::repeat_n(part, n));
            for (&rank, part) in kind.ranks.iter().zip(held) {
                let experts = (0..experts as u32).filter(|expert| part >> expert & 1 == 1);
                for (slot, expert) in experts.enumerate() {
                    slots[rank * cluster.slots_per_rank() + slot] = Some(expert);
                }
            }
        }
        Ok(MilpSolution { placement: Placement::new(experts, cluster.ranks(), slots)?, proved })
    }

    /// Returns the number of ranks of each kind that hold each part, and true if that is proved to be
    /// optimal.
    fn run(
        batches: &[&[u64]],
        kinds: &[RankKind],
        experts: usize,
        ranks: usize,
    ) -> Result<(Vec<Vec<usize>>, bool), good_lp::ResolutionError> {
        let mut variables = ProblemVariables::new();
        let mut rows = Vec::new();
        let holders: Vec<Vec<Variable>> = kinds
            .iter()
            .map(|kind| {
                let definition = variable().integer().min(0.0).max(kind.ranks.len() as f64);
                let own: Vec<Variable> =
                    kind.parts.iter().map(|_| variables.add(definition.clone())).collect();
                rows.push(own.iter().sum::<Expression>().eq(kind.ranks.len() as f64));
                own
            })
            .collect();
        let totals: Vec<u64> = batches.iter().map(|batch| batch.iter().sum()).collect();
        let floors: Vec<u64> = totals.iter().map(|total| total.div_ceil(ranks as u64)).collect();
        let peaks: Vec<Variable> =
            floors.iter().map(|&floor| variables.add(variable().integer().min(floor as f64))).collect();
        let size = kinds.iter().filter_map(|kind| kind.parts.first()).map(|part| part.count_ones()).max();
        for set in 1u32..1 << experts {
            let touching = variables.add(variable().min(1.0).max(ranks as f64));
            let mut sum = Expression::default();
            for (kind, own) in kinds.iter().zip(&holders) {
                for (_, &count) in kind.parts.iter().zip(own).filter(|&(&part, _)| part & set != 0) {
                    sum.add_mul(1.0, count);
                }
            }
            rows.push((sum - touching).eq(0.0));
            let fewest = set.count_ones().div_ceil(size.unwrap_or(1).max(1)) as usize;
            for ((batch, &floor), &peak) in batches.iter().zip(&floors).zip(&peaks) {
                let load: u64 = (0..experts).filter(|e| set >> e & 1 == 1).map(|e| batch[e]).sum();
                for n in chord_range(load, floor, fewest, ranks) {
                    let (load, n) = (load as f64, n as f64);
                    // The row is load/n - load/(n (n + 1)) * (touching - n), brought to one side.
                    let slope = load / (n * (n + 1.0));
                    let mut row = Expression::from(peak);
                    row.add_mul(slope, touching);
                    rows.push(row.geq(load / n + slope * n));
                }
            }
        }
        let mut objective = Expression::default();
        for (&peak, &total) in peaks.iter().zip(&totals) {
            objective.add_mul(ranks as f64 / total as f64, peak);
        }
        let mut model = variables
            .minimise(objective)
            .using(highs)
            .set_threads(1)
            .set_option("mip_rel_gap", 0.0)
            .set_option("mip_abs_gap", 1e-7)
            .set_option("mip_max_nodes", MAX_NODES);
        for row in rows {
            model.add_constraint(row);
        }
        let solution = model.solve()?;
        let value = |&count: &Variable| solution.value(count).round().max(0.0) as usize;
        let counts = holders.iter().map(|own| own.iter().map(value).collect()).collect();
        let proved = matches!(solution.status(), SolutionStatus::Optimal | SolutionStatus::GapLimit);
        Ok((counts, proved))
    }
}
