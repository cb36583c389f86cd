//! Pieces of a minimum size: no host serves fewer than `m` tokens of an item unless that is all of it.
//!
//! In: a problem, loads, the least piece `m`. Out: a [`RankSplit`] in which every quota is 0, the whole load,
//! or at least `m`. Its peak is as low as the method finds, with a lower bound of all such peaks. A small
//! piece costs its rank a read of weights and a narrow matrix product. LLEP, for example, sends no piece
//! below 1024 tokens.
//!
//! **Complexity.** The problem is NP-hard. With `m` above all loads no item may be split, which is scheduling
//! on unrelated machines with restricted assignment. The method is a heuristic. The result is always
//! feasible, because one host may serve all.
//!
//! **Method.** Choose for every item the *open* hosts: each of several must serve `m` tokens, or a single one
//! serves all. For given open hosts the best loads are a flow with lower bounds, found exactly and
//! decreasingly minimal (`decomposition`). The first choice rounds the exact split. Pieces below `m` are
//! closed or, largest first, raised to `m` if together they are worth one. A local search follows. For items
//! that touch a busiest rank, one host is opened, closed or exchanged. If no such change gains, one item
//! moves to a rank and another one on from there. A change stays if it lowers the sorted vector of ratios.
//! The search ends when nothing gains, the bound is met or the effort is spent.
//!
//! **Bound.** The bound is the certified peak without the condition.

use super::balance::{BalanceWorkspace, balance_into, busiest_ratio};
use super::load_levels::Level;
use crate::{Peak, Problem, RankSplit, SolverError};

/// Split without small pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MinPieceSplit {
    /// Split of the batch. Its certificate proves the bound, not the split's own peak.
    pub split: RankSplit,
    /// Lowest peak without the condition on pieces. No split with it has a lower one.
    pub bound: Peak,
}

/// Splitter without small pieces for one problem and successive batches.
#[derive(Debug, Clone)]
pub struct MinPieceSplitter {
    problem: Problem,
    least: u64,
    effort: usize,
    workspace: BalanceWorkspace,
    open: Vec<bool>,
    /// Best state so far, to which a failed change returns.
    incumbent: PieceState,
    ratios: Vec<Peak>,
}

/// State that a change of open hosts modifies.
#[derive(Debug, Clone, Default)]
struct PieceState {
    quota: Vec<u64>,
    floor: Vec<u64>,
    ceiling: Vec<u64>,
    load: Vec<u64>,
    open: Vec<bool>,
    level: Vec<Level>,
    /// Ratios, sorted descending.
    ratios: Vec<Peak>,
}

/// Change of one item's hosts.
#[derive(Debug, Clone, Copy)]
struct ItemHostChange {
    index: usize,
    opened: Option<usize>,
    closed: Option<usize>,
}

impl MinPieceSplitter {
    /// Default number of changes that the local search evaluates.
    pub const DEFAULT_EFFORT: usize = 256;

    /// Creates a splitter without pieces below `least` tokens. (0 and 1 impose no condition.)
    pub fn new(problem: Problem, least: u64) -> MinPieceSplitter {
        MinPieceSplitter {
            problem,
            least,
            effort: MinPieceSplitter::DEFAULT_EFFORT,
            workspace: BalanceWorkspace::default(),
            open: Vec::new(),
            incumbent: PieceState::default(),
            ratios: Vec::new(),
        }
    }

    /// Sets the number of changes that the local search evaluates. Each costs a flow.
    #[must_use]
    pub fn with_effort(self, effort: usize) -> MinPieceSplitter {
        MinPieceSplitter { effort, ..self }
    }

    /// Splits one batch of loads, one per item.
    ///
    /// # Errors
    /// Fails as [`solve`](crate::solve) does.
    pub fn solve(&mut self, loads: &[u64]) -> Result<MinPieceSplit, SolverError> {
        let mut split = RankSplit::default();
        balance_into(&self.problem, loads, &mut self.workspace, &mut split)?;
        let bound = split.peak;
        self.round_pieces(loads);
        self.settle_loads();
        self.save_incumbent();
        self.search_hosts(loads, bound);
        let PieceState { quota, load, .. } = &self.incumbent;
        self.workspace.flow.quota.copy_from_slice(quota);
        self.workspace.flow.load.copy_from_slice(load);
        self.workspace.flow.write(&self.workspace.graph, &mut split.quotas, &mut split.rank_loads);
        split.peak = busiest_ratio(&self.problem, &split.rank_loads);
        Ok(MinPieceSplit { split, bound })
    }

    fn load_of(&self, index: usize, loads: &[u64]) -> u64 {
        loads[self.workspace.graph.items[index] as usize]
    }

    /// Returns true if `count` hosts may serve a load together.
    fn can_share(&self, load: u64, count: usize) -> bool {
        count == 1 || u128::from(self.least) * count as u128 <= u128::from(load)
    }

    /// Opens hosts by rounding the present pieces.
    fn round_pieces(&mut self, loads: &[u64]) {
        self.open.clear();
        self.open.resize(self.workspace.graph.rank_of.len(), false);
        let mut pieces: Vec<usize> = Vec::new();
        for index in 0..self.workspace.graph.items.len() {
            let places = self.workspace.graph.item_places(index);
            let quota = &self.workspace.flow.quota;
            pieces.clear();
            pieces.extend(places.clone().filter(|&place| quota[place] > 0));
            pieces.sort_by_key(|&place| (std::cmp::Reverse(quota[place]), place));
            let large = pieces.iter().filter(|&&place| quota[place] >= self.least).count();
            let small: u128 = pieces[large..].iter().map(|&place| u128::from(quota[place])).sum();
            // Half a piece and more is worth one.
            let least = u128::from(self.least.max(1));
            let raised = ((2 * small + least) / (2 * least)) as usize;
            let mut count = (large + raised.min(pieces.len() - large)).max(1).min(pieces.len().max(1));
            while !self.can_share(self.load_of(index, loads), count) {
                count -= 1;
            }
            for &place in &pieces[..count.min(pieces.len())] {
                self.open[place] = true;
            }
            if pieces.is_empty() {
                self.open[places.start] = true;
            }
            self.distribute_item(index, self.load_of(index, loads));
        }
    }

    /// Gives an item's open hosts quotas within their bounds, as near to the present ones as possible.
    fn distribute_item(&mut self, index: usize, load: u64) {
        let BalanceWorkspace { graph, flow, .. } = &mut self.workspace;
        let places = graph.item_places(index);
        let count = places.clone().filter(|&place| self.open[place]).count() as u64;
        let floor = if count == 1 { load } else { self.least };
        let mut left = load - floor * count;
        let mut last = places.start;
        for place in places {
            let rank = graph.rank_of[place] as usize;
            let before = flow.quota[place];
            flow.load[rank] -= before;
            let open = self.open[place];
            flow.floor[place] = if open { floor } else { 0 };
            flow.ceiling[place] = if open { u64::MAX } else { 0 };
            flow.quota[place] = 0;
            if open {
                let more = left.min(before.saturating_sub(floor));
                left -= more;
                flow.quota[place] = floor + more;
                last = place;
            }
            flow.load[rank] += flow.quota[place];
        }
        flow.quota[last] += left;
        flow.load[graph.rank_of[last] as usize] += left;
    }

    /// Finds the best loads for the open hosts.
    fn settle_loads(&mut self) {
        let BalanceWorkspace { graph, flow, classes, .. } = &mut self.workspace;
        classes.settle_classes(graph, self.problem.speeds(), flow);
        let ratios = flow.load.iter().zip(self.problem.speeds());
        self.ratios.clear();
        self.ratios.extend(ratios.map(|(&load, &speed)| Peak { load, speed }));
        self.ratios.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn save_incumbent(&mut self) {
        let flow = &self.workspace.flow;
        self.incumbent.quota.clone_from(&flow.quota);
        self.incumbent.floor.clone_from(&flow.floor);
        self.incumbent.ceiling.clone_from(&flow.ceiling);
        self.incumbent.load.clone_from(&flow.load);
        self.incumbent.open.clone_from(&self.open);
        self.incumbent.level.clone_from(&self.workspace.classes.level);
        self.incumbent.ratios.clone_from(&self.ratios);
    }

    fn restore_incumbent(&mut self) {
        let flow = &mut self.workspace.flow;
        flow.quota.copy_from_slice(&self.incumbent.quota);
        flow.floor.copy_from_slice(&self.incumbent.floor);
        flow.ceiling.copy_from_slice(&self.incumbent.ceiling);
        flow.load.copy_from_slice(&self.incumbent.load);
        self.open.copy_from_slice(&self.incumbent.open);
    }

    /// Searches locally over open hosts: one item at a time, then two, while anything gains.
    fn search_hosts(&mut self, loads: &[u64], bound: Peak) {
        let mut effort = self.effort;
        let items = self.workspace.graph.items.len();
        // The loop visits the items in turn until none of them has gained for a whole round.
        let (mut index, mut idle) = (0, 0);
        while effort > 0 && self.incumbent.ratios.first().is_some_and(|&peak| peak > bound) {
            let pairs = idle >= items;
            if idle >= 2 * items {
                return;
            }
            idle += 1;
            if self.touches_a_busiest_rank(index) && self.improve_item(index, pairs, loads, &mut effort) {
                idle = 0;
            }
            index = (index + 1) % items;
        }
    }

    /// Returns true if an item has a host of the class that carries the peak.
    fn touches_a_busiest_rank(&self, index: usize) -> bool {
        let Some(&peak) = self.incumbent.ratios.first() else { return false };
        self.workspace.graph.item_places(index).any(|place| {
            let rank = self.workspace.graph.rank_of[place] as usize;
            let level = self.incumbent.level[rank];
            Peak { load: self.incumbent.load[rank], speed: self.problem.speeds()[rank] } == peak
                || Peak { load: level.load, speed: level.speed } == peak
        })
    }

    /// Opens, closes or exchanges hosts of one item if that gains. With `pairs`, it moves one item to a rank
    /// and another one on from there.
    fn improve_item(&mut self, index: usize, pairs: bool, loads: &[u64], effort: &mut usize) -> bool {
        let places = self.workspace.graph.item_places(index);
        let mut gained = false;
        for opened in places.clone().map(Some).chain([None]) {
            for closed in places.clone().map(Some).chain([None]) {
                let change = ItemHostChange { index, opened, closed };
                gained |= match opened {
                    Some(to) if pairs => {
                        closed.is_some() && self.improve_two_items(change, to, loads, effort)
                    }
                    _ if pairs => false,
                    _ => self.try_changes(&[change], loads, effort),
                };
            }
        }
        gained
    }

    /// Moves an item to a rank and another one on from there.
    fn improve_two_items(
        &mut self,
        first: ItemHostChange,
        to: usize,
        loads: &[u64],
        effort: &mut usize,
    ) -> bool {
        let there = self.workspace.graph.rank_of[to] as usize;
        for seat in 0..self.workspace.graph.seats(there).len() {
            let (closed, index) = self.workspace.graph.seats(there)[seat];
            let (closed, index) = (closed as usize, index as usize);
            if index == first.index || !self.open[closed] {
                continue;
            }
            for opened in self.workspace.graph.item_places(index) {
                let second = ItemHostChange { index, opened: Some(opened), closed: Some(closed) };
                if self.try_changes(&[first, second], loads, effort) {
                    return true;
                }
            }
        }
        false
    }

    /// Makes these changes if they are allowed and gain.
    fn try_changes(&mut self, changes: &[ItemHostChange], loads: &[u64], effort: &mut usize) -> bool {
        if *effort == 0 || !changes.iter().all(|&change| self.is_allowed(change, loads)) {
            return false;
        }
        *effort -= 1;
        for &ItemHostChange { index, opened, closed } in changes {
            if let Some(place) = opened {
                self.open[place] = true;
            }
            if let Some(place) = closed {
                self.open[place] = false;
            }
            self.distribute_item(index, self.load_of(index, loads));
        }
        self.settle_loads();
        let gained = self.ratios < self.incumbent.ratios;
        if gained {
            self.save_incumbent();
        } else {
            self.restore_incumbent();
        }
        gained
    }

    /// Returns true if a change opens a closed host, closes an open one, and leaves hosts for pieces that are
    /// large enough.
    fn is_allowed(&self, ItemHostChange { index, opened, closed }: ItemHostChange, loads: &[u64]) -> bool {
        let opens = opened.is_some_and(|place| !self.open[place]);
        let closes = closed.is_some_and(|place| self.open[place]);
        if opens != opened.is_some() || closes != closed.is_some() || !(opens || closes) {
            return false;
        }
        let now = self.workspace.graph.item_places(index).filter(|&place| self.open[place]).count();
        let count = now + usize::from(opens) - usize::from(closes);
        count > 0 && self.can_share(self.load_of(index, loads), count)
    }
}
