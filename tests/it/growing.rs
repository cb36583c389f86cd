//! Plans on more and on fewer ranks than the previous plan.

use evenkeel::cluster::Cluster;
use evenkeel::place;
use evenkeel::plan::{Plan, PlanReport, PlanRequest};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use evenkeel_trace::{Batching, synth};

fn trace(experts: usize, top_k: usize, layers: usize) -> Trace {
    let spec = synth::SynthSpec::default()
        .experts(experts)
        .top_k(top_k)
        .layers(layers)
        .steps(24)
        .batching(Batching::Prefill { tokens: 2048 })
        .seed(5);
    synth::generate(&spec).unwrap()
}

fn plan(trace: &Trace, cluster: Cluster, previous: Option<&Plan>, lost: &[usize]) -> PlanReport {
    let policy = place::policy("recourse:exact:iterations=2000", 1, &cluster).unwrap();
    PlanRequest::new(trace, cluster, &policy).previous(previous).lost_ranks(lost).run(&()).unwrap()
}

/// Returns the mean imbalance under the exact split.
fn imbalance(report: &PlanReport) -> f64 {
    let exact = SplitMethod::Exact.to_string();
    let figures = &report.plan.provenance.figures;
    figures.iter().find(|figure| figure.split == exact).unwrap().imbalance.mean
}

/// Grows a plan from `from` to `to` ranks, each with the same slots.
fn grow(experts: usize, top_k: usize, (from, to): (usize, usize), per_rank: usize) {
    let trace = trace(experts, top_k, 2);
    let cluster = |ranks: usize| Cluster::new(ranks, 1, experts, ranks * per_rank - experts).unwrap();
    let before = plan(&trace, cluster(from), None, &[]);
    let grown = plan(&trace, cluster(to), Some(&before.plan), &[]);
    let fresh = plan(&trace, cluster(to), None, &[]);
    let mut to_new = 0;
    for (change, (old, new)) in grown.changes.iter().zip(before.plan.layers.iter().zip(&grown.plan.layers)) {
        assert!(change.moves.iter().all(|m| m.from.is_some()) && change.unplaced == 0);
        let stayed = change.moves.iter().filter(|m| (m.to as usize) < from).count();
        to_new += change.moves.len() - stayed;
        // Every move between ranks that stay lowers the mean peak by 0.2 % of the mean load. A peak cannot
        // fall below the mean, so there are few.
        let room = (old.imbalance.max(new.imbalance) - 1.0).max(0.05) / 0.002;
        assert!((stayed as f64) <= room, "{stayed} moves between ranks that stay");
    }
    assert!(to_new > 0 && to_new <= 2 * (to - from) * per_rank);
    // The grown plan is about as good as one that may move everything.
    let (kept, free) = (imbalance(&grown), imbalance(&fresh));
    assert!(kept <= free * 1.02, "{from} to {to} ranks: {kept} instead of {free}");
    // Losing the ranks again and letting others join leads back to a plan that is as good.
    let lost: Vec<usize> = (from..to).collect();
    let shrunk = plan(&trace, cluster(from), Some(&grown.plan), &lost);
    let again = plan(&trace, cluster(to), Some(&shrunk.plan), &[]);
    let back = imbalance(&again);
    assert!(back <= kept * 1.02, "{back} after shrinking and growing back, {kept} before");
}

#[test]
fn four_ranks_grow_to_six() {
    grow(64, 6, (4, 6), 18);
}

#[test]
fn thirty_two_ranks_grow_to_forty() {
    grow(256, 8, (32, 40), 9);
}

#[test]
fn more_ranks_may_have_fewer_slots_each() {
    let trace = trace(64, 6, 2);
    let before = plan(&trace, Cluster::new(4, 1, 64, 8).unwrap(), None, &[]);
    let grown = plan(&trace, Cluster::new(6, 1, 64, 8).unwrap(), Some(&before.plan), &[]);
    for (change, (old, new)) in grown.changes.iter().zip(before.plan.layers.iter().zip(&grown.plan.layers)) {
        // Twelve of eighteen slots are left on each rank that stays.
        assert_eq!(new.placement.slots_per_rank(), 12);
        let moved = change.moves.iter().filter(|m| (m.to as usize) < 4).count();
        assert!(
            moved <= 12,
            "{moved} experts moved between ranks that stay, of {}",
            old.placement.slots().len()
        );
    }
    let fresh = plan(&trace, Cluster::new(6, 1, 64, 8).unwrap(), None, &[]);
    assert!(imbalance(&grown) <= imbalance(&fresh) * 1.03, "{} and {}", imbalance(&grown), imbalance(&fresh));
}

#[test]
fn fewer_ranks_need_to_be_named_as_lost() {
    let trace = trace(64, 6, 1);
    let before = plan(&trace, Cluster::new(4, 1, 64, 8).unwrap(), None, &[]);
    let cluster = Cluster::new(3, 1, 64, 8).unwrap();
    let policy = place::policy("eplb", 1, &cluster).unwrap();
    let error = PlanRequest::new(&trace, cluster, &policy).previous(&before.plan).run(&()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "3 ranks, but 4 of the previous plan are left: expected the ranks that leave as lost ranks (--lost-ranks)"
    );
}
