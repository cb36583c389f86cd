//! The set-up of the exact split for the kernel `solve`: one array of words.
//!
//! Input: a [`Problem`]. Output: header, hot tables, cold tables, as `crates/cuda/kernels/problem.h`
//! describes them. The numbering of the header's words is repeated here.

use super::wavefront::{ForestWaves, WaveCounts, assign_waves, group_by_wave};
use evenkeel_solver::{Problem, SolverTables};
use thiserror::Error;

/// Largest number of hosts of an item that one lane sorts. All lanes together sort larger ones.
const MAX_LANE_HOSTS: u32 = 8;

/// Threads of the block that solves a problem.
const BLOCK_THREADS: usize = 256;

/// Bits of a search key for the number of a rank's seat.
const SEAT_BITS: u32 = 21;

/// Word numbers of the header, as in `crates/cuda/kernels/problem.h`.
mod word {
    pub(super) const HOT_END: usize = 11;
    pub(super) const FILL: usize = 12;
    pub(super) const POUR: usize = 15;
    pub(super) const FOREST: usize = 18;
    pub(super) const TABLES: usize = 30;
    pub(super) const HEADER: usize = TABLES + 11;
}

/// A problem in the format of the kernel `solve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SolveProgram {
    words: Vec<u32>,
    ranks: usize,
    items: usize,
    pairs: usize,
    state_words: usize,
    waves: WaveCounts,
}

/// A problem that the kernel does not support.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// Ranks have different speeds.
    #[error(
        "ranks 0 and {rank} have different speeds: the GPU split supports equal speeds only; use the CPU solver"
    )]
    UnequalSpeeds {
        /// The first rank with another speed.
        rank: usize,
    },
    /// The sum of loads might not fit into 63 bits.
    #[error(
        "base loads of {base} and {items} items with counts of 32 bits from {sources} sources may exceed 63 bits"
    )]
    Overflow {
        /// The sum of the base loads, or `u64::MAX` if it does not fit.
        base: u64,
        /// Items.
        items: usize,
        /// Sources of counts.
        sources: usize,
    },
    /// A rank has more replicas than a search can number.
    #[error("rank {rank} holds {seats} replicated items: the GPU split supports fewer than 2^21")]
    TooManySeats {
        /// The rank.
        rank: usize,
        /// Replicated items on the rank.
        seats: usize,
    },
}

impl SolveProgram {
    /// Compiles a problem with counts from at most as many sources as there are ranks.
    ///
    /// # Errors
    /// Returns [`ProgramError`] for unequal speeds, base loads near 2^63, or 2^21 replicated items or more
    /// on a rank.
    pub fn new(problem: &Problem) -> Result<SolveProgram, ProgramError> {
        let (ranks, items) = (problem.hosts().ranks(), problem.hosts().items());
        let speeds = problem.speeds();
        if let Some(rank) = speeds.iter().position(|speed| *speed != speeds[0]) {
            return Err(ProgramError::UnequalSpeeds { rank });
        }
        let base = problem.base_loads().iter().try_fold(0u64, |sum, &load| sum.checked_add(load));
        let most =
            base.map(u128::from).map(|sum| sum + u128::from(u32::MAX) * (ranks as u128) * items as u128);
        if most.is_none_or(|most| most >= i64::MAX as u128) {
            let base = base.unwrap_or(u64::MAX);
            return Err(ProgramError::Overflow { base, items, sources: ranks });
        }
        let compiled = problem.hosts().to_tables();
        let seats = compiled.seat_bounds.windows(2).map(|bounds| (bounds[1] - bounds[0]) as usize);
        if let Some((rank, seats)) = seats.enumerate().find(|&(_, seats)| seats >= 1 << SEAT_BITS) {
            return Err(ProgramError::TooManySeats { rank, seats });
        }
        Ok(SolveProgram::encode_problem(problem, &compiled))
    }

    fn encode_problem(problem: &Problem, c: &SolverTables) -> SolveProgram {
        let items = problem.hosts().items();
        // Each rank gets up to a warp of lanes, as long as the block has enough.
        let parts = (BLOCK_THREADS / c.ranks).clamp(1, 32);
        let mut waves = WaveCounts { passes: c.passes, ..WaveCounts::default() };
        let mut words = WordWriter(vec![0; word::HEADER]);
        let head = [
            c.ranks,
            items,
            c.pairs,
            c.pair_of.len(),
            c.two.len(),
            c.many.len(),
            c.many_ranks.len(),
            c.passes,
            c.drains,
            c.forests.len(),
            parts,
        ];
        for (at, value) in head.into_iter().enumerate() {
            words.0[at] = value as u32;
        }
        waves.fill = words.write_fill(c);
        waves.pour = words.write_pour(c);
        for (index, forest) in c.forests.iter().enumerate() {
            let at = word::FOREST + 6 * index;
            let up = words.write_sweep(at, c.ranks, forest.iter().rev());
            let down = words.write_sweep(at + 3, c.ranks, forest.iter());
            waves.forests.push(ForestWaves { up, down });
        }
        let seats = c.seats.as_flattened();
        let hot = [&c.seat_bounds, seats, &c.many_bounds, &c.many_ranks];
        words.write_tables(word::TABLES, &hot);
        words.0[word::HOT_END] = words.0.len() as u32;
        let base: Vec<u32> =
            problem.base_loads().iter().flat_map(|&b| [b as u32, (b >> 32) as u32]).collect();
        let two_items: Vec<u32> = c.two.iter().map(|two| two[0]).collect();
        let cold = [&base, &c.single_bounds, &c.single, &c.offsets, &two_items, &c.many, &c.pair_of];
        words.write_tables(word::TABLES + hot.len(), &cold.map(Vec::as_slice));
        let state_words = state_words(c, items, parts);
        SolveProgram { words: words.0, ranks: c.ranks, items, pairs: c.pairs, state_words, waves }
    }

    /// Returns the array that the kernel reads.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Returns the number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Returns the number of items.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Returns the number of (item, host) pairs.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Returns the bytes of shared memory of a split. With `hot` they include the tables that it reads
    /// repeatedly.
    pub fn shared_bytes(&self, hot: bool) -> usize {
        4 * (self.state_words + if hot { self.words[word::HOT_END] as usize } else { 0 })
    }

    /// Returns the numbers of waves of the sweeps.
    pub fn wave_counts(&self) -> &WaveCounts {
        &self.waves
    }
}

/// Returns the 32-bit words of `Memory` in `crates/cuda/kernels/problem.h`.
fn state_words(c: &SolverTables, items: usize, parts: usize) -> usize {
    let (ranks, many) = (c.ranks, c.many.len());
    let wide = items + ranks * (1 + parts) + c.pair_of.len() + 4 * ranks;
    2 * wide + 11 * ranks + 2 + c.many_ranks.len() + 3 * many + ranks.div_ceil(32) + 4
}

/// A writer of words.
struct WordWriter(Vec<u32>);

impl WordWriter {
    /// Appends tables and records their offsets, from header word `at` on.
    fn write_tables(&mut self, at: usize, tables: &[&[u32]]) {
        for (word, table) in (at..).zip(tables) {
            self.0[word] = self.0.len() as u32;
            self.0.extend_from_slice(table);
        }
    }

    /// Appends the two-hosted items in waves.
    fn write_fill(&mut self, c: &SolverTables) -> usize {
        let (bounds, order) = group_by_wave(&assign_waves(c.ranks, c.two.iter().map(|two| &two[1..])));
        let operation = |&index: &usize| {
            let [_, low, high] = c.two[index];
            [low | high << 16, 2 * index as u32]
        };
        let operations: Vec<[u32; 2]> = order.iter().map(operation).collect();
        self.write_waves(word::FILL, bounds.len() - 1, &bounds, operations.as_flattened())
    }

    /// Appends the items with three hosts or more in waves. In each wave, items that one lane sorts come
    /// first.
    fn write_pour(&mut self, c: &SolverTables) -> usize {
        let hosts =
            |index: usize| &c.many_ranks[c.many_bounds[index] as usize..c.many_bounds[index + 1] as usize];
        let (bounds, order) = group_by_wave(&assign_waves(c.ranks, (0..c.many.len()).map(hosts)));
        let mut ends = Vec::new();
        let mut operations = Vec::new();
        for wave in bounds.windows(2) {
            let items = &order[wave[0] as usize..wave[1] as usize];
            for wide in [false, true] {
                let kind = items.iter().filter(|&&item| (hosts(item).len() as u32 > MAX_LANE_HOSTS) == wide);
                operations.extend(kind.map(|&item| item as u32));
                ends.push(operations.len() as u32);
            }
        }
        self.write_waves(word::POUR, bounds.len() - 1, &ends, &operations)
    }

    /// Appends the branches of a forest in the order of one pass, in waves.
    fn write_sweep<'a>(
        &mut self,
        at: usize,
        ranks: usize,
        branches: impl Iterator<Item = &'a [u32; 4]> + Clone,
    ) -> usize {
        let branches: Vec<&[u32; 4]> = branches.collect();
        let (bounds, order) = group_by_wave(&assign_waves(ranks, branches.iter().map(|branch| &branch[..2])));
        let operation = |&index: &usize| {
            let [parent, child, parent_place, child_place] = *branches[index];
            [parent | child << 16, parent_place, child_place]
        };
        let operations: Vec<[u32; 3]> = order.iter().map(operation).collect();
        self.write_waves(at, bounds.len() - 1, &bounds, operations.as_flattened())
    }

    fn write_waves(&mut self, at: usize, count: usize, bounds: &[u32], operations: &[u32]) -> usize {
        self.0[at] = count as u32;
        self.write_tables(at + 1, &[bounds, operations]);
        count
    }
}
