//! LPLB's own tests and its known defects (D1 to D6), compared with the exact split.
//!
//! `cargo test -p evenkeel-solver --test it -- --nocapture lplb::` prints how often each published bound
//! holds.

#![allow(clippy::unwrap_used)]

use evenkeel::cluster::Cluster;
use evenkeel::place::{Eplb, Lplb, Placement, TieBreak, Topology};
use evenkeel::split::{Split, SplitMethod, Splitter};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

/// One of LPLB's test configurations and the imbalance that its test allows.
struct Published {
    topology: &'static str,
    ranks: usize,
    redundant_per_rank: usize,
    reorder: bool,
    bound: f64,
}

const PUBLISHED: [Published; 6] = [
    Published { topology: "cube", ranks: 32, redundant_per_rank: 2, reorder: true, bound: 1.07 },
    Published { topology: "cube", ranks: 32, redundant_per_rank: 4, reorder: false, bound: 1.07 },
    Published { topology: "cube", ranks: 64, redundant_per_rank: 2, reorder: true, bound: 1.10 },
    Published { topology: "ring", ranks: 32, redundant_per_rank: 1, reorder: true, bound: 1.07 },
    Published { topology: "hypercube", ranks: 16, redundant_per_rank: 2, reorder: true, bound: 1.03 },
    Published { topology: "torus:8x4", ranks: 32, redundant_per_rank: 2, reorder: false, bound: 1.01 },
];

const EXPERTS: usize = 256;
const DRAWS: usize = 1000;

/// Returns loads as LPLB's test draws them: normal, clamped at 0, whole.
fn normal(rng: &mut ChaCha8Rng, deviation: f64, scale: f64) -> Vec<u64> {
    let normal = Normal::new(1.0, deviation).unwrap();
    (0..EXPERTS).map(|_| (normal.sample(rng).max(0.0) * scale) as u64).collect()
}

fn place(config: &Published, history: &[u64]) -> Placement {
    let redundant = config.redundant_per_rank * config.ranks;
    let cluster = Cluster::new(config.ranks, 1, EXPERTS, redundant).unwrap();
    let per_rank = EXPERTS / config.ranks;
    let mut homes: Vec<Vec<u32>> = if config.reorder {
        let weights: Vec<f32> = history.iter().map(|&load| load as f32).collect();
        let eplb = Eplb::new(1, TieBreak::LowestExpert);
        let order = eplb.physical_to_logical(&weights, EXPERTS, 1, config.ranks).unwrap();
        order.chunks(per_rank).map(<[u32]>::to_vec).collect()
    } else {
        (0..config.ranks).map(|r| (r * per_rank..(r + 1) * per_rank).map(|e| e as u32).collect()).collect()
    };
    if config.reorder {
        for home in &mut homes {
            home.sort_by_key(|&e| std::cmp::Reverse(history[e as usize]));
        }
    }
    let topology = Topology::from_name(config.topology, config.ranks).unwrap();
    Lplb::new(topology, 1).replicate_along_graph(&homes, &cluster).unwrap()
}

fn peak(placement: &Placement, method: SplitMethod, loads: &[u64]) -> u64 {
    let mut splitter = Splitter::new(placement.clone(), method).unwrap();
    let mut split = Split::default();
    splitter.split(loads, &mut split).unwrap();
    splitter.check(loads, &split).unwrap();
    split.peak()
}

#[test]
fn published_configurations() {
    println!("share of {DRAWS} draws whose peak / mean is below LPLB's own test bound, and mean peak / mean");
    println!("topology   ranks red  bound   exact  affine5   mean exact  mean affine5");
    for config in &PUBLISHED {
        let mut rng = ChaCha8Rng::seed_from_u64(42);
        let (mut holds, mut sums) = ([0usize; 2], [0f64; 2]);
        for _ in 0..DRAWS {
            let history = normal(&mut rng, 0.15, f64::from(1 << 20));
            let batch = normal(&mut rng, 0.3, f64::from(1 << 12));
            let placement = place(config, &history);
            let peaks =
                [SplitMethod::Exact, SplitMethod::Affine5].map(|method| peak(&placement, method, &batch));
            assert!(
                peaks[0] <= peaks[1],
                "{}: exact {} above affine5 {}",
                config.topology,
                peaks[0],
                peaks[1]
            );
            let mean = batch.iter().sum::<u64>() as f64 / config.ranks as f64;
            for (k, peak) in peaks.into_iter().enumerate() {
                sums[k] += peak as f64 / mean / DRAWS as f64;
                holds[k] += usize::from(peak as f64 / mean < config.bound);
            }
        }
        let share = holds.map(|n| n as f64 / DRAWS as f64);
        println!(
            "{:10} {:5} {:3}  {:5.2}  {:5.1}%   {:5.1}%       {:.4}        {:.4}",
            config.topology,
            config.ranks,
            config.redundant_per_rank,
            config.bound,
            share[0] * 100.0,
            share[1] * 100.0,
            sums[0],
            sums[1]
        );
    }
}

/// Returns experts 0..R at home on ranks 0..R, each with a replica on the next rank.
fn ring(ranks: u32) -> Placement {
    let slots = (0..ranks).flat_map(|r| [Some(r), Some((r + 1) % ranks)]).collect();
    Placement::new(ranks as usize, ranks as usize, slots).unwrap()
}

fn exact(placement: &Placement, loads: &[u64]) -> Split {
    let mut splitter = Splitter::new(placement.clone(), SplitMethod::Exact).unwrap();
    let mut split = Split::default();
    splitter.split(loads, &mut split).unwrap();
    splitter.check(loads, &split).unwrap();
    split
}

/// D1, D2: LPLB accepts negative fractions and stops before the optimum. Whole quotas cannot be negative, and
/// every answer carries its proof. D1 and D2 occur on exactly these topologies.
#[test]
fn d1_d2_feasible_and_optimal_on_every_topology() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for config in &PUBLISHED {
        for _ in 0..50 {
            let history = normal(&mut rng, 0.15, f64::from(1 << 20));
            let placement = place(config, &history);
            exact(&placement, &normal(&mut rng, 0.3, f64::from(1 << 12)));
        }
    }
}

/// D3: LPLB rejects one hot rank and falls back to halves. Here the ring carries the load away.
#[test]
fn d3_one_hot_rank() {
    let mut loads = [100u64; 8];
    loads[3] = 1000;
    let split = exact(&ring(8), &loads);
    // Only ranks 2 and 3 hold expert 3. The pair carries 1000 tokens and passes all other load on.
    assert_eq!(split.peak(), 500);
}

/// D4: at 499 tokens LPLB's hash sends all to one replica.
#[test]
fn d4_a_count_of_499_is_shared() {
    for count in [499, 998, 4990] {
        let split = exact(&ring(2), &[count, 0]);
        assert_eq!(split.peak(), count.div_ceil(2));
    }
}

/// D5: floors bias small counts to one side. Here no count loses more than the odd token.
#[test]
fn d5_small_counts_are_shared() {
    for count in [1, 2, 3, 4] {
        let split = exact(&ring(2), &[count, count]);
        assert_eq!(split.rank_loads, [count, count]);
        assert_eq!(exact(&ring(2), &[count, 0]).peak(), count.div_ceil(2));
    }
}

/// D6: LPLB divides by zero on an all-zero batch.
#[test]
fn d6_an_empty_batch_is_no_trouble() {
    assert_eq!(exact(&ring(8), &[0; 8]).peak(), 0);
}
