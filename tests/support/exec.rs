//! Small models that run within a moment.

#![allow(dead_code, reason = "not every test uses all")]

use evenkeel::cluster::Cluster;
use evenkeel::model::MoeModel;
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
use evenkeel_exec::cpu::Cpu;
use evenkeel_exec::random::RandomStream;
use evenkeel_exec::reference::Reference;
use evenkeel_exec::router::Router;
use evenkeel_exec::weights::{Dtype, RandomWeights, WeightSource};
use evenkeel_exec::{Aggregate, Backend, ExecConfig, ExecError, LayerInput, RoutingSource};
use std::sync::Arc;

/// Returns a small version of a named model.
pub(crate) fn small(name: &str, experts: usize, top_k: usize) -> MoeModel {
    MoeModel { hidden: 64, intermediate: 48, experts, top_k, ..name.parse().unwrap() }
}

pub(crate) fn config(model: MoeModel, cluster: Cluster, router: Router, dtype: Dtype) -> ExecConfig {
    ExecConfig {
        model,
        cluster,
        router,
        capacity: None,
        method: Some(SplitMethod::Exact),
        tie_break: None,
        aggregate: Aggregate::None,
        dynamic: None,
        dtype,
        seed: 7,
    }
}

pub(crate) fn weights(config: &ExecConfig) -> Arc<dyn WeightSource> {
    let width = config.router.logit_width(config.model.experts);
    Arc::new(RandomWeights { model: config.model, width, dtype: config.dtype, seed: 3 })
}

pub(crate) fn backend(config: &ExecConfig, placements: Vec<Placement>) -> (Cpu, Reference) {
    let weights = weights(config);
    let cpu = Cpu::new(config.clone(), weights.as_ref(), placements).unwrap();
    (cpu, Reference::new(config.clone(), weights))
}

/// Returns random tokens: `per_rank` states the number on each rank.
pub(crate) fn tokens(hidden: u64, per_rank: &[usize], seed: u64) -> Vec<Vec<f32>> {
    let of = |(rank, &tokens): (usize, &usize)| {
        RandomStream::new(seed, &[rank as u64]).uniform_weights(tokens * hidden as usize, 1.0)
    };
    per_rank.iter().enumerate().map(of).collect()
}

/// Returns a random placement. It holds every expert. The remaining slots hold a random expert or none.
pub(crate) fn placement(experts: usize, cluster: &Cluster, seed: u64) -> Placement {
    let mut random = RandomStream::new(seed, &[99]);
    let mut slots: Vec<Option<u32>> = (0..cluster.slots())
        .map(|slot| match slot {
            _ if slot < experts => Some(slot as u32),
            _ => Some((random.next_bits() % (experts as u64 + 1)) as u32).filter(|&e| (e as usize) < experts),
        })
        .collect();
    for at in (1..slots.len()).rev() {
        slots.swap(at, (random.next_bits() % (at as u64 + 1)) as usize);
    }
    Placement::new(experts, cluster.ranks(), slots).unwrap()
}

/// Asserts that a backend refuses inputs that do not fit, each with its reason. The backend has two ranks,
/// four experts in six slots, and top-1 routing.
pub(crate) fn refuses_other_input(backend: &mut dyn Backend) {
    let mut layer = |layer, tokens: &[Vec<f32>], routed| {
        backend.run_layer(&LayerInput { layer, step: 0, tokens, routed }).unwrap_err()
    };
    let x = tokens(64, &[1, 1], 0);
    assert!(matches!(layer(1, &x, RoutingSource::Router), ExecError::Shape { what: "layer", .. }));
    assert!(matches!(layer(0, &x[..1], RoutingSource::Router), ExecError::Shape { what: "sources", .. }));
    assert!(matches!(layer(0, &[vec![0.0; 65], vec![]], RoutingSource::Router), ExecError::Shape { .. }));
    assert!(matches!(layer(0, &[vec![f32::NAN; 64], vec![]], RoutingSource::Router), ExecError::Router(_)));
    let replay =
        |ids, slots| RoutingSource::Replay { ids, top_k: 1, weights: None, slots, also_run_router: false };
    let (beyond, short, right) = ([vec![4], vec![0]], [vec![0]], [vec![0], vec![0]]);
    let nowhere = [vec![9], vec![0]];
    assert!(matches!(layer(0, &x, replay(&beyond, None)), ExecError::Router(_)));
    assert!(matches!(layer(0, &x, replay(&short, None)), ExecError::Shape { .. }));
    let wrong = layer(0, &x, replay(&right, Some(&nowhere)));
    assert!(matches!(wrong, ExecError::WrongSlot { rank: 0, slot: 9, .. }), "{wrong}");
}
