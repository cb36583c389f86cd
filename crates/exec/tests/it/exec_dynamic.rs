//! Experts copied into dynamic slots in every step: results stay those of the reference, loads are those of
//! the split, and processes find what one memory finds.

use crate::exec_support::{backend, config, placement, small, tokens};
use evenkeel::cluster::Cluster;
use evenkeel::split::{CopyAim, DynamicSlots, PrimaryObjective, SlotMemory, Split, Splitter};
use evenkeel_exec::comm::{Distance, ProcessGroup, Purpose, ThreadCommunicator};
use evenkeel_exec::cpu::{Cpu, CpuOptions};
use evenkeel_exec::forward::{StepRun, run_step};
use evenkeel_exec::router::Router;
use evenkeel_exec::weights::{Dtype, RandomWeights};
use evenkeel_exec::{Aggregate, Backend, ExecConfig, ExecError, LayerStage, RoutingSource};
use proptest::prelude::*;
use std::rc::Rc;
use std::time::Duration;

pub(crate) const LAYERS: usize = 2;
const STEPS: u64 = 5;

fn slots() -> impl Strategy<Value = DynamicSlots> {
    let memories = vec![SlotMemory::Shared, SlotMemory::Kept];
    let aims = vec![CopyAim::Imbalance(10_000), CopyAim::Copies(3)];
    (1usize..3, prop::sample::select(memories), prop::sample::select(aims))
        .prop_map(|(per_rank, memory, aim)| DynamicSlots::new(per_rank, memory).aim(aim))
}

/// Runs some steps, and checks each against the reference unless ranks are in other processes. Returns the
/// results of all steps.
pub(crate) fn run_steps(
    backend: &mut dyn Backend,
    config: &ExecConfig,
    per_rank: &[usize],
    check: bool,
) -> Vec<StepRun> {
    let mut reference =
        evenkeel_exec::reference::Reference::new(config.clone(), crate::exec_support::weights(config));
    let step = |at: u64| {
        let mut x = tokens(64, per_rank, at);
        // A process has the tokens of its own ranks.
        for (rank, own) in x.iter_mut().enumerate() {
            if !backend.is_local(rank) {
                own.clear();
            }
        }
        let reference = check.then_some(&mut reference);
        let run = run_step(backend, LAYERS, at, &mut x, |_| RoutingSource::Router, reference).unwrap();
        if let Some(check) = run.check {
            assert!(check.within_bounds(config.dtype), "step {at}: {check:?}");
        }
        run
    };
    (0..STEPS).map(step).collect()
}

/// Returns the copies of every step and layer.
pub(crate) fn copies_of(steps: &[StepRun]) -> Vec<u64> {
    steps.iter().flat_map(|step| step.layers.iter().map(|layer| layer.expert_copies)).collect()
}

/// Returns the copies that every step and layer should make, and compares the loads with those of the split
/// alone.
pub(crate) fn expected_copies(config: &ExecConfig, backend: &dyn Backend, steps: &[StepRun]) -> Vec<u64> {
    let slots = config.dynamic.unwrap();
    let build =
        |layer| Splitter::builder(backend.placement(layer).clone()).dynamic_slots(slots).build().unwrap();
    let mut splitters: Vec<Splitter> = (0..LAYERS).map(build).collect();
    let mut split = Split::default();
    let mut copies = vec![];
    for step in steps {
        for (splitter, layer) in splitters.iter_mut().zip(&step.layers) {
            splitter.split(&layer.counts, &mut split).unwrap();
            assert_eq!(split.rank_loads, layer.rank_loads);
            copies.push(split.copies.as_ref().unwrap().copies.len() as u64);
        }
    }
    copies
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn copies_change_nothing_but_the_ranks_of_tokens(
        ranks in 2usize..5,
        spare in 0usize..2,
        top_k in 1usize..4,
        per_rank in prop::collection::vec(0usize..20, 5),
        slots in slots(),
        dtype in prop::sample::select(vec![Dtype::F32, Dtype::Bf16]),
        seed in 0u64..1000,
    ) {
        let experts = 8;
        let redundant = (ranks - experts % ranks) % ranks + spare * ranks;
        let cluster = Cluster::new(ranks, 1, experts, redundant).unwrap();
        let plain = config(small("qwen3-30b-a3b", experts, top_k), cluster, Router::TopkSoftmax, dtype);
        let config = ExecConfig { dynamic: Some(slots), ..plain };
        let placements = vec![placement(experts, &cluster, seed), placement(experts, &cluster, seed + 1)];
        let (mut cpu, _) = backend(&config, placements);
        let steps = run_steps(&mut cpu, &config, &per_rank[..ranks], true);
        prop_assert_eq!(copies_of(&steps), expected_copies(&config, &cpu, &steps));
        let layers = if slots.memory == SlotMemory::Shared { 1 } else { LAYERS };
        let expert = cpu.expert_bytes(0, 0).unwrap();
        let (plain, _) = backend(&ExecConfig { dynamic: None, ..config.clone() }, cpu.state().placements().to_vec());
        for (with, without) in cpu.memory().iter().zip(plain.memory()) {
            prop_assert_eq!(with.in_use - without.in_use, (slots.per_rank * layers) as u64 * expert);
        }
    }

    /// Threads with separate memories stand for processes.
    #[test]
    fn processes_find_what_one_memory_finds(
        (ranks, nodes) in prop::sample::select(vec![(2, 1), (3, 1), (4, 2), (4, 1)]),
        chunks in 1usize..5,
        slots in slots(),
        aggregate in prop::sample::select(Aggregate::ALL.to_vec()),
        per_rank in prop::collection::vec(0usize..20, 4),
    ) {
        let cluster = Cluster::new(ranks, nodes, 12, 0).unwrap();
        let plain = config(small("deepseek-v2-lite", 12, 3), cluster, Router::TopkSoftmax, Dtype::Bf16);
        let config = ExecConfig { dynamic: Some(slots), aggregate, ..plain };
        let placements = vec![placement(12, &cluster, 1), placement(12, &cluster, 2)];
        let (mut local, _) = backend(&config, placements.clone());
        let expected = run_steps(&mut local, &config, &per_rank[..ranks], true);
        let group = ThreadCommunicator::create_group(ranks, Duration::from_secs(30));
        let found: Vec<(Vec<StepRun>, u64)> = std::thread::scope(|scope| {
            let (config, placements, per_rank) = (&config, &placements, &per_rank);
            let start = |rank: ThreadCommunicator| {
                scope.spawn(move || {
                    let group = Rc::new(ProcessGroup::new(Rc::new(rank), cluster).unwrap());
                    let width = config.router.logit_width(config.model.experts);
                    let weights =
                        RandomWeights { model: config.model, width, dtype: config.dtype, seed: 3 };
                    let options = CpuOptions::default().verify_splits(true).chunks(chunks);
                    let mut cpu =
                        Cpu::join(config.clone(), &weights, placements.clone(), Rc::clone(&group), options)
                            .unwrap();
                    let steps = run_steps(&mut cpu, config, &per_rank[..ranks], false);
                    let stats = group.traffic_stats();
                    let sent = Distance::ALL.map(|distance| stats.bytes(Purpose::Moves, distance));
                    (steps, sent.iter().sum())
                })
            };
            let threads: Vec<_> = group.into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let copies: u64 = copies_of(&expected).iter().sum();
        let sent: u64 = found.iter().map(|(_, sent)| sent).sum();
        // A message has a few bytes more than its weights.
        let expert = local.expert_bytes(0, 0).unwrap();
        prop_assert!(sent >= copies * expert && sent <= copies * (expert + 64), "{} {}", sent, copies);
        for (steps, _) in &found {
            for (step, expected) in steps.iter().zip(&expected) {
                for (layer, expected) in step.layers.iter().zip(&expected.layers) {
                    prop_assert_eq!(&layer.rank_loads, &expected.rank_loads);
                    prop_assert_eq!(layer.expert_copies, expected.expert_copies);
                    prop_assert_eq!(layer.copies, expected.copies);
                }
            }
        }
    }
}

#[test]
fn a_hot_expert_is_copied_and_the_copying_is_timed() {
    let cluster = Cluster::new(4, 1, 4, 0).unwrap();
    let plain = config(small("gpt-oss-20b", 4, 1), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let slots = DynamicSlots::new(1, SlotMemory::Shared);
    let config = ExecConfig { dynamic: Some(slots), ..plain };
    let (mut cpu, mut reference) = backend(&config, vec![placement(4, &cluster, 0)]);
    let ids: Vec<Vec<i32>> = vec![vec![2; 30]; 4];
    let routed =
        |_| RoutingSource::Replay { ids: &ids, top_k: 1, weights: None, slots: None, also_run_router: false };
    let mut x = tokens(64, &[30; 4], 5);
    let run = run_step(&mut cpu, 1, 0, &mut x, routed, Some(&mut reference)).unwrap();
    assert!(run.check.unwrap().within_bounds(Dtype::Bf16));
    let layer = &run.layers[0];
    assert_eq!((layer.expert_copies, layer.rank_loads.as_slice()), (3, &[30; 4][..]));
    assert!(layer.times.iter().any(|times| times[LayerStage::Copy as usize] > Duration::ZERO));
}

#[test]
fn what_excludes_dynamic_slots_is_refused() {
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    let plain = config(small("qwen3-30b-a3b", 4, 1), cluster, Router::TopkSoftmax, Dtype::F32);
    let dynamic = Some(DynamicSlots::new(1, SlotMemory::Kept));
    let config = ExecConfig { dynamic, ..plain };
    let (mut cpu, _) = backend(&config, vec![placement(4, &cluster, 0)]);
    assert!(matches!(cpu.start_copy(0, 0, 0), Err(ExecError::Combination(_))));
    let (ids, stated) = ([vec![0], vec![0]], [vec![0], vec![0]]);
    let routed = |_| RoutingSource::Replay {
        ids: &ids,
        top_k: 1,
        weights: None,
        slots: Some(&stated),
        also_run_router: false,
    };
    let error = run_step(&mut cpu, 1, 0, &mut tokens(64, &[1, 1], 0), routed, None).unwrap_err();
    assert!(matches!(error, ExecError::Combination(_)), "{error}");
    let traffic = ExecConfig { tie_break: Some(PrimaryObjective::Peak), ..config };
    let weights = crate::exec_support::weights(&traffic);
    let error = Cpu::new(traffic, weights.as_ref(), vec![placement(4, &cluster, 0)]).unwrap_err();
    assert!(matches!(error, ExecError::Combination(_)), "{error}");
}
