//! Construction of a plan: overloaded ranks pass tokens on to copies.
//!
//! In: a state with overloaded ranks. Out: copies that carry their excess. A copy costs the same for one
//! token as for many, so a rank's excess should leave in few pieces that waste little room elsewhere. If one
//! rank has room for the rest of the excess, the one with the least room takes it. Otherwise `k` ranks are
//! needed, where `k` counts the largest rooms that suffice. The first of them is the smallest room that the
//! `k - 1` largest ones complete.

use super::bounds::DonorDivision;
use super::state::CopyState;

/// Order in which overloaded ranks and rooms meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServeRule {
    /// Ranks in ascending order of excess, rooms that fit.
    FitAscending,
    /// Ranks in descending order of excess, rooms that fit.
    FitDescending,
    /// Ranks in descending order of excess, largest rooms and largest items first.
    LargestRooms,
    /// The largest pieces of all ranks first, rooms that fit.
    LargestPieces,
    /// The most overloaded rank fills the largest room, in turns.
    Alternating,
}

impl CopyState {
    /// Serves all overloaded ranks. Returns true if no rank stays above the target.
    pub(super) fn serve_all(&mut self, rule: ServeRule, order: &mut Vec<u64>) -> bool {
        match rule {
            ServeRule::Alternating => return self.serve_in_turns(),
            ServeRule::LargestPieces => return self.serve_largest_pieces(order),
            _ => {}
        }
        order.clear();
        for (rank, &load) in self.loads.iter().enumerate().filter(|&(_, &load)| load > self.target) {
            order.push(u64::from(load - self.target) << 32 | rank as u64);
        }
        order.sort_unstable();
        if rule != ServeRule::FitAscending {
            order.reverse();
        }
        let mut complete = true;
        for (at, &key) in order.iter().enumerate() {
            // Without shared items, every rank that is left sends a copy.
            if !self.shares_items && !self.may_copy(order.len() - at) {
                return false;
            }
            let rank = key as u32 as usize;
            complete &= match rule {
                ServeRule::LargestRooms => self.serve_largest(rank),
                _ => self.serve(rank),
            };
        }
        complete
    }

    /// Passes on the largest piece that any overloaded rank can spare, again and again. Returns false if some
    /// excess stays.
    fn serve_largest_pieces(&mut self, pieces: &mut Vec<u64>) -> bool {
        pieces.clear();
        let mut complete = true;
        for rank in (0..self.loads.len()).filter(|&rank| self.loads[rank] > self.target) {
            match self.largest_piece(rank) {
                Some(piece) => pieces.push(piece),
                None => complete = false,
            }
        }
        // The first of equals is on the first rank.
        while let Some((at, &key)) = pieces.iter().enumerate().max_by_key(|&(_, &key)| key) {
            if !self.shares_items && !self.may_copy(pieces.len()) {
                return false;
            }
            let (piece, slot) = ((key >> 32) as u32, (u32::MAX - key as u32) as usize);
            if !self.may_send(self.rank_of(self.static_slot(slot))) {
                pieces.swap_remove(at);
                complete = false;
                continue;
            }
            let item = self.table.item_in[slot];
            let free = |&&key: &&u64| !self.hosts(key as u32 as usize, item);
            let fits = self.receivers.partition_point(|&key| key >> 32 < u64::from(piece));
            let room = self.receivers[fits..].iter().find(free);
            let Some(&key) = room.or_else(|| self.receivers[..fits].iter().rev().find(free)) else {
                return false;
            };
            if !self.add_copy(slot, key as u32 as usize, piece.min((key >> 32) as u32)) {
                return false;
            }
            let rank = self.rank_of(slot);
            let next = self.largest_piece(rank).filter(|_| self.loads[rank] > self.target);
            if let Some(next) = next {
                pieces[at] = next;
            } else {
                complete &= self.loads[rank] <= self.target;
                pieces.swap_remove(at);
            }
        }
        complete
    }

    /// Returns the tokens that the largest slot of an overloaded rank can spare, in the upper half, and the
    /// distance of the slot from the highest number in the lower half.
    fn largest_piece(&self, rank: usize) -> Option<u64> {
        let need = self.loads[rank].saturating_sub(self.target);
        let slot = self.largest_slot(rank)?;
        Some(u64::from(need.min(self.tokens[slot])) << 32 | u64::from(u32::MAX - slot as u32))
    }

    /// Passes the excess of a rank on. Returns false if some of it stays.
    pub(super) fn serve(&mut self, rank: usize) -> bool {
        // Without shared items, only parts that are built again meet copies of their items.
        if self.shares_items || self.logging {
            self.use_hosts(rank);
        }
        while self.loads[rank] > self.target {
            let need = self.loads[rank] - self.target;
            let Some(largest) = self.largest_slot(rank) else { return false };
            let item = self.table.item_in[largest];
            self.has_small_items |= self.tokens[largest] < need;
            let Some((room, to)) = self.choose_receiver(need, self.tokens[largest], item) else {
                return false;
            };
            let sent = need.min(room).min(self.tokens[largest]);
            let from = self.smallest_slot_with(rank, sent, largest, to);
            if !self.may_send(self.rank_of(self.static_slot(from))) || !self.add_copy(from, to, sent) {
                return false;
            }
        }
        true
    }

    /// Serves all overloaded ranks as a division states. The donors of a set pass their excess on to the next
    /// one, and the last one into the rooms of the set. Returns false if some excess stays.
    pub(super) fn serve_division(&mut self, division: &DonorDivision) -> bool {
        let above = |rank: &usize| self.loads[*rank] > self.target;
        let mut donors: Vec<usize> = (0..self.loads.len()).filter(above).collect();
        donors.sort_by_key(|&rank| self.loads[rank]);
        let rooms: Vec<usize> = self.receivers.iter().rev().map(|&key| key as u32 as usize).collect();
        for set in 0..division.sets as u32 {
            let own = donors.iter().zip(&division.set_of_donor).filter(|&(_, &of)| of == set);
            let mut own = own.map(|(&rank, _)| rank).peekable();
            while let Some(rank) = own.next() {
                if let Some(&next) = own.peek() {
                    self.pass_to(rank, next, u32::MAX);
                    continue;
                }
                let of_set = rooms.iter().zip(&division.set_of_room).filter(|&(_, &of)| of == set);
                for (&to, _) in of_set {
                    self.pass_to(rank, to, self.target - self.loads[to]);
                }
            }
        }
        donors.iter().all(|&rank| self.loads[rank] <= self.target)
    }

    /// Passes the excess of a rank on to another rank in one copy, as far as its items and a room permit.
    fn pass_to(&mut self, rank: usize, to: usize, room: u32) {
        let need = self.loads[rank].saturating_sub(self.target);
        let Some(largest) = self.largest_slot(rank).filter(|_| need > 0) else { return };
        let sent = need.min(room).min(self.tokens[largest]);
        let from = self.smallest_slot_with(rank, sent, largest, to);
        if self.may_send(self.rank_of(self.static_slot(from))) {
            self.add_copy(from, to, sent);
        }
    }

    /// Moves tokens of a rank to other hosts of the same items that have room.
    pub(super) fn use_hosts(&mut self, rank: usize) {
        for slot in self.slots(rank) {
            if self.tokens[slot] == 0 || self.table.slots_of[self.table.item_in[slot] as usize].len() == 1 {
                continue;
            }
            let mut at = 0;
            while let Some(&other) = self.table.slots_of[self.table.item_in[slot] as usize].get(at) {
                at += 1;
                let need = self.loads[rank].saturating_sub(self.target);
                if need == 0 {
                    return;
                }
                let room = self.target.saturating_sub(self.loads[self.rank_of(other as usize)]);
                let sent = need.min(room).min(self.tokens[slot]);
                if sent > 0 {
                    self.move_tokens(slot, other as usize, sent);
                }
            }
        }
    }

    /// Returns the slot of a rank with the most tokens, or `None` if it has none.
    fn largest_slot(&self, rank: usize) -> Option<usize> {
        let slots = self.slots(rank);
        let (mut best, mut most) = (None, 0);
        for slot in slots {
            if self.tokens[slot] > most {
                (best, most) = (Some(slot), self.tokens[slot]);
            }
        }
        best
    }

    /// Returns the slot with the fewest tokens that can send this many, so that larger ones stay whole.
    fn smallest_slot_with(&self, rank: usize, sent: u32, largest: usize, to: usize) -> usize {
        let mut best = largest;
        for slot in self.slots(rank) {
            let tokens = self.tokens[slot];
            if tokens >= sent && tokens < self.tokens[best] && !self.hosts(to, self.table.item_in[slot]) {
                best = slot;
            }
        }
        best
    }

    /// Returns the room and the rank of the receiver of the next piece.
    fn choose_receiver(&self, need: u32, most: u32, item: u32) -> Option<(u32, usize)> {
        let room_of = |key: u64| ((key >> 32) as u32, key as u32 as usize);
        let free = |&&key: &&u64| !self.hosts(room_of(key).1, item);
        let smallest_from = |room: u32| self.receivers.partition_point(|&key| room_of(key).0 < room);
        let single = smallest_from(need);
        if most >= need
            && let Some(&key) = self.receivers[single..].iter().find(free)
        {
            return Some(room_of(key));
        }
        // The largest rooms before the last one that is needed.
        let mut before = 0u32;
        for &key in self.receivers.iter().rev() {
            if before.saturating_add(room_of(key).0) >= need {
                break;
            }
            before += room_of(key).0;
        }
        let first = smallest_from(need.saturating_sub(before)).min(self.receivers.len().saturating_sub(1));
        let upwards = self.receivers[first..].iter().find(free);
        upwards.or_else(|| self.receivers[..first].iter().rev().find(free)).map(|&key| room_of(key))
    }

    /// Serves overloaded ranks by copies of items on the ranks that their tokens can reach. Returns true if
    /// no rank stays above the target.
    pub(super) fn serve_remote(&mut self) -> bool {
        let mut rank = 0;
        while rank < self.loads.len() {
            if self.loads[rank] <= self.target {
                rank += 1;
                continue;
            }
            let (tokens, loads) = (&self.tokens, &self.loads);
            if let Some(end) = self.paths.find_path(&self.table, (tokens, loads), rank, self.target) {
                let (tokens, loads) = (&mut self.tokens, &mut self.loads);
                self.paths.push(&self.table, (tokens, loads), (rank, end), self.target);
                // Slots on the way may have lost their last tokens.
                let mut passed = end;
                self.update_receiver(passed);
                while passed != rank {
                    passed = self.paths.rank_before(&self.table, passed);
                    self.update_receiver(passed);
                }
                continue;
            }
            let Some((from, to)) = self.find_remote_copy() else { return false };
            if !self.add_copy(from, to, 0) {
                return false;
            }
        }
        true
    }

    /// Returns the slot and the receiver between which most tokens can move, among the slots that the last
    /// search reached and the ranks that it did not reach.
    fn find_remote_copy(&self) -> Option<(usize, usize)> {
        let &key = self.receivers.iter().rev().find(|&&key| !self.paths.has_reached(key as u32 as usize))?;
        // The first of equals is on the rank with the shortest path.
        let (mut best, mut most) = (None, 0);
        for slot in self.paths.queue.iter().flat_map(|&rank| self.slots(rank as usize)) {
            if self.tokens[slot] > most && self.may_send(self.rank_of(self.static_slot(slot))) {
                (best, most) = (Some(slot), self.tokens[slot]);
            }
        }
        best.map(|slot| (slot, key as u32 as usize))
    }
}
