//! Placements that survive the loss of any one rank.
//!
//! In: any placement. Out: one in which every expert, or every heavy one, lives on at least two ranks. New
//! replicas go into spare slots. Spare slots are empty ones, second replicas on one rank, and replicas beyond
//! those that an expert needs.
//!
//! **Proof that there is always room.** Let `C` experts need two ranks and the others one. There are at least
//! `E + C` usable slots, and no rank has more than `E`. Let `e` be an expert that needs two ranks and lives
//! on one rank `a` only. At most `E + C - 1` replicas are then needed, so some slot is spare.
//!
//! - If a spare slot is not on `a`, it takes `e`.
//! - Otherwise all spare slots are on `a`, and every replica off `a` is needed. Suppose that all experts off
//!   `a` live on `a` too. Each replica off `a` would then be the second one of one of the other `C - 1`
//!   experts that need two ranks. `a` would have at least `E + C - (C - 1) = E + 1` slots, a contradiction.
//!   So some expert off `a` does not live on `a`. It moves to the spare slot on `a`, and `e` takes its place.
//!
//! In both cases one more expert has enough replicas, and none has fewer.

use super::partial::PartialPlacement;
use super::refine::{RefineLimits, refine_placement};
use super::{PlaceError, Placement, Policy};
use crate::cluster::Cluster;
use crate::forecast::History;

/// Experts that have to survive a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coverage {
    /// All experts.
    All,
    /// As many experts as the slots allow, heaviest first.
    Heaviest,
}

/// Policy whose placements survive a loss ([`ensure_coverage()`]).
#[derive(Debug)]
pub struct FaultTolerant<P> {
    policy: P,
    cover: Coverage,
}

impl<P: std::ops::Deref<Target = dyn Policy>> FaultTolerant<P> {
    /// Creates the policy from any policy and the experts that have to survive.
    pub fn new(policy: P, cover: Coverage) -> Self {
        Self { policy, cover }
    }
}

impl<P: std::ops::Deref<Target = dyn Policy> + Send + Sync> Policy for FaultTolerant<P> {
    fn name(&self) -> String {
        let what = if self.cover == Coverage::All { "1" } else { "best" };
        format!("{}, secure {what}", self.policy.name())
    }

    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        if self.cover == Coverage::All && cluster.usable_slots() < 2 * history.experts() {
            return Err(PlaceError::Secure { experts: history.experts(), usable: cluster.usable_slots() });
        }
        ensure_coverage(&self.policy.place(history, cluster)?, history, cluster, self.cover)
    }
}

/// Adds missing second replicas. Then it refines the placement without giving up any second replica.
///
/// # Errors
/// Returns [`PlaceError::Secure`] if [`Coverage::All`] needs more slots than there are, and
/// [`PlaceError::Shape`] for a single rank.
pub fn ensure_coverage(
    placement: &Placement,
    history: &History<'_>,
    cluster: &Cluster,
    cover: Coverage,
) -> Result<Placement, PlaceError> {
    let (experts, usable) = (placement.experts(), cluster.usable_slots());
    if cluster.ranks() < 2 {
        let reason = "one rank alone cannot be lost: expected 2 ranks or more".to_owned();
        return Err(PlaceError::Shape { policy: "secure".into(), reason });
    }
    if cover == Coverage::All && usable < 2 * experts {
        return Err(PlaceError::Secure { experts, usable });
    }
    let totals = history.totals();
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|&e| std::cmp::Reverse(totals[e]));
    let mut needs = vec![1; experts];
    for &expert in order.iter().take(usable.saturating_sub(experts)) {
        needs[expert] = 2;
    }
    let mut state = PartialPlacement::from_placement(placement);
    for &expert in order.iter().filter(|&&expert| needs[expert] == 2) {
        if state.host_count(expert) < 2 {
            add_second_replica(&mut state, expert as u32, totals, cluster, &needs)?;
        }
    }
    let how = RefineLimits { towards: None, max_moves: cluster.ranks(), least_gain: 0, needs: &needs };
    refine_placement(&state.placement()?, history, cluster, &how)
}

/// Puts an expert that has one host on a second rank.
fn add_second_replica(
    state: &mut PartialPlacement,
    expert: u32,
    totals: &[u64],
    cluster: &Cluster,
    needs: &[usize],
) -> Result<(), PlaceError> {
    let per_rank = state.per_rank;
    let usable = |slot: &usize| slot % per_rank < cluster.slots_of(slot / per_rank);
    let loads = state.even_loads(totals);
    let all = 0..state.slots.len();
    let spare: Vec<usize> =
        all.clone().filter(usable).filter(|&slot| state.is_spare(slot, |e| needs[e as usize])).collect();
    // The least busy rank comes first.
    let light = |&slot: &usize| (loads[slot / per_rank], slot);
    let elsewhere = spare.iter().copied().filter(|&slot| !state.holds(state.rank_of(slot), expert));
    if let Some(slot) = elsewhere.min_by_key(light) {
        state.set_slot(slot, Some(expert));
        return Ok(());
    }
    let chain = spare.first().and_then(|&slot| {
        let home = state.rank_of(slot);
        let leaves = |other: &usize| state.slots[*other].is_some_and(|f| !state.holds(home, f));
        let from = all.filter(usable).filter(|&other| state.rank_of(other) != home).filter(leaves);
        Some((slot, from.min_by_key(light)?))
    });
    let Some((slot, from)) = chain else {
        let reason = format!("found no slot for a second replica of expert {expert}");
        return Err(PlaceError::Shape { policy: "secure".into(), reason });
    };
    let moved = state.slots[from];
    state.set_slot(slot, moved);
    state.set_slot(from, Some(expert));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::{self, Contiguous};
    use crate::trace::Trace;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn every_expert_that_is_covered_survives_every_loss(
            (ranks, experts, extra, loads) in (2usize..7, 2usize..14).prop_flat_map(|(ranks, experts)| {
                (Just(ranks), Just(experts), 0..2 * experts + 3, prop::collection::vec(0u64..50, 2 * experts))
            }),
            start in prop::sample::select(vec!["contiguous", "eplb", "eplb:trtllm"]),
        ) {
            let trace = Trace::from_loads(experts, vec![0], vec!["0".into(), "1".into()], loads).unwrap();
            let cluster = Cluster::with_uneven_slots(ranks, 1, experts, extra).unwrap();
            // If a rank has more slots than experts, some slots are useless.
            prop_assume!(cluster.slots_per_rank() <= experts);
            let history = History::from_trace(&trace, 0);
            let placed = place::policy(start, 1, &cluster).unwrap().place(&history, &cluster)
                .or_else(|_| Contiguous::placement(experts, &cluster)).unwrap();
            let covered = extra.min(experts);
            let safe = ensure_coverage(&placed, &history, &cluster, Coverage::Heaviest).unwrap();
            let twice: Vec<usize> = (0..experts).filter(|&e| safe.ranks_of(e).len() >= 2).collect();
            prop_assert!(twice.len() >= covered, "{} of {covered}", twice.len());
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by_key(|&e| std::cmp::Reverse(history.totals()[e]));
            prop_assert!(order[..covered].iter().all(|e| twice.contains(e)), "heaviest first");
            for rank in 0..ranks {
                let filled = safe.slots()[rank * safe.slots_per_rank()..][..safe.slots_per_rank()].iter().flatten();
                prop_assert!(filled.count() <= cluster.slots_of(rank));
                for &expert in &order[..covered] {
                    prop_assert!(safe.ranks_of(expert).iter().any(|&host| host as usize != rank));
                }
            }
            let all = ensure_coverage(&placed, &history, &cluster, Coverage::All);
            if extra >= experts {
                prop_assert_eq!(all.unwrap(), safe);
            } else {
                let message = all.unwrap_err().to_string();
                prop_assert!(message.contains(&format!("{} slots", 2 * experts)), "{}", message);
            }
        }
    }
}
