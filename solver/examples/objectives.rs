//! Effects of the second objectives on the corpus of the split's table: the figures of docs/objectives.md.
//!
//! ```text
//! cargo run --release -p evenkeel-solver --example objectives
//! ```
//!
//! For traffic, eight ranks form a node. Every expert's tokens come from all ranks, half of them from one
//! node that differs between experts.
#![allow(clippy::print_stdout, reason = "an example prints")]

use evenkeel_solver::bench::corpus::CorpusSize;
use evenkeel_solver::objective::{
    BalanceWorkspace, MinPieceSplitter, PrimaryObjective, Roofline, RooflineSplitter, TrafficSplitter,
    balance,
};
use evenkeel_solver::{Hosts, RankSplit, SolverError, solve};

const NODE: usize = 8;

/// Tokens per expert on the ridge. Below it, a piece costs its read.
const RIDGE: u64 = 300;

/// Mean and maximum of some numbers, in percent.
#[derive(Default)]
struct Percent {
    count: usize,
    sum: f64,
    most: f64,
}

impl Percent {
    fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += 100.0 * value;
        self.most = self.most.max(100.0 * value);
    }
}

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{:.3} / {:.2}", self.sum / self.count as f64, self.most))
    }
}

fn main() -> Result<(), SolverError> {
    second_busiest()?;
    traffic()?;
    heuristics()
}

/// Prints the spread that the exact split leaves below the peak.
fn second_busiest() -> Result<(), SolverError> {
    println!("standard deviation of rank loads, % of their mean (mean / worst batch)");
    println!("{:>8} {:>18} {:>18}", "size", "exact", "balance");
    for (ranks, slots) in [(8, 2), (16, 2), (64, 2), (288, 1)] {
        let (mut before, mut after) = (Percent::default(), Percent::default());
        for series in (CorpusSize { ranks, slots }).build_corpus(24)? {
            let mut workspace = BalanceWorkspace::default();
            for batch in &series.batches {
                let loads = wide(batch, 1);
                before.add(spread(&solve(
                    &series.problem,
                    &loads,
                    &mut evenkeel_solver::Workspace::default(),
                )?));
                after.add(spread(&balance(&series.problem, &loads, &mut workspace)?));
            }
        }
        println!("{:>8} {before:>18} {after:>18}", format!("{ranks}x{slots}"));
    }
    Ok(())
}

fn spread(split: &RankSplit) -> f64 {
    let count = split.rank_loads.len() as f64;
    let mean = split.rank_loads.iter().sum::<u64>() as f64 / count;
    let squares = split.rank_loads.iter().map(|&load| (load as f64 - mean).powi(2));
    (squares.sum::<f64>() / count).sqrt() / mean
}

/// Prints the tokens that leave their node and rank, under the exact split and at best.
fn traffic() -> Result<(), SolverError> {
    println!("\ntokens off their node; off their rank, % of all (mean / worst batch)");
    println!(
        "{:>8} {:>16} {:>32} {:>32} {:>32}",
        "size", "", "exact", "least, peak kept", "least, vector kept"
    );
    for (ranks, slots) in [(16, 2), (64, 2), (288, 1)] {
        let nodes: Vec<u32> = (0..ranks).map(|rank| (rank / NODE) as u32).collect();
        let mut rows: [[Percent; 2]; 3] = Default::default();
        for series in (CorpusSize { ranks, slots }).build_corpus(8)? {
            let mut traffic = TrafficSplitter::new(series.problem.clone(), &nodes)?;
            for batch in &series.batches {
                let loads = wide(batch, 1);
                let counts = counts(&loads, ranks);
                let total = loads.iter().sum::<u64>() as f64;
                let exact = solve(&series.problem, &loads, &mut evenkeel_solver::Workspace::default())?;
                let mut costs = vec![costs(series.problem.hosts(), &counts, &exact)];
                for keep in [PrimaryObjective::Peak, PrimaryObjective::Vector] {
                    let answer = traffic.solve(&counts, keep)?;
                    costs.push((answer.off_node, answer.off_rank));
                }
                for (row, (off_node, off_rank)) in rows.iter_mut().zip(costs) {
                    row[0].add(off_node as f64 / total);
                    row[1].add(off_rank as f64 / total);
                }
            }
        }
        let cells = rows.map(|[node, rank]| format!("{node}; {rank}"));
        println!(
            "{:>8} {:>16} {:>32} {:>32} {:>32}",
            format!("{ranks}x{slots}"),
            "",
            cells[0],
            cells[1],
            cells[2]
        );
    }
    Ok(())
}

/// Returns counts `[source][item]` that add up to the loads.
fn counts(loads: &[u64], ranks: usize) -> Vec<u64> {
    let (items, nodes) = (loads.len(), ranks / NODE);
    let mut counts = vec![0; ranks * items];
    for (item, &load) in loads.iter().enumerate() {
        let near = item * 7 % nodes * NODE;
        for token in 0..load as usize {
            let spread = token.wrapping_mul(2_654_435_761) >> 7;
            let source = if token % 2 == 0 { near + spread % NODE } else { spread % ranks };
            counts[source * items + item] += 1;
        }
    }
    counts
}

/// Returns the tokens off their node and off their rank, if each is served as near as the quotas allow.
fn costs(hosts: &Hosts, counts: &[u64], split: &RankSplit) -> (u64, u64) {
    let items = hosts.items();
    let (mut off_node, mut off_rank) = (0, 0);
    for item in 0..items {
        let (of, quotas) = (hosts.ranks_of(item), split.quotas_of(item));
        let own = |rank: usize| counts[rank * items + item];
        off_rank +=
            of.iter().zip(quotas).map(|(&rank, &q)| q.saturating_sub(own(rank as usize))).sum::<u64>();
        for node in 0..hosts.ranks() / NODE {
            let come: u64 = (node * NODE..(node + 1) * NODE).map(own).sum();
            let here = of.iter().zip(quotas).filter(|&(&rank, _)| rank as usize / NODE == node);
            off_node += here.map(|(_, &q)| q).sum::<u64>().saturating_sub(come);
        }
    }
    (off_node, off_rank)
}

/// Prints the distance of the heuristics from their bounds, by tokens per batch.
fn heuristics() -> Result<(), SolverError> {
    println!("\ngap to the lower bound, % (mean / worst batch); tokens are the corpus' divided");
    println!(
        "{:>8} {:>16} {:>22} {:>22} {:>22}",
        "size", "tokens / expert", "least piece 256", "least piece 1024", "roofline, ridge 300"
    );
    for (ranks, slots) in [(8, 2), (16, 2), (64, 2)] {
        for divisor in [1, 8, 64] {
            let mut gaps: [Percent; 3] = Default::default();
            for series in (CorpusSize { ranks, slots }).build_corpus(8)? {
                let problem = &series.problem;
                let mut pieces = [256, 1024].map(|least| MinPieceSplitter::new(problem.clone(), least));
                let cost = Roofline { read: RIDGE, token: 1, tile: 64 };
                let mut rooflines = RooflineSplitter::new(problem.clone(), cost)?;
                for batch in &series.batches {
                    let loads = wide(batch, divisor);
                    for (gap, piece) in gaps.iter_mut().zip(&mut pieces) {
                        let answer = piece.solve(&loads)?;
                        gap.add(answer.split.peak.as_f64() / answer.bound.as_f64().max(1.0) - 1.0);
                    }
                    gaps[2].add(rooflines.solve(&loads)?.gap());
                }
            }
            let [a, b, c] = gaps;
            println!("{:>8} {:>16} {a:>22} {b:>22} {c:>22}", format!("{ranks}x{slots}"), 4096 / divisor);
        }
    }
    Ok(())
}

fn wide(batch: &[u32], divisor: u64) -> Vec<u64> {
    batch.iter().map(|&count| u64::from(count) / divisor).collect()
}
