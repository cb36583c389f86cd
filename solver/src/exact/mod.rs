//! The exact split: a max-flow in whole tokens whose minimum cut is the certificate.
//!
//! In: a [`Problem`], the loads of one batch, a [`Workspace`]. Out: a [`Split`] of least peak.
//!
//! **Method.** Ford and Fulkerson's theorem turned into a search for the peak. Give every rank the room
//! `⌊T·s_r⌋` at the peak `T` in hand. Start at the least `T` that no single rank and not the total rules
//! out ([`level`]). Place the items greedily and level them out between neighbours ([`fill`]), then settle what is
//! left along fixed spanning trees ([`forest`]): in most batches almost nothing remains. What does remain
//! moves along shortest residual paths from overloaded ranks to ranks with slack ([`search`], [`block`]). Where no
//! slack can be reached, the ranks that were reached form a cut `S`: all their load is base load or
//! belongs to items that have no host outside. So `S` must carry what it carries now, and `T` rises to the
//! least value at which it can. Raising `T` widens every rank and undoes no work, the flow is kept, and
//! each cut lies inside the one before (nothing leaves a cut), so there are at most as many raises as
//! ranks. The set behind the last raise is the certificate.
//!
//! **Numbers.** A rank is described by its *excess*, load minus room, in the narrowest signed type that holds
//! the total; widths differ in memory, never in the answer ([`count`]).
//!
//! **Determinism.** Integers only; ties go to the lowest index; the search goes level by level. The quotas
//! depend on the problem and the loads alone, never on what the workspace held before. There is no warm
//! start from the previous batch's cut, though its bound on `T` would be valid: the flow at a lower `T` is part
//! of how the quotas come about, so they would no longer be those of a cold run (docs/fast-loop.md).

mod block;
mod count;
mod fill;
mod forest;
mod gather;
mod level;
mod search;
mod warm;

pub(crate) use count::Count;
pub(crate) use gather::{BLOCK, TABLE, Table};
pub use warm::Warm;

use std::sync::Arc;

use crate::compiled::DRAINS;
use crate::net::Net;
use crate::{Error, Peak, Problem, Split};
use count::Whole;
use search::{Found, search};

/// Scratch memory of the exact split. Reusable for any problem; allocates only when one is larger than
/// all before it.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    table: Table,
    narrow: Flow<i32>,
    wide: Flow<i64>,
    widest: Flow<i128>,
    level: level::Scratch,
    search: search::Scratch,
    block: block::Scratch,
    /// The hosts that all this was last sized for, known by where their offsets lie.
    sized_for: Option<Arc<[u32]>>,
}

/// A split in the making.
#[derive(Debug, Clone, Default)]
struct Flow<N> {
    /// The quota of every place: of every (item, host) pair that leaves a choice.
    quota: Vec<N>,
    /// What each rank carries beyond its room; negative where it has slack.
    excess: Vec<N>,
    /// What each rank can carry at the peak in hand.
    room: Vec<N>,
    fill: fill::Scratch<N>,
    /// Scratch of the forests: what a subtree wants to be rid of or can take, and what each edge has on offer.
    subtree: Vec<N>,
    offer: Vec<N>,
}

impl<N: Whole> Flow<N> {
    fn fit(&mut self, ranks: usize, net: &Net) {
        self.quota.resize(net.places(), N::ZERO);
        for vector in [&mut self.excess, &mut self.room, &mut self.subtree, &mut self.offer] {
            vector.resize(ranks, N::ZERO);
        }
        self.fill.fit(ranks);
    }
}

impl Workspace {
    /// Scratch memory with all the room that this problem needs.
    pub fn new(problem: &Problem) -> Workspace {
        let mut workspace = Workspace::default();
        workspace.fit(problem);
        workspace
    }

    fn fit(&mut self, problem: &Problem) {
        if self.sized_for.as_ref().is_some_and(|offsets| Arc::ptr_eq(offsets, problem.hosts().offsets())) {
            return;
        }
        self.sized_for = Some(Arc::clone(problem.hosts().offsets()));
        let (ranks, net) = (problem.hosts().ranks(), problem.hosts().net());
        self.narrow.fit(ranks, net);
        self.wide.fit(ranks, net);
        self.widest.fit(ranks, net);
        self.level.fit(problem.hosts());
        self.search.fit(ranks, net);
        self.block.fit(ranks, net);
    }
}

/// Splits one batch of loads, one per item, so that the peak is least.
///
/// # Errors
/// [`Error::Length`] unless there is one load per item; [`Error::Overflow`] if all loads and base loads
/// together exceed `u64::MAX`.
pub fn solve(problem: &Problem, loads: &[u64], workspace: &mut Workspace) -> Result<Split, Error> {
    let mut split = Split::default();
    solve_into(problem, loads, workspace, &mut split)?;
    Ok(split)
}

/// As [`solve`], into memory that is kept from call to call: no allocation after the first call for a
/// problem. The answer does not depend on what `split` or `workspace` held before.
///
/// # Errors
/// As [`solve`]; `split` is then left as it was.
pub fn solve_into(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut Workspace,
    split: &mut Split,
) -> Result<(), Error> {
    solve_any(problem, loads, workspace, split)
}

/// As [`solve_into`], from counts of 32 bits, as kernels count: the same answer, bit for bit.
///
/// # Errors
/// As [`solve_into`].
pub fn solve_counts_into(
    problem: &Problem,
    counts: &[u32],
    workspace: &mut Workspace,
    split: &mut Split,
) -> Result<(), Error> {
    solve_any(problem, counts, workspace, split)
}

fn solve_any<C: Count>(
    problem: &Problem,
    loads: &[C],
    workspace: &mut Workspace,
    split: &mut Split,
) -> Result<(), Error> {
    workspace.fit(problem);
    let Workspace { table, narrow, wide, widest, level, search, block, .. } = workspace;
    if let Some(total) = table.take_in(problem, loads) {
        split.fit(problem.hosts());
        table.fixed_loads(problem, &mut split.rank_loads);
        table.write_runs(problem.hosts().net(), &mut split.quotas);
        Run { problem, loads, total, flow: narrow, level, search, block, split }.run();
        return Ok(());
    }
    let total = problem.total(loads)?;
    split.fit(problem.hosts());
    gather::fixed_loads(problem, loads, &mut split.rank_loads);
    gather::write_runs(problem.hosts().net(), loads, &mut split.quotas);
    // One token of room: levelling out adds one to a sum of loads.
    if total < i32::MAX as u64 {
        Run { problem, loads, total, flow: narrow, level, search, block, split }.run();
    } else if total < i64::MAX as u64 {
        Run { problem, loads, total, flow: wide, level, search, block, split }.run();
    } else {
        Run { problem, loads, total, flow: widest, level, search, block, split }.run();
    }
    Ok(())
}

/// One run of the method, in one width of numbers.
struct Run<'a, C, N> {
    problem: &'a Problem,
    loads: &'a [C],
    total: u64,
    flow: &'a mut Flow<N>,
    level: &'a mut level::Scratch,
    search: &'a mut search::Scratch,
    block: &'a mut block::Scratch,
    split: &'a mut Split,
}

impl<C: Count, N: Whole> Run<'_, C, N> {
    fn run(&mut self) {
        let mut peak = level::first(self.problem, self.total, self.level, self.split);
        self.open(peak);
        self.place();
        let net = self.problem.hosts().net();
        let mut drains = if net.many_items.is_empty() { DRAINS } else { 0 };
        loop {
            match search(net, self.flow, self.search) {
                Found::NothingOverloaded => break,
                Found::Slack if drains > 0 => {
                    drains -= 1;
                    forest::drain(self.search.forest(), self.flow);
                }
                Found::Slack => block::block(net, self.flow, self.search, self.block),
                Found::Cut => peak = self.raise(),
            }
        }
        gather::write(net, self.flow, self.split);
        debug_assert_eq!(busiest(self.problem, &self.split.rank_loads), peak, "no lower one is possible");
        self.split.peak = match self.problem.common_speed() {
            Some(_) => peak,
            None => busiest(self.problem, &self.split.rank_loads),
        };
    }

    /// Gives every rank its room at a peak, and its excess from what it must carry anyway.
    fn open(&mut self, peak: Peak) {
        let Flow { excess, room, .. } = &mut *self.flow;
        let ranks = excess.iter_mut().zip(room).zip(&self.split.rank_loads).zip(self.problem.speeds());
        for (((excess, room), &load), &speed) in ranks {
            // More room than there is load is never used.
            *room = N::from_u64(peak.room(speed).min(self.total));
            *excess = N::from_u64(load) - *room;
        }
    }

    /// Places the shared items, and goes on levelling out as long as a rank is overloaded.
    fn place(&mut self) {
        let net = self.problem.hosts().net();
        fill::place(net, self.loads, self.flow);
        for _ in 0..net.passes {
            if !any_overload(&self.flow.excess) {
                return;
            }
            fill::level_out(net, self.flow);
        }
        for forest in &net.forests {
            if !any_overload(&self.flow.excess) {
                return;
            }
            forest::settle(forest, self.flow);
        }
    }

    /// Raises the peak to the least at which the cut that was found can carry its load.
    fn raise(&mut self) -> Peak {
        let cut = self.search.reached();
        let Flow { excess, room, .. } = &mut *self.flow;
        let must = cut.iter().map(|&rank| (excess[rank as usize] + room[rank as usize]).to_u64()).sum();
        let peak = level::least(self.problem, cut, must, &mut self.level.heap);
        // Outside the cut nothing is overloaded and nothing will arrive: its room may stay.
        for &rank in cut {
            let rank = rank as usize;
            let wider = N::from_u64(peak.room(self.problem.speeds()[rank]).min(self.total));
            excess[rank] -= wider - room[rank];
            room[rank] = wider;
        }
        self.split.certificate.clear();
        self.split.certificate.extend_from_slice(cut);
        self.split.certificate.sort_unstable();
        for forest in self.problem.hosts().net().forests.iter().take(1) {
            forest::settle(forest, self.flow);
        }
        peak
    }
}

/// Whether a rank carries more than its room. Without a branch per rank.
fn any_overload<N: Whole>(excess: &[N]) -> bool {
    excess.iter().copied().fold(N::ZERO, N::max) > N::ZERO
}

/// The largest ratio of load to speed: that of the lowest rank which attains it.
fn busiest(problem: &Problem, rank_loads: &[u64]) -> Peak {
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
