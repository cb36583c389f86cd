//! The greedy start: where load goes before the search corrects it.
//!
//! In: loads, and the excess that each rank has before any shared item is placed. Out: quotas that conserve every
//! load, and ranks as level as the greedy gets them.
//!
//! **Method.** Each shared item in turn is poured like water over its hosts: the emptiest fill first, and what is
//! wet ends level. For two hosts that is one clamp. Once all are placed, further passes take each two-hosted item
//! up and pour it again, now that the ranks carry the others too (coordinate descent, a sweep of Gauss and Seidel's).

use super::Flow;
use super::count::{Count, Whole};
use crate::net::Net;

/// Scratch memory: the hosts of the item in hand, by excess.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch<N> {
    basins: Vec<(N, u32)>,
}

impl<N> Scratch<N> {
    pub(super) fn fit(&mut self, ranks: usize) {
        self.basins.clear();
        self.basins.reserve(ranks);
    }
}

/// Places every shared item.
pub(super) fn place<C: Count, N: Whole>(net: &Net, loads: &[C], flow: &mut Flow<N>) {
    let (two, many) = flow.quota.split_at_mut(2 * net.two.len());
    for (item, quota) in net.two.iter().zip(two.as_chunks_mut::<2>().0) {
        let load = N::from_count(loads[item.item as usize]);
        let (low, high) = (item.low as usize, item.high as usize);
        let give = (load + flow.excess[high] - flow.excess[low] + N::ONE).half().clamp(N::ZERO, load);
        *quota = [give, load - give];
        flow.excess[low] += give;
        flow.excess[high] += load - give;
    }
    let mut first = 0;
    for (&item, ranks) in net.many_items.iter().zip(net.many.iter()) {
        let quota = &mut many[first..first + ranks.len()];
        first += ranks.len();
        pour(N::from_count(loads[item as usize]), ranks, quota, &mut flow.excess, &mut flow.fill);
    }
}

/// Takes every two-hosted item up and pours it again.
pub(super) fn level_out<N: Whole>(net: &Net, flow: &mut Flow<N>) {
    for (item, quota) in net.two.iter().zip(flow.quota.as_chunks_mut::<2>().0) {
        let (low, high) = (item.low as usize, item.high as usize);
        let load = quota[0] + quota[1];
        let bias = flow.excess[high] - quota[1] - (flow.excess[low] - quota[0]);
        let give = (load + bias + N::ONE).half().clamp(N::ZERO, load);
        let moved = give - quota[0];
        *quota = [give, load - give];
        flow.excess[low] += moved;
        flow.excess[high] -= moved;
    }
}

/// Pours a load over its hosts so that the largest excess among the wet ones is as small as can be.
fn pour<N: Whole>(load: N, ranks: &[u32], quota: &mut [N], excess: &mut [N], scratch: &mut Scratch<N>) {
    let basins = &mut scratch.basins;
    basins.clear();
    basins.extend(ranks.iter().zip(0..).map(|(&rank, index)| (excess[rank as usize], index)));
    // Emptiest first; ties in order of rank.
    basins.sort_unstable();
    quota.fill(N::ZERO);
    // Pour until the water reaches the floor of the next basin, or there is no more.
    let mut wet = 1;
    let mut left = load;
    let mut level = basins[0].0;
    while let Some(&(floor, _)) = basins.get(wet) {
        let step = (floor - level).times(wet);
        if step > left {
            break;
        }
        left -= step;
        level = floor;
        wet += 1;
    }
    let (each, over) = left.divide(wet);
    for (index, &(before, host)) in basins[..wet].iter().enumerate() {
        let more = if index < over { N::ONE } else { N::ZERO };
        let give = level + each + more - before;
        quota[host as usize] = give;
        excess[ranks[host as usize] as usize] += give;
    }
}
