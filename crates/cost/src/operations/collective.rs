//! Collective operations of NCCL, and all-reduce kernels of frameworks.
//!
//! In: a [`CollectiveWork`]. Out: microseconds. Two lines per number of GPUs bound the time from above: one
//! for short messages and one for long ones.

use super::terms::{ParameterMut, gigabyte_us};
use serde::{Deserialize, Serialize};

/// Kind of collective operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CollectiveKind {
    /// Every rank has the sum.
    AllReduce,
    /// Every rank has the parts of all.
    AllGather,
    /// Every rank has its part of the sum.
    ReduceScatter,
    /// Every rank sends a part to every other.
    AllToAll,
}

/// Collective operation inside a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectiveWork {
    /// Bytes of the whole message on a rank: of the sum, of all gathered parts, or of all sent parts.
    pub bytes: u64,
    /// Ranks.
    pub ranks: u64,
}

/// Time of a kind of collective operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Collective {
    /// Kind of operation.
    pub collective: CollectiveKind,
    /// Lines per number of ranks, in ascending order.
    pub sizes: Vec<CollectiveLines>,
}

/// Two lines for one number of ranks. The time is the lower of both.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectiveLines {
    /// Ranks.
    pub ranks: u64,
    /// Fixed time of short messages.
    pub small_alpha_us: f64,
    /// Rate of short messages, gigabytes per second.
    pub small_gb_s: f64,
    /// Fixed time of long messages.
    pub alpha_us: f64,
    /// Rate of long messages, gigabytes per second.
    pub gb_s: f64,
}

impl Collective {
    /// Returns the time, microseconds. A number of ranks that was not measured takes the parameters of the
    /// next larger one, or else those of the largest. `None` if nothing was measured.
    pub fn time_us(&self, work: &CollectiveWork) -> Option<f64> {
        if work.ranks <= 1 {
            return Some(0.0);
        }
        let lines = self.sizes.iter().find(|lines| lines.ranks >= work.ranks).or(self.sizes.last())?;
        let ranks = work.ranks as f64;
        let passes = if self.collective == CollectiveKind::AllReduce { 2.0 } else { 1.0 };
        let sent = passes * work.bytes as f64 * (ranks - 1.0) / ranks;
        let small = lines.small_alpha_us + gigabyte_us(sent, lines.small_gb_s);
        Some(small.min(lines.alpha_us + gigabyte_us(sent, lines.gb_s)))
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let parameters = self.sizes.iter_mut().flat_map(|lines| {
            [
                ("small_alpha_us", &mut lines.small_alpha_us),
                ("small_gb_s", &mut lines.small_gb_s),
                ("alpha_us", &mut lines.alpha_us),
                ("gb_s", &mut lines.gb_s),
            ]
        });
        parameters.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_line_counts() {
        let line = |ranks, gb_s| CollectiveLines {
            ranks,
            small_alpha_us: 5.0,
            small_gb_s: 50.0,
            alpha_us: 15.0,
            gb_s,
        };
        let mut kernel =
            Collective { collective: CollectiveKind::AllReduce, sizes: vec![line(4, 200.0), line(8, 400.0)] };
        let time =
            |kernel: &Collective, bytes, ranks| kernel.time_us(&CollectiveWork { bytes, ranks }).unwrap();
        // 100 kB on 4 ranks: 150 kB are sent, 3 us at 50 GB/s.
        assert!((time(&kernel, 100_000, 4) - 8.0).abs() < 1e-9);
        // 8 MB: 12 MB are sent, 60 us at 200 GB/s.
        assert!((time(&kernel, 8_000_000, 4) - 75.0).abs() < 1e-9);
        assert!((time(&kernel, 8_000_000, 8) - (15.0 + 35.0)).abs() < 1e-9);
        // Five ranks take the rates of eight.
        assert!((time(&kernel, 8_000_000, 5) - (15.0 + 32.0)).abs() < 1e-9);
        assert!(time(&kernel, 8_000_000, 1).abs() < 1e-12);
        kernel.collective = CollectiveKind::AllGather;
        assert!((time(&kernel, 8_000_000, 4) - 45.0).abs() < 1e-9);
    }
}
