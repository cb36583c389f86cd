//! Constraints of plans, alone and in pairs. Every pair works and is held, or is refused by one error.
//!
//! The test writes the table of all pairs and compares it with `docs/constraints.md`.
//! `EVENKEEL_TABLE=write cargo test -p evenkeel --test it -- constraints::` rewrites the table.

use evenkeel::cluster::Cluster;
use evenkeel::economics::{MoveEconomics, TransferCharge};
use evenkeel::place::{self, Coverage, Placement};
use evenkeel::plan::{Constraints, LinkBudget, Plan, PlanReport, PlanRequest, PlanRequestError};
use evenkeel::split::Roofline;
use evenkeel::trace::Trace;
use std::path::Path;
use std::sync::Arc;

const EXPERTS: usize = 12;
const LAYERS: usize = 3;
const SLOTS_PER_RANK: usize = 6;
const EXPERT_BYTES: u64 = 1000;
const MEMORY_BUDGET: usize = 44;
const MAX_MOVES: usize = 8;
const LINK_COPIES: u64 = 12;

/// One constraint of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    UnevenSlots,
    Coverage,
    Speeds,
    MemoryBudget,
    LostRank,
    MoreRanks,
    FewerSlots,
    MaxMoves,
    Horizon,
    LinkBudget,
}

const KINDS: [(Kind, &str); 10] = [
    (Kind::UnevenSlots, "`--uneven`"),
    (Kind::Coverage, "`--survive-rank-loss 1`"),
    (Kind::Speeds, "`--speeds`"),
    (Kind::MemoryBudget, "`--memory-budget`"),
    (Kind::LostRank, "`--lost-ranks`"),
    (Kind::MoreRanks, "`--add-ranks`"),
    (Kind::FewerSlots, "fewer `--slots-per-rank`"),
    (Kind::MaxMoves, "`--max-moves`"),
    (Kind::Horizon, "`--horizon-steps`"),
    (Kind::LinkBudget, "`--link-budget`"),
];

fn trace(seed: u64) -> Trace {
    let load = |at: u64| 10 + (at * 37 + seed * 11) % 23 + 60 * u64::from((at + seed).is_multiple_of(7));
    let loads = (0..6 * (LAYERS * EXPERTS) as u64).map(load).collect();
    Trace::from_loads(EXPERTS, vec![1, 2, 5], (0..6).map(|s| s.to_string()).collect(), loads).unwrap()
}

fn base_cluster() -> Cluster {
    Cluster::new(4, 1, EXPERTS, 4 * SLOTS_PER_RANK - EXPERTS).unwrap()
}

/// Returns the cluster and the constraints of a set of kinds.
fn setup(kinds: &[Kind]) -> (Cluster, Constraints) {
    let has = |kind: Kind| kinds.contains(&kind);
    let ranks = 4 - usize::from(has(Kind::LostRank)) + 2 * usize::from(has(Kind::MoreRanks));
    let width = SLOTS_PER_RANK - usize::from(has(Kind::FewerSlots));
    let redundant = ranks * width - EXPERTS + 2 * usize::from(has(Kind::UnevenSlots));
    let mut limits = Constraints::default();
    limits.coverage = has(Kind::Coverage).then_some(Coverage::All);
    limits.speeds = if has(Kind::Speeds) { (0..ranks).map(|r| 1 + (r % 2) as u32).collect() } else { vec![] };
    limits.memory_budget = has(Kind::MemoryBudget).then_some(MEMORY_BUDGET);
    limits.lost_ranks = if has(Kind::LostRank) { vec![1] } else { vec![] };
    limits.max_moves = has(Kind::MaxMoves).then_some(MAX_MOVES);
    let time = Roofline { read: 1, token: 1000, tile: 1 };
    limits.economics = has(Kind::Horizon).then(|| MoveEconomics {
        steps: 1000,
        transfer_ps: 500_000,
        time: Arc::new(time),
        charge: TransferCharge::default(),
    });
    limits.link_budget = has(Kind::LinkBudget)
        .then_some(LinkBudget { bytes: LINK_COPIES * EXPERT_BYTES, expert_bytes: EXPERT_BYTES });
    (Cluster::with_uneven_slots(ranks, 1, EXPERTS, redundant).unwrap(), limits)
}

/// Returns true if a constraint only has a meaning with a previous plan.
fn needs_previous(kind: Kind) -> bool {
    !matches!(kind, Kind::UnevenSlots | Kind::Coverage | Kind::Speeds | Kind::MemoryBudget)
}

fn plan(kinds: &[Kind], previous: Option<&Plan>) -> Result<PlanReport, PlanRequestError> {
    let (cluster, limits) = setup(kinds);
    let trace = trace(3);
    let policy = place::policy("recourse:exact:iterations=200", 1, &cluster).unwrap();
    PlanRequest::new(&trace, cluster, &policy).previous(previous).constraints(limits).run(&())
}

/// Returns the experts of a rank, each once.
fn experts_of(placement: &Placement, rank: usize) -> Vec<u32> {
    let slots = &placement.slots()[rank * placement.slots_per_rank()..][..placement.slots_per_rank()];
    let mut experts: Vec<u32> = slots.iter().copied().flatten().collect();
    experts.sort_unstable();
    experts.dedup();
    experts
}

/// Checks that a plan holds every constraint.
fn check(kinds: &[Kind], report: &PlanReport, previous: Option<&Plan>) {
    let (cluster, limits) = setup(kinds);
    let plan = &report.plan;
    assert_eq!(plan.cluster.ranks(), cluster.ranks(), "{kinds:?}");
    assert_eq!(plan.layers.len(), LAYERS);
    assert_eq!(Plan::from_json(&plan.to_json().unwrap()).unwrap(), *plan, "{kinds:?}");
    for layer in &plan.layers {
        for rank in 0..cluster.ranks() {
            let own = &layer.placement.slots()[rank * layer.placement.slots_per_rank()..];
            let filled = own[..layer.placement.slots_per_rank()].iter().flatten().count();
            assert!(filled <= plan.cluster.slots_of(rank), "{kinds:?}: rank {rank} holds {filled}");
        }
        if limits.coverage.is_some() {
            let once = (0..EXPERTS).filter(|&e| layer.placement.ranks_of(e).len() < 2).count();
            assert_eq!(once, 0, "{kinds:?}: layer {}", layer.layer);
        }
    }
    if let Some(redundant) = &report.redundant {
        assert!(redundant.iter().sum::<usize>() <= MEMORY_BUDGET, "{kinds:?}");
        for (layer, slots) in plan.layers.iter().zip(redundant) {
            let filled = layer.placement.slots().iter().flatten().count();
            assert!(filled <= EXPERTS + slots, "{kinds:?}");
        }
    }
    let Some(previous) = previous else {
        assert!(report.changes.is_empty());
        return;
    };
    assert_eq!(report.changes.len(), LAYERS);
    let origins = place::rank_origins(4, &limits.lost_ranks, cluster.ranks());
    let mut received = vec![0; cluster.ranks()];
    for ((layer, before), change) in plan.layers.iter().zip(&previous.layers).zip(&report.changes) {
        let mut moves = 0;
        for (rank, origin) in origins.iter().enumerate() {
            let held = origin.map_or_else(Vec::new, |origin| experts_of(&before.placement, origin));
            for expert in experts_of(&layer.placement, rank).iter().filter(|&expert| !held.contains(expert)) {
                let listed = change.moves.iter().any(|m| m.expert == *expert && m.to as usize == rank);
                assert!(listed, "{kinds:?}: layer {}, expert {expert} to rank {rank}", layer.layer);
                received[rank] += EXPERT_BYTES;
                moves += 1;
            }
        }
        assert_eq!(change.moves.len(), moves, "{kinds:?}");
        assert!(limits.max_moves.is_none_or(|most| moves <= most), "{kinds:?}: {moves} moves");
        assert_eq!(
            change.verdict.is_some(),
            limits.economics.is_some() && limits.link_budget.is_none(),
            "{kinds:?}"
        );
    }
    if let Some(budget) = limits.link_budget {
        assert_eq!(report.links.as_ref().unwrap().received, received, "{kinds:?}");
        assert!(received.iter().all(|&bytes| bytes <= budget.bytes), "{kinds:?}");
    }
}

/// Plans with these constraints and returns the result in words.
fn outcome(kinds: &[Kind], first: &Plan) -> String {
    let previous = kinds.iter().any(|&kind| needs_previous(kind)).then_some(first);
    match plan(kinds, previous) {
        Ok(report) => {
            check(kinds, &report, previous);
            "works".into()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_pair_of_constraints_works_or_is_refused() {
    let first = plan(&[Kind::Coverage], None).unwrap().plan;
    assert_eq!(first.cluster, base_cluster());
    let mut text = String::from(
        "# Constraints in pairs\n\nEvery constraint of a plan works with every other one, or one error says why it does \
         not. `cargo test --test it\n-- constraints::` plans with each pair and checks that the plan holds both. The \
         errors below are those of a case\nwith 12 experts, 3 layers and 4 ranks.\n\n| | with | result |\n|---|---|---|\n",
    );
    for (at, (kind, name)) in KINDS.into_iter().enumerate() {
        let alone = outcome(&[kind], &first);
        text += &format!("| {name} | - | {alone} |\n");
        for (other, other_name) in &KINDS[at + 1..] {
            text += &format!("| {name} | {other_name} | {} |\n", outcome(&[kind, *other], &first));
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/constraints.md");
    if std::env::var_os("EVENKEEL_TABLE").is_some_and(|value| value == "write") {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == text, "docs/constraints.md differs: EVENKEEL_TABLE=write rewrites it\n{text}");
}

#[test]
fn moves_are_counted_from_a_previous_plan() {
    for kind in [Kind::LostRank, Kind::MaxMoves, Kind::Horizon, Kind::LinkBudget] {
        let error = plan(&[kind], None).unwrap_err().to_string();
        assert!(error.contains("expected a previous plan"), "{kind:?}: {error}");
    }
}
