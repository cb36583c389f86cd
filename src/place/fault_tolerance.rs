//! Placements that survive the loss of any one rank.
//!
//! In: any placement. Out: one in which every expert, or every heavy one, lives on two ranks at least. What it takes is
//! copies in slots that can be spared: empty ones, second copies on one rank, copies beyond those that an expert needs.
//!
//! **Why there is always room.** Let `C` experts need two ranks and the others one, on at least `E + C` usable slots, no
//! rank having more than `E`. While an expert `e` that needs two lives on one rank `a` only, at most `E + C - 1` copies are
//! needed, so some slot can be spared. If one lies off `a`, it takes `e`. If all lie on `a`, every copy off `a` is a needed
//! one. Were all those of experts that live on `a` too, each would be the second copy of one of the other `C - 1` experts
//! that need two; then `a` would have at least `E + C - (C - 1) = E + 1` slots, which it has not. So some expert off `a`
//! does not live on `a`: it changes over to the spare slot there, and `e` takes its place. Either way one expert more has
//! what it needs and none less.

use super::refine::{Refine, refine};
use super::state::State;
use super::{PlaceError, Placement, Policy};
use crate::cluster::Cluster;
use crate::forecast::History;

/// Which experts have to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cover {
    /// All.
    All,
    /// As many as the slots allow, heaviest first.
    Heaviest,
}

/// A policy whose placements are made to survive ([`secure()`]).
#[derive(Debug)]
pub struct Secured<P> {
    policy: P,
    cover: Cover,
}

impl<P: std::ops::Deref<Target = dyn Policy>> Secured<P> {
    /// Any policy, and what has to survive.
    pub fn new(policy: P, cover: Cover) -> Self {
        Self { policy, cover }
    }
}

impl<P: std::ops::Deref<Target = dyn Policy> + Send + Sync> Policy for Secured<P> {
    fn name(&self) -> String {
        let what = if self.cover == Cover::All { "1" } else { "best" };
        format!("{}, secure {what}", self.policy.name())
    }

    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        if self.cover == Cover::All && cluster.usable_slots() < 2 * history.experts() {
            return Err(PlaceError::Secure { experts: history.experts(), usable: cluster.usable_slots() });
        }
        secure(&self.policy.place(history, cluster)?, history, cluster, self.cover)
    }
}

/// Puts second copies where they are missing, then evens out what can be without giving a second copy up.
///
/// # Errors
/// [`PlaceError::Secure`] where [`Cover::All`] needs more slots than there are; [`PlaceError::Shape`] for a single rank.
pub fn secure(
    placement: &Placement,
    history: &History<'_>,
    cluster: &Cluster,
    cover: Cover,
) -> Result<Placement, PlaceError> {
    let (experts, usable) = (placement.experts(), cluster.usable_slots());
    if cluster.ranks() < 2 {
        let reason = "one rank alone cannot be lost: expected 2 ranks or more".to_owned();
        return Err(PlaceError::Shape { policy: "secure".into(), reason });
    }
    if cover == Cover::All && usable < 2 * experts {
        return Err(PlaceError::Secure { experts, usable });
    }
    let totals = history.totals();
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|&e| std::cmp::Reverse(totals[e]));
    let mut needs = vec![1; experts];
    for &expert in order.iter().take(usable.saturating_sub(experts)) {
        needs[expert] = 2;
    }
    let mut state = State::of(placement);
    for &expert in order.iter().filter(|&&expert| needs[expert] == 2) {
        if state.distinct(expert) < 2 {
            second_copy(&mut state, expert as u32, totals, cluster, &needs)?;
        }
    }
    let how = Refine { towards: None, max_moves: cluster.ranks(), least_gain: 0, needs: &needs };
    refine(&state.placement()?, history, cluster, &how)
}

/// Gives an expert with one rank another one.
fn second_copy(
    state: &mut State,
    expert: u32,
    totals: &[u64],
    cluster: &Cluster,
    needs: &[usize],
) -> Result<(), PlaceError> {
    let per_rank = state.per_rank;
    let usable = |slot: &usize| slot % per_rank < cluster.usable(slot / per_rank);
    let loads = state.even_loads(totals);
    let all = 0..state.slots.len();
    let spare: Vec<usize> =
        all.clone().filter(usable).filter(|&slot| state.spare(slot, |e| needs[e as usize])).collect();
    // The least busy rank first.
    let light = |&slot: &usize| (loads[slot / per_rank], slot);
    let elsewhere = spare.iter().copied().filter(|&slot| !state.holds(state.rank_of(slot), expert));
    if let Some(slot) = elsewhere.min_by_key(light) {
        state.put(slot, Some(expert));
        return Ok(());
    }
    let chain = spare.first().and_then(|&slot| {
        let home = state.rank_of(slot);
        let leaves = |other: &usize| state.slots[*other].is_some_and(|f| !state.holds(home, f));
        let from = all.filter(usable).filter(|&other| state.rank_of(other) != home).filter(leaves);
        Some((slot, from.min_by_key(light)?))
    });
    let Some((slot, from)) = chain else {
        let reason = format!("found no slot for a second copy of expert {expert}");
        return Err(PlaceError::Shape { policy: "secure".into(), reason });
    };
    let moved = state.slots[from];
    state.put(slot, moved);
    state.put(from, Some(expert));
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
            let cluster = Cluster::uneven(ranks, 1, experts, extra).unwrap();
            // More slots on a rank than experts leave some without use.
            prop_assume!(cluster.slots_per_rank() <= experts);
            let history = History::whole(&trace, 0);
            let placed = place::policy(start, 1, &cluster).unwrap().place(&history, &cluster)
                .or_else(|_| Contiguous::placement(experts, &cluster)).unwrap();
            let covered = extra.min(experts);
            let safe = secure(&placed, &history, &cluster, Cover::Heaviest).unwrap();
            let twice: Vec<usize> = (0..experts).filter(|&e| safe.ranks_of(e).len() >= 2).collect();
            prop_assert!(twice.len() >= covered, "{} of {covered}", twice.len());
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by_key(|&e| std::cmp::Reverse(history.totals()[e]));
            prop_assert!(order[..covered].iter().all(|e| twice.contains(e)), "heaviest first");
            for rank in 0..ranks {
                let filled = safe.slots()[rank * safe.slots_per_rank()..][..safe.slots_per_rank()].iter().flatten();
                prop_assert!(filled.count() <= cluster.usable(rank));
                for &expert in &order[..covered] {
                    prop_assert!(safe.ranks_of(expert).iter().any(|&host| host as usize != rank));
                }
            }
            let all = secure(&placed, &history, &cluster, Cover::All);
            if extra >= experts {
                prop_assert_eq!(all.unwrap(), safe);
            } else {
                let message = all.unwrap_err().to_string();
                prop_assert!(message.contains(&format!("{} slots", 2 * experts)), "{}", message);
            }
        }
    }
}
