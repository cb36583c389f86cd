//! In how many chunks tokens should travel: what experts cost here, what the wire costs here, and how both overlap.
//!
//! In: a run and its wire. Out: an [`Overlap`], the same on all ranks. The first rank times experts (as [`calibrate`](super::calibrate)
//! does, in few points), all time exchanges without and with bytes; what a layer takes in `C` chunks is then
//!
//! ```text
//! tokens of chunk c have come       at  d(c) = (c + 1) (a + D / C)
//! its experts have run              at  f(c) = max(f(c - 1), d(c)) + F / C
//! its answers are back              at  r(c) = max(r(c - 1), f(c), d(C - 1)) + a + B / C
//! ```
//!
//! with `a` the time of an exchange of nothing, `D` and `B` what the bytes of dispatch and combine take, and `F` what the experts take
//! (a two-machine flow shop with the wire as one of them). More chunks hide more and pay `a` more often.

use super::backend::Aggregate;
use super::calibrate::{Fit, Sweep, measure};
use super::error::ExecError;
use super::run::Run;
use super::transport::{Purpose, TransportError, Wire};
use crate::split::Roofline;
use std::time::{Duration, Instant};

/// Rounds in which exchanges are timed; the median counts.
const ROUNDS: usize = 7;
/// Bytes to every other rank, where some are sent.
const BYTES: u64 = 64 << 10;

/// What an exchange between all ranks takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Nanoseconds of an exchange of nothing.
    pub latency: u64,
    /// Picoseconds per byte that a rank sends.
    pub byte: u64,
}

impl Link {
    /// Times exchanges; the slowest rank counts.
    ///
    /// # Errors
    /// When another rank is gone.
    pub fn measure(wire: &Wire) -> Result<Self, TransportError> {
        let others = wire.ranks().saturating_sub(1) as u64;
        let mut times = [0u64; 2];
        for (time, bytes) in times.iter_mut().zip([0, BYTES]) {
            let mut rounds = Vec::with_capacity(ROUNDS);
            for _ in 0..ROUNDS {
                let begun = Instant::now();
                wire.all_gather(Purpose::Control, vec![0; bytes as usize])?;
                rounds.push(begun.elapsed().as_nanos() as u64);
            }
            rounds.sort_unstable();
            *time = rounds[ROUNDS / 2];
        }
        let all = wire.all_numbers(Purpose::Control, &times)?;
        let slowest = |of: usize| all.iter().skip(of).step_by(2).copied().max().unwrap_or(0);
        let (latency, sent) = (slowest(0), (BYTES * others).max(1));
        Ok(Self { latency, byte: slowest(1).saturating_sub(latency).saturating_mul(1000) / sent })
    }
}

/// What a layer is made of, on an average rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parts {
    /// The wire.
    pub link: Link,
    /// Exchanges that follow each other in a dispatch, and in a combine.
    pub exchanges: u64,
    /// Bytes of dispatch and of combine that a rank sends to others.
    pub bytes: [u64; 2],
    /// Picoseconds of its experts.
    pub experts: u64,
}

impl Parts {
    /// What a layer takes from its dispatch to the end of its combine, in so many chunks.
    pub fn modelled(&self, chunks: usize) -> Duration {
        let count = chunks.max(1) as u64;
        let travel = |bytes: u64| {
            self.exchanges * self.link.latency * 1000 + bytes.saturating_mul(self.link.byte) / count
        };
        let [out, back] = self.bytes.map(travel);
        let (mut ran, mut returned) = (0, 0);
        for chunk in 1..=count {
            ran = (chunk * out).max(ran) + self.experts / count;
            returned = ran.max(returned).max(count * out) + back;
        }
        Duration::from_nanos(returned / 1000)
    }

    /// The number of chunks, up to `most`, that takes least; the lowest of them.
    pub fn best(&self, most: usize) -> usize {
        (1..=most.max(1)).min_by_key(|&chunks| (self.modelled(chunks), chunks)).unwrap_or(1)
    }
}

/// What was measured, and what follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlap {
    /// What an expert costs, picoseconds.
    pub roofline: Roofline,
    /// A layer of this run.
    pub parts: Parts,
    /// The number of chunks that takes least.
    pub chunks: usize,
}

impl Overlap {
    /// Measures here, for a run; every rank calls it, and all get the same.
    ///
    /// # Errors
    /// When experts cannot be had, or another rank is gone.
    pub fn measure(run: &Run<'_>, wire: &Wire) -> Result<Self, ExecError> {
        let (exec, model) = (&run.exec, &run.exec.model);
        let link = Link::measure(wire)?;
        let mut numbers = [0; 3];
        if wire.rank() == 0 {
            let sweep = Sweep { tokens: vec![1, 8, 64], experts: vec![1], rounds: 3, pool: 4 };
            let Roofline { read, token, tile } =
                Fit::of(measure(model, run.weights.as_ref(), &sweep, &())?)?.roofline;
            numbers = [read, token, tile];
        }
        let all = wire.all_numbers(Purpose::Control, &numbers)?;
        let roofline = Roofline { read: all[0].max(1), token: all[1].max(1), tile: all[2].max(1) };

        let (ranks, slots) = (exec.cluster.ranks(), exec.cluster.slots_per_rank());
        let tokens = run.feed.tokens(run.steps.start, &run.layers) as f64 / ranks as f64;
        let top_k = run.feed.top_k().or(exec.router.fixed_top_k()).unwrap_or(model.top_k);
        // Choices as if by lot: how many of `n` that are not the token's own have one of its experts.
        let others = |n: usize| (n as f64 - 1.0) * (1.0 - (1.0 - 1.0 / n as f64).powi(top_k as i32));
        let twice = exec.aggregate == Aggregate::Node && exec.cluster.nodes() > 1;
        let copies = others(ranks) + if twice { others(exec.cluster.nodes()) } else { 0.0 };
        let rows = (tokens * copies * (model.hidden * exec.dtype.bytes()) as f64) as u64;
        let visits = 12 * (tokens * top_k as f64) as u64;
        let per_slot = (tokens * top_k as f64 / slots as f64).ceil() as u64;
        let experts = roofline.cost(per_slot).unwrap_or(u64::MAX / 2).saturating_mul(slots as u64);
        let parts = Parts {
            link,
            exchanges: 1 + u64::from(twice),
            bytes: [rows + visits, rows],
            experts: experts.min(u64::MAX / 4),
        };
        Ok(Self { roofline, parts, chunks: parts.best(slots) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(latency: u64, ms: [u64; 3]) -> Parts {
        let [out, back, experts] = ms.map(|ms| ms * 1_000_000);
        Parts {
            link: Link { latency, byte: 1000 },
            exchanges: 1,
            bytes: [out, back],
            experts: experts * 1000,
        }
    }

    #[test]
    fn one_chunk_adds_up_and_many_hide_what_is_shorter() {
        assert_eq!(parts(500_000, [3, 2, 4]).modelled(1), Duration::from_millis(3 + 2 + 4 + 1));
        // Without latency more chunks are never worse, down to what the wire takes: two hide experts that take as long as a way.
        let free = parts(0, [840, 840, 840]);
        assert!((1..8).all(|chunks| free.modelled(chunks + 1) <= free.modelled(chunks)));
        assert_eq!(free.modelled(2), Duration::from_millis(840 + 840));
        assert_eq!(free.best(8), 2);
        // Experts that outweigh the wire hide all of it but the first and the last chunk.
        assert_eq!(parts(0, [1, 1, 100]).modelled(10), Duration::from_micros(100_200));
        // Where an exchange costs more than it hides, one is best; in between there is an optimum.
        assert_eq!(parts(5_000_000, [1, 1, 1]).best(8), 1);
        let some = parts(300_000, [8, 8, 16]).best(16);
        assert!((2..16).contains(&some), "{some}");
    }
}
