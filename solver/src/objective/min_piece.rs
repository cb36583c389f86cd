//! Pieces worth sending: no host serves fewer than `m` tokens of an item unless that is all of it.
//!
//! In: a problem, loads, the least piece `m`. Out: a [`Split`] in which every quota is 0, the whole load, or at least `m`,
//! with a peak as small as the method finds, and a lower bound on all such peaks. A small piece costs its rank a read of
//! weights and a narrow matrix product; LLEP, for one, sends no piece below 1024 tokens.
//!
//! **How hard.** NP-hard: with `m` above all loads no item may be split, which is scheduling on unrelated machines of
//! restricted assignment. The method is a heuristic; the answer is always feasible, since one host may serve all.
//!
//! **Method.** Choose for every item the *open* hosts, each of which must serve `m` tokens, or one that serves all. For
//! given open hosts the best loads are a flow with lower bounds, found exactly and decreasingly minimal (`classes`). The
//! first choice rounds the exact split: pieces below `m` are closed or, largest first, raised to `m` where together they
//! are worth one. Then a local search: for items that touch a busiest rank, one host is opened, closed or exchanged, and
//! where that gains no more, one item moves to a rank and another one on from there. A change stays if it makes the
//! sorted vector of ratios less. It ends when nothing gains, the bound is met or the
//! effort is spent.
//!
//! **Bound.** The certified peak without the condition.

use super::balance::{Workspace, balance_into, busiest};
use super::level::Level;
use crate::{Error, Peak, Problem, Split};

/// A split without small pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinPieceSplit {
    /// The split. Its certificate proves the bound, not the split's own peak.
    pub split: Split,
    /// The least peak without the condition on pieces: no split with it has a lower one.
    pub bound: Peak,
}

/// Splits without small pieces for one problem, batch after batch.
#[derive(Debug, Clone)]
pub struct MinPiece {
    problem: Problem,
    least: u64,
    effort: usize,
    workspace: Workspace,
    open: Vec<bool>,
    /// The best found so far, to go back to.
    kept: State,
    ratios: Vec<Peak>,
}

/// What a change of open hosts changes.
#[derive(Debug, Clone, Default)]
struct State {
    quota: Vec<u64>,
    floor: Vec<u64>,
    ceiling: Vec<u64>,
    load: Vec<u64>,
    open: Vec<bool>,
    level: Vec<Level>,
    /// The ratios, sorted descending.
    ratios: Vec<Peak>,
}

/// One item's hosts change.
#[derive(Debug, Clone, Copy)]
struct Change {
    index: usize,
    opened: Option<usize>,
    closed: Option<usize>,
}

impl MinPiece {
    /// How many changes the local search tries, if nothing else is said.
    pub const EFFORT: usize = 256;

    /// No piece below `least` tokens. (0 and 1 ask for nothing.)
    pub fn new(problem: Problem, least: u64) -> MinPiece {
        MinPiece {
            problem,
            least,
            effort: MinPiece::EFFORT,
            workspace: Workspace::default(),
            open: Vec::new(),
            kept: State::default(),
            ratios: Vec::new(),
        }
    }

    /// Sets how many changes the local search tries; each costs a flow.
    #[must_use]
    pub fn with_effort(self, effort: usize) -> MinPiece {
        MinPiece { effort, ..self }
    }

    /// Splits one batch of loads, one per item.
    ///
    /// # Errors
    /// As [`solve`](crate::solve).
    pub fn solve(&mut self, loads: &[u64]) -> Result<MinPieceSplit, Error> {
        let mut split = Split::default();
        balance_into(&self.problem, loads, &mut self.workspace, &mut split)?;
        let bound = split.peak;
        self.round(loads);
        self.settle();
        self.keep();
        self.improve(loads, bound);
        let State { quota, load, .. } = &self.kept;
        self.workspace.flow.quota.copy_from_slice(quota);
        self.workspace.flow.load.copy_from_slice(load);
        self.workspace.flow.write(&self.workspace.graph, &mut split.quotas, &mut split.rank_loads);
        split.peak = busiest(&self.problem, &split.rank_loads);
        Ok(MinPieceSplit { split, bound })
    }

    fn load_of(&self, index: usize, loads: &[u64]) -> u64 {
        loads[self.workspace.graph.items[index] as usize]
    }

    /// Whether `count` hosts may serve a load together.
    fn enough(&self, load: u64, count: usize) -> bool {
        count == 1 || u128::from(self.least) * count as u128 <= u128::from(load)
    }

    /// Opens hosts by rounding the pieces there are.
    fn round(&mut self, loads: &[u64]) {
        self.open.clear();
        self.open.resize(self.workspace.graph.rank_of.len(), false);
        let mut pieces: Vec<usize> = Vec::new();
        for index in 0..self.workspace.graph.items.len() {
            let places = self.workspace.graph.places(index);
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
            while !self.enough(self.load_of(index, loads), count) {
                count -= 1;
            }
            for &place in &pieces[..count.min(pieces.len())] {
                self.open[place] = true;
            }
            if pieces.is_empty() {
                self.open[places.start] = true;
            }
            self.pour(index, self.load_of(index, loads));
        }
    }

    /// Gives an item's open hosts quotas within their bounds, as near to what they have as may be.
    fn pour(&mut self, index: usize, load: u64) {
        let Workspace { graph, flow, .. } = &mut self.workspace;
        let places = graph.places(index);
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

    /// The best loads for the open hosts.
    fn settle(&mut self) {
        let Workspace { graph, flow, classes, .. } = &mut self.workspace;
        classes.settle(graph, self.problem.speeds(), flow);
        let ratios = flow.load.iter().zip(self.problem.speeds());
        self.ratios.clear();
        self.ratios.extend(ratios.map(|(&load, &speed)| Peak { load, speed }));
        self.ratios.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn keep(&mut self) {
        let flow = &self.workspace.flow;
        self.kept.quota.clone_from(&flow.quota);
        self.kept.floor.clone_from(&flow.floor);
        self.kept.ceiling.clone_from(&flow.ceiling);
        self.kept.load.clone_from(&flow.load);
        self.kept.open.clone_from(&self.open);
        self.kept.level.clone_from(&self.workspace.classes.level);
        self.kept.ratios.clone_from(&self.ratios);
    }

    fn go_back(&mut self) {
        let flow = &mut self.workspace.flow;
        flow.quota.copy_from_slice(&self.kept.quota);
        flow.floor.copy_from_slice(&self.kept.floor);
        flow.ceiling.copy_from_slice(&self.kept.ceiling);
        flow.load.copy_from_slice(&self.kept.load);
        self.open.copy_from_slice(&self.kept.open);
    }

    /// Local search over open hosts: one item at a time, then two, as long as anything gains.
    fn improve(&mut self, loads: &[u64], bound: Peak) {
        let mut effort = self.effort;
        let items = self.workspace.graph.items.len();
        // Goes round the items until none of them has gained for a whole round.
        let (mut index, mut idle) = (0, 0);
        while effort > 0 && self.kept.ratios.first().is_some_and(|&peak| peak > bound) {
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

    /// Whether an item has a host of the class that carries the peak.
    fn touches_a_busiest_rank(&self, index: usize) -> bool {
        let Some(&peak) = self.kept.ratios.first() else { return false };
        self.workspace.graph.places(index).any(|place| {
            let rank = self.workspace.graph.rank_of[place] as usize;
            let level = self.kept.level[rank];
            Peak { load: self.kept.load[rank], speed: self.problem.speeds()[rank] } == peak
                || Peak { load: level.load, speed: level.speed } == peak
        })
    }

    /// Opens, closes or exchanges hosts of one item where that gains; or, in pairs, moves one item to a rank and another
    /// one on from there.
    fn improve_item(&mut self, index: usize, pairs: bool, loads: &[u64], effort: &mut usize) -> bool {
        let places = self.workspace.graph.places(index);
        let mut gained = false;
        for opened in places.clone().map(Some).chain([None]) {
            for closed in places.clone().map(Some).chain([None]) {
                let change = Change { index, opened, closed };
                gained |= match opened {
                    Some(to) if pairs => closed.is_some() && self.improve_onward(change, to, loads, effort),
                    _ if pairs => false,
                    _ => self.attempt(&[change], loads, effort),
                };
            }
        }
        gained
    }

    /// Moves an item to a rank and another one on from there.
    fn improve_onward(&mut self, first: Change, to: usize, loads: &[u64], effort: &mut usize) -> bool {
        let there = self.workspace.graph.rank_of[to] as usize;
        for seat in 0..self.workspace.graph.seats(there).len() {
            let (closed, index) = self.workspace.graph.seats(there)[seat];
            let (closed, index) = (closed as usize, index as usize);
            if index == first.index || !self.open[closed] {
                continue;
            }
            for opened in self.workspace.graph.places(index) {
                let second = Change { index, opened: Some(opened), closed: Some(closed) };
                if self.attempt(&[first, second], loads, effort) {
                    return true;
                }
            }
        }
        false
    }

    /// Makes these changes if they are allowed and gain.
    fn attempt(&mut self, changes: &[Change], loads: &[u64], effort: &mut usize) -> bool {
        if *effort == 0 || !changes.iter().all(|&change| self.allows(change, loads)) {
            return false;
        }
        *effort -= 1;
        for &Change { index, opened, closed } in changes {
            if let Some(place) = opened {
                self.open[place] = true;
            }
            if let Some(place) = closed {
                self.open[place] = false;
            }
            self.pour(index, self.load_of(index, loads));
        }
        self.settle();
        let gained = self.ratios < self.kept.ratios;
        if gained {
            self.keep();
        } else {
            self.go_back();
        }
        gained
    }

    /// Whether a change opens what is closed, closes what is open, and leaves hosts for pieces that are large enough.
    fn allows(&self, Change { index, opened, closed }: Change, loads: &[u64]) -> bool {
        let opens = opened.is_some_and(|place| !self.open[place]);
        let closes = closed.is_some_and(|place| self.open[place]);
        if opens != opened.is_some() || closes != closed.is_some() || !(opens || closes) {
            return false;
        }
        let now = self.workspace.graph.places(index).filter(|&place| self.open[place]).count();
        let count = now + usize::from(opens) - usize::from(closes);
        count > 0 && self.enough(self.load_of(index, loads), count)
    }
}
