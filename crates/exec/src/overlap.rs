//! Selects the number of chunks in which tokens travel, from the measured costs of experts and wire and from
//! their overlap.
//!
//! Input: a run and its wire. Output: an [`Overlap`], the same on all ranks. The first rank times experts (as
//! [`calibrate`](super::calibrate) does, with few points), and all ranks time exchanges without and with
//! bytes. In `C` chunks a layer then takes
//!
//! ```text
//! tokens of chunk c have come       at  d(c) = (c + 1) (a + D / C)
//! its experts have run              at  f(c) = max(f(c - 1), d(c)) + F / C
//! its answers are back              at  r(c) = max(r(c - 1), f(c), d(C - 1)) + a + B / C
//! ```
//!
//! with `a` the time of an empty exchange and `F` the time of the experts. `D` and `B` are the times of the
//! bytes of dispatch and combine. This is a two-machine flow shop in which the wire is one machine. More
//! chunks hide more time and pay `a` more often.

use super::backend::Aggregate;
use super::calibrate::{CostSweep, RooflineFit, measure_experts};
use super::comm::{CommError, ProcessGroup, Purpose};
use super::error::ExecError;
use super::run::ExecRun;
use evenkeel::split::Roofline;
use std::time::{Duration, Instant};

/// Rounds in which exchanges are timed; the median counts.
const TIMING_ROUNDS: usize = 7;
/// Bytes to every other rank in an exchange that is not empty.
const TIMED_BYTES: u64 = 64 << 10;

/// The cost of an exchange between all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExchangeCost {
    /// Nanoseconds of an empty exchange.
    pub latency: u64,
    /// Picoseconds per byte that a rank sends.
    pub byte: u64,
}

impl ExchangeCost {
    /// Times exchanges; the slowest rank counts.
    ///
    /// # Errors
    /// Fails if another rank is lost.
    pub fn measure(wire: &ProcessGroup) -> Result<Self, CommError> {
        let others = wire.ranks().saturating_sub(1) as u64;
        let mut times = [0u64; 2];
        for (time, bytes) in times.iter_mut().zip([0, TIMED_BYTES]) {
            let mut rounds = Vec::with_capacity(TIMING_ROUNDS);
            for _ in 0..TIMING_ROUNDS {
                let begun = Instant::now();
                wire.all_gather(Purpose::Control, vec![vec![0; bytes as usize]])?;
                rounds.push(begun.elapsed().as_nanos() as u64);
            }
            rounds.sort_unstable();
            *time = rounds[TIMING_ROUNDS / 2];
        }
        let all = wire.all_gather_u64(Purpose::Control, &times)?;
        let slowest = |of: usize| all.iter().skip(of).step_by(2).copied().max().unwrap_or(0);
        let (latency, sent) = (slowest(0), (TIMED_BYTES * others).max(1));
        Ok(Self { latency, byte: slowest(1).saturating_sub(latency).saturating_mul(1000) / sent })
    }
}

/// The cost components of a layer, on an average rank.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LayerCosts {
    /// The cost of exchanges.
    pub link: ExchangeCost,
    /// Successive exchanges in a dispatch, and in a combine.
    pub exchanges: u64,
    /// Bytes of dispatch that a rank sends to others.
    pub dispatch_bytes: u64,
    /// Bytes of combine that a rank sends to others.
    pub combine_bytes: u64,
    /// Picoseconds of its experts.
    pub experts: u64,
}

impl LayerCosts {
    /// Returns the time of a layer from its dispatch to the end of its combine, in `chunks` chunks.
    pub fn modelled_time(&self, chunks: usize) -> Duration {
        let count = chunks.max(1) as u64;
        let travel = |bytes: u64| {
            self.exchanges * self.link.latency * 1000 + bytes.saturating_mul(self.link.byte) / count
        };
        let [out, back] = [self.dispatch_bytes, self.combine_bytes].map(travel);
        let (mut ran, mut returned) = (0, 0);
        for chunk in 1..=count {
            ran = (chunk * out).max(ran) + self.experts / count;
            returned = ran.max(returned).max(count * out) + back;
        }
        Duration::from_nanos(returned / 1000)
    }

    /// Returns the fastest number of chunks, up to `most`; the lowest one at a tie.
    pub fn best_chunks(&self, most: usize) -> usize {
        (1..=most.max(1)).min_by_key(|&chunks| (self.modelled_time(chunks), chunks)).unwrap_or(1)
    }
}

/// The measurements and the selected number of chunks.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Overlap {
    /// The cost of an expert, in picoseconds.
    pub roofline: Roofline,
    /// The cost components of a layer of this run.
    pub parts: LayerCosts,
    /// The fastest number of chunks.
    pub chunks: usize,
}

impl Overlap {
    /// Measures the costs of a run on this machine. Every rank must call it, and all get the same result.
    ///
    /// # Errors
    /// Fails if experts cannot be read, or if another rank is lost.
    pub fn measure(run: &ExecRun<'_>, wire: &ProcessGroup) -> Result<Self, ExecError> {
        let (exec, model) = (&run.exec, &run.exec.model);
        let link = ExchangeCost::measure(wire)?;
        let mut numbers = [0; 3];
        if wire.rank() == 0 {
            let sweep = CostSweep { tokens: vec![1, 8, 64], experts: vec![1], rounds: 3, pool: 4 };
            let Roofline { read, token, tile } =
                RooflineFit::from_points(measure_experts(model, run.weights.as_ref(), &sweep, &())?)?
                    .roofline;
            numbers = [read, token, tile];
        }
        let all = wire.all_gather_u64(Purpose::Control, &numbers)?;
        let roofline = Roofline { read: all[0].max(1), token: all[1].max(1), tile: all[2].max(1) };

        let (ranks, slots) = (exec.cluster.ranks(), exec.cluster.slots_per_rank());
        let tokens = run.feed.token_count(run.steps.start, &run.layers) as f64 / ranks as f64;
        let top_k = run.feed.top_k().or(exec.router.fixed_top_k()).unwrap_or(model.top_k);
        // Expected number of ranks or nodes, out of `n` and except the token's own, that have one of its
        // experts if it chooses at random.
        let others = |n: usize| (n as f64 - 1.0) * (1.0 - (1.0 - 1.0 / n as f64).powi(top_k as i32));
        let twice = exec.aggregate == Aggregate::Node && exec.cluster.nodes() > 1;
        let copies = others(ranks) + if twice { others(exec.cluster.nodes()) } else { 0.0 };
        let rows = (tokens * copies * (model.hidden * exec.dtype.bytes()) as f64) as u64;
        let visits = 12 * (tokens * top_k as f64) as u64;
        let per_slot = (tokens * top_k as f64 / slots as f64).ceil() as u64;
        let experts = roofline.piece_cost(per_slot).unwrap_or(u64::MAX / 2).saturating_mul(slots as u64);
        let parts = LayerCosts {
            link,
            exchanges: 1 + u64::from(twice),
            dispatch_bytes: rows + visits,
            combine_bytes: rows,
            experts: experts.min(u64::MAX / 4),
        };
        Ok(Self { roofline, parts, chunks: parts.best_chunks(slots) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(latency: u64, ms: [u64; 3]) -> LayerCosts {
        let [out, back, experts] = ms.map(|ms| ms * 1_000_000);
        LayerCosts {
            link: ExchangeCost { latency, byte: 1000 },
            exchanges: 1,
            dispatch_bytes: out,
            combine_bytes: back,
            experts: experts * 1000,
        }
    }

    #[test]
    fn one_chunk_adds_up_and_many_hide_what_is_shorter() {
        assert_eq!(parts(500_000, [3, 2, 4]).modelled_time(1), Duration::from_millis(3 + 2 + 4 + 1));
        // Without latency more chunks are never slower. The limit is the time of the wire: two chunks hide
        // experts that take as long as one direction.
        let free = parts(0, [840, 840, 840]);
        assert!((1..8).all(|chunks| free.modelled_time(chunks + 1) <= free.modelled_time(chunks)));
        assert_eq!(free.modelled_time(2), Duration::from_millis(840 + 840));
        assert_eq!(free.best_chunks(8), 2);
        // If the experts take far longer than the wire, they hide all of it except the first and the last
        // chunk.
        assert_eq!(parts(0, [1, 1, 100]).modelled_time(10), Duration::from_micros(100_200));
        // If an exchange costs more than it hides, one chunk is best. In between there is an optimum.
        assert_eq!(parts(5_000_000, [1, 1, 1]).best_chunks(8), 1);
        let some = parts(300_000, [8, 8, 16]).best_chunks(16);
        assert!((2..16).contains(&some), "{some}");
    }
}
