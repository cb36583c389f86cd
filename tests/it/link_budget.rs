//! Re-planning within a link budget, through the public API. A plan never exceeds the budget, and a larger
//! budget never makes it worse.

#![allow(clippy::unwrap_used)]

use evenkeel::cluster::Cluster;
use evenkeel::place::{self, Policy};
use evenkeel::plan::{ConstraintError, LinkBudget, Plan, PlanReport, PlanRequest, PlanRequestError};
use evenkeel::trace::Trace;
use proptest::prelude::*;
use std::collections::BTreeSet;

const EXPERTS: usize = 12;
const LAYERS: usize = 3;
const EXPERT_BYTES: u64 = 1000;

fn cluster() -> Cluster {
    Cluster::new(4, 1, EXPERTS, 4).unwrap()
}

fn trace(loads: &[u64]) -> Trace {
    let steps = loads.len() / EXPERTS / LAYERS;
    let names = (0..steps).map(|s| s.to_string()).collect();
    Trace::from_loads(EXPERTS, vec![2, 3, 7], names, loads.to_vec()).unwrap()
}

fn plan(trace: &Trace, policy: &dyn Policy) -> Plan {
    PlanRequest::new(trace, cluster(), policy).run(&()).unwrap().plan
}

fn replan(trace: &Trace, policy: &dyn Policy, previous: &Plan, max_moves: Option<usize>) -> PlanReport {
    PlanRequest::new(trace, cluster(), policy).previous(previous).max_moves(max_moves).run(&()).unwrap()
}

fn linked(
    trace: &Trace,
    policy: &dyn Policy,
    previous: &Plan,
    max_moves: Option<usize>,
    bytes: u64,
) -> PlanReport {
    let budget = LinkBudget { bytes, expert_bytes: EXPERT_BYTES };
    let request = PlanRequest::new(trace, cluster(), policy).previous(previous).max_moves(max_moves);
    request.link_budget(budget).run(&()).unwrap()
}

fn placements(plan: &Plan) -> Vec<&place::Placement> {
    plan.layers.iter().map(|layer| &layer.placement).collect()
}

/// Returns the experts of every rank of every layer, each once. A second replica on one rank changes no load.
fn experts_by_rank(plan: &Plan) -> Vec<BTreeSet<u32>> {
    let ranks = |placement: &place::Placement| -> Vec<BTreeSet<u32>> {
        let ranks = placement.slots().chunks(placement.slots_per_rank());
        ranks.map(|slots| slots.iter().copied().flatten().collect()).collect()
    };
    plan.layers.iter().flat_map(|layer| ranks(&layer.placement)).collect()
}

fn sum_of_peaks(made: &evenkeel::plan::PlanReport) -> u64 {
    made.evaluations.iter().flat_map(|judged| &judged.peaks).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn more_budget_is_never_worse_and_none_is_exceeded(
        old in prop::collection::vec(1u64..100, 2 * LAYERS * EXPERTS),
        new in prop::collection::vec(1u64..100, 3 * LAYERS * EXPERTS),
        policy in prop::sample::select(vec!["eplb", "lplb:ring", "recourse:iterations=300"]),
        max_moves in prop::option::of(0usize..5),
    ) {
        let (old, new) = (trace(&old), trace(&new));
        let policy = place::policy(policy, 1, &cluster()).unwrap();
        let first = plan(&old, policy.as_ref());
        let free = replan(&new, policy.as_ref(), &first, max_moves);
        let mut least = u64::MAX;
        for copies in [0, 1, 2, 3, 4, 6, 9, 1000] {
            // Budgets need not be multiples of an expert.
            let bytes = copies * EXPERT_BYTES + EXPERT_BYTES / 2;
            let found = linked(&new, policy.as_ref(), &first, max_moves, bytes);
            let mut received = [0; 4];
            for (before, (layer, changed)) in first.layers.iter().zip(found.plan.layers.iter().zip(&found.changes)) {
                prop_assert_eq!(layer.placement.moves(&before.placement), changed.moves.clone());
                prop_assert!(changed.moves.len() <= max_moves.unwrap_or(usize::MAX));
                changed.moves.iter().for_each(|m| received[m.to as usize] += EXPERT_BYTES);
            }
            let links = found.links.clone().unwrap();
            prop_assert_eq!(&links.received[..], received);
            prop_assert!(received.iter().all(|&received| received <= bytes));
            let sum = sum_of_peaks(&found);
            prop_assert!(links.peaks_after == sum && sum <= least.min(links.peaks_before));
            least = sum;
            if copies == 0 {
                prop_assert_eq!(placements(&found.plan), placements(&first));
            }
        }
        // With room for everything, the plan is at least as good as without a budget, and has no more moves.
        let roomy = linked(&new, policy.as_ref(), &first, max_moves, u64::MAX);
        prop_assert_eq!(sum_of_peaks(&roomy), least);
        prop_assert!(least <= sum_of_peaks(&free));
        for (with, without) in roomy.changes.iter().zip(&free.changes) {
            prop_assert!(with.moves.len() <= without.moves.len());
        }
        // If the policy's own plan is the best of the evaluated ones, it is chosen.
        if roomy.changes.iter().zip(&free.changes).all(|(with, without)| with.moves.len() == without.moves.len()) {
            prop_assert_eq!(experts_by_rank(&roomy.plan), experts_by_rank(&free.plan));
        }
    }
}

#[test]
fn room_for_everything_is_as_no_budget_where_the_policy_plans_best() {
    // In every layer another expert has become heavy.
    let loads = |shift: usize| -> Vec<u64> {
        let of = |at: usize| {
            let (expert, layer) = (at % EXPERTS, at / EXPERTS % LAYERS);
            40 + (at * at % 7) as u64 + 200 * u64::from(expert == (layer + shift) % EXPERTS)
        };
        (0..4 * LAYERS * EXPERTS).map(of).collect()
    };
    let policy = place::policy("recourse", 1, &cluster()).unwrap();
    let first = plan(&trace(&loads(0)), policy.as_ref());
    let is_chosen = |shift: usize| {
        let new = trace(&loads(shift));
        let free = replan(&new, policy.as_ref(), &first, None);
        let roomy = linked(&new, policy.as_ref(), &first, None, u64::MAX);
        let moves = |report: &PlanReport| -> Vec<usize> {
            report.changes.iter().map(|layer| layer.moves.len()).collect()
        };
        // With a limit on moves, the policy may find a plan that is as good with fewer of them.
        if moves(&roomy) != moves(&free) || moves(&free).iter().all(|&moves| moves == 0) {
            return false;
        }
        assert_eq!((roomy.plan, roomy.changes), (free.plan, free.changes));
        true
    };
    assert!((1..EXPERTS).any(is_chosen));
}

#[test]
fn a_loss_needs_room_on_the_links_for_what_was_lost() {
    let trace = trace(&[5; LAYERS * EXPERTS]);
    let policy = place::policy("eplb", 1, &cluster()).unwrap();
    let first = plan(&trace, policy.as_ref());
    let left = place::without_ranks(&cluster(), EXPERTS, &[1]).unwrap();
    let request = |bytes| {
        let budget = LinkBudget { bytes, expert_bytes: 1 };
        PlanRequest::new(&trace, left, policy.as_ref())
            .previous(&first)
            .lost_ranks(&[1])
            .link_budget(budget)
            .run(&())
    };
    let homeless: usize = first
        .layers
        .iter()
        .map(|layer| (0..EXPERTS).filter(|&expert| layer.placement.ranks_of(expert) == [1]).count())
        .sum();
    assert!(homeless > 0);
    let error = request(0).unwrap_err();
    assert!(
        matches!(error, PlanRequestError::Constraints(ConstraintError::LinkBudget { budget: 0, .. })),
        "{error}"
    );
    let roomy = request(homeless as u64).unwrap();
    assert!(roomy.links.unwrap().received.iter().all(|&bytes| bytes <= homeless as u64));
    assert_eq!(roomy.changes.iter().map(|layer| layer.unplaced).sum::<usize>(), homeless);
}
