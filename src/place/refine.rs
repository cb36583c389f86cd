//! Refinement of a placement by few moves: single replicas are replaced, one after the other.
//!
//! In: a placement, the recent batches, a limit on moves, and optionally a target placement. Out: a placement
//! within the limit of the first.
//!
//! A new replica lowers a batch's peak only if it leads out of the set of ranks that proves the peak. All
//! hosts of the expert lie inside the set, and the new one outside. That filter is exact for each batch and
//! leaves few candidates. They are evaluated exactly. The one with the most tokens saved per move is taken,
//! until none saves any.
//!
//! Some placements keep every expert within one node, such as EPLB's if routing is limited to groups of
//! experts. If they have several replicas, they are refined within nodes.

use super::evaluate::PeakEvaluator;
use super::partial::PartialPlacement;
use super::{PlaceError, Placement};
use crate::cluster::Cluster;
use crate::forecast::History;

/// Number of latest batches of the history on which moves are judged.
pub(super) const MAX_JUDGED_BATCHES: usize = 32;
/// Number of candidates that are evaluated exactly before each choice.
const CANDIDATES_EVALUATED: usize = 8;

/// Limits of a refinement.
#[derive(Debug, Clone, Default)]
pub(super) struct RefineLimits<'a> {
    /// Target. Only replicas of the target are added, and only replicas that it lacks are removed. `None`
    /// allows any change.
    pub(super) towards: Option<&'a Placement>,
    /// Highest number of moves from the original placement.
    pub(super) max_moves: usize,
    /// Price of a move, in millionths of the mean imbalance. 0 accepts any gain.
    pub(super) price_ppm: u64,
    /// Number of ranks that every expert must keep, `[E]`. Empty means one.
    pub(super) needs: &'a [usize],
    /// Original placement, from which moves count. `None` is the one that is refined.
    pub(super) counted_from: Option<&'a Placement>,
}

impl RefineLimits<'_> {
    /// Returns the limits that allow any change of at most this many moves.
    pub(super) fn of_moves(max_moves: usize) -> Self {
        Self { max_moves, ..Self::default() }
    }
}

/// Contents of slots to set, one after the other.
type SlotChange = Vec<(usize, Option<u32>)>;

/// Refines `placement` within the limits of `how`.
///
/// # Errors
/// Fails if the solver refuses the loads.
pub(super) fn refine_placement(
    placement: &Placement,
    history: &History<'_>,
    cluster: &Cluster,
    how: &RefineLimits<'_>,
) -> Result<Placement, PlaceError> {
    refine_on_batches(placement, &mut PeakEvaluator::from_history(history, MAX_JUDGED_BATCHES), cluster, how)
}

/// Refines as [`refine_placement()`] does, judged on these batches.
///
/// # Errors
/// Fails if the solver refuses the loads.
pub(super) fn refine_on_batches(
    placement: &Placement,
    scenarios: &mut PeakEvaluator<'_>,
    cluster: &Cluster,
    how: &RefineLimits<'_>,
) -> Result<Placement, PlaceError> {
    if scenarios.batches().is_empty() || how.max_moves == 0 {
        return Ok(placement.clone());
    }
    let mut state = PartialPlacement::from_placement(placement);
    let before = how.counted_from.map_or_else(|| state.clone(), PartialPlacement::from_placement);
    let within_nodes = how.towards.is_none() && keeps_nodes(&state, cluster);
    let least_gain = scenarios.least_gain(cluster.ranks(), how.price_ppm);
    loop {
        let (sum, bottlenecks) = scenarios.bottlenecks(state.solver_hosts()?)?;
        let spent = state.moves_from(&before);
        let mut best: Option<(u64, usize, PartialPlacement)> = None;
        for (rank, expert) in
            promising_replicas(&state, cluster, scenarios, &bottlenecks, (how, within_nodes))
        {
            for change in room_changes(&state, cluster, rank, expert, how) {
                let mut next = state.clone();
                for &(slot, content) in &change {
                    next.set_slot(slot, content);
                }
                let moves = next.moves_from(&before);
                let cost = moves.saturating_sub(spent).max(1);
                if moves > how.max_moves {
                    continue;
                }
                let gain = sum.saturating_sub(scenarios.sum_of_peaks(next.solver_hosts()?)?);
                // More tokens saved per move win, and the first candidate wins ties.
                let better = best.as_ref().is_none_or(|(most, at, _)| gain * *at as u64 > most * cost as u64);
                if gain >= least_gain.saturating_mul(cost as u64) && better {
                    best = Some((gain, cost, next));
                }
            }
        }
        match best {
            Some((_, _, next)) => state = next,
            None => break,
        }
    }
    Ok(state.placement()?)
}

/// Returns the replicas that may lower most peaks. They lead out of most bottlenecks, ranked by the tokens
/// that they could serve.
fn promising_replicas(
    state: &PartialPlacement,
    cluster: &Cluster,
    scenarios: &PeakEvaluator<'_>,
    bottlenecks: &[super::evaluate::BatchBottleneck],
    (how, within_nodes): (&RefineLimits<'_>, bool),
) -> Vec<(u32, u32)> {
    let node = |rank: u32| cluster.node_of(rank as usize);
    let at_home = |expert: u32, rank: u32| {
        let hosts = &state.hosts[expert as usize];
        !within_nodes || hosts.iter().all(|&host| node(host) == node(rank))
    };
    let mut promise = vec![0u64; state.ranks * state.hosts.len()];
    for (batch, bottleneck) in scenarios.batches().iter().zip(bottlenecks) {
        if bottleneck.excess == 0 {
            continue;
        }
        for (expert, hosts) in state.hosts.iter().enumerate() {
            if batch[expert] == 0 || hosts.iter().any(|&rank| !bottleneck.bound[rank as usize]) {
                continue;
            }
            for rank in (0..state.ranks).filter(|&rank| !bottleneck.bound[rank]) {
                promise[expert * state.ranks + rank] += batch[expert].min(bottleneck.excess);
            }
        }
    }
    let mut all: Vec<(u64, u32, u32)> = promise
        .into_iter()
        .enumerate()
        .filter(|&(_, promise)| promise > 0)
        .map(|(at, promise)| (promise, (at % state.ranks) as u32, (at / state.ranks) as u32))
        .filter(|&(_, rank, expert)| {
            cluster.slots_of(rank as usize) > 0
                && at_home(expert, rank)
                && how.towards.is_none_or(|target| target.ranks_of(expert as usize).contains(&rank))
        })
        .collect();
    all.sort_by_key(|&(promise, rank, expert)| (std::cmp::Reverse(promise), rank, expert));
    all.into_iter().take(CANDIDATES_EVALUATED).map(|(_, rank, expert)| (rank, expert)).collect()
}

/// Returns true if there are several nodes, an expert has several replicas, and no expert lives on two nodes.
fn keeps_nodes(state: &PartialPlacement, cluster: &Cluster) -> bool {
    let on_one = |hosts: &Vec<u32>| {
        hosts.iter().all(|&rank| cluster.node_of(rank as usize) == cluster.node_of(hosts[0] as usize))
    };
    cluster.nodes() > 1 && state.hosts.iter().any(|hosts| hosts.len() > 1) && state.hosts.iter().all(on_one)
}

/// Returns the changes that make room for an expert on a rank.
fn room_changes(
    state: &PartialPlacement,
    cluster: &Cluster,
    rank: u32,
    expert: u32,
    how: &RefineLimits<'_>,
) -> Vec<SlotChange> {
    let first = rank as usize * state.per_rank;
    let need = |e: u32| how.needs.get(e as usize).copied().unwrap_or(1);
    let unwanted =
        |e: u32, rank: u32| how.towards.is_none_or(|target| !target.ranks_of(e as usize).contains(&rank));
    let mut all: Vec<SlotChange> = Vec::new();
    for slot in first..first + cluster.slots_of(rank as usize) {
        let Some(old) = state.slots[slot] else {
            // An empty slot has no cost, so the other slots need not be evaluated.
            return vec![vec![(slot, Some(expert))]];
        };
        let doubled = state.holds_twice(rank, old);
        if !doubled && !unwanted(old, rank) {
            continue;
        }
        if doubled || state.host_count(old as usize) > need(old) {
            all.push(vec![(slot, Some(expert))]);
            continue;
        }
        // The old expert moves to the slot of one of the new expert's replicas.
        for &host in &state.hosts[expert as usize] {
            let there = host as usize * state.per_rank;
            let at = (there..there + state.per_rank).find(|&slot| state.slots[slot] == Some(expert));
            let Some(at) = at else { continue };
            if !state.holds(host, old) && unwanted(expert, host) {
                all.push(vec![(slot, Some(expert)), (at, Some(old))]);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::{Eplb, PlaceRequest, Policy as _, TieBreak};
    use crate::trace::Trace;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn moves_are_limited_and_never_harm(
            loads in prop::collection::vec(0u64..100, 6 * 12),
            max_moves in 0usize..8,
            free in any::<bool>(),
        ) {
            let steps = (0..6).map(|s| s.to_string()).collect();
            let trace = Trace::from_loads(12, vec![0], steps, loads).unwrap();
            let cluster = Cluster::new(4, 1, 12, 4).unwrap();
            let eplb = Eplb::new(1, TieBreak::LowestExpert);
            let place = |history: &History<'_>| eplb.place(&PlaceRequest::new(history, &cluster)).unwrap().placement;
            let before = place(&History::from_steps(&trace, 0, 0..2));
            let history = History::from_steps(&trace, 0, 2..6);
            let target = place(&history);
            let towards = (!free).then_some(&target);
            let how = RefineLimits { towards, ..RefineLimits::of_moves(max_moves) };
            let after = refine_placement(&before, &history, &cluster, &how).unwrap();
            prop_assert!(after.moves_from(&before) <= max_moves);
            let mut scenarios = PeakEvaluator::from_history(&history, MAX_JUDGED_BATCHES);
            let (old, new) = (scenarios.sum_for_placement(&before).unwrap(), scenarios.sum_for_placement(&after).unwrap());
            prop_assert!(new <= old);
            prop_assert!(new < old || after == before);
            // A second run with a limit of no moves changes nothing.
            let none = RefineLimits { max_moves: 0, ..how };
            prop_assert_eq!(refine_placement(&after, &history, &cluster, &none).unwrap(), after);
        }
    }

    #[test]
    fn groups_stay_on_their_nodes() {
        let loads = (0..3 * 16u64).map(|i| 5 + i * i * 31 % 97 + 150 * u64::from(i % 16 == 5)).collect();
        let trace = Trace::from_loads(16, vec![0], (0..3).map(|s| s.to_string()).collect(), loads).unwrap();
        let cluster = Cluster::new(8, 2, 16, 8).unwrap();
        let (plan, all) = (History::from_steps(&trace, 0, 0..1), History::from_trace(&trace, 0));
        let eplb = Eplb::new(4, TieBreak::LowestExpert);
        let before = eplb.place(&PlaceRequest::new(&plan, &cluster)).unwrap().placement;
        let how = RefineLimits::of_moves(99);
        let after = refine_placement(&before, &all, &cluster, &how).unwrap();
        assert_ne!(before, after);
        for expert in 0..16 {
            let node = cluster.node_of(before.ranks_of(expert)[0] as usize);
            assert!(after.ranks_of(expert).iter().all(|&rank| cluster.node_of(rank as usize) == node));
        }
    }

    #[test]
    fn every_expert_keeps_the_ranks_that_it_needs() {
        let loads = vec![90, 1, 1, 1, 1, 1, 1, 1];
        let trace = Trace::from_loads(8, vec![0], vec!["0".into()], loads).unwrap();
        let cluster = Cluster::new(4, 1, 8, 8).unwrap();
        let slots = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7];
        let before = Placement::new(8, 4, slots.map(Some).to_vec()).unwrap();
        let history = History::from_trace(&trace, 0);
        let how = |needs| RefineLimits { needs, ..RefineLimits::of_moves(9) };
        let free = refine_placement(&before, &history, &cluster, &how(&[])).unwrap();
        assert_eq!(free.ranks_of(0), [0, 1, 2, 3], "the heavy expert goes everywhere");
        let kept = refine_placement(&before, &history, &cluster, &how(&[2; 8])).unwrap();
        assert!((0..8).all(|e| kept.ranks_of(e).len() == 2), "no replica can be spared: {kept:?}");
    }
}
