//! Copies of items, chosen for one batch together with its split.
//!
//! **The problem.** Items live on static hosts. Every rank also has *dynamic slots*. For each batch, the
//! solver may copy items into dynamic slots, and splits the tokens over all hosts. It minimises one of three
//! [goals](CopyGoal): the number of copies for a given peak, the peak for a given number of copies, or the
//! time of the slowest rank and of the transfers that nothing hides. "No copies" is a valid answer. Items
//! that the slots hold from the batch before serve tokens without a copy.
//!
//! **The method.** Without copies, the exact split is known. Overloaded ranks then pass their excess on in
//! few pieces (`serve`). Parts of the plan are built again in another order (`rebuild`). If the slots bind,
//! their contents are exchanged, with the exact number of tokens above the target as the measure: by draws
//! (`exchange`), or by the best of all exchanges where they are few (`best_exchange`). For the least time,
//! the longest transfers of several lengths compete (`least_time`). Choosing copies is strongly NP-hard, so
//! the plan is not always optimal. Every plan carries a proved lower bound (`bounds`). All numbers are
//! integers, and the result is a pure function of the input.
//!
//! ```
//! use evenkeel_solver::Hosts;
//! use evenkeel_solver::copies::{CopyGoal, CopyProblem, CopySolver, check_copies};
//!
//! // Four items live on two ranks. Each rank has one dynamic slot, which is empty.
//! let problem = CopyProblem::new(Hosts::new(2, [[0], [0], [1], [1]])?, vec![1, 1])?;
//! let (loads, present) = ([50, 20, 10, 20], problem.empty_slots());
//! let goal = CopyGoal::FewestCopies { peak: 50 };
//! let plan = CopySolver::new(&problem).solve(&loads, &present, goal)?;
//! // Twenty tokens of one item move to its copy on rank 1.
//! assert_eq!((plan.copies.len(), plan.rank_loads.as_slice()), (1, &[50, 50][..]));
//! assert_eq!(plan.least_copies, 1);
//! check_copies(&problem, &loads, &present, goal, &plan)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod best_exchange;
mod bounds;
mod check;
mod exchange;
mod least_time;
#[cfg(feature = "highs")]
pub mod milp;
mod published_rules;
mod rebuild;
mod search;
mod serve;
mod state;

pub use check::{CopyViolation, check_copies};

use crate::slot_table::SlotTable;
use crate::{Hosts, Problem, RankSplit, SolverError, Workspace, solve_counts_into};
use best_exchange::ExchangeMemory;
use bounds::LoadGroups;
use exchange::SavedTokens;
use state::{CopyLimits, CopyState, NO_ORIGIN};

/// Static hosts of all items, and the number of dynamic slots of every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyProblem {
    problem: Problem,
    slots: Vec<u32>,
}

/// Quantity that a plan minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyGoal {
    /// Fewest copies with which no rank has more tokens than this. If the solver finds no such plan, it
    /// returns the lowest peak that it finds.
    FewestCopies {
        /// Highest load of a rank, in tokens.
        peak: u32,
    },
    /// Lowest load of the busiest rank.
    LowestPeak {
        /// Highest number of copies.
        copies: u32,
    },
    /// Least time of the busiest rank and of the exposed transfers together.
    LeastTime(CopyTimes),
}

/// Times of tokens and copies, all in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyTimes {
    /// Time that one token takes on its rank.
    pub token: u64,
    /// Time for a rank to receive one copy.
    pub receive: u64,
    /// Time for a rank to send one copy.
    pub send: u64,
    /// Time of transfers that other work hides.
    pub hidden: u64,
    /// Time that each copy adds to the work of the rank that receives it, as for reading its weights. Nothing
    /// hides it. The highest number of copies of a rank counts in full.
    pub read: u64,
}

/// Copy of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemCopy {
    /// Copied item.
    pub item: u32,
    /// Rank that sends it, which held the item before the batch.
    pub from: u32,
    /// Rank that receives it.
    pub to: u32,
    /// Dynamic slot that receives it, numbered over all ranks.
    pub slot: u32,
}

/// Copies and split of one batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CopyPlan {
    /// Copies, in the order of their slots.
    pub copies: Vec<ItemCopy>,
    /// Item in every dynamic slot after the copies, rank by rank, `[dynamic slots]`. The number of items
    /// stands for none.
    pub contents: Vec<u32>,
    /// Tokens of every (item, static host) pair, in the numbering of [`Hosts`].
    pub quotas: Vec<u32>,
    /// Tokens of every dynamic slot, `[dynamic slots]`.
    pub slot_quotas: Vec<u32>,
    /// Tokens of every rank, `[ranks]`.
    pub rank_loads: Vec<u32>,
    /// Tokens of the busiest rank.
    pub peak: u32,
    /// Lower bound on the peak of every plan that the goal allows: with at most the copies of the goal, or
    /// with any number.
    pub least_peak: u32,
    /// Lower bound on the copies of every plan whose peak is at most that of this plan, or at most that of
    /// the goal if it is higher.
    pub least_copies: u32,
    /// Lower bound on the time, for [`CopyGoal::LeastTime`]. Zero for other goals.
    pub least_time: u64,
}

impl CopyTimes {
    /// Returns the time of a peak and of the transfers of these copies that nothing hides.
    pub fn measure(&self, peak: u32, copies: &[ItemCopy], ranks: usize) -> u64 {
        let (mut received, mut sent) = (vec![0u64; ranks], vec![0u64; ranks]);
        for copy in copies {
            received[copy.to as usize] += 1;
            sent[copy.from as usize] += 1;
        }
        let most = |counts: &[u64]| counts.iter().copied().max().unwrap_or(0);
        self.add_exposed(peak, most(&received), most(&sent))
    }

    fn add_exposed(&self, peak: u32, received: u64, sent: u64) -> u64 {
        let transfer = received.saturating_mul(self.receive).max(sent.saturating_mul(self.send));
        let exposed = transfer.saturating_sub(self.hidden).saturating_add(received.saturating_mul(self.read));
        u64::from(peak).saturating_mul(self.token).saturating_add(exposed)
    }
}

impl CopyProblem {
    /// Creates a problem from the static hosts and the dynamic slots of every rank.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] unless there is one number of slots per rank.
    pub fn new(hosts: Hosts, slots: Vec<u32>) -> Result<CopyProblem, SolverError> {
        if slots.len() != hosts.ranks() {
            return Err(SolverError::Length {
                what: "slot counts",
                expected: hosts.ranks(),
                got: slots.len(),
            });
        }
        Ok(CopyProblem { problem: Problem::new(hosts), slots })
    }

    /// Returns the static hosts.
    pub fn hosts(&self) -> &Hosts {
        self.problem.hosts()
    }

    /// Returns the number of dynamic slots of every rank.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Returns the content of empty dynamic slots: the number of items for each.
    pub fn empty_slots(&self) -> Vec<u32> {
        vec![self.hosts().items() as u32; self.slots.iter().map(|&slots| slots as usize).sum()]
    }

    fn check_input(&self, loads: &[u32], present: &[u32]) -> Result<(), SolverError> {
        let check = |what, expected, got| {
            if expected == got { Ok(()) } else { Err(SolverError::Length { what, expected, got }) }
        };
        check("loads", self.hosts().items(), loads.len())?;
        check("dynamic slots", self.slots.iter().map(|&slots| slots as usize).sum(), present.len())?;
        loads.iter().try_fold(0u32, |sum, &load| sum.checked_add(load)).ok_or(SolverError::TooManyTokens)?;
        let items = self.hosts().items();
        let mut first = 0;
        for (rank, &slots) in self.slots.iter().enumerate() {
            let own = &present[first..first + slots as usize];
            first += slots as usize;
            for (at, &item) in own.iter().enumerate() {
                if item as usize > items {
                    return Err(SolverError::ContentOutOfRange { rank, item, items });
                }
                let twice = own[..at].contains(&item)
                    || (item as usize) < items
                        && self.hosts().ranks_of(item as usize).contains(&(rank as u32));
                if twice && (item as usize) < items {
                    return Err(SolverError::DuplicateHost { item: item as usize, host: rank as u32 });
                }
            }
        }
        Ok(())
    }
}

/// Solver for one problem, with memory that is reused from batch to batch.
#[derive(Debug, Clone)]
pub struct CopySolver {
    problem: CopyProblem,
    state: CopyState,
    /// Slot of every (item, static host) pair.
    slot_of_pair: Vec<u32>,
    effort: CopyEffort,
    workspace: Box<Workspace>,
    split: RankSplit,
    /// Tokens of the split without copies.
    start: SavedTokens,
    saved: SavedTokens,
    memory: ExchangeMemory,
    best: BestContents,
    groups: LoadGroups,
    order: Vec<u64>,
}

/// Effort of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyEffort {
    /// Parts of a plan that are built again, on 64 ranks or more. Fewer ranks take a proportional part.
    pub rebuilds: u32,
    /// Exchanges for peaks that the construction misses, because the slots bind.
    pub exchanges: u32,
    /// Exchanges per attempt to save another copy.
    pub reductions: u32,
    /// The same where items have several hosts before any copy is made. One copy can then relieve many ranks,
    /// which the construction does not see.
    pub shared_reductions: u32,
}

impl CopyEffort {
    /// Effort for a choice before every batch, in microseconds.
    pub const FAST: CopyEffort =
        CopyEffort { rebuilds: 6, exchanges: 256, reductions: 0, shared_reductions: 48 };
    /// Effort for comparisons and for placements that are computed once, in milliseconds.
    pub const THOROUGH: CopyEffort =
        CopyEffort { rebuilds: 512, exchanges: 16384, reductions: 1024, shared_reductions: 1024 };
}

impl Default for CopyEffort {
    fn default() -> CopyEffort {
        CopyEffort::FAST
    }
}

/// Best plan so far.
#[derive(Debug, Clone, Default)]
struct BestContents {
    items: Vec<u32>,
    origins: Vec<u32>,
    tokens: SavedTokens,
    copies: u32,
    peak: u32,
}

impl CopySolver {
    /// Creates the solver of a problem.
    pub fn new(problem: &CopyProblem) -> CopySolver {
        let hosts = problem.hosts();
        let (items, ranks) = (hosts.items(), hosts.ranks());
        let mut statics: Vec<Vec<(u32, u32)>> = vec![vec![]; ranks];
        for item in 0..items {
            for (at, &rank) in hosts.ranks_of(item).iter().enumerate() {
                statics[rank as usize].push((item as u32, (hosts.offset(item) + at) as u32));
            }
        }
        let (mut item_in, mut first_dynamic, mut counts) = (vec![], vec![], vec![]);
        let mut slot_of_pair = vec![0; hosts.len()];
        for (own, &dynamic) in statics.iter().zip(&problem.slots) {
            for &(item, pair) in own {
                slot_of_pair[pair as usize] = item_in.len() as u32;
                item_in.push(item);
            }
            first_dynamic.push(item_in.len() as u32);
            item_in.resize(item_in.len() + dynamic as usize, items as u32);
            counts.push(own.len() + dynamic as usize);
        }
        CopySolver {
            state: CopyState::new(SlotTable::with_hosts(&counts, items, item_in), first_dynamic),
            slot_of_pair,
            effort: CopyEffort::default(),
            workspace: Box::new(Workspace::new(&problem.problem)),
            split: RankSplit::default(),
            start: SavedTokens::default(),
            saved: SavedTokens::default(),
            memory: ExchangeMemory::default(),
            best: BestContents::default(),
            groups: LoadGroups::default(),
            order: Vec::with_capacity(ranks),
            problem: problem.clone(),
        }
    }

    /// Sets the effort of the search.
    #[must_use]
    pub fn with_effort(self, effort: CopyEffort) -> CopySolver {
        CopySolver { effort, ..self }
    }

    /// Chooses copies for one batch of `loads`, `[items]`, over slots that hold `present`, `[dynamic slots]`,
    /// and splits the batch. The number of items stands for an empty slot.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] for a vector of the wrong length, [`SolverError::ContentOutOfRange`]
    /// for an item that does not exist, and [`SolverError::DuplicateHost`] for an item that a rank already
    /// hosts. Returns [`SolverError::TooManyTokens`] if the batch has more than 2³² − 1 tokens.
    pub fn solve(&mut self, loads: &[u32], present: &[u32], goal: CopyGoal) -> Result<CopyPlan, SolverError> {
        let mut plan = CopyPlan::default();
        self.solve_into(loads, present, goal, &mut plan)?;
        Ok(plan)
    }

    /// Solves as [`solve`](Self::solve) does, into memory that is reused from call to call.
    ///
    /// # Errors
    /// Fails as [`solve`](Self::solve) does, and then leaves the plan as it was.
    pub fn solve_into(
        &mut self,
        loads: &[u32],
        present: &[u32],
        goal: CopyGoal,
        plan: &mut CopyPlan,
    ) -> Result<(), SolverError> {
        self.problem.check_input(loads, present)?;
        self.split_without_copies(loads, present)?;
        match goal {
            CopyGoal::FewestCopies { peak } => self.find_fewest_copies(peak),
            CopyGoal::LowestPeak { copies } => {
                self.find_lowest_peak(CopyLimits { total: copies, ..CopyLimits::NONE });
            }
            CopyGoal::LeastTime(times) => plan.least_time = self.find_least_time(times),
        }
        self.write_plan(goal, plan);
        Ok(())
    }

    /// Splits the batch over the hosts that need no copy, and forms the groups of the bounds.
    fn split_without_copies(&mut self, loads: &[u32], present: &[u32]) -> Result<(), SolverError> {
        let state = &mut self.state;
        state.set_contents(present);
        let hosts = self.problem.problem.hosts();
        state.loads.fill(0);
        state.tokens.fill(0);
        let items = hosts.items() as u32;
        let kept = present.iter().any(|&item| item < items);
        if hosts.shared_items().is_empty() {
            for (&slot, &load) in self.slot_of_pair.iter().zip(loads) {
                state.tokens[slot as usize] = load;
                state.loads[state.table.rank_of[slot as usize] as usize] += load;
            }
        } else {
            solve_counts_into(&self.problem.problem, loads, &mut self.workspace, &mut self.split)?;
            for (&slot, &quota) in self.slot_of_pair.iter().zip(&self.split.quotas) {
                state.tokens[slot as usize] = quota as u32;
            }
            for (load, &split) in state.loads.iter_mut().zip(&self.split.rank_loads) {
                *load = split as u32;
            }
        }
        state.shares_items = kept || !hosts.shared_items().is_empty();
        let mut peak = state.loads.iter().copied().max().unwrap_or(0);
        if kept {
            let total: u64 = state.loads.iter().map(|&load| u64::from(load)).sum();
            let mean = total.div_ceil(state.loads.len() as u64) as u32;
            peak = state.lower_peak(mean);
        }
        self.start.save(state);
        self.best.store(state, peak);
        let table = &self.state.table;
        let shared = table.slots_of[..items as usize].iter().filter(|slots| slots.len() > 1);
        let pairs = shared.flat_map(|slots| {
            slots.windows(2).map(|pair| {
                (table.rank_of[pair[0] as usize] as usize, table.rank_of[pair[1] as usize] as usize)
            })
        });
        let largest = loads.iter().copied().max().unwrap_or(0);
        self.groups.form(&self.state, &self.problem.slots, pairs, largest);
        Ok(())
    }

    fn write_plan(&mut self, goal: CopyGoal, plan: &mut CopyPlan) {
        self.best.load(&mut self.state);
        let state = &self.state;
        plan.copies.clear();
        plan.contents.clear();
        plan.slot_quotas.clear();
        for rank in 0..state.loads.len() {
            for slot in state.dynamic_slots(rank) {
                let number = plan.contents.len() as u32;
                let item = state.table.item_in[slot];
                if state.origin[slot] != NO_ORIGIN {
                    let from = state.table.rank_of[state.origin[slot] as usize];
                    plan.copies.push(ItemCopy { item, from, to: rank as u32, slot: number });
                }
                plan.contents.push(item);
                plan.slot_quotas.push(state.tokens[slot]);
            }
        }
        plan.quotas.clear();
        plan.quotas.extend(self.slot_of_pair.iter().map(|&slot| state.tokens[slot as usize]));
        plan.rank_loads.clone_from(&state.loads);
        plan.peak = state.loads.iter().copied().max().unwrap_or(0);
        let allowed = match goal {
            CopyGoal::LowestPeak { copies } => copies,
            CopyGoal::FewestCopies { .. } | CopyGoal::LeastTime(_) => u32::MAX,
        };
        let asked = match goal {
            CopyGoal::FewestCopies { peak } => peak.max(plan.peak),
            CopyGoal::LowestPeak { .. } | CopyGoal::LeastTime(_) => plan.peak,
        };
        let copies = plan.copies.len() as u32;
        let mut least = self.bound_copies(asked).unwrap_or(0);
        if least < copies {
            least = least.max(self.groups.count_divided(asked, copies).unwrap_or(0));
        }
        plan.least_copies = least.min(copies);
        plan.least_peak = self.bound_peak(allowed).min(plan.peak);
        if !matches!(goal, CopyGoal::LeastTime(_)) {
            plan.least_time = 0;
        }
    }
}

impl BestContents {
    fn store(&mut self, state: &CopyState, peak: u32) {
        self.items.clone_from(&state.table.item_in);
        self.origins.clone_from(&state.origin);
        self.tokens.save(state);
        self.copies = state.copies;
        self.peak = peak;
    }

    fn load(&self, state: &mut CopyState) {
        state.set_copies(&self.items, &self.origins);
        self.tokens.restore(state);
    }
}
