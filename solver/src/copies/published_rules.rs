//! Published rules of construction, for batches whose items or rooms bind.
//!
//! In: a state with overloaded ranks. Out: copies that carry their excess, or a part of it. The solver keeps
//! the best plan of all rules. `bench::copy_rules` restates the whole methods for comparisons.

use super::state::CopyState;

impl CopyState {
    /// Passes tokens of the largest slots of a rank into the largest rooms (the rule of UltraEP). A piece has
    /// at least the need divided by the number of rooms. Returns false if some excess stays.
    pub(super) fn serve_largest(&mut self, rank: usize) -> bool {
        self.use_hosts(rank);
        let mut tried = u128::MAX;
        while self.loads[rank] > self.target {
            // The next slot in descending order of tokens and ascending order of numbers.
            let key = |slot: usize| u128::from(self.tokens[slot]) << 32 | u128::from(u32::MAX - slot as u32);
            let next = self.slots(rank).map(key).filter(|&key| key < tried && key >> 32 > 0).max();
            let Some(next) = next else { return false };
            let slot = (u32::MAX - next as u32) as usize;
            tried = next;
            let item = self.table.item_in[slot];
            loop {
                let need = self.loads[rank].saturating_sub(self.target);
                let free = |&&key: &&u64| !self.hosts(key as u32 as usize, item);
                let rooms = self.receivers.iter().filter(free).count() as u32;
                let largest = self.receivers.iter().rev().find(free);
                let (Some(&key), true) = (largest, need > 0) else { break };
                let sent = need.min((key >> 32) as u32).min(self.tokens[slot].saturating_sub(1));
                let may = self.may_send(self.rank_of(self.static_slot(slot)));
                let large = sent >= need.div_ceil(rooms).max(1);
                if !large || !may || !self.add_copy(slot, key as u32 as usize, sent) {
                    break;
                }
            }
        }
        true
    }

    /// Moves half of the gap between the busiest rank and the least loaded one with an open slot, until no
    /// slot is open (the rule of TopoEP inside a node). It needs no target.
    pub(super) fn serve_half_gaps(&mut self) {
        loop {
            let busiest =
                (0..self.loads.len()).max_by_key(|&rank| (self.loads[rank], std::cmp::Reverse(rank)));
            let Some(rank) = busiest else { return };
            let own = self.slots(rank).start..self.first_dynamic[rank] as usize;
            let Some(from) = own.max_by_key(|&slot| (self.tokens[slot], std::cmp::Reverse(slot))) else {
                return;
            };
            let item = self.table.item_in[from];
            let may_send = self.may_send(self.rank_of(self.static_slot(from)));
            let mut best: Option<(u32, Option<usize>, usize)> = None;
            for to in (0..self.loads.len()).filter(|&to| to != rank) {
                if best.is_some_and(|(least, ..)| self.loads[to] >= least) {
                    continue;
                }
                let own = self.table.slots_of[item as usize]
                    .iter()
                    .find(|&&slot| self.rank_of(slot as usize) == to);
                let own = own.map(|&slot| slot as usize);
                let may =
                    own.is_some() || may_send && self.may_receive(to) && self.find_open_slot(to).is_some();
                if may {
                    best = Some((self.loads[to], own, to));
                }
            }
            let Some((load, own, to)) = best else { return };
            let sent = (self.loads[rank].saturating_sub(load) / 2).min(self.tokens[from]);
            if sent == 0 {
                return;
            }
            match own {
                Some(slot) => self.move_tokens(from, slot, sent),
                None if self.add_copy(from, to, sent) => {}
                None => return,
            }
        }
    }

    /// Fills the largest room from the most overloaded rank, again and again (the rule of MoonEP). Returns
    /// false if some excess stays.
    pub(super) fn serve_in_turns(&mut self) -> bool {
        let target = i64::from(self.target);
        let mut balance: Vec<i64> = self.loads.iter().map(|&load| i64::from(load) - target).collect();
        let first_max =
            |values: &[i64]| (0..values.len()).max_by_key(|&at| (values[at], std::cmp::Reverse(at)));
        let mut quotas: Vec<(usize, usize, u32)> = vec![];
        while let Some(from) = first_max(&balance).filter(|&from| balance[from] > 0) {
            let Some(to) = (0..balance.len()).min_by_key(|&to| (balance[to], to)) else { break };
            if balance[to] >= 0 {
                return false;
            }
            quotas.push((from, to, -balance[to] as u32));
            (balance[from], balance[to]) = (balance[from] + balance[to], 0);
        }
        // Inside a rank, the largest quota takes tokens of the largest slot.
        while let Some(&(from, to, quota)) = quotas
            .iter()
            .max_by_key(|(from, to, quota)| (std::cmp::Reverse(*from), *quota, std::cmp::Reverse(*to)))
        {
            let own = self.slots(from).start..self.first_dynamic[from] as usize;
            let Some(slot) = own.max_by_key(|&slot| (self.tokens[slot], std::cmp::Reverse(slot))) else {
                return false;
            };
            let sent = quota.min(self.tokens[slot]);
            let item = self.table.item_in[slot] as usize;
            let other = self.table.slots_of[item].iter().find(|&&other| self.rank_of(other as usize) == to);
            match other.map(|&other| other as usize) {
                _ if sent == 0 => return false,
                Some(other) => self.move_tokens(slot, other, sent),
                None if self.may_send(from) && self.may_receive(to) && self.add_copy(slot, to, sent) => {}
                None => return false,
            }
            quotas.retain_mut(|known| {
                if (known.0, known.1) == (from, to) {
                    known.2 -= sent;
                }
                known.2 > 0
            });
        }
        self.overflow() == 0
    }
}
