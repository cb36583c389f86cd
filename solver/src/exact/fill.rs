//! The greedy start: initial quotas, which the search then corrects.
//!
//! In: loads, and the excess of each rank before any shared item is placed. Out: quotas that conserve every
//! load, with ranks as level as the greedy method makes them.
//!
//! **Method.** Each shared item in turn is poured like water over its hosts. The emptiest fill first, and all
//! hosts that receive load end level. For two hosts that is one clamp. Once all items are placed, further
//! passes take up each two-hosted item and pour it again, now that the ranks also carry the others. This is
//! coordinate descent, a sweep of Gauss and Seidel's method.

use super::SplitFlow;
use super::count::{Count, Whole};
use crate::network::FlowNetwork;

/// Scratch memory: the hosts of the current item, by excess.
#[derive(Debug, Clone, Default)]
pub(super) struct FillScratch<N> {
    basins: Vec<(N, u32)>,
}

impl<N> FillScratch<N> {
    pub(super) fn resize_for(&mut self, ranks: usize) {
        self.basins.clear();
        self.basins.reserve(ranks);
    }
}

/// Places every shared item.
pub(super) fn place_items<C: Count, N: Whole>(net: &FlowNetwork, loads: &[C], flow: &mut SplitFlow<N>) {
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
        water_fill(N::from_count(loads[item as usize]), ranks, quota, &mut flow.excess, &mut flow.fill);
    }
}

/// Takes up every two-hosted item and pours it again.
pub(super) fn level_items<N: Whole>(net: &FlowNetwork, flow: &mut SplitFlow<N>) {
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

/// Pours a load over its hosts so that the largest excess among the hosts that receive load is as small as
/// possible.
fn water_fill<N: Whole>(
    load: N,
    ranks: &[u32],
    quota: &mut [N],
    excess: &mut [N],
    scratch: &mut FillScratch<N>,
) {
    let basins = &mut scratch.basins;
    basins.clear();
    basins.extend(ranks.iter().zip(0..).map(|(&rank, index)| (excess[rank as usize], index)));
    // The emptiest comes first, and ties are in order of rank.
    basins.sort_unstable();
    quota.fill(N::ZERO);
    // The water rises until it reaches the floor of the next basin, or is used up.
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
