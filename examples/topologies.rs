//! Compares replica graphs: their connectivity, and their balance under drifting loads.
//!
//!     cargo run --release --example topologies -- 8 16 32 64 144
//!
//! Loads: 4 experts per rank with log-normal popularity, on which the placement is based. Then 200 batches
//! follow, in which every expert's share has drifted by another log-normal factor. Each batch has 1024 tokens
//! per rank and is split exactly; there are 10 draws. Mild: σ = 0.5 and 0.3. Skewed: σ = 1 and 0.5, so that
//! single experts outweigh two ranks, and replicas rather than graphs are the limit. The `d`-th column
//! replicates the `d`-th heaviest expert of each rank, as LPLB does.

use evenkeel::cluster::Cluster;
use evenkeel::evaluate::{SummaryStats, evaluate_layer};
use evenkeel::forecast::History;
use evenkeel::place::{Lplb, PlaceRequest, Policy, Topology};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, LogNormal};

const PER_RANK: usize = 4;
const BATCHES: usize = 200;
const DRAWS: u64 = 10;
/// σ of popularity and of drift.
const MILD: (f64, f64) = (0.5, 0.3);
const SKEWED: (f64, f64) = (1.0, 0.5);

/// Generates a trace. Step 0 is the basis of the plan; the other steps have drifted.
fn trace(
    ranks: usize,
    (popularity, drift): (f64, f64),
    seed: u64,
) -> Result<Trace, Box<dyn std::error::Error>> {
    let (experts, mut rng) = (ranks * PER_RANK, ChaCha8Rng::seed_from_u64(seed));
    let (popular, drift) = (LogNormal::new(0.0, popularity)?, LogNormal::new(0.0, drift)?);
    let popularity: Vec<f64> = (0..experts).map(|_| popular.sample(&mut rng)).collect();
    let mut loads = Vec::new();
    for step in 0..=BATCHES {
        let mut factor = |share: &f64| if step == 0 { *share } else { share * drift.sample(&mut rng) };
        let shares: Vec<f64> = popularity.iter().map(&mut factor).collect();
        let sum: f64 = shares.iter().sum();
        let tokens = 1024.0 * ranks as f64;
        loads.extend(shares.iter().map(|share| (share / sum * tokens).round() as u64));
    }
    Ok(Trace::from_loads(experts, vec![0], (0..=BATCHES).map(|s| s.to_string()).collect(), loads)?)
}

/// Returns the mean imbalance and its 95th percentile over all draws.
fn balance(
    topology: &Topology,
    ranks: usize,
    sigma: (f64, f64),
) -> Result<SummaryStats, Box<dyn std::error::Error>> {
    let mut all = Vec::new();
    for seed in 0..DRAWS {
        let trace = trace(ranks, sigma, seed)?;
        let cluster = Cluster::new(ranks, 1, trace.experts(), topology.slots() * ranks)?;
        let history = History::from_steps(&trace, 0, 0..1);
        let placement =
            Lplb::new(topology.clone(), 1).place(&PlaceRequest::new(&history, &cluster))?.placement;
        let judged = evaluate_layer(&trace, 0, 1..BATCHES + 1, &placement, SplitMethod::Exact)?;
        all.extend((0..judged.peaks.len()).map(|b| judged.imbalance(b)));
    }
    Ok(SummaryStats::from_values(all))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut sizes: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    if sizes.is_empty() {
        sizes = vec![8, 16];
    }
    println!(
        "| ranks | topology | slots per rank | groups | edge-connectivity | diameter | parallel edges | mild: mean | p95 | skewed: mean | p95 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for ranks in sizes {
        let side = (1..=ranks).filter(|m| ranks.is_multiple_of(*m) && m * m <= ranks).max().unwrap_or(1);
        let torus = format!("torus:{}x{side}", ranks / side);
        let ring = format!("ring:{ranks}");
        let names = ["ring", &ring, "designed:1", "cube", "hypercube", &torus, "designed:2", "designed:3"];
        for (at, name) in names.into_iter().enumerate() {
            // Skips topologies whose group does not divide the ranks. At 8 ranks the bare ring equals the
            // whole ring.
            let Ok(topology) = Topology::from_name(name, ranks) else { continue };
            if at == 1 && ranks == 8 {
                continue;
            }
            let (c, groups) = (topology.connectivity(), ranks / topology.group_size());
            let (mild, skewed) = (balance(&topology, ranks, MILD)?, balance(&topology, ranks, SKEWED)?);
            println!(
                "| {ranks} | {name} | {} | {groups} | {} | {} | {} | {:.4} | {:.4} | {:.4} | {:.4} |",
                topology.slots(),
                if groups == 1 { c.edge_connectivity } else { 0 },
                if groups == 1 { c.diameter.map_or("-".into(), |d| d.to_string()) } else { "-".into() },
                c.parallel_edges * groups,
                mild.mean,
                mild.p95,
                skewed.mean,
                skewed.p95,
            );
        }
    }
    Ok(())
}
