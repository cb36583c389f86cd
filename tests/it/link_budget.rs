//! Re-planning within a link budget, through the public API. A plan never exceeds the budget, and a larger
//! budget never makes it worse.

#![allow(clippy::unwrap_used)]

use evenkeel::cluster::Cluster;
use evenkeel::place::{self, Policy};
use evenkeel::plan::{BatchProvenance, LinkBudget, LinkedPlan, Plan, ReplanRequest};
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

fn past(previous: &Plan, max_moves: Option<usize>) -> ReplanRequest<'_> {
    ReplanRequest { previous, lost: &[], max_moves, horizon: None }
}

fn linked(trace: &Trace, policy: &dyn Policy, past: &ReplanRequest<'_>, bytes: u64) -> LinkedPlan {
    let budget = LinkBudget { bytes, expert_bytes: EXPERT_BYTES };
    Plan::replan_within_links(trace, &cluster(), policy, (past, budget), BatchProvenance::default(), &())
        .unwrap()
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
        let first = Plan::build(&old, &cluster(), policy.as_ref(), BatchProvenance::default(), &()).unwrap().plan;
        let past = past(&first, max_moves);
        let (free, changes) =
            Plan::replan(&new, &cluster(), policy.as_ref(), &past, BatchProvenance::default(), &()).unwrap();
        let mut least = u64::MAX;
        for copies in [0, 1, 2, 3, 4, 6, 9, 1000] {
            // Budgets need not be multiples of an expert.
            let bytes = copies * EXPERT_BYTES + EXPERT_BYTES / 2;
            let found = linked(&new, policy.as_ref(), &past, bytes);
            let mut received = [0; 4];
            for (before, (layer, changed)) in first.layers.iter().zip(found.report.plan.layers.iter().zip(&found.changes)) {
                prop_assert_eq!(layer.placement.moves(&before.placement), changed.moves.clone());
                prop_assert!(changed.moves.len() <= max_moves.unwrap_or(usize::MAX));
                changed.moves.iter().for_each(|m| received[m.to as usize] += EXPERT_BYTES);
            }
            prop_assert_eq!(&found.received[..], received);
            prop_assert!(received.iter().all(|&received| received <= bytes));
            let sum = sum_of_peaks(&found.report);
            prop_assert!(found.peaks == [found.peaks[0], sum] && sum <= least.min(found.peaks[0]));
            least = sum;
            if copies == 0 {
                prop_assert_eq!(placements(&found.report.plan), placements(&first));
            }
        }
        // With room for everything, the plan is at least as good as without a budget, and has no more moves.
        let roomy = linked(&new, policy.as_ref(), &past, u64::MAX);
        prop_assert_eq!(sum_of_peaks(&roomy.report), least);
        prop_assert!(least <= sum_of_peaks(&free));
        for (with, without) in roomy.changes.iter().zip(&changes) {
            prop_assert!(with.moves.len() <= without.moves.len());
        }
        // If the policy's own plan is the best of the evaluated ones, it is chosen.
        if roomy.changes.iter().zip(&changes).all(|(with, without)| with.moves.len() == without.moves.len()) {
            prop_assert_eq!(experts_by_rank(&roomy.report.plan), experts_by_rank(&free.plan));
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
    let (old, new) = (trace(&loads(0)), trace(&loads(5)));
    let policy = place::policy("recourse", 1, &cluster()).unwrap();
    let first = Plan::build(&old, &cluster(), policy.as_ref(), BatchProvenance::default(), &()).unwrap().plan;
    let past = past(&first, None);
    let (free, changes) =
        Plan::replan(&new, &cluster(), policy.as_ref(), &past, BatchProvenance::default(), &()).unwrap();
    assert!(changes.iter().any(|changed| !changed.moves.is_empty()));
    let roomy = linked(&new, policy.as_ref(), &past, u64::MAX);
    assert_eq!((roomy.report.plan, roomy.changes), (free.plan, changes));
}

#[test]
fn losses_are_not_planned_for_within_a_link_budget() {
    let trace = trace(&[5; LAYERS * EXPERTS]);
    let policy = place::policy("eplb", 1, &cluster()).unwrap();
    let first =
        Plan::build(&trace, &cluster(), policy.as_ref(), BatchProvenance::default(), &()).unwrap().plan;
    let past = ReplanRequest { lost: &[1], ..past(&first, None) };
    let budget = LinkBudget { bytes: 9, expert_bytes: 1 };
    let wrong = Plan::replan_within_links(
        &trace,
        &cluster(),
        policy.as_ref(),
        (&past, budget),
        BatchProvenance::default(),
        &(),
    );
    assert!(wrong.unwrap_err().to_string().contains("allows neither lost ranks nor a horizon"));
}
