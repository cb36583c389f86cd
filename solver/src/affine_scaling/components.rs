//! Connected components of ranks: two ranks are connected if an item has both among its hosts.
//!
//! In: hosts. Out: for every component, numbered by its lowest rank, its ranks and its items, ascending. The
//! method is a union-find whose roots are the lowest ranks, then two counting sorts.

use crate::Hosts;

/// Components of one problem, in memory that the next one reuses.
#[derive(Debug, Clone, Default)]
pub(super) struct ComponentSet {
    parent: Vec<u32>,
    /// Component of every rank.
    of_rank: Vec<u32>,
    ranks: GroupedMembers,
    items: GroupedMembers,
}

/// Ranks and items of one component.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankComponent<'a> {
    pub(super) ranks: &'a [u32],
    pub(super) items: &'a [u32],
}

/// Members sorted by their group.
#[derive(Debug, Clone, Default)]
struct GroupedMembers {
    bounds: Vec<u32>,
    members: Vec<u32>,
}

impl ComponentSet {
    /// Finds the components of these hosts.
    pub(super) fn find_components(&mut self, hosts: &Hosts) {
        self.parent.clear();
        self.parent.extend(0..hosts.ranks() as u32);
        for &item in hosts.shared_items() {
            if let Some((&first, others)) = hosts.ranks_of(item as usize).split_first() {
                for &other in others {
                    self.unite_ranks(first, other);
                }
            }
        }
        let mut count = 0;
        self.of_rank.clear();
        for rank in 0..hosts.ranks() as u32 {
            // The root is the lowest rank of the component, so it already has its number.
            let root = self.find_root(rank);
            if root == rank {
                self.of_rank.push(count);
                count += 1;
            } else {
                self.of_rank.push(self.of_rank[root as usize]);
            }
        }
        let of_rank = &self.of_rank;
        self.ranks.sort(count, of_rank.iter().copied());
        let of_item = |item| of_rank[hosts.ranks_of(item)[0] as usize];
        self.items.sort(count, (0..hosts.items()).map(of_item));
    }

    /// Returns the number of components.
    pub(super) fn len(&self) -> usize {
        self.ranks.bounds.len().saturating_sub(1)
    }

    /// Returns one component.
    pub(super) fn get(&self, index: usize) -> RankComponent<'_> {
        RankComponent { ranks: self.ranks.get(index), items: self.items.get(index) }
    }

    /// Returns the component of every rank.
    pub(super) fn rank_components(&self) -> &[u32] {
        &self.of_rank
    }

    fn find_root(&mut self, mut rank: u32) -> u32 {
        while self.parent[rank as usize] != rank {
            let above = self.parent[self.parent[rank as usize] as usize];
            self.parent[rank as usize] = above;
            rank = above;
        }
        rank
    }

    fn unite_ranks(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find_root(a), self.find_root(b));
        self.parent[a.max(b) as usize] = a.min(b);
    }
}

impl GroupedMembers {
    /// Sorts members 0, 1, … by their groups.
    fn sort(&mut self, groups: u32, group_of: impl Iterator<Item = u32> + Clone) {
        self.bounds.clear();
        self.bounds.resize(groups as usize + 1, 0);
        let mut count = 0;
        for group in group_of.clone() {
            self.bounds[group as usize] += 1;
            count += 1;
        }
        // Counts become ends. Placing members below the ends turns these into beginnings.
        let mut end = 0;
        for bound in &mut self.bounds {
            end += *bound;
            *bound = end;
        }
        self.members.clear();
        self.members.resize(count, 0);
        for (member, group) in group_of.enumerate() {
            let bound = &mut self.bounds[group as usize];
            *bound -= 1;
            self.members[*bound as usize] = member as u32;
        }
        // Members were placed from the end of each group, so each group is reversed.
        for group in 0..groups as usize {
            let range = self.bounds[group] as usize..self.bounds[group + 1] as usize;
            self.members[range].reverse();
        }
    }

    fn get(&self, group: usize) -> &[u32] {
        &self.members[self.bounds[group] as usize..self.bounds[group + 1] as usize]
    }
}
