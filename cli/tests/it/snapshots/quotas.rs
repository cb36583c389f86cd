//! Digests of quotas, and of redirected tokens, through the library.

use super::compare;
use super::print::hex;
use super::program::repository;
use super::token_ids;
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{self, PlaceRequest, Placement};
use evenkeel::planner::Planner;
use evenkeel::split::{PrimaryObjective, Split, SplitMethod, Splitter, StackDispatch};
use evenkeel_trace::{self as trace, ReadOptions, Trace};
use sha2::{Digest as _, Sha256};

const RANKS: usize = 8;

fn sample(name: &str, layers: &str) -> Trace {
    let options = ReadOptions::default().layers(Some(layers.parse().unwrap()));
    trace::read(&[repository().join("traces").join(name)], &options, &()).unwrap()
}

/// Returns the placement of every layer by a policy that looks at the whole trace.
fn placements(trace: &Trace, cluster: &Cluster, policy: &str) -> Vec<Placement> {
    let policy = place::policy(policy, 1, cluster).unwrap();
    let place = |layer| {
        policy.place(&PlaceRequest::new(&History::from_trace(trace, layer), cluster)).unwrap().placement
    };
    (0..trace.layers().len()).map(place).collect()
}

/// Splits every batch of every layer. Returns the number of batches, the sum of their peaks, and the SHA-256
/// of all quotas as little-endian 64-bit numbers.
fn digest(trace: &Trace, placements: &[Placement], nodes: usize, method: SplitMethod) -> String {
    let (mut hash, mut split) = (Sha256::new(), Split::default());
    let (mut batches, mut peaks) = (0, 0);
    for (layer, placement) in placements.iter().enumerate() {
        let mut splitter = Splitter::builder(placement.clone()).method(method).nodes(nodes).build().unwrap();
        for step in 0..trace.steps().len() {
            splitter.split(trace.loads(step, layer), &mut split).unwrap();
            split.quotas.iter().for_each(|quota| hash.update(quota.to_le_bytes()));
            batches += 1;
            peaks += split.peak();
        }
    }
    format!("{batches:6} batches, peaks {peaks:8}, quotas {}", hex(&hash.finalize()))
}

#[test]
fn quotas_of_the_exact_split() {
    let mut text = String::new();
    for (name, layers) in [("sample-prefill.csv.zst", "1-26"), ("sample-decode.csv.zst", "0-15")] {
        let trace = sample(name, layers);
        for (policy, redundant) in [("eplb", 8), ("eplb", 24), ("lplb:ring", 8), ("lplb:cube", 24)] {
            let cluster = Cluster::new(RANKS, 1, trace.experts(), redundant).unwrap();
            let placements = placements(&trace, &cluster, policy);
            let digest = digest(&trace, &placements, 1, SplitMethod::Exact);
            text += &format!("{name:22} {policy:14} redundant {redundant:2}: {digest}\n");
        }
    }
    // Searched placements, on fewer layers: the search takes longer than the splits.
    let trace = sample("sample-prefill.csv.zst", "1-4");
    for policy in ["recourse:exact", "recourse:even"] {
        let cluster = Cluster::new(RANKS, 1, trace.experts(), 8).unwrap();
        let digest = digest(&trace, &placements(&trace, &cluster, policy), 1, SplitMethod::Exact);
        text += &format!("{:22} {policy:14} redundant  8: {digest}\n", "sample-prefill 1-4");
    }
    compare("quotas-exact", &text);
}

#[test]
fn quotas_of_the_other_splits() {
    let trace = sample("sample-prefill.csv.zst", "1-8");
    let cluster = Cluster::new(RANKS, 2, trace.experts(), 16).unwrap();
    let placements = placements(&trace, &cluster, "eplb");
    let stacks = StackDispatch::ALL.map(SplitMethod::Stack);
    let mut text = String::new();
    // The linear programme is left out: engines may take different vertices of one optimum.
    for method in [SplitMethod::Even, SplitMethod::Affine5].into_iter().chain(stacks) {
        text += &format!("{method:14}: {}\n", digest(&trace, &placements, cluster.nodes(), method));
    }
    compare("quotas-other", &text);
}

/// Redirects recorded tokens batch after batch, as every rank of a serving loop does.
#[test]
fn slots_of_redirected_tokens() {
    const BATCH: usize = 64;
    let [tokens, layers, top_k, experts] = token_ids::SHAPE;
    let ids = token_ids::ids();
    let cluster = Cluster::new(4, 2, experts, 4).unwrap();
    let of_layer = |layer: usize| -> Vec<i64> {
        let token = |token: usize| &ids[(token * layers + layer) * top_k..][..top_k];
        (0..tokens).flat_map(token).map(|&id| i64::from(id)).collect()
    };
    let mut loads = vec![0; layers * experts];
    (0..layers)
        .for_each(|layer| of_layer(layer).iter().for_each(|&id| loads[layer * experts + id as usize] += 1));
    let trace = Trace::from_loads(experts, vec![0, 1], vec!["0".into()], loads).unwrap();
    let placements = placements(&trace, &cluster, "eplb");
    let planner = |kind: &str, placement: &Placement| match kind {
        "exact" => Planner::new(placement.clone(), cluster),
        "even" => Planner::with_method(placement.clone(), cluster, SplitMethod::Even),
        "traffic" => Planner::with_min_traffic(placement.clone(), cluster, PrimaryObjective::Peak),
        _ => Planner::with_min_traffic(placement.clone(), cluster, PrimaryObjective::Vector),
    };
    let mut text = String::new();
    for kind in ["exact", "even", "traffic", "vector, traffic"] {
        let mut hash = Sha256::new();
        for (layer, placement) in placements.iter().enumerate() {
            let mut planner = planner(kind, placement).unwrap();
            for batch in of_layer(layer).chunks(BATCH * top_k) {
                let sources: Vec<&[i64]> = batch.chunks(batch.len() / cluster.ranks()).collect();
                let mut counts = vec![0; sources.len() * experts];
                for (source, counts) in sources.iter().zip(counts.chunks_mut(experts)) {
                    planner.count_ids(source, counts).unwrap();
                }
                planner.split(&counts).unwrap();
                for (rank, source) in sources.iter().enumerate() {
                    let slots = planner.redirect(source, rank).unwrap();
                    slots.iter().for_each(|slot| hash.update(slot.to_le_bytes()));
                }
            }
        }
        text += &format!("{kind:15}: slots {}\n", hex(&hash.finalize()));
    }
    compare("redirected-slots", &text);
}
