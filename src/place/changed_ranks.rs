//! Placement on changed ranks: some were lost, others join, or all hold another number of slots.
//!
//! In: the previous placement, the origin of each rank of the new cluster, and a policy. Out: a placement
//! ([`Constrained::place_on_changed_ranks`]). Ranks that stay keep their experts as far as their slots allow.
//! Experts without a slot take those whose content is needed least. Ranks that join fill up. Then single
//! replicas are replaced while each move makes a difference.

use super::evaluate::PeakEvaluator;
use super::fault_tolerance::Covering;
use super::partial::PartialPlacement;
use super::refine::{RefineLimits, refine_on_batches};
use super::{Constrained, ExpertMove, PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use crate::cluster::Cluster;
use std::cmp::Reverse;

/// Price of a move if the request states none: the fall of the mean imbalance that it has to reach. It keeps
/// noise from moving experts.
const DEFAULT_MOVE_PRICE: f64 = 0.002;
/// Number of slots that are evaluated exactly for an expert without a replica.
const CANDIDATES_EVALUATED: usize = 16;

/// Placement that follows another one, with the moves that lead to it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReplannedPlacement {
    /// Placement on the new ranks.
    pub placement: Placement,
    /// Moves to execute, with the new numbers of ranks, by rank and expert. `from` is `None` if no replica
    /// remains.
    pub moves: Vec<ExpertMove>,
    /// Number of experts whose last replica was lost with its rank.
    pub unplaced: usize,
    /// Expected fall of the mean imbalance of the coming batches, if the policy states it
    /// ([`PlaceResponse::expected_gain`](super::PlaceResponse::expected_gain)).
    pub expected_gain: Option<f64>,
}

impl ReplannedPlacement {
    /// Creates the change from `previous` to the response of a policy, on the same ranks.
    pub fn from_response(previous: &Placement, response: PlaceResponse) -> Self {
        let PlaceResponse { placement, expected_gain } = response;
        Self { moves: placement.moves(previous), placement, unplaced: 0, expected_gain }
    }

    /// Creates a change without moves.
    pub fn without_moves(placement: Placement) -> Self {
        Self { placement, moves: vec![], unplaced: 0, expected_gain: None }
    }
}

/// Returns the previous rank of each rank that is left without `lost`, followed by `None` for every rank that
/// joins, up to `ranks` in all.
pub fn rank_origins(previous_ranks: usize, lost: &[usize], ranks: usize) -> Vec<Option<usize>> {
    let left = (0..previous_ranks).filter(|rank| !lost.contains(rank)).map(Some);
    left.chain(std::iter::repeat(None)).take(ranks).collect()
}

impl<P: Policy> Constrained<P> {
    /// Places the experts of a layer on changed ranks. `origins` holds the previous rank of each rank of the
    /// request's cluster, `None` for a rank that joins. [`PlaceRequest::previous`] is the placement on the
    /// previous ranks, which may have another number of slots.
    ///
    /// Every further move to a rank that stays has to lower the mean imbalance of the latest batches by the
    /// price of the request, 0.002 unless stated. Ranks that join fill up. If ranks only left, no limit of
    /// moves is set and no expert has to be covered, there are at most as many moves as lost replicas.
    ///
    /// # Errors
    /// Returns [`PlaceError::TooFewMoves`] if more experts need another rank than moves are allowed. Fails as
    /// [`Policy::place`] does.
    pub fn place_on_changed_ranks(
        &self,
        origins: &[Option<usize>],
        request: &PlaceRequest<'_>,
    ) -> Result<ReplannedPlacement, PlaceError> {
        let (cluster, history) = (request.cluster, request.history);
        let Some(previous) = request.previous else {
            let placement = self.place(request)?.placement;
            return Ok(ReplannedPlacement::without_moves(placement));
        };
        self.check_request(request)?;
        let known = origins.iter().flatten().all(|&rank| rank < previous.ranks());
        if !known || origins.len() != cluster.ranks() || previous.experts() != history.experts() {
            let reason = format!(
                "{} origins for {} ranks, and a previous placement of {} experts on {} ranks: expected one origin below {} for \
                 each rank, and {} experts",
                origins.len(),
                cluster.ranks(),
                previous.experts(),
                previous.ranks(),
                previous.ranks(),
                history.experts()
            );
            return Err(PlaceError::Shape { policy: self.name(), reason });
        }
        let price_ppm = (request.move_price.unwrap_or(DEFAULT_MOVE_PRICE).max(0.0) * 1e6) as u64;
        let mut scenarios = self.peak_evaluator(history);
        let held = held_by_origins(previous, origins);
        let unplaced = held.hosts.iter().filter(|hosts| hosts.is_empty()).count();
        let mut state = keep_experts(&held, history.totals(), cluster);
        let mut homeless: Vec<usize> =
            (0..previous.experts()).filter(|&expert| state.hosts[expert].is_empty()).collect();
        homeless.sort_by_key(|&expert| Reverse(history.totals()[expert]));
        let stayed = origins.iter().flatten().count();
        let grows = stayed < origins.len() || cluster.slots_per_rank() > previous.slots_per_rank();
        let lost_slots = (previous.ranks() - stayed.min(previous.ranks())) * previous.slots_per_rank();
        let default_limit =
            if grows || self.coverage.is_some() { usize::MAX } else { lost_slots.max(homeless.len()) };
        let allowed = request.max_moves.unwrap_or(default_limit);
        if allowed < homeless.len() {
            let cause = if unplaced > 0 {
                format!("{} experts lost their last replica, or the slot of it: they", homeless.len())
            } else {
                format!("{} experts lost the slot of their last replica: they", homeless.len())
            };
            return Err(PlaceError::TooFewMoves { cause, needed: homeless.len(), allowed });
        }
        for &expert in &homeless {
            place_expert(&mut state, expert as u32, history.totals(), cluster, &mut scenarios)?;
        }
        let start = state.placement()?;
        let left = allowed - homeless.len();
        let rest = PlaceRequest::new(history, cluster).previous(&start).max_moves(left);
        let mut covering = Covering::of_request(&rest);
        let covered = match self.coverage {
            None => start.clone(),
            Some(coverage) => {
                covering.cover_within_moves(&start, coverage, left).map_err(|error| match error {
                    PlaceError::TooFewMoves { cause, needed, .. } => {
                        PlaceError::TooFewMoves { cause, needed: needed + homeless.len(), allowed }
                    }
                    other => other,
                })?
            }
        };
        let how = RefineLimits {
            price_ppm,
            needs: covering.needs(),
            counted_from: Some(&start),
            ..RefineLimits::of_moves(left)
        };
        let filled = fill_new_ranks(&covered, origins, &rest)?;
        let mut placement = refine_on_batches(&filled, &mut scenarios, cluster, &how)?;
        if grows {
            let joined = cluster.usable_slots().saturating_sub(stayed * cluster.slots_per_rank());
            let mut best = priced_peaks(&placement, (&start, origins), price_ppm, &mut scenarios)?;
            let limits = if joined < left { vec![joined, left] } else { vec![left] };
            for limit in limits {
                let limit = (limit < usize::MAX).then_some(limit);
                let planned = match self.place(&rest.max_moves(limit)) {
                    // The covered placement is one that the limit allows.
                    Err(PlaceError::TooFewMoves { .. }) => continue,
                    planned => planned?.placement,
                };
                let other = priced_peaks(&planned, (&start, origins), price_ppm, &mut scenarios)?;
                if other < best {
                    (placement, best) = (planned, other);
                }
            }
        }
        let moves = placement.moves_from_origins(previous, origins);
        Ok(ReplannedPlacement { placement, moves, unplaced, expected_gain: None })
    }
}

/// Returns the sum of peaks of a placement, and the gain that its moves between ranks that stay have to
/// reach. Moves to ranks that join are free, because these ranks hold nothing.
fn priced_peaks(
    placement: &Placement,
    (start, origins): (&Placement, &[Option<usize>]),
    price_ppm: u64,
    scenarios: &mut PeakEvaluator<'_>,
) -> Result<u64, PlaceError> {
    let stays = |to: u32| origins.get(to as usize).is_some_and(Option::is_some);
    let moves = placement.moves(start).iter().filter(|m| stays(m.to)).count() as u64;
    let least = scenarios.least_gain(start.ranks(), price_ppm);
    Ok(scenarios.sum_for_placement(placement)?.saturating_add(least.saturating_mul(moves)))
}

/// Fills the empty slots of ranks that join, within the moves of the request. No single replica lowers the
/// peaks if all other ranks are equally busy, so that exact peaks do not guide this step. Each slot gets a
/// replica of an expert of the busiest rank, by even shares: the largest that the new rank has room for below
/// the mean, or the smallest.
fn fill_new_ranks(
    placement: &Placement,
    origins: &[Option<usize>],
    request: &PlaceRequest<'_>,
) -> Result<Placement, PlaceError> {
    let (cluster, totals) = (request.cluster, request.history.totals());
    let mut state = PartialPlacement::from_placement(placement);
    let before = request.previous.map_or_else(|| state.clone(), PartialPlacement::from_placement);
    let spent = state.moves_from(&before);
    let moves = request.max_moves.unwrap_or(usize::MAX).saturating_sub(spent);
    let mean = totals.iter().sum::<u64>() / cluster.ranks() as u64;
    for _ in 0..moves {
        let loads = state.even_loads(totals);
        let open = |rank: usize| {
            let first = rank * state.per_rank;
            (first..first + cluster.slots_of(rank)).find(|&slot| state.slots[slot].is_none())
        };
        let joined = (0..state.ranks).filter(|&rank| origins[rank].is_none());
        let room = joined.filter_map(|rank| open(rank).map(|slot| (loads[rank], rank, slot))).min();
        let Some((load, rank, slot)) = room else { break };
        let share = |expert: usize| totals[expert] / (state.hosts[expert].len() as u64 + 1);
        let mut busiest: Vec<usize> = (0..state.ranks).filter(|&other| other != rank).collect();
        busiest.sort_by_key(|&other| (Reverse(loads[other]), other));
        let candidates = busiest.into_iter().find_map(|from| {
            let own = (0..state.hosts.len()).filter(|&expert| {
                state.holds(from as u32, expert as u32) && !state.holds(rank as u32, expert as u32)
            });
            let own: Vec<usize> = own.collect();
            (!own.is_empty()).then_some(own)
        });
        let Some(own) = candidates else { break };
        let fits = own.iter().copied().filter(|&expert| load + share(expert) <= mean);
        let chosen = fits.max_by_key(|&expert| (share(expert), Reverse(expert)));
        let chosen = chosen.or_else(|| own.iter().copied().min_by_key(|&expert| (share(expert), expert)));
        let Some(expert) = chosen else { break };
        state.set_slot(slot, Some(expert as u32));
    }
    Ok(state.placement()?)
}

/// Returns the experts that the ranks of the new cluster hold already, in the slots of their origins.
fn held_by_origins(previous: &Placement, origins: &[Option<usize>]) -> PartialPlacement {
    let per_rank = previous.slots_per_rank();
    let mut slots = Vec::with_capacity(origins.len() * per_rank);
    for origin in origins {
        match origin {
            Some(rank) => slots.extend_from_slice(&previous.slots()[rank * per_rank..][..per_rank]),
            None => slots.extend(std::iter::repeat_n(None, per_rank)),
        }
    }
    PartialPlacement::from_slots(previous.experts(), origins.len(), slots)
}

/// Returns the experts that the ranks of the cluster keep, if all of their slots are usable.
fn keep_experts(held: &PartialPlacement, totals: &[u64], cluster: &Cluster) -> PartialPlacement {
    let mut left = held.clone();
    for rank in 0..held.ranks {
        drop_experts(&mut left, rank, cluster.slots_of(rank), totals);
    }
    let width = cluster.slots_per_rank();
    let mut slots = Vec::with_capacity(cluster.slots());
    for (rank, own) in left.slots.chunks(left.per_rank.max(1)).enumerate() {
        let usable = cluster.slots_of(rank).min(own.len());
        let mut row = own[..usable].to_vec();
        row.resize(width, None);
        for expert in own[usable..].iter().flatten() {
            if let Some(free) = row[..cluster.slots_of(rank)].iter_mut().find(|slot| slot.is_none()) {
                *free = Some(*expert);
            }
        }
        slots.extend(row);
    }
    PartialPlacement::from_slots(held.hosts.len(), held.ranks, slots)
}

/// Removes experts of a rank until at most `room` remain: second replicas on the rank first, then replicas
/// of experts with other ranks, lightest first. Of the others, a sample over all loads leaves, so that what
/// remains and what leaves are equally heavy per expert.
fn drop_experts(state: &mut PartialPlacement, rank: usize, room: usize, totals: &[u64]) {
    let own = rank * state.per_rank..(rank + 1) * state.per_rank;
    let filled = |state: &PartialPlacement| own.clone().filter(|&slot| state.slots[slot].is_some()).count();
    while filled(state) > room {
        let share = |expert: u32| totals[expert as usize] / state.hosts[expert as usize].len().max(1) as u64;
        let spare = own.clone().filter(|&slot| state.slots[slot].is_some() && state.is_spare(slot, |_| 1));
        let lightest = spare.min_by_key(|&slot| {
            let expert = state.slots[slot].unwrap_or_default();
            (!state.holds_twice(rank as u32, expert), share(expert), slot)
        });
        let Some(slot) = lightest else { break };
        state.set_slot(slot, None);
    }
    let mut last: Vec<usize> = own.clone().filter(|&slot| state.slots[slot].is_some()).collect();
    let surplus = last.len().saturating_sub(room);
    last.sort_by_key(|&slot| (Reverse(state.slots[slot].map(|expert| totals[expert as usize])), slot));
    for at in 0..surplus {
        state.set_slot(last[(2 * at + 1) * last.len() / (2 * surplus)], None);
    }
}

/// Puts an expert without a replica into the slot whose content is needed least.
fn place_expert(
    state: &mut PartialPlacement,
    expert: u32,
    totals: &[u64],
    cluster: &Cluster,
    scenarios: &mut PeakEvaluator<'_>,
) -> Result<(), PlaceError> {
    let per_rank = state.per_rank;
    let loads = state.even_loads(totals);
    let mut spare: Vec<(u64, usize)> = Vec::new();
    for slot in (0..state.slots.len()).filter(|&slot| slot % per_rank < cluster.slots_of(slot / per_rank)) {
        if state.is_spare(slot, |_| 1) {
            let share = |e: u32| totals[e as usize] / state.hosts[e as usize].len().max(1) as u64;
            let freed = state.slots[slot].map_or(0, share);
            spare.push((loads[slot / per_rank].saturating_sub(freed), slot));
        }
    }
    spare.sort_unstable();
    let mut best: Option<(u64, PartialPlacement)> = None;
    for &(_, slot) in spare.iter().take(CANDIDATES_EVALUATED) {
        let mut next = state.clone();
        next.set_slot(slot, Some(expert));
        let sum = scenarios.sum_of_peaks(next.solver_hosts()?)?;
        if best.as_ref().is_none_or(|(least, _)| sum < *least) {
            best = Some((sum, next));
        }
    }
    let Some((_, next)) = best else {
        let reason = format!("no slot can be spared for expert {expert}");
        return Err(PlaceError::Shape { policy: "changed ranks".into(), reason });
    };
    *state = next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::History;
    use crate::place::{Eplb, TieBreak, without_ranks};
    use crate::trace::Trace;
    use proptest::prelude::*;

    fn eplb(history: &History<'_>, cluster: &Cluster) -> Placement {
        Eplb::new(1, TieBreak::LowestExpert).place(&PlaceRequest::new(history, cluster)).unwrap().placement
    }

    fn recover(
        previous: &Placement,
        origins: &[Option<usize>],
        (history, cluster): (&History<'_>, &Cluster),
        max_moves: Option<usize>,
    ) -> Result<ReplannedPlacement, PlaceError> {
        let request = PlaceRequest::new(history, cluster).previous(previous).max_moves(max_moves);
        let eplb = Eplb::new(1, TieBreak::LowestExpert);
        Constrained::new(eplb).place_on_changed_ranks(origins, &request)
    }

    fn trace(experts: usize, loads: Vec<u64>) -> Trace {
        let steps = loads.len() / experts;
        Trace::from_loads(experts, vec![0], (0..steps).map(|s| s.to_string()).collect(), loads).unwrap()
    }

    /// Checks that the listed experts are new on their rank, and that all others were there before.
    fn check_moves(found: &ReplannedPlacement, previous: &Placement, origins: &[Option<usize>]) {
        for expert in 0..previous.experts() {
            for rank in found.placement.ranks_of(expert) {
                let origin = origins[rank as usize];
                let held = origin.is_some_and(|was| previous.ranks_of(expert).contains(&(was as u32)));
                let listed = found.moves.iter().any(|m| m.expert as usize == expert && m.to == rank);
                assert_eq!(held, !listed, "expert {expert} on rank {rank}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn survivors_keep_what_they_have(
            loads in prop::collection::vec(0u64..100, 5 * 12), lost in 0usize..4, more in 0usize..3
        ) {
            let trace = trace(12, loads);
            let cluster = Cluster::new(4, 1, 12, 8).unwrap();
            let history = History::from_trace(&trace, 0);
            let previous = eplb(&history, &cluster);
            let left = without_ranks(&cluster, 12, &[lost]).unwrap();
            let origins = rank_origins(4, &[lost], 3);
            let least = recover(&previous, &origins, (&history, &left), None).unwrap();
            let homeless = (0..12).filter(|&e| previous.ranks_of(e) == [lost as u32]).count();
            prop_assert_eq!(least.unplaced, homeless);
            prop_assert!(least.moves.len() >= homeless && least.moves.len() <= 5);
            let limited = recover(&previous, &origins, (&history, &left), Some(homeless + more)).unwrap();
            prop_assert!(limited.moves.len() <= homeless + more);
            check_moves(&limited, &previous, &origins);
            if homeless > 0 {
                let error = recover(&previous, &origins, (&history, &left), Some(0)).unwrap_err();
                prop_assert!(error.to_string().contains("lost their last replica"), "{}", error);
            }
        }

        #[test]
        fn ranks_that_stay_keep_what_fits_when_others_join(
            loads in prop::collection::vec(0u64..100, 4 * 12),
            (ranks, redundant, grown, more) in (2usize..5, 0usize..5, 1usize..4, 0usize..9),
        ) {
            let trace = trace(12, loads);
            let history = History::from_trace(&trace, 0);
            let old = Cluster::with_uneven_slots(ranks, 1, 12, redundant).unwrap();
            let new = Cluster::with_uneven_slots(ranks + grown, 1, 12, more).unwrap();
            prop_assume!(new.slots_per_rank() <= 12);
            let previous = super::super::Contiguous::placement(12, &old).unwrap();
            let origins = rank_origins(ranks, &[], ranks + grown);
            let request = PlaceRequest::new(&history, &new).previous(&previous);
            let policy = Constrained::new(super::super::Contiguous);
            let found = policy.place_on_changed_ranks(&origins, &request).unwrap();
            check_moves(&found, &previous, &origins);
            prop_assert_eq!(found.unplaced, 0);
            prop_assert!(found.moves.iter().all(|m| m.from.is_some()));
            for rank in 0..ranks + grown {
                let own = &found.placement.slots()[rank * new.slots_per_rank()..][..new.slots_per_rank()];
                prop_assert!(own.iter().flatten().count() <= new.slots_of(rank));
            }
            // The necessary moves are enough, and more fill the ranks that join.
            let held = held_by_origins(&previous, &origins);
            let kept = keep_experts(&held, history.totals(), &new);
            let homeless = kept.hosts.iter().filter(|hosts| hosts.is_empty()).count();
            let least = policy.place_on_changed_ranks(&origins, &request.max_moves(homeless)).unwrap();
            prop_assert_eq!(least.moves.len(), homeless);
        }
    }

    #[test]
    fn origins_that_do_not_fit_are_refused() {
        let trace = trace(8, vec![1; 8]);
        let history = History::from_trace(&trace, 0);
        let cluster = Cluster::new(2, 1, 8, 0).unwrap();
        let previous = eplb(&history, &cluster);
        for origins in [&[Some(0)][..], &[Some(0), Some(2)], &[Some(0), Some(1), None]] {
            let error = recover(&previous, origins, (&history, &cluster), None).unwrap_err();
            assert!(error.to_string().contains("expected one origin below 2 for each rank"), "{error}");
        }
    }

    #[test]
    fn a_rank_that_joins_takes_a_share_of_the_load() {
        let trace = trace(8, (0..64).map(|at| 10 + at * 7 % 5).collect());
        let history = History::from_trace(&trace, 0);
        let (old, new) = (Cluster::new(2, 1, 8, 0).unwrap(), Cluster::new(4, 1, 8, 0).unwrap());
        let previous = eplb(&history, &old);
        let found = recover(&previous, &rank_origins(2, &[], 4), (&history, &new), None).unwrap();
        assert_eq!(found.moves.len(), 4, "two of four experts leave each rank: {:?}", found.moves);
        assert!(found.moves.iter().all(|m| m.to >= 2));
    }
}
