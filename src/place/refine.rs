//! Few moves that help most: single copies retargeted, one after the other.
//!
//! In: a placement, the recent batches, a limit on moves, perhaps another placement to go towards. Out: a placement within
//! the limit of the first. A copy of an expert on a rank lowers a batch's peak only if it leads out of the set of ranks
//! that proves the peak: all the expert's ranks lie inside, the new one outside. That filter, exact for each batch, leaves
//! few candidates; those are tried in full, and the one with most tokens saved per move is taken, as long as one saves any.
//! A placement with copies that keeps every expert within one node (EPLB's, where routing is limited to groups of experts) is
//! refined within nodes.

use super::score::Scenarios;
use super::state::State;
use super::{PlaceError, Placement};
use crate::cluster::Cluster;
use crate::forecast::History;

/// Batches that moves are judged on: the latest of the history.
pub(super) const BATCHES: usize = 32;
/// Copies that are tried in full before each choice.
const TRIED: usize = 8;

/// How to refine.
#[derive(Debug, Clone)]
pub(super) struct Refine<'a> {
    /// Only copies that this placement has are added, and only what it lacks goes; anything, where there is none.
    pub(super) towards: Option<&'a Placement>,
    /// Most moves away from the placement that is refined.
    pub(super) max_moves: usize,
    /// A move has to lower the mean peak by this many thousandths of the mean load of a rank; 0: by anything.
    pub(super) least_gain: u64,
    /// Ranks that every expert must keep, `[E]`; one, where empty.
    pub(super) needs: &'a [usize],
}

/// Slot contents to set, one after the other.
type Change = Vec<(usize, Option<u32>)>;

/// Refines `placement` as asked.
///
/// # Errors
/// When the solver refuses the loads.
pub(super) fn refine(
    placement: &Placement,
    history: &History<'_>,
    cluster: &Cluster,
    how: &Refine<'_>,
) -> Result<Placement, PlaceError> {
    refine_on(placement, &mut Scenarios::recent(history, BATCHES), cluster, how)
}

/// As [`refine()`], judged on these batches.
///
/// # Errors
/// When the solver refuses the loads.
pub(super) fn refine_on(
    placement: &Placement,
    scenarios: &mut Scenarios<'_>,
    cluster: &Cluster,
    how: &Refine<'_>,
) -> Result<Placement, PlaceError> {
    if scenarios.batches().is_empty() || how.max_moves == 0 {
        return Ok(placement.clone());
    }
    let before = State::of(placement);
    let mut state = before.clone();
    let within_nodes = how.towards.is_none() && keeps_nodes(&before, cluster);
    let tokens: u64 = scenarios.batches().iter().flat_map(|batch| batch.iter()).sum();
    // In tokens of all batches together.
    let least_gain = (tokens / cluster.ranks() as u64 * how.least_gain / 1000).max(1);
    loop {
        let (sum, bottlenecks) = scenarios.bottlenecks(state.compiled()?)?;
        let spent = state.moves_from(&before);
        let mut best: Option<(u64, usize, State)> = None;
        for (rank, expert) in candidates(&state, cluster, scenarios, &bottlenecks, (how, within_nodes)) {
            for change in changes(&state, cluster, rank, expert, how) {
                let mut next = state.clone();
                for &(slot, content) in &change {
                    next.put(slot, content);
                }
                let moves = next.moves_from(&before);
                let cost = moves.saturating_sub(spent).max(1);
                if moves > how.max_moves {
                    continue;
                }
                let gain = sum.saturating_sub(scenarios.sum_of_peaks(next.compiled()?)?);
                // More tokens saved per move; the first of several that save as many.
                let better = best.as_ref().is_none_or(|(most, at, _)| gain * *at as u64 > most * cost as u64);
                if gain >= least_gain * cost as u64 && better {
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

/// The copies that may lower most peaks: those that lead out of most bottlenecks, by the tokens they could carry.
fn candidates(
    state: &State,
    cluster: &Cluster,
    scenarios: &Scenarios<'_>,
    bottlenecks: &[super::score::Bottleneck],
    (how, within_nodes): (&Refine<'_>, bool),
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
            cluster.usable(rank as usize) > 0
                && at_home(expert, rank)
                && how.towards.is_none_or(|target| target.ranks_of(expert as usize).contains(&rank))
        })
        .collect();
    all.sort_by_key(|&(promise, rank, expert)| (std::cmp::Reverse(promise), rank, expert));
    all.into_iter().take(TRIED).map(|(_, rank, expert)| (rank, expert)).collect()
}

/// Are there several nodes and copies, and no expert on two nodes?
fn keeps_nodes(state: &State, cluster: &Cluster) -> bool {
    let on_one = |hosts: &Vec<u32>| {
        hosts.iter().all(|&rank| cluster.node_of(rank as usize) == cluster.node_of(hosts[0] as usize))
    };
    cluster.nodes() > 1 && state.hosts.iter().any(|hosts| hosts.len() > 1) && state.hosts.iter().all(on_one)
}

/// The ways of making room for an expert on a rank.
fn changes(state: &State, cluster: &Cluster, rank: u32, expert: u32, how: &Refine<'_>) -> Vec<Change> {
    let first = rank as usize * state.per_rank;
    let need = |e: u32| how.needs.get(e as usize).copied().unwrap_or(1);
    let unwanted =
        |e: u32, rank: u32| how.towards.is_none_or(|target| !target.ranks_of(e as usize).contains(&rank));
    let mut all: Vec<Change> = Vec::new();
    for slot in first..first + cluster.usable(rank as usize) {
        let Some(old) = state.slots[slot] else {
            // An empty slot costs nobody anything: the others need not be tried.
            return vec![vec![(slot, Some(expert))]];
        };
        let doubled = state.doubled(rank, old);
        if !doubled && !unwanted(old, rank) {
            continue;
        }
        if doubled || state.distinct(old as usize) > need(old) {
            all.push(vec![(slot, Some(expert))]);
            continue;
        }
        // The expert that has to go changes places with a copy of the one that comes.
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
    use crate::place::{Eplb, Policy as _, Ties};
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
            let eplb = Eplb::new(1, Ties::LowestExpert);
            let before = eplb.place(&History::window(&trace, 0, 0..2), &cluster).unwrap();
            let history = History::window(&trace, 0, 2..6);
            let target = eplb.place(&history, &cluster).unwrap();
            let towards = (!free).then_some(&target);
            let how = Refine { towards, max_moves, least_gain: 0, needs: &[] };
            let after = refine(&before, &history, &cluster, &how).unwrap();
            prop_assert!(after.moves_from(&before) <= max_moves);
            let mut scenarios = Scenarios::recent(&history, BATCHES);
            let (old, new) = (scenarios.of_placement(&before).unwrap(), scenarios.of_placement(&after).unwrap());
            prop_assert!(new <= old);
            prop_assert!(new < old || after == before);
            // A second run finds nothing more to do within no moves at all.
            let none = Refine { max_moves: 0, ..how };
            prop_assert_eq!(refine(&after, &history, &cluster, &none).unwrap(), after);
        }
    }

    #[test]
    fn groups_stay_on_their_nodes() {
        let loads = (0..3 * 16u64).map(|i| 5 + i * i * 31 % 97 + 150 * u64::from(i % 16 == 5)).collect();
        let trace = Trace::from_loads(16, vec![0], (0..3).map(|s| s.to_string()).collect(), loads).unwrap();
        let cluster = Cluster::new(8, 2, 16, 8).unwrap();
        let (plan, all) = (History::window(&trace, 0, 0..1), History::whole(&trace, 0));
        let before = Eplb::new(4, Ties::LowestExpert).place(&plan, &cluster).unwrap();
        let how = Refine { towards: None, max_moves: 99, least_gain: 0, needs: &[] };
        let after = refine(&before, &all, &cluster, &how).unwrap();
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
        let history = History::whole(&trace, 0);
        let how = |needs| Refine { towards: None, max_moves: 9, least_gain: 0, needs };
        let free = refine(&before, &history, &cluster, &how(&[])).unwrap();
        assert_eq!(free.ranks_of(0), [0, 1, 2, 3], "the heavy expert goes everywhere");
        let kept = refine(&before, &history, &cluster, &how(&[2; 8])).unwrap();
        assert!((0..8).all(|e| kept.ranks_of(e).len() == 2), "no copy can be spared: {kept:?}");
    }
}
