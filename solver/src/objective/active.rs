//! Load in active items: a rank reads the weights of every item it serves, however few its tokens.
//!
//! In: a problem, loads in tokens. Out: for every item with tokens the one host that serves them all, such that the
//! largest number of active items on a rank (per speed) is as small as it can be. Exact for any hosts and speeds.
//!
//! **Why it is the same problem.** Splitting an item only adds active pairs, so each is served by one host: a
//! semi-matching (Harvey, Ladner, Lovász and Tamir 2006), which is the exact split of unit loads. Its quotas are whole,
//! so 0 or 1, and its certificate proves the peak. The vector of counts is decreasingly minimal (`balance`). METRO
//! minimises the same number for the decoding steps of mixture-of-experts models, greedily.
//!
//! **Tokens come second**, by a heuristic: items move, alone or two against each other, while that leaves the counts'
//! sorted vector as it is and lowers the larger ratio of tokens to speed of the two ranks. It ends in a local optimum.

use super::balance::{Workspace, balance_into};
use crate::{Error, Peak, Problem, Split, Violation, verify};

/// More passes over all items than this are not made.
const PASSES: usize = 64;

/// Nobody serves the item: it has no tokens.
const NOWHERE: u32 = u32::MAX;

/// What moves when an item does.
#[derive(Debug, Clone, Copy)]
enum Exchange {
    /// Nothing else.
    Alone,
    /// Another item, to that place.
    Against { index: usize, place: usize },
}

/// A split in whole items.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActiveSplit {
    /// The split in items: peak, quotas (0 or 1), rank loads and certificate count active items.
    pub active: Split,
    /// The quota of every (item, host) pair in tokens: nothing, or all of the item.
    pub quotas: Vec<u64>,
    /// The tokens of every rank, base load included.
    pub rank_loads: Vec<u64>,
}

/// Splits in whole items for one problem, batch after batch.
#[derive(Debug, Clone)]
pub struct Active {
    tokens: Problem,
    counts: Problem,
    workspace: Workspace,
    ones: Vec<u64>,
    /// Of every item with a choice, the place that serves it.
    place: Vec<u32>,
}

impl Active {
    /// No rank has an active item before the batch. Base loads of the problem are tokens and count for their balance
    /// only.
    pub fn new(problem: Problem) -> Active {
        let counts = match problem.clone().with_base(vec![0; problem.hosts().ranks()]) {
            Ok(counts) => counts,
            // There is one base load per rank.
            Err(_) => problem.clone(),
        };
        Active {
            tokens: problem,
            counts,
            workspace: Workspace::default(),
            ones: Vec::new(),
            place: Vec::new(),
        }
    }

    /// Sets the number of items that are active on every rank anyway.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one count per rank.
    pub fn with_base_counts(self, counts: Vec<u64>) -> Result<Active, Error> {
        Ok(Active { counts: self.counts.with_base(counts)?, ..self })
    }

    /// The problem in active items.
    pub fn counts(&self) -> &Problem {
        &self.counts
    }

    /// Splits one batch of loads in tokens, one per item.
    ///
    /// # Errors
    /// As [`solve`](crate::solve).
    pub fn solve(&mut self, loads: &[u64]) -> Result<ActiveSplit, Error> {
        let mut answer = ActiveSplit::default();
        self.solve_into(loads, &mut answer)?;
        Ok(answer)
    }

    /// As [`solve`](Self::solve), into memory that is kept from call to call: nothing is allocated after the first.
    ///
    /// # Errors
    /// As [`solve`](crate::solve); `answer` is then left as it was.
    pub fn solve_into(&mut self, loads: &[u64], answer: &mut ActiveSplit) -> Result<(), Error> {
        self.tokens.total(loads)?;
        self.ones.clear();
        self.ones.extend(loads.iter().map(|&load| u64::from(load > 0)));
        let ActiveSplit { active, quotas, rank_loads } = answer;
        balance_into(&self.counts, &self.ones, &mut self.workspace, active)?;
        self.sum_tokens(loads, active, rank_loads);
        self.improve(loads, active, rank_loads);
        active.peak = super::balance::busiest(&self.counts, &active.rank_loads);
        let hosts = self.tokens.hosts();
        quotas.clear();
        for (item, &load) in loads.iter().enumerate() {
            quotas.extend(
                active.quotas[hosts.offset(item)..hosts.offset(item + 1)].iter().map(|one| one * load),
            );
        }
        Ok(())
    }

    /// Notes who serves what, and the tokens of every rank.
    fn sum_tokens(&mut self, loads: &[u64], active: &Split, tokens: &mut Vec<u64>) {
        let graph = &self.workspace.graph;
        tokens.clear();
        tokens.extend_from_slice(self.tokens.base());
        for (item, &load) in loads.iter().enumerate() {
            for (&rank, &one) in self.tokens.hosts().of(item).iter().zip(active.quotas_of(item)) {
                tokens[rank as usize] += one * load;
            }
        }
        self.place.clear();
        for index in 0..graph.items.len() {
            let serves = |&place: &usize| active.quotas[graph.pair_of[place] as usize] > 0;
            self.place.push(graph.places(index).find(serves).map_or(NOWHERE, |place| place as u32));
        }
    }

    /// Moves items while tokens gain by it and counts do not lose.
    fn improve(&mut self, loads: &[u64], active: &mut Split, tokens: &mut [u64]) {
        for _ in 0..PASSES {
            let mut moved = false;
            for index in 0..self.workspace.graph.items.len() {
                for to in self.workspace.graph.places(index) {
                    let from = self.place[index];
                    if from == NOWHERE || from as usize == to {
                        continue;
                    }
                    let Some(back) = self.exchange(index, to, loads, &active.rank_loads, tokens) else {
                        continue;
                    };
                    moved = true;
                    self.shift(index, to, loads, active, tokens);
                    if let Exchange::Against { index, place } = back {
                        self.shift(index, place, loads, active, tokens);
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// How it gains most to serve an item at another place, if it does.
    fn exchange(
        &self,
        index: usize,
        to: usize,
        loads: &[u64],
        counts: &[u64],
        tokens: &[u64],
    ) -> Option<Exchange> {
        let (graph, speeds) = (&self.workspace.graph, self.tokens.speeds());
        let rank_at = |place: usize| graph.rank_of[place] as usize;
        let load_of = |index: usize| loads[graph.items[index] as usize];
        let (here, there) = (rank_at(self.place[index] as usize), rank_at(to));
        let larger = |load_here: u64, load_there: u64| {
            let here = Peak { load: load_here, speed: speeds[here] };
            here.max(Peak { load: load_there, speed: speeds[there] })
        };
        let mut least = larger(tokens[here], tokens[there]);
        let mut best = None;
        let mut consider = |back: u64, exchange: Exchange| {
            let after = larger(tokens[here] - load_of(index) + back, tokens[there] - back + load_of(index));
            if after < least {
                (least, best) = (after, Some(exchange));
            }
        };
        // Without a partner the two ranks must merely change their counts.
        if speeds[here] == speeds[there] && counts[here] == counts[there] + 1 {
            consider(0, Exchange::Alone);
        }
        for &(place, other) in graph.seats(there) {
            let other = other as usize;
            let back = graph.places(other).find(|&place| rank_at(place) == here);
            if let (true, Some(back)) = (self.place[other] == place, back) {
                consider(load_of(other), Exchange::Against { index: other, place: back });
            }
        }
        best
    }

    /// Serves an item at another place.
    fn shift(&mut self, index: usize, to: usize, loads: &[u64], active: &mut Split, tokens: &mut [u64]) {
        let graph = &self.workspace.graph;
        let from = std::mem::replace(&mut self.place[index], to as u32) as usize;
        let load = loads[graph.items[index] as usize];
        let (source, target) = (graph.rank_of[from] as usize, graph.rank_of[to] as usize);
        tokens[source] -= load;
        tokens[target] += load;
        active.rank_loads[source] -= 1;
        active.rank_loads[target] += 1;
        active.quotas[graph.pair_of[from] as usize] = 0;
        active.quotas[graph.pair_of[to] as usize] = 1;
    }
}

/// Checks a split in whole items: feasible, certified to have the least peak in active items, every item served by one
/// host. `counts` is [`Active::counts`].
///
/// # Errors
/// The first [`Violation`] met: those of [`verify`] for unit loads, then [`Violation::Conservation`] and
/// [`Violation::Length`].
pub fn verify_active(counts: &Problem, loads: &[u64], answer: &ActiveSplit) -> Result<(), Violation> {
    let ones: Vec<u64> = loads.iter().map(|&load| u64::from(load > 0)).collect();
    verify(counts, &ones, &answer.active)?;
    let hosts = counts.hosts();
    if answer.quotas.len() != hosts.len() {
        return Err(Violation::Length { what: "quotas", expected: hosts.len(), got: answer.quotas.len() });
    }
    for (item, &load) in loads.iter().enumerate() {
        let quotas = &answer.quotas[hosts.offset(item)..hosts.offset(item + 1)];
        let whole =
            quotas.iter().zip(answer.active.quotas_of(item)).all(|(&quota, &one)| quota == one * load);
        if !whole {
            let quotas = quotas.iter().map(|&quota| u128::from(quota)).sum();
            return Err(Violation::Conservation { item, load, quotas });
        }
    }
    Ok(())
}
