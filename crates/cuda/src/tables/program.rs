//! The exact split's set-up for the kernel `solve`: one array of words.
//!
//! In: a [`Problem`]. Out: header, hot tables, cold tables, as `kernels/problem.h` describes them; the numbering of the
//! header's words is repeated here.

use super::waves::{Waves, in_waves, waves};
use evenkeel_solver::{Compiled, Problem};
use thiserror::Error;

/// Items with more hosts than this are sorted by all lanes together.
const NARROW: u32 = 8;

/// Lanes of the block that solves a problem.
const LANES: usize = 256;

/// Bits of a search key that number a rank's seats.
const SEAT_BITS: u32 = 21;

/// Numbers in the header, as in `kernels/problem.h`.
mod word {
    pub(super) const HOT_END: usize = 11;
    pub(super) const FILL: usize = 12;
    pub(super) const POUR: usize = 15;
    pub(super) const FOREST: usize = 18;
    pub(super) const TABLES: usize = 30;
    pub(super) const HEADER: usize = TABLES + 11;
}

/// A problem as the kernel `solve` reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    words: Vec<u32>,
    ranks: usize,
    items: usize,
    pairs: usize,
    state_words: usize,
    waves: Waves,
}

/// Why the kernel cannot take a problem.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// Ranks of different speeds.
    #[error(
        "rank {rank} has another speed than rank 0: the GPU split takes equal speeds only; use the CPU solver"
    )]
    UnequalSpeeds {
        /// The first rank that differs.
        rank: usize,
    },
    /// Loads whose sum might not fit into 63 bits.
    #[error(
        "base loads of {base} and {items} items with counts of 32 bits from {sources} sources may exceed 63 bits"
    )]
    Overflow {
        /// The sum of the base loads, or `u64::MAX` if it does not fit.
        base: u64,
        /// Items.
        items: usize,
        /// Sources that counts come from.
        sources: usize,
    },
    /// More replicas on one rank than a search can number.
    #[error("rank {rank} holds {seats} replicated items: the GPU split takes 2^21 at most")]
    TooManySeats {
        /// The rank.
        rank: usize,
        /// Replicated items there.
        seats: usize,
    },
}

impl Program {
    /// Compiles a problem whose counts come from up to as many sources as there are ranks.
    ///
    /// # Errors
    /// [`ProgramError`] for unequal speeds, base loads near 2^63, or more than 2^21 replicated items on a rank.
    pub fn new(problem: &Problem) -> Result<Program, ProgramError> {
        let (ranks, items) = (problem.hosts().ranks(), problem.hosts().items());
        let speeds = problem.speeds();
        if let Some(rank) = speeds.iter().position(|speed| *speed != speeds[0]) {
            return Err(ProgramError::UnequalSpeeds { rank });
        }
        let base = problem.base().iter().try_fold(0u64, |sum, &load| sum.checked_add(load));
        let most =
            base.map(u128::from).map(|sum| sum + u128::from(u32::MAX) * (ranks as u128) * items as u128);
        if most.is_none_or(|most| most >= i64::MAX as u128) {
            let base = base.unwrap_or(u64::MAX);
            return Err(ProgramError::Overflow { base, items, sources: ranks });
        }
        let compiled = problem.hosts().compiled();
        let seats = compiled.seat_bounds.windows(2).map(|bounds| (bounds[1] - bounds[0]) as usize);
        if let Some((rank, seats)) = seats.enumerate().find(|&(_, seats)| seats >= 1 << SEAT_BITS) {
            return Err(ProgramError::TooManySeats { rank, seats });
        }
        Ok(Program::write(problem, &compiled))
    }

    fn write(problem: &Problem, c: &Compiled) -> Program {
        let items = problem.hosts().items();
        // A warp for each rank where ranks are few; never more than the block has.
        let parts = (LANES / c.ranks).clamp(1, 32);
        let mut waves = Waves { passes: c.passes, ..Waves::default() };
        let mut words = Writer(vec![0; word::HEADER]);
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
        waves.fill = words.fill(c);
        waves.pour = words.pour(c);
        for (index, forest) in c.forests.iter().enumerate() {
            let at = word::FOREST + 6 * index;
            let up = words.sweep(at, c.ranks, forest.iter().rev());
            let down = words.sweep(at + 3, c.ranks, forest.iter());
            waves.forests.push([up, down]);
        }
        let seats = c.seats.as_flattened();
        let hot = [&c.seat_bounds, seats, &c.many_bounds, &c.many_ranks];
        words.tables(word::TABLES, &hot);
        words.0[word::HOT_END] = words.0.len() as u32;
        let base: Vec<u32> = problem.base().iter().flat_map(|&b| [b as u32, (b >> 32) as u32]).collect();
        let two_items: Vec<u32> = c.two.iter().map(|two| two[0]).collect();
        let cold = [&base, &c.single_bounds, &c.single, &c.offsets, &two_items, &c.many, &c.pair_of];
        words.tables(word::TABLES + hot.len(), &cold.map(Vec::as_slice));
        let state_words = state_words(c, items, parts);
        Program { words: words.0, ranks: c.ranks, items, pairs: c.pairs, state_words, waves }
    }

    /// The array that the kernel reads.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Items.
    pub fn items(&self) -> usize {
        self.items
    }

    /// (item, host) pairs.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Bytes of shared memory that the split is made in; `hot`: and the tables it reads again and again.
    pub fn shared_bytes(&self, hot: bool) -> usize {
        4 * (self.state_words + if hot { self.words[word::HOT_END] as usize } else { 0 })
    }

    /// How many waves the sweeps have.
    pub fn waves(&self) -> &Waves {
        &self.waves
    }
}

/// 32-bit words of `Memory` in `kernels/problem.h`.
fn state_words(c: &Compiled, items: usize, parts: usize) -> usize {
    let (ranks, many) = (c.ranks, c.many.len());
    let wide = items + ranks * (1 + parts) + c.pair_of.len() + 4 * ranks;
    2 * wide + 11 * ranks + 2 + c.many_ranks.len() + 3 * many + ranks.div_ceil(32) + 4
}

/// Words in the making.
struct Writer(Vec<u32>);

impl Writer {
    /// Appends tables and notes where each begins, from header word `at` on.
    fn tables(&mut self, at: usize, tables: &[&[u32]]) {
        for (word, table) in (at..).zip(tables) {
            self.0[word] = self.0.len() as u32;
            self.0.extend_from_slice(table);
        }
    }

    /// The two-hosted items, in waves.
    fn fill(&mut self, c: &Compiled) -> usize {
        let (bounds, order) = in_waves(&waves(c.ranks, c.two.iter().map(|two| &two[1..])));
        let operation = |&index: &usize| {
            let [_, low, high] = c.two[index];
            [low | high << 16, 2 * index as u32]
        };
        let operations: Vec<[u32; 2]> = order.iter().map(operation).collect();
        self.waves(word::FILL, bounds.len() - 1, &bounds, operations.as_flattened())
    }

    /// The items with many hosts, in waves: of each wave first those that one lane sorts, then the others.
    fn pour(&mut self, c: &Compiled) -> usize {
        let hosts =
            |index: usize| &c.many_ranks[c.many_bounds[index] as usize..c.many_bounds[index + 1] as usize];
        let (bounds, order) = in_waves(&waves(c.ranks, (0..c.many.len()).map(hosts)));
        let mut ends = Vec::new();
        let mut operations = Vec::new();
        for wave in bounds.windows(2) {
            let items = &order[wave[0] as usize..wave[1] as usize];
            for wide in [false, true] {
                let kind = items.iter().filter(|&&item| (hosts(item).len() as u32 > NARROW) == wide);
                operations.extend(kind.map(|&item| item as u32));
                ends.push(operations.len() as u32);
            }
        }
        self.waves(word::POUR, bounds.len() - 1, &ends, &operations)
    }

    /// The branches of a forest in the order of one pass, in waves.
    fn sweep<'a>(
        &mut self,
        at: usize,
        ranks: usize,
        branches: impl Iterator<Item = &'a [u32; 4]> + Clone,
    ) -> usize {
        let branches: Vec<&[u32; 4]> = branches.collect();
        let (bounds, order) = in_waves(&waves(ranks, branches.iter().map(|branch| &branch[..2])));
        let operation = |&index: &usize| {
            let [parent, child, parent_place, child_place] = *branches[index];
            [parent | child << 16, parent_place, child_place]
        };
        let operations: Vec<[u32; 3]> = order.iter().map(operation).collect();
        self.waves(at, bounds.len() - 1, &bounds, operations.as_flattened())
    }

    fn waves(&mut self, at: usize, count: usize, bounds: &[u32], operations: &[u32]) -> usize {
        self.0[at] = count as u32;
        self.tables(at + 1, &[bounds, operations]);
        count
    }
}
