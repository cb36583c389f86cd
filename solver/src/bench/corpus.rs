//! The instances that benches, tests and `evenkeel bench split` share.
//!
//! In: a [`Size`]. Out: placements of its shape, each with batches of loads: a pure function of the size,
//! from splitmix64, so that no library can move them.
//!
//! **Placements** are LPLB's layout: experts are dealt to ranks by a *history* of loads (heaviest first, each
//! to the lightest rank with room), stand heaviest first within their rank, and redundant slot `d` of rank
//! `i` copies the `d`-th expert of rank `column[d][i]`. The columns are a named graph (ring, cube, hypercube,
//! torus) or random permutations without fixed points. **Batches** are the history times noise.

use crate::{Error, Hosts, Problem};

/// A shape of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Ranks.
    pub ranks: usize,
    /// Redundant slots per rank.
    pub slots: usize,
}

/// How loads are distributed over experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// LPLB's own test: history N(1, 0.15), batch N(1, 0.3), clamped at zero.
    Balanced,
    /// History exp(N(0, 1)), batch times exp(N(0, 0.3)).
    LogNormal,
    /// History 1 / k in random order, batch times exp(N(0, 0.3)).
    Zipf,
    /// Balanced, but in every batch one rank's own experts get ten times their load.
    HotSpot,
    /// Recorded, not drawn: the batches come from elsewhere.
    Recorded,
}

/// One placement and its batches.
#[derive(Debug, Clone)]
pub struct Series {
    /// The distribution of the loads.
    pub law: Law,
    /// The replica graph's name.
    pub graph: &'static str,
    /// The placement.
    pub problem: Problem,
    /// One count per expert and batch.
    pub batches: Vec<Vec<u32>>,
}

/// The sizes of the table: ranks by redundant slots per rank.
pub const SIZES: [Size; 9] = [
    Size { ranks: 4, slots: 1 },
    Size { ranks: 4, slots: 2 },
    Size { ranks: 8, slots: 1 },
    Size { ranks: 8, slots: 2 },
    Size { ranks: 16, slots: 2 },
    Size { ranks: 32, slots: 2 },
    Size { ranks: 64, slots: 2 },
    Size { ranks: 144, slots: 2 },
    Size { ranks: 288, slots: 1 },
];

/// All laws that batches are drawn from.
pub const LAWS: [Law; 4] = [Law::Balanced, Law::LogNormal, Law::Zipf, Law::HotSpot];

/// Tokens per expert and batch, on average and before noise.
const MEAN: f64 = 4096.0;

impl Size {
    /// 256 experts up to 64 ranks, 288 beyond.
    pub fn experts(self) -> usize {
        if self.ranks <= 64 { 256 } else { 288 }
    }

    /// Eight placements, one per law and kind of graph, with `batches` batches each.
    ///
    /// # Errors
    /// None at the sizes of [`SIZES`].
    pub fn corpus(self, batches: usize) -> Result<Vec<Series>, Error> {
        let mut dice = Dice(0x5eed_0000 + (self.ranks * 8 + self.slots) as u64);
        let mut corpus = Vec::new();
        for law in LAWS {
            for random in [false, true] {
                let (graph, columns) =
                    if random { ("random", dice.columns(self)) } else { named_columns(self) };
                corpus.push(self.series(law, graph, &columns, batches, &mut dice)?);
            }
        }
        Ok(corpus)
    }

    fn series(
        self,
        law: Law,
        graph: &'static str,
        columns: &[Vec<usize>],
        batches: usize,
        dice: &mut Dice,
    ) -> Result<Series, Error> {
        let history = dice.history(law, self.experts());
        let homes = homes(&history, self.ranks);
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); self.experts()];
        for (rank, home) in homes.iter().enumerate() {
            for &expert in home {
                lists[expert].push(rank as u32);
            }
        }
        for (slot, column) in columns.iter().enumerate() {
            for (rank, &origin) in column.iter().enumerate() {
                lists[homes[origin][slot]].push(rank as u32);
            }
        }
        let problem = Problem::new(Hosts::new(self.ranks, &lists)?);
        let batches = (0..batches).map(|_| dice.batch(law, &history, &homes)).collect();
        Ok(Series { law, graph, problem, batches })
    }
}

/// Deals experts to ranks, heaviest first, each to the lightest rank with room; heaviest first per rank.
fn homes(history: &[f64], ranks: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..history.len()).collect();
    order.sort_by(|&a, &b| history[b].total_cmp(&history[a]));
    let room = history.len() / ranks;
    let mut homes = vec![Vec::with_capacity(room); ranks];
    let mut loads = vec![0.0; ranks];
    for expert in order {
        let open = (0..ranks).filter(|&rank| homes[rank].len() < room);
        if let Some(rank) = open.min_by(|&a, &b| f64::total_cmp(&loads[a], &loads[b])) {
            homes[rank].push(expert);
            loads[rank] += history[expert];
        }
    }
    homes
}

/// A named graph of this size: rank `i` copies from rank `column[i]`.
fn named_columns(size: Size) -> (&'static str, Vec<Vec<usize>>) {
    let ranks = size.ranks;
    let ring = |by: usize| (0..ranks).map(|rank| (rank + by) % ranks).collect::<Vec<_>>();
    let torus = |width: usize| {
        let down = (0..ranks).map(|rank| (rank + width) % ranks).collect();
        let right = (0..ranks).map(|rank| rank / width * width + (rank + 1) % width).collect();
        vec![down, right]
    };
    match (ranks, size.slots) {
        (_, 1) => ("ring", vec![ring(1)]),
        (8, 2) => ("cube", vec![vec![3, 0, 1, 2, 7, 4, 5, 6], ring(6)]),
        // LPLB's hypercube: its rank 0 copies from 3 and 12.
        (16, 2) => {
            let right = (0..ranks).map(|rank| rank / 4 * 4 + (rank + 3) % 4).collect();
            ("hypercube", vec![right, ring(12)])
        }
        (32, 2) => ("torus", torus(4)),
        (64, 2) => ("torus", torus(8)),
        (144, 2) => ("torus", torus(12)),
        _ => ("ring", (1..=size.slots).map(ring).collect()),
    }
}

/// Splitmix64 and the distributions made of it.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for index in (1..values.len()).rev() {
            values.swap(index, self.below(index + 1));
        }
    }

    /// One random permutation without fixed points per slot, no two of them equal anywhere.
    fn columns(&mut self, size: Size) -> Vec<Vec<usize>> {
        let mut columns: Vec<Vec<usize>> = Vec::new();
        while columns.len() < size.slots {
            let mut column: Vec<usize> = (0..size.ranks).collect();
            self.shuffle(&mut column);
            let clash = |(rank, &to): (usize, &usize)| rank == to || columns.iter().any(|c| c[rank] == to);
            if !column.iter().enumerate().any(clash) {
                columns.push(column);
            }
        }
        columns
    }

    fn history(&mut self, law: Law, experts: usize) -> Vec<f64> {
        match law {
            Law::Balanced | Law::HotSpot | Law::Recorded => {
                (0..experts).map(|_| (1.0 + 0.15 * self.normal()).max(0.0)).collect()
            }
            Law::LogNormal => (0..experts).map(|_| self.normal().exp()).collect(),
            Law::Zipf => {
                let mut order: Vec<usize> = (1..=experts).collect();
                self.shuffle(&mut order);
                order.into_iter().map(|place| 1.0 / place as f64).collect()
            }
        }
    }

    fn batch(&mut self, law: Law, history: &[f64], homes: &[Vec<usize>]) -> Vec<u32> {
        let scale = MEAN * history.len() as f64 / history.iter().sum::<f64>();
        let mut batch: Vec<f64> = history
            .iter()
            .map(|&past| match law {
                // As LPLB's test draws it: the batch does not know the history.
                Law::Balanced | Law::HotSpot | Law::Recorded => MEAN * (1.0 + 0.3 * self.normal()).max(0.0),
                Law::LogNormal | Law::Zipf => scale * past * (0.3 * self.normal()).exp(),
            })
            .collect();
        if law == Law::HotSpot {
            for &expert in &homes[self.below(homes.len())] {
                batch[expert] *= 10.0;
            }
        }
        batch.into_iter().map(|tokens| tokens as u32).collect()
    }
}
