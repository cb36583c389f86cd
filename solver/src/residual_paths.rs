//! Residual paths along which tokens leave overloaded ranks.
//!
//! In: slots and the tokens in each. Out: tokens that moved to ranks with room, or the ranks that prove that
//! no path is left. An edge leads from a rank to another rank if an item with tokens on the first has a slot
//! on the second.

use crate::slot_table::SlotTable;

/// Memory of the search for residual paths.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResidualPaths {
    pub(crate) queue: Vec<u32>,
    /// Number of the search that reached a rank last, `[ranks]`.
    reached: Vec<u32>,
    search: u32,
    /// Number of the search that followed an item last, `[items]`. All hosts of such an item are reached.
    followed: Vec<u32>,
    /// Slot that gives and slot that takes on the way to a rank, `[ranks]`.
    via: Vec<(u32, u32)>,
    pub(crate) certificate: Vec<u32>,
}

impl ResidualPaths {
    /// Creates the memory of searches among a number of ranks.
    pub(crate) fn new(ranks: usize) -> ResidualPaths {
        ResidualPaths { reached: vec![0; ranks], via: vec![(0, 0); ranks], ..Default::default() }
    }

    /// Moves tokens from ranks above the target to ranks below it until no path is left. Returns the tokens
    /// that remain above the target. Stops when they are at least `enough`.
    pub(crate) fn lower_to(
        &mut self,
        table: &SlotTable,
        (tokens, loads): (&mut [u32], &mut [u32]),
        target: u32,
        enough: u64,
    ) -> u64 {
        let (mut left, mut stuck) = (0, false);
        for rank in 0..loads.len() {
            if left >= enough {
                break;
            }
            // The ranks of a search without a path have none either, until tokens move again.
            while loads[rank] > target && !(stuck && self.has_reached(rank)) {
                let end = self.find_path(table, (tokens, loads), rank, target);
                stuck = end.is_none();
                let Some(end) = end else { break };
                self.push(table, (tokens, loads), (rank, end), target);
            }
            left += u64::from(loads[rank].saturating_sub(target));
        }
        left
    }

    /// Returns true if the last search reached a rank.
    pub(crate) fn has_reached(&self, rank: usize) -> bool {
        self.reached[rank] == self.search
    }

    /// Lowers the highest load to the lowest peak that is at least `at_least`, and returns it. If the peak is
    /// higher than `at_least`, the certificate holds the ranks that prove it.
    pub(crate) fn lower_peak(
        &mut self,
        table: &SlotTable,
        tokens: &mut [u32],
        loads: &mut [u32],
        at_least: u32,
    ) -> u32 {
        self.certificate.clear();
        let mut target = at_least;
        for rank in 0..loads.len() {
            while loads[rank] > target {
                if let Some(end) = self.find_path(table, (tokens, loads), rank, target) {
                    self.push(table, (tokens, loads), (rank, end), target);
                } else {
                    // The items on the reached ranks have no other hosts.
                    let sum: u64 = self.queue.iter().map(|&rank| u64::from(loads[rank as usize])).sum();
                    target = sum.div_ceil(self.queue.len() as u64) as u32;
                    std::mem::swap(&mut self.certificate, &mut self.queue);
                }
            }
        }
        self.certificate.sort_unstable();
        target
    }

    /// Returns the nearest rank below the target that tokens of a rank can reach. If there is none, `queue`
    /// holds all ranks that they can reach.
    pub(crate) fn find_path(
        &mut self,
        table: &SlotTable,
        (tokens, loads): (&[u32], &[u32]),
        from: usize,
        target: u32,
    ) -> Option<usize> {
        self.search = self.search.wrapping_add(1);
        if self.search == 0 {
            self.reached.fill(0);
            self.followed.fill(0);
            self.search = 1;
        }
        self.followed.resize(table.slots_of.len(), 0);
        self.queue.clear();
        self.queue.push(from as u32);
        self.reached[from] = self.search;
        let mut next = 0;
        while let Some(&rank) = self.queue.get(next) {
            next += 1;
            let slots = table.starts[rank as usize]..table.starts[rank as usize + 1];
            let leave = |slot: &u32| table.is_shared[*slot as usize] && tokens[*slot as usize] > 0;
            for slot in slots.filter(leave) {
                let item = table.item_in[slot as usize] as usize;
                if std::mem::replace(&mut self.followed[item], self.search) == self.search {
                    continue;
                }
                for &other in &table.slots_of[item] {
                    let to = table.rank_of[other as usize] as usize;
                    if self.reached[to] == self.search {
                        continue;
                    }
                    self.reached[to] = self.search;
                    self.via[to] = (slot, other);
                    if loads[to] < target {
                        return Some(to);
                    }
                    self.queue.push(to as u32);
                }
            }
        }
        None
    }

    /// Returns the rank from which the last search reached another rank.
    pub(crate) fn rank_before(&self, table: &SlotTable, rank: usize) -> usize {
        table.rank_of[self.via[rank].0 as usize] as usize
    }

    /// Sends as many tokens along the path found as the target demands and the path allows.
    pub(crate) fn push(
        &self,
        table: &SlotTable,
        (tokens, loads): (&mut [u32], &mut [u32]),
        (from, end): (usize, usize),
        target: u32,
    ) {
        let steps = |mut rank: usize| {
            std::iter::from_fn(move || {
                (rank != from).then(|| {
                    let (slot, other) = self.via[rank];
                    rank = table.rank_of[slot as usize] as usize;
                    (slot as usize, other as usize)
                })
            })
        };
        let wanted = (loads[from] - target).min(target - loads[end]);
        let sent = steps(end).fold(wanted, |sent, (slot, _)| sent.min(tokens[slot]));
        for (slot, other) in steps(end) {
            tokens[slot] -= sent;
            tokens[other] += sent;
        }
        loads[from] -= sent;
        loads[end] += sent;
    }
}
