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

use super::evaluate::PeakEvaluator;
use super::partial::PartialPlacement;
use super::refine::{RefineLimits, refine_on_batches};
use super::{PlaceError, PlaceRequest, Placement};
use crate::cluster::Cluster;
use std::cmp::Reverse;

/// Experts that have to survive a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coverage {
    /// All experts.
    All,
    /// As many experts as the slots and the limit of moves allow, heaviest first.
    Heaviest,
}

impl Coverage {
    /// Checks that the cluster has room for the second replicas.
    pub(super) fn check_room(self, experts: usize, cluster: &Cluster) -> Result<(), PlaceError> {
        if cluster.ranks() < 2 {
            let reason = "one rank alone cannot be lost: expected 2 ranks or more".to_owned();
            return Err(PlaceError::Shape { policy: "secure".into(), reason });
        }
        let usable = cluster.usable_slots();
        if self == Coverage::All && usable < 2 * experts {
            return Err(PlaceError::Secure { experts, usable });
        }
        Ok(())
    }
}

/// Experts that get second replicas, heaviest first.
#[derive(Debug)]
pub(super) struct Covering<'a> {
    request: PlaceRequest<'a>,
    heaviest: Vec<usize>,
    /// Number of ranks that hold each expert at least, `[E]`.
    needs: Vec<usize>,
}

impl<'a> Covering<'a> {
    /// Selects as many experts as the slots of the request's cluster allow.
    pub(super) fn of_request(request: &PlaceRequest<'a>) -> Self {
        let (experts, totals) = (request.history.experts(), request.history.totals());
        let mut heaviest: Vec<usize> = (0..experts).collect();
        heaviest.sort_by_key(|&e| Reverse(totals[e]));
        heaviest.truncate(request.cluster.usable_slots().saturating_sub(experts));
        Self { request: *request, heaviest, needs: vec![1; experts] }
    }

    /// Returns the number of ranks that hold each expert at least, `[E]`, as far as experts are covered.
    pub(super) fn needs(&self) -> &[usize] {
        &self.needs
    }

    /// Adds missing second replicas. Then it refines the placement without giving up any second replica.
    /// `scenarios` are the batches of the request.
    ///
    /// # Errors
    /// Fails if the solver refuses the loads.
    pub(super) fn cover(
        mut self,
        placement: &Placement,
        scenarios: &mut PeakEvaluator<'_>,
    ) -> Result<Placement, PlaceError> {
        let covered = self.add_replicas(placement, |_| true)?;
        let cluster = self.request.cluster;
        let how = RefineLimits { needs: &self.needs, ..RefineLimits::of_moves(cluster.ranks()) };
        refine_on_batches(&covered, scenarios, cluster, &how)
    }

    /// Adds missing second replicas to the placement that runs now, within a limit of moves.
    ///
    /// # Errors
    /// Returns [`PlaceError::TooFewMoves`] if [`Coverage::All`] needs more moves.
    pub(super) fn cover_within_moves(
        &mut self,
        previous: &Placement,
        coverage: Coverage,
        max_moves: usize,
    ) -> Result<Placement, PlaceError> {
        let before = PartialPlacement::from_placement(previous);
        if coverage == Coverage::Heaviest {
            return self.add_replicas(previous, |next| next.moves_from(&before) <= max_moves);
        }
        let covered = self.add_replicas(previous, |_| true)?;
        let needed = covered.moves_from(previous);
        if needed > max_moves {
            let cause = "two replicas of every expert".into();
            return Err(PlaceError::TooFewMoves { cause, needed, allowed: max_moves });
        }
        Ok(covered)
    }

    /// Adds the missing second replicas while `allows` holds.
    fn add_replicas(
        &mut self,
        placement: &Placement,
        allows: impl Fn(&PartialPlacement) -> bool,
    ) -> Result<Placement, PlaceError> {
        let (cluster, totals) = (self.request.cluster, self.request.history.totals());
        let mut state = PartialPlacement::from_placement(placement);
        // A replica that a later expert needs must not be spare for an earlier one.
        let mut wanted = self.needs.clone();
        for &expert in &self.heaviest {
            wanted[expert] = 2;
        }
        for &expert in &self.heaviest {
            if state.host_count(expert) < 2 {
                let mut next = state.clone();
                add_second_replica(&mut next, expert as u32, totals, cluster, &wanted)?;
                if !allows(&next) {
                    continue;
                }
                state = next;
            }
            self.needs[expert] = 2;
        }
        Ok(state.placement()?)
    }
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
    use crate::forecast::History;
    use crate::place::refine::MAX_JUDGED_BATCHES;
    use crate::place::{self, Constrained, Contiguous, Policy as _};
    use crate::trace::Trace;
    use proptest::prelude::*;

    fn cover(placed: &Placement, request: &PlaceRequest<'_>) -> Placement {
        let mut scenarios = PeakEvaluator::from_history(request.history, MAX_JUDGED_BATCHES);
        Covering::of_request(request).cover(placed, &mut scenarios).unwrap()
    }

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
            let request = PlaceRequest::new(&history, &cluster);
            let placed = place::policy(start, 1, &cluster).unwrap().place(&request).map(|placed| placed.placement)
                .or_else(|_| Contiguous::placement(experts, &cluster)).unwrap();
            let covered = extra.min(experts);
            let safe = cover(&placed, &request);
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
            let all = Coverage::All.check_room(experts, &cluster);
            if extra >= experts {
                prop_assert!(all.is_ok());
            } else {
                let message = all.unwrap_err().to_string();
                prop_assert!(message.contains(&format!("{} slots", 2 * experts)), "{}", message);
            }
        }

        #[test]
        fn second_replicas_come_first_within_a_limit_of_moves(
            loads in prop::collection::vec(0u64..50, 3 * 8),
            start in prop::sample::select(vec!["contiguous", "eplb"]),
            most in 0usize..12,
        ) {
            let steps = (0..3).map(|s| s.to_string()).collect();
            let trace = Trace::from_loads(8, vec![0], steps, loads).unwrap();
            let cluster = Cluster::new(4, 1, 8, 8).unwrap();
            let history = History::from_trace(&trace, 0);
            let policy = place::policy(start, 1, &cluster).unwrap();
            let request = PlaceRequest::new(&history, &cluster);
            let previous = policy.place(&request).unwrap().placement;
            let request = request.previous(&previous).max_moves(most);
            let single = (0..8).filter(|&e| previous.ranks_of(e).len() < 2).count();
            match Constrained::new(&policy).coverage(Coverage::All).place(&request) {
                Ok(all) => {
                    prop_assert!(all.placement.moves_from(&previous) <= most);
                    prop_assert!((0..8).all(|e| all.placement.ranks_of(e).len() >= 2));
                }
                Err(PlaceError::TooFewMoves { needed, allowed, .. }) => {
                    prop_assert!(allowed == most && needed > most && needed >= single, "{} {}", needed, single);
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
            let best = Constrained::new(&policy).coverage(Coverage::Heaviest).place(&request).unwrap().placement;
            prop_assert!(best.moves_from(&previous) <= most);
            for expert in 0..8 {
                prop_assert!(best.ranks_of(expert).len() >= previous.ranks_of(expert).len().min(2));
            }
        }
    }
}
