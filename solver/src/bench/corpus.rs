//! Instances of benches, tests and `cargo bench -p evenkeel-cli --bench split`.
//!
//! In: a [`CorpusSize`]. Out: placements of its shape, each with batches of loads. They are a pure function
//! of the size, by splitmix64, so that no library can change them.
//!
//! **Placements** are LPLB's layout. Experts are assigned to ranks by a *history* of loads: heaviest first,
//! each to the lightest rank with room. Within their rank they are sorted, heaviest first. Redundant slot `d`
//! of rank `i` holds the `d`-th expert of rank `column[d][i]`. The columns are a named graph (ring, cube,
//! hypercube, torus) or random permutations without fixed points. **Batches** are the history times noise.

use crate::{Hosts, Problem, SolverError};

/// Shape of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CorpusSize {
    /// Number of ranks.
    pub ranks: usize,
    /// Number of redundant slots per rank.
    pub slots: usize,
}

/// Distribution of loads over experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadLaw {
    /// LPLB's own test: history N(1, 0.15), batch N(1, 0.3), clamped at zero.
    Balanced,
    /// History exp(N(0, 1)), batch times exp(N(0, 0.3)).
    LogNormal,
    /// History 1 / k in random order, batch times exp(N(0, 0.3)).
    Zipf,
    /// Balanced, but in every batch one rank's own experts get ten times their load.
    HotSpot,
    /// Recorded batches from elsewhere, which are not drawn.
    Recorded,
}

/// Placement with its batches.
#[derive(Debug, Clone)]
pub struct BatchSeries {
    /// Distribution of the loads.
    pub law: LoadLaw,
    /// Name of the replica graph.
    pub graph: &'static str,
    /// Placement of the series.
    pub problem: Problem,
    /// Count per expert, for every batch.
    pub batches: Vec<Vec<u32>>,
}

/// Sizes of the table: ranks by redundant slots per rank.
pub const SIZES: [CorpusSize; 9] = [
    CorpusSize { ranks: 4, slots: 1 },
    CorpusSize { ranks: 4, slots: 2 },
    CorpusSize { ranks: 8, slots: 1 },
    CorpusSize { ranks: 8, slots: 2 },
    CorpusSize { ranks: 16, slots: 2 },
    CorpusSize { ranks: 32, slots: 2 },
    CorpusSize { ranks: 64, slots: 2 },
    CorpusSize { ranks: 144, slots: 2 },
    CorpusSize { ranks: 288, slots: 1 },
];

/// All laws from which batches are drawn.
pub const LAWS: [LoadLaw; 4] = [LoadLaw::Balanced, LoadLaw::LogNormal, LoadLaw::Zipf, LoadLaw::HotSpot];

/// Tokens per expert and batch, on average and before noise.
const MEAN_TOKENS: f64 = 4096.0;

impl CorpusSize {
    /// Returns 256 experts up to 64 ranks, 288 beyond.
    pub fn experts(self) -> usize {
        if self.ranks <= 64 { 256 } else { 288 }
    }

    /// Returns eight placements, one per law and kind of graph, with `batches` batches each.
    ///
    /// # Errors
    /// Succeeds at the sizes of [`SIZES`].
    pub fn build_corpus(self, batches: usize) -> Result<Vec<BatchSeries>, SolverError> {
        let mut dice = CorpusRng(0x5eed_0000 + (self.ranks * 8 + self.slots) as u64);
        let mut corpus = Vec::new();
        for law in LAWS {
            for random in [false, true] {
                let (graph, columns) =
                    if random { ("random", dice.draw_columns(self)) } else { named_columns(self) };
                corpus.push(self.draw_series(law, graph, &columns, batches, &mut dice)?);
            }
        }
        Ok(corpus)
    }

    fn draw_series(
        self,
        law: LoadLaw,
        graph: &'static str,
        columns: &[Vec<usize>],
        batches: usize,
        dice: &mut CorpusRng,
    ) -> Result<BatchSeries, SolverError> {
        let history = dice.draw_history(law, self.experts());
        let homes = assign_homes(&history, self.ranks);
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
        let batches = (0..batches).map(|_| dice.draw_batch(law, &history, &homes)).collect();
        Ok(BatchSeries { law, graph, problem, batches })
    }
}

/// Assigns experts to ranks, heaviest first, each to the lightest rank with room. Ranks list them heaviest
/// first.
fn assign_homes(history: &[f64], ranks: usize) -> Vec<Vec<usize>> {
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

/// Returns a named graph of this size, in which rank `i` replicates an expert of rank `column[i]`.
fn named_columns(size: CorpusSize) -> (&'static str, Vec<Vec<usize>>) {
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
        // In LPLB's hypercube, rank 0 replicates experts of ranks 3 and 12.
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

/// Splitmix64 and the distributions derived from it.
#[derive(Debug)]
pub(super) struct CorpusRng(u64);

impl CorpusRng {
    pub(super) fn new(seed: u64) -> CorpusRng {
        CorpusRng(seed)
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn draw_below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }

    /// Draws a uniform number in (0, 1].
    pub(super) fn draw_uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Draws a standard normal (Box and Muller).
    fn draw_normal(&mut self) -> f64 {
        let radius = (-2.0 * self.draw_uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.draw_uniform()).cos()
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for index in (1..values.len()).rev() {
            values.swap(index, self.draw_below(index + 1));
        }
    }

    /// Draws one random permutation without fixed points per slot. No two of them are equal anywhere.
    fn draw_columns(&mut self, size: CorpusSize) -> Vec<Vec<usize>> {
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

    fn draw_history(&mut self, law: LoadLaw, experts: usize) -> Vec<f64> {
        match law {
            LoadLaw::Balanced | LoadLaw::HotSpot | LoadLaw::Recorded => {
                (0..experts).map(|_| (1.0 + 0.15 * self.draw_normal()).max(0.0)).collect()
            }
            LoadLaw::LogNormal => (0..experts).map(|_| self.draw_normal().exp()).collect(),
            LoadLaw::Zipf => {
                let mut order: Vec<usize> = (1..=experts).collect();
                self.shuffle(&mut order);
                order.into_iter().map(|place| 1.0 / place as f64).collect()
            }
        }
    }

    fn draw_batch(&mut self, law: LoadLaw, history: &[f64], homes: &[Vec<usize>]) -> Vec<u32> {
        let scale = MEAN_TOKENS * history.len() as f64 / history.iter().sum::<f64>();
        let mut batch: Vec<f64> = history
            .iter()
            .map(|&past| match law {
                // LPLB's test draws the batch independently of the history.
                LoadLaw::Balanced | LoadLaw::HotSpot | LoadLaw::Recorded => {
                    MEAN_TOKENS * (1.0 + 0.3 * self.draw_normal()).max(0.0)
                }
                LoadLaw::LogNormal | LoadLaw::Zipf => scale * past * (0.3 * self.draw_normal()).exp(),
            })
            .collect();
        if law == LoadLaw::HotSpot {
            for &expert in &homes[self.draw_below(homes.len())] {
                batch[expert] *= 10.0;
            }
        }
        batch.into_iter().map(|tokens| tokens as u32).collect()
    }
}
