//! Dynamic slots: replicas that are chosen for each batch together with its split.
//!
//! In: a placement with free slots behind the static ones, and the tokens per expert of a batch. Out: the
//! copies to make before the batch, and the split over static and dynamic replicas. The method and its
//! bounds are those of [`evenkeel_solver::copies`] (docs/dynamic.md).

use super::exact::slots_of_hosts;
use super::{Split, SplitError};
use crate::place::{ExpertMove, Placement};
use evenkeel_solver::copies::{CopyGoal, CopyPlan, CopyProblem, CopySolver, CopyTimes, check_copies};
use evenkeel_solver::{Problem, SolverError};

/// Lifetime of the copies in dynamic slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotMemory {
    /// All layers share the same slots, so that a layer finds them empty. The memory does not grow with the
    /// layers.
    Shared,
    /// Every layer has its own slots. Copies stay until others replace them.
    Kept,
}

/// Quantity that copies minimise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyAim {
    /// Fewest copies with which the busiest rank exceeds the mean load by at most this many millionths of
    /// it. If no copies reach that, the lowest peak.
    Imbalance(u32),
    /// Lowest peak with at most this many copies.
    Copies(u32),
    /// Least time of the busiest rank and of the exposed transfers together.
    Time(CopyTimes),
}

/// Dynamic slots of every rank in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicSlots {
    /// Dynamic slots of each rank. They follow its static slots.
    pub per_rank: usize,
    /// Lifetime of the copies.
    pub memory: SlotMemory,
    /// Quantity that copies minimise.
    pub aim: CopyAim,
}

/// Imbalance that [`DynamicSlots::new`] allows, in millionths of the mean.
pub(crate) const ONE_PERCENT: u32 = 10_000;

/// Returns the highest load of a rank that exceeds the mean load of a batch by at most some millionths of it.
/// It is at least the mean, rounded up.
pub(crate) fn peak_limit(millionths: u32, total: u64, ranks: usize) -> u32 {
    let limit = u128::from(total) * (1_000_000 + u128::from(millionths));
    let peak = (limit / (1_000_000 * ranks.max(1) as u128)) as u64;
    u32::try_from(peak.max(total.div_ceil(ranks.max(1) as u64))).unwrap_or(u32::MAX)
}

impl CopyAim {
    /// Returns the goal of the solver for a batch of `total` tokens.
    fn goal(self, total: u64, ranks: usize) -> CopyGoal {
        match self {
            CopyAim::Imbalance(millionths) => {
                CopyGoal::FewestCopies { peak: peak_limit(millionths, total, ranks) }
            }
            CopyAim::Copies(copies) => CopyGoal::LowestPeak { copies },
            CopyAim::Time(times) => CopyGoal::LeastTime(times),
        }
    }
}

impl DynamicSlots {
    /// Creates slots whose copies hold the busiest rank within 1 % of the mean load.
    pub fn new(per_rank: usize, memory: SlotMemory) -> DynamicSlots {
        DynamicSlots { per_rank, memory, aim: CopyAim::Imbalance(ONE_PERCENT) }
    }

    /// Sets the quantity that copies minimise.
    #[must_use]
    pub fn aim(self, aim: CopyAim) -> DynamicSlots {
        DynamicSlots { aim, ..self }
    }
}

/// Copies before one batch, with the proof of how far any others could be better.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BatchCopies {
    /// Copies, in the order of their slots. A copy names the rank that sends it.
    pub copies: Vec<ExpertMove>,
    /// Lower bound on the number of copies of every plan with the same peak.
    pub least_copies: u32,
    /// Lower bound on the peak of every plan that the aim allows.
    pub least_peak: u64,
}

/// Copies and splits for successive batches on one placement.
#[derive(Debug)]
pub(super) struct DynamicEngine {
    slots: DynamicSlots,
    problem: CopyProblem,
    solver: CopySolver,
    /// Slot of every (expert, static host) pair, in the numbering of the widened placement.
    slot_of_pair: Vec<u32>,
    /// Number of every dynamic slot in the widened placement.
    dynamic: Vec<u32>,
    /// Contents before the last call of the solver.
    present: Vec<u32>,
    /// Loads, goal and result of that call.
    loads: Vec<u32>,
    goal: CopyGoal,
    plan: CopyPlan,
    /// Copies that [`prepare`](Self::prepare) has chosen for the next batch.
    prepared: Option<Vec<ExpertMove>>,
}

impl DynamicEngine {
    /// Creates the engine, and the placement with the dynamic slots, which are empty.
    pub(super) fn new(placement: &Placement, slots: DynamicSlots) -> Result<(Self, Placement), SplitError> {
        let (ranks, statics) = (placement.ranks(), placement.slots_per_rank());
        let width = statics.saturating_add(slots.per_rank);
        let too_many = SplitError::DynamicSlots { per_rank: slots.per_rank };
        let widened = placement.with_slots_per_rank(width).ok_or(too_many)?;
        let hosts = Problem::new(widened.hosts()?);
        let slot_of_pair = slots_of_hosts(&widened, &hosts);
        let problem = CopyProblem::new(hosts.hosts().clone(), vec![slots.per_rank as u32; ranks])?;
        let dynamic = (0..ranks).flat_map(|rank| rank * width + statics..(rank + 1) * width);
        let present = problem.empty_slots();
        let mut plan = CopyPlan::default();
        plan.contents.clone_from(&present);
        let engine = Self {
            solver: CopySolver::new(&problem),
            slots,
            slot_of_pair,
            dynamic: dynamic.map(|slot| slot as u32).collect(),
            plan,
            present,
            loads: vec![],
            goal: CopyGoal::LowestPeak { copies: 0 },
            prepared: None,
            problem,
        };
        Ok((engine, widened))
    }

    /// Returns the expert of every dynamic slot, with the slot.
    pub(super) fn contents(&self) -> impl Iterator<Item = (u32, Option<u32>)> + '_ {
        let experts = self.problem.hosts().items() as u32;
        let held = move |&expert: &u32| (expert < experts).then_some(expert);
        self.dynamic.iter().copied().zip(self.plan.contents.iter().map(held))
    }

    /// Chooses copies for the loads that are expected of the next batch.
    pub(super) fn prepare(&mut self, expected: &[u64]) -> Result<(), SplitError> {
        self.forget_shared();
        self.solve(expected, self.slots.aim)?;
        self.prepared = Some(self.copies());
        Ok(())
    }

    /// Returns the copies that were prepared for the next batch.
    pub(super) fn prepared(&self) -> Option<&[ExpertMove]> {
        self.prepared.as_deref()
    }

    /// Splits one batch, after copies unless they were prepared. All quotas of `split` are zero before.
    pub(super) fn split(&mut self, loads: &[u64], split: &mut Split) -> Result<(), SplitError> {
        let copies = if let Some(copies) = self.prepared.take() {
            self.solve(loads, CopyAim::Copies(0))?;
            copies
        } else {
            self.forget_shared();
            self.solve(loads, self.slots.aim)?;
            self.copies()
        };
        let plan = &self.plan;
        for (&slot, &quota) in self.slot_of_pair.iter().zip(&plan.quotas) {
            split.quotas[slot as usize] = u64::from(quota);
        }
        for (&slot, &quota) in self.dynamic.iter().zip(&plan.slot_quotas) {
            split.quotas[slot as usize] = u64::from(quota);
        }
        split.rank_loads.clear();
        split.rank_loads.extend(plan.rank_loads.iter().map(|&load| u64::from(load)));
        let least_peak = u64::from(plan.least_peak);
        split.copies = Some(BatchCopies { copies, least_copies: plan.least_copies, least_peak });
        Ok(())
    }

    /// Verifies the last result without any code of the solver.
    pub(super) fn check(&self, loads: &[u64]) -> Result<(), String> {
        if !self.loads.iter().map(|&load| u64::from(load)).eq(loads.iter().copied()) {
            return Err("the copies were chosen for other loads".into());
        }
        check_copies(&self.problem, &self.loads, &self.present, self.goal, &self.plan)
            .map_err(|violation| violation.to_string())
    }

    fn forget_shared(&mut self) {
        if self.slots.memory == SlotMemory::Shared {
            self.plan.contents.fill(self.problem.hosts().items() as u32);
        }
    }

    /// Solves for these loads over the present contents.
    fn solve(&mut self, loads: &[u64], aim: CopyAim) -> Result<(), SplitError> {
        self.loads.clear();
        for &load in loads {
            self.loads.push(u32::try_from(load).map_err(|_| SolverError::TooManyTokens)?);
        }
        let total = loads.iter().fold(0u64, |sum, &load| sum.saturating_add(load));
        self.goal = aim.goal(total, self.problem.hosts().ranks());
        self.present.clone_from(&self.plan.contents);
        self.solver.solve_into(&self.loads, &self.present, self.goal, &mut self.plan)?;
        Ok(())
    }

    fn copies(&self) -> Vec<ExpertMove> {
        let copies = self.plan.copies.iter().map(|copy| ExpertMove {
            expert: copy.item,
            to: copy.to,
            slot: self.dynamic[copy.slot as usize],
            from: Some(copy.from),
        });
        copies.collect()
    }
}
