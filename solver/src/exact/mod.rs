//! The exact split: a max-flow in whole tokens whose minimum cut is the certificate.
//!
//! In: a [`Problem`], the loads of one batch, a [`Workspace`]. Out: a [`RankSplit`] of lowest peak.
//!
//! **Method.** The search for the peak rests on Ford and Fulkerson's theorem. Every rank has the room
//! `⌊T·s_r⌋` at the current peak `T`. The start is the lowest `T` that neither a single rank nor the total
//! rules out ([`level`]). The items are placed greedily and levelled between neighbours ([`fill`]). The
//! remaining excess is settled along fixed spanning trees ([`forest`]), after which almost nothing remains in
//! most batches. The rest moves along shortest residual paths from overloaded ranks to ranks with slack
//! ([`search`], [`blocking_flow`]).
//!
//! If no slack can be reached, the reached ranks form a cut `S`. All their load is base load or belongs to
//! items without a host outside. So `S` must carry its present load, and `T` rises to the lowest value at
//! which it can. A higher `T` widens every rank and undoes no work, so the flow is kept. Each cut lies inside
//! the previous one, because nothing leaves a cut. There are therefore at most as many raises as ranks. The
//! set behind the last raise is the certificate.
//!
//! **Numbers.** The state of a rank is its *excess*, load minus room, in the narrowest signed type that holds
//! the total. Widths differ in memory, never in the result ([`count`]).
//!
//! **Determinism.** All numbers are integers, ties go to the lowest index, and the search goes level by
//! level. The quotas depend on the problem and the loads alone, never on the previous content of the
//! workspace. There is no warm start from the previous batch's cut, although its bound on `T` would be valid.
//! The flow at a lower `T` influences the quotas, so they would differ from those of a cold run
//! (docs/fast-loop.md).

mod blocking_flow;
mod count;
mod fill;
mod fixed_items;
mod forest;
mod level;
mod search;
mod warm;

pub(crate) use count::Count;
pub(crate) use fixed_items::{BLOCK_ITEMS, CountTable, TABLE_ITEMS};
pub use warm::WarmSplitter;

use std::sync::Arc;

use crate::network::FlowNetwork;
use crate::network::tables::MAX_DRAINS;
use crate::{Peak, Problem, RankSplit, SolverError};
use count::Whole;
use search::{ResidualResult, search_residual};

/// Scratch memory of the exact split, reusable for any problem. It allocates only if a problem is larger than
/// all before it.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    table: CountTable,
    narrow: SplitFlow<i32>,
    wide: SplitFlow<i64>,
    widest: SplitFlow<i128>,
    level: level::LevelScratch,
    search: search::SearchScratch,
    block: blocking_flow::BlockingScratch,
    /// Hosts for which all vectors were last sized, identified by the address of their offsets.
    sized_for: Option<Arc<[u32]>>,
}

/// Split under construction.
#[derive(Debug, Clone, Default)]
struct SplitFlow<N> {
    /// Quota of every place, which is an (item, host) pair of an item with several hosts.
    quota: Vec<N>,
    /// Load of each rank beyond its room, negative if it has slack.
    excess: Vec<N>,
    /// Load that each rank can carry at the current peak.
    room: Vec<N>,
    fill: fill::FillScratch<N>,
    /// Scratch of the forests: the excess or slack of each subtree, and the offer of each edge.
    subtree: Vec<N>,
    offer: Vec<N>,
}

impl<N: Whole> SplitFlow<N> {
    fn resize_for(&mut self, ranks: usize, net: &FlowNetwork) {
        self.quota.resize(net.place_count(), N::ZERO);
        for vector in [&mut self.excess, &mut self.room, &mut self.subtree, &mut self.offer] {
            vector.resize(ranks, N::ZERO);
        }
        self.fill.resize_for(ranks);
    }
}

impl Workspace {
    /// Creates scratch memory with all the room that this problem needs.
    pub fn new(problem: &Problem) -> Workspace {
        let mut workspace = Workspace::default();
        workspace.resize_for(problem);
        workspace
    }

    fn resize_for(&mut self, problem: &Problem) {
        if self.sized_for.as_ref().is_some_and(|offsets| Arc::ptr_eq(offsets, problem.hosts().offsets())) {
            return;
        }
        self.sized_for = Some(Arc::clone(problem.hosts().offsets()));
        let (ranks, net) = (problem.hosts().ranks(), problem.hosts().flow_network());
        self.narrow.resize_for(ranks, net);
        self.wide.resize_for(ranks, net);
        self.widest.resize_for(ranks, net);
        self.level.resize_for(problem.hosts());
        self.search.resize_for(ranks, net);
        self.block.resize_for(ranks, net);
    }
}

/// Splits one batch of loads, one per item, so that the peak is lowest.
///
/// # Errors
/// Returns [`SolverError::Length`] unless there is one load per item. Returns [`SolverError::Overflow`] if
/// all loads and base loads together exceed `u64::MAX`.
pub fn solve(problem: &Problem, loads: &[u64], workspace: &mut Workspace) -> Result<RankSplit, SolverError> {
    let mut split = RankSplit::default();
    solve_into(problem, loads, workspace, &mut split)?;
    Ok(split)
}

/// Splits as [`solve`] does, into memory that is reused from call to call. It allocates nothing after the
/// first call for a problem. The result does not depend on the previous content of `split` or `workspace`.
///
/// # Errors
/// Fails as [`solve`] does, and then leaves `split` as it was.
pub fn solve_into(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut Workspace,
    split: &mut RankSplit,
) -> Result<(), SolverError> {
    solve_any(problem, loads, workspace, split)
}

/// Splits as [`solve_into`] does, from counts of 32 bits, as kernels count. The result is the same, bit for
/// bit.
///
/// # Errors
/// Fails as [`solve_into`] does.
pub fn solve_counts_into(
    problem: &Problem,
    counts: &[u32],
    workspace: &mut Workspace,
    split: &mut RankSplit,
) -> Result<(), SolverError> {
    solve_any(problem, counts, workspace, split)
}

fn solve_any<C: Count>(
    problem: &Problem,
    loads: &[C],
    workspace: &mut Workspace,
    split: &mut RankSplit,
) -> Result<(), SolverError> {
    workspace.resize_for(problem);
    let Workspace { table, narrow, wide, widest, level, search, block, .. } = workspace;
    if let Some(total) = table.load_batch(problem, loads) {
        split.resize_for(problem.hosts());
        table.fixed_loads(problem, &mut split.rank_loads);
        table.write_runs(problem.hosts().flow_network(), &mut split.quotas);
        ExactRun { problem, loads, total, flow: narrow, level, search, block, split }.run();
        return Ok(());
    }
    let total = problem.checked_total(loads)?;
    split.resize_for(problem.hosts());
    fixed_items::fixed_loads(problem, loads, &mut split.rank_loads);
    fixed_items::write_runs(problem.hosts().flow_network(), loads, &mut split.quotas);
    // One token stays free, because levelling adds one to a sum of loads.
    if total < i32::MAX as u64 {
        ExactRun { problem, loads, total, flow: narrow, level, search, block, split }.run();
    } else if total < i64::MAX as u64 {
        ExactRun { problem, loads, total, flow: wide, level, search, block, split }.run();
    } else {
        ExactRun { problem, loads, total, flow: widest, level, search, block, split }.run();
    }
    Ok(())
}

/// One run of the method, in one width of numbers.
struct ExactRun<'a, C, N> {
    problem: &'a Problem,
    loads: &'a [C],
    total: u64,
    flow: &'a mut SplitFlow<N>,
    level: &'a mut level::LevelScratch,
    search: &'a mut search::SearchScratch,
    block: &'a mut blocking_flow::BlockingScratch,
    split: &'a mut RankSplit,
}

impl<C: Count, N: Whole> ExactRun<'_, C, N> {
    fn run(&mut self) {
        let mut peak = level::initial_peak(self.problem, self.total, self.level, self.split);
        self.set_rooms(peak);
        self.place_items();
        let net = self.problem.hosts().flow_network();
        let mut drains = if net.many_items.is_empty() { MAX_DRAINS } else { 0 };
        loop {
            match search_residual(net, self.flow, self.search) {
                ResidualResult::NothingOverloaded => break,
                ResidualResult::Slack if drains > 0 => {
                    drains -= 1;
                    forest::drain_forest(self.search.forest(), self.flow);
                }
                ResidualResult::Slack => {
                    blocking_flow::push_blocking_flow(net, self.flow, self.search, self.block);
                }
                ResidualResult::Cut => peak = self.raise_peak(),
            }
        }
        fixed_items::write_flow(net, self.flow, self.split);
        debug_assert_eq!(busiest_ratio(self.problem, &self.split.rank_loads), peak, "the peak is proved");
        self.split.peak = match self.problem.common_speed() {
            Some(_) => peak,
            None => busiest_ratio(self.problem, &self.split.rank_loads),
        };
    }

    /// Gives every rank its room at a peak, and its excess from its fixed load.
    fn set_rooms(&mut self, peak: Peak) {
        let SplitFlow { excess, room, .. } = &mut *self.flow;
        let ranks = excess.iter_mut().zip(room).zip(&self.split.rank_loads).zip(self.problem.speeds());
        for (((excess, room), &load), &speed) in ranks {
            // Room beyond the total load is never used.
            *room = N::from_u64(peak.room(speed).min(self.total));
            *excess = N::from_u64(load) - *room;
        }
    }

    /// Places the shared items, and continues to level while a rank is overloaded.
    fn place_items(&mut self) {
        let net = self.problem.hosts().flow_network();
        fill::place_items(net, self.loads, self.flow);
        for _ in 0..net.passes {
            if !any_overload(&self.flow.excess) {
                return;
            }
            fill::level_items(net, self.flow);
        }
        for forest in &net.forests {
            if !any_overload(&self.flow.excess) {
                return;
            }
            forest::settle_forest(forest, self.flow);
        }
    }

    /// Raises the peak to the lowest one at which the cut of the last search can carry its load.
    fn raise_peak(&mut self) -> Peak {
        let cut = self.search.reached_ranks();
        let SplitFlow { excess, room, .. } = &mut *self.flow;
        let must = cut.iter().map(|&rank| (excess[rank as usize] + room[rank as usize]).to_u64()).sum();
        let peak = level::lowest_peak(self.problem, cut, must, &mut self.level.heap);
        // Outside the cut no rank is overloaded and nothing will arrive, so the room there may stay.
        for &rank in cut {
            let rank = rank as usize;
            let wider = N::from_u64(peak.room(self.problem.speeds()[rank]).min(self.total));
            excess[rank] -= wider - room[rank];
            room[rank] = wider;
        }
        self.split.certificate.clear();
        self.split.certificate.extend_from_slice(cut);
        self.split.certificate.sort_unstable();
        for forest in self.problem.hosts().flow_network().forests.iter().take(1) {
            forest::settle_forest(forest, self.flow);
        }
        peak
    }
}

/// Returns true if a rank carries more than its room, without a branch per rank.
fn any_overload<N: Whole>(excess: &[N]) -> bool {
    excess.iter().copied().fold(N::ZERO, N::max) > N::ZERO
}

/// Returns the highest ratio of load to speed, as that of the lowest rank that attains it.
fn busiest_ratio(problem: &Problem, rank_loads: &[u64]) -> Peak {
    let mut busiest = Peak { load: 0, speed: problem.speeds()[0] };
    for (&load, &speed) in rank_loads.iter().zip(problem.speeds()) {
        let here = Peak { load, speed };
        // At equal speeds, the common case, one integer comparison decides.
        let higher = if speed == busiest.speed { load > busiest.load } else { here > busiest };
        if higher {
            busiest = here;
        }
    }
    busiest
}
