//! Levels: the order in which ranks take tokens if the whole load vector is to be decreasingly minimal.
//!
//! **Order of tokens.** The `x`-th token of a rank of speed `s` raises its ratio from `(x − 1)/s` to `x/s`.
//! In the sorted vector of ratios a lower reached ratio is better. Of two tokens that reach the same ratio,
//! the one on the faster rank starts from the higher ratio and changes the vector less. So tokens are ordered
//! by `x/s` ascending, then by `s` descending. A move of a token from rank `r` to rank `t` can gain. It does
//! exactly if the level of `t`'s next token lies below that of `r`'s last one. At equal speeds this is
//! `x_t + 1 < x_r`.
//!
//! On each rank the levels ascend, so the vector is a separable convex function of the loads. Exchanges along
//! residual paths therefore lead to its optimum (Murota, *Discrete Convex Analysis*, 2003, section 6; Frank
//! and Murota, *Decreasing minimization on M-convex sets*, Math. Programming 195, 2022).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Level of one token, which raises a rank of speed `speed` to the load `load`.
///
/// Levels are ordered by the ratio `load / speed`, exactly, then by speed, the faster rank first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Load that the token completes, 0 for the level below all tokens.
    pub load: u64,
    /// Speed of the rank, positive.
    pub speed: u32,
}

impl Level {
    /// Level below every token.
    pub(super) const ZERO: Level = Level { load: 0, speed: 1 };

    /// Returns the number of tokens of a rank of this speed up to and including this level.
    pub(super) fn room(self, speed: u32) -> u64 {
        if speed == self.speed {
            return self.load;
        }
        let work = u128::from(self.load) * u128::from(speed);
        let per = u128::from(self.speed);
        // A token of the same ratio on a slower rank comes later.
        let later = work.is_multiple_of(per) && speed < self.speed;
        u64::try_from((work / per).saturating_sub(u128::from(later))).unwrap_or(u64::MAX)
    }

    /// Returns the number of tokens of a rank of this speed strictly below this level.
    pub(super) fn room_below(self, speed: u32) -> u64 {
        if speed == self.speed { self.load.saturating_sub(1) } else { self.room(speed) }
    }
}

impl Ord for Level {
    fn cmp(&self, other: &Level) -> Ordering {
        if self.speed == other.speed {
            return self.load.cmp(&other.load);
        }
        let left = u128::from(self.load) * u128::from(other.speed);
        let right = u128::from(other.load) * u128::from(self.speed);
        left.cmp(&right).then(other.speed.cmp(&self.speed))
    }
}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Level) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Next token of every rank, lowest first.
pub(super) type LevelHeap = BinaryHeap<Reverse<Level>>;

/// Returns the lowest level at which these ranks, at least one, have room for `total` tokens, at least one.
pub(super) fn lowest_level(speeds: &[u32], ranks: &[u32], total: u64, heap: &mut LevelHeap) -> Level {
    let of = |rank: u32| speeds[rank as usize];
    let first = of(ranks[0]);
    if ranks.iter().all(|&rank| of(rank) == first) {
        return Level { load: total.div_ceil(ranks.len() as u64), speed: first };
    }
    // At the fluid optimum `total / sum` the whole tokens fall short by less than one per rank.
    let sum: u128 = ranks.iter().map(|&rank| u128::from(of(rank))).sum();
    let fluid = |speed: u32| (u128::from(total) * u128::from(speed) / sum) as u64;
    let slowest = ranks.iter().map(|&rank| of(rank)).min().unwrap_or(first);
    let mut missing = total;
    heap.clear();
    for &rank in ranks {
        let room = fluid(of(rank));
        missing -= room;
        heap.push(Reverse(Level { load: room.saturating_add(1), speed: of(rank) }));
    }
    // If nothing is missing, every division had no remainder, and the slowest rank's token is the last one.
    let mut least = Level { load: fluid(slowest), speed: slowest };
    for _ in 0..missing {
        let Some(mut lowest) = heap.peek_mut() else { break };
        least = lowest.0;
        lowest.0.load = least.load.saturating_add(1);
    }
    least
}
