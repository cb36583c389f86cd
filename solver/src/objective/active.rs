//! Load in active items: a rank reads the weights of every item that it serves, however few the tokens.
//!
//! In: a problem, loads in tokens. Out: for every item with tokens the one host that serves them all. The
//! highest number of active items on a rank (per speed) is as low as possible. The method is exact for any
//! hosts and speeds.
//!
//! **Equivalence to the exact split.** Splitting an item only adds active pairs, so each item is served by
//! one host. This is a semi-matching (Harvey, Ladner, Lovász and Tamir 2006), which is the exact split of
//! unit loads. Its quotas are whole, so 0 or 1, and its certificate proves the peak. The vector of counts is
//! decreasingly minimal (`balance`). METRO minimises the same number for the decoding steps of
//! mixture-of-experts models, greedily.
//!
//! **Tokens come second**, by a heuristic. Items move, alone or two against each other. A move must leave the
//! sorted vector of counts as it is, and lower the larger ratio of tokens to speed of the two ranks. The
//! heuristic ends in a local optimum.

use super::balance::{BalanceWorkspace, balance_into};
use crate::{Peak, Problem, RankSplit, SolverError, Violation, verify};

/// Highest number of passes over all items.
const MAX_PASSES: usize = 64;

/// Mark of an item without tokens, which no place serves.
const NO_PLACE: u32 = u32::MAX;

/// Counterpart of an item's move.
#[derive(Debug, Clone, Copy)]
enum ItemExchange {
    /// No other item moves.
    Alone,
    /// Another item moves to that place.
    Against { index: usize, place: usize },
}

/// Split in whole items.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ActiveSplit {
    /// Split in items: peak, quotas (0 or 1), rank loads and certificate count active items.
    pub active: RankSplit,
    /// Quota of every (item, host) pair in tokens: none, or all of the item.
    pub quotas: Vec<u64>,
    /// Tokens of every rank, base load included.
    pub rank_loads: Vec<u64>,
}

/// Splitter in whole items for one problem and successive batches.
#[derive(Debug, Clone)]
pub struct ActiveSplitter {
    tokens: Problem,
    counts: Problem,
    workspace: BalanceWorkspace,
    ones: Vec<u64>,
    /// Place that serves every item with several hosts.
    place: Vec<u32>,
}

impl ActiveSplitter {
    /// Creates the splitter for ranks without active items before the batch. Base loads of the problem are
    /// tokens and only count for the balance of tokens.
    pub fn new(problem: Problem) -> ActiveSplitter {
        let counts = match problem.clone().with_base_loads(vec![0; problem.hosts().ranks()]) {
            Ok(counts) => counts,
            // This cannot fail, because there is one base load per rank.
            Err(_) => problem.clone(),
        };
        ActiveSplitter {
            tokens: problem,
            counts,
            workspace: BalanceWorkspace::default(),
            ones: Vec::new(),
            place: Vec::new(),
        }
    }

    /// Sets the number of items that are active on every rank before the batch.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] unless there is one count per rank.
    pub fn with_base_counts(self, counts: Vec<u64>) -> Result<ActiveSplitter, SolverError> {
        Ok(ActiveSplitter { counts: self.counts.with_base_loads(counts)?, ..self })
    }

    /// Returns the problem in active items.
    pub fn active_problem(&self) -> &Problem {
        &self.counts
    }

    /// Splits one batch of loads in tokens, one per item.
    ///
    /// # Errors
    /// Fails as [`solve`](crate::solve) does.
    pub fn solve(&mut self, loads: &[u64]) -> Result<ActiveSplit, SolverError> {
        let mut answer = ActiveSplit::default();
        self.solve_into(loads, &mut answer)?;
        Ok(answer)
    }

    /// Splits as [`solve`](Self::solve) does, into memory that is reused from call to call. It allocates
    /// nothing after the first call.
    ///
    /// # Errors
    /// Fails as [`solve`](crate::solve) does, and then leaves `answer` as it was.
    pub fn solve_into(&mut self, loads: &[u64], answer: &mut ActiveSplit) -> Result<(), SolverError> {
        self.tokens.checked_total(loads)?;
        self.ones.clear();
        self.ones.extend(loads.iter().map(|&load| u64::from(load > 0)));
        let ActiveSplit { active, quotas, rank_loads } = answer;
        balance_into(&self.counts, &self.ones, &mut self.workspace, active)?;
        self.sum_tokens(loads, active, rank_loads);
        self.improve_tokens(loads, active, rank_loads);
        active.peak = super::balance::busiest_ratio(&self.counts, &active.rank_loads);
        let hosts = self.tokens.hosts();
        quotas.clear();
        for (item, &load) in loads.iter().enumerate() {
            quotas.extend(
                active.quotas[hosts.offset(item)..hosts.offset(item + 1)].iter().map(|one| one * load),
            );
        }
        Ok(())
    }

    /// Records the place that serves each item, and the tokens of every rank.
    fn sum_tokens(&mut self, loads: &[u64], active: &RankSplit, tokens: &mut Vec<u64>) {
        let graph = &self.workspace.graph;
        tokens.clear();
        tokens.extend_from_slice(self.tokens.base_loads());
        for (item, &load) in loads.iter().enumerate() {
            for (&rank, &one) in self.tokens.hosts().ranks_of(item).iter().zip(active.quotas_of(item)) {
                tokens[rank as usize] += one * load;
            }
        }
        self.place.clear();
        for index in 0..graph.items.len() {
            let serves = |&place: &usize| active.quotas[graph.pair_of[place] as usize] > 0;
            self.place.push(graph.item_places(index).find(serves).map_or(NO_PLACE, |place| place as u32));
        }
    }

    /// Moves items while tokens gain and counts do not lose.
    fn improve_tokens(&mut self, loads: &[u64], active: &mut RankSplit, tokens: &mut [u64]) {
        for _ in 0..MAX_PASSES {
            let mut moved = false;
            for index in 0..self.workspace.graph.items.len() {
                for to in self.workspace.graph.item_places(index) {
                    let from = self.place[index];
                    if from == NO_PLACE || from as usize == to {
                        continue;
                    }
                    let Some(back) = self.best_exchange(index, to, loads, &active.rank_loads, tokens) else {
                        continue;
                    };
                    moved = true;
                    self.move_item(index, to, loads, active, tokens);
                    if let ItemExchange::Against { index, place } = back {
                        self.move_item(index, place, loads, active, tokens);
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Returns the exchange with the largest gain that serves an item at another place, if one gains.
    fn best_exchange(
        &self,
        index: usize,
        to: usize,
        loads: &[u64],
        counts: &[u64],
        tokens: &[u64],
    ) -> Option<ItemExchange> {
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
        let mut consider = |back: u64, exchange: ItemExchange| {
            let after = larger(tokens[here] - load_of(index) + back, tokens[there] - back + load_of(index));
            if after < least {
                (least, best) = (after, Some(exchange));
            }
        };
        // Without a partner, the move must exchange the counts of the two ranks.
        if speeds[here] == speeds[there] && counts[here] == counts[there] + 1 {
            consider(0, ItemExchange::Alone);
        }
        for &(place, other) in graph.seats(there) {
            let other = other as usize;
            let back = graph.item_places(other).find(|&place| rank_at(place) == here);
            if let (true, Some(back)) = (self.place[other] == place, back) {
                consider(load_of(other), ItemExchange::Against { index: other, place: back });
            }
        }
        best
    }

    /// Moves an item to another place.
    fn move_item(
        &mut self,
        index: usize,
        to: usize,
        loads: &[u64],
        active: &mut RankSplit,
        tokens: &mut [u64],
    ) {
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

/// Checks a split in whole items. It must be feasible and certified to have the lowest peak in active items,
/// and one host must serve each item. `counts` is [`ActiveSplitter::active_problem`].
///
/// # Errors
/// Returns the first [`Violation`]: those of [`verify`] for unit loads, then [`Violation::Conservation`] and
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
