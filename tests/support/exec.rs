//! Small models that run in a moment.

#![allow(dead_code, reason = "not every test uses all")]

use evenkeel::cluster::Cluster;
use evenkeel::exec::cpu::Cpu;
use evenkeel::exec::random::Stream;
use evenkeel::exec::reference::Reference;
use evenkeel::exec::router::Router;
use evenkeel::exec::weights::{Dtype, RandomWeights, WeightSource};
use evenkeel::exec::{Aggregate, Backend, ExecConfig, ExecError, LayerInput, Routed};
use evenkeel::model::Model;
use evenkeel::place::Placement;
use evenkeel::split::Method;
use std::sync::Arc;

/// A model by name, made small.
pub(crate) fn small(name: &str, experts: usize, top_k: usize) -> Model {
    Model { hidden: 64, intermediate: 48, experts, top_k, ..name.parse().unwrap() }
}

pub(crate) fn config(model: Model, cluster: Cluster, router: Router, dtype: Dtype) -> ExecConfig {
    let (method, aggregate) = (Some(Method::Exact), Aggregate::None);
    ExecConfig { model, cluster, router, capacity: None, method, then: None, aggregate, dtype, seed: 7 }
}

pub(crate) fn weights(config: &ExecConfig) -> Arc<dyn WeightSource> {
    let width = config.router.width(config.model.experts);
    Arc::new(RandomWeights { model: config.model, width, dtype: config.dtype, seed: 3 })
}

pub(crate) fn backend(config: &ExecConfig, placements: Vec<Placement>) -> (Cpu, Reference) {
    let weights = weights(config);
    let cpu = Cpu::new(config.clone(), weights.as_ref(), placements).unwrap();
    (cpu, Reference::new(config.clone(), weights))
}

/// So many tokens per rank.
pub(crate) fn tokens(hidden: u64, per_rank: &[usize], seed: u64) -> Vec<Vec<f32>> {
    let of = |(rank, &tokens): (usize, &usize)| {
        Stream::new(seed, &[rank as u64]).weights(tokens * hidden as usize, 1.0)
    };
    per_rank.iter().enumerate().map(of).collect()
}

/// A random placement: every expert somewhere, the rest of the slots with anything or nothing.
pub(crate) fn placement(experts: usize, cluster: &Cluster, seed: u64) -> Placement {
    let mut random = Stream::new(seed, &[99]);
    let mut slots: Vec<Option<u32>> = (0..cluster.slots())
        .map(|slot| match slot {
            _ if slot < experts => Some(slot as u32),
            _ => Some((random.bits() % (experts as u64 + 1)) as u32).filter(|&e| (e as usize) < experts),
        })
        .collect();
    for at in (1..slots.len()).rev() {
        slots.swap(at, (random.bits() % (at as u64 + 1)) as usize);
    }
    Placement::new(experts, cluster.ranks(), slots).unwrap()
}

/// A backend of two ranks, four experts in six slots, top-1, refuses what does not fit, and says what.
pub(crate) fn refuses_other_input(backend: &mut dyn Backend) {
    let mut layer = |layer, tokens: &[Vec<f32>], routed| {
        backend.layer(&LayerInput { layer, step: 0, tokens, routed }).unwrap_err()
    };
    let x = tokens(64, &[1, 1], 0);
    assert!(matches!(layer(1, &x, Routed::Router), ExecError::Shape { what: "layer", .. }));
    assert!(matches!(layer(0, &x[..1], Routed::Router), ExecError::Shape { what: "sources", .. }));
    assert!(matches!(layer(0, &[vec![0.0; 65], vec![]], Routed::Router), ExecError::Shape { .. }));
    assert!(matches!(layer(0, &[vec![f32::NAN; 64], vec![]], Routed::Router), ExecError::Router(_)));
    let replay = |ids, slots| Routed::Replay { ids, top_k: 1, weights: None, slots, and_route: false };
    let (beyond, short, right) = ([vec![4], vec![0]], [vec![0]], [vec![0], vec![0]]);
    let nowhere = [vec![9], vec![0]];
    assert!(matches!(layer(0, &x, replay(&beyond, None)), ExecError::Router(_)));
    assert!(matches!(layer(0, &x, replay(&short, None)), ExecError::Shape { .. }));
    let wrong = layer(0, &x, replay(&right, Some(&nowhere)));
    assert!(matches!(wrong, ExecError::WrongSlot { rank: 0, slot: 9, .. }), "{wrong}");
}
