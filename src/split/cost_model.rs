//! Time of a rank for the tokens that it serves.
//!
//! In: the tokens of every slot. Out: picoseconds, by a [`CostModel`]. There are two of them. By the data
//! sheet, each expert with tokens takes the longer of two times (Williams et al., *Roofline*, 2009). One is
//! the time to read its weights once, the other is the time to multiply its tokens in tiles. Small decode
//! batches are bound by the first, large prefill batches by the second. [`MeasuredCost`] follows measured
//! times of a number of tokens instead. [`LinkedCost`] adds the time in which the rows of the tokens arrive
//! at the rank and leave it.

use crate::gpu::GpuSpec;
use crate::model::MoeModel;
use evenkeel_solver::objective::Roofline;
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// Tokens of one tile of a grouped matrix multiplication, in most kernels.
pub const TILE_TOKENS: u64 = 64;

/// Time to split one batch of one layer by its counts once they are known, in microseconds, from counting to
/// redirected tokens.
pub const PLANNING_US: f64 = 20.0;

/// Time model of one layer on one rank.
///
/// All times are whole picoseconds, and the largest number if they exceed it. The same tokens give the same
/// time on every machine.
pub trait CostModel: fmt::Debug + Send + Sync {
    /// Returns the time of an expert for this many tokens. No tokens take no time.
    fn expert_ps(&self, tokens: u64) -> u64;

    /// Returns the time in which the rows of this many tokens arrive and their results leave.
    fn exchange_ps(&self, _tokens: u64) -> u64 {
        0
    }

    /// Returns the time of a rank that serves these tokens, one number per slot. A rank of speed 2 takes half
    /// the time for its experts.
    fn rank_ps(&self, slots: &[u64], speed: u32) -> u64 {
        let experts = slots.iter().fold(0u64, |sum, &tokens| sum.saturating_add(self.expert_ps(tokens)));
        let tokens = slots.iter().fold(0u64, |sum, &tokens| sum.saturating_add(tokens));
        experts.div_ceil(u64::from(speed.max(1))).saturating_add(self.exchange_ps(tokens))
    }
}

impl CostModel for Roofline {
    fn expert_ps(&self, tokens: u64) -> u64 {
        self.piece_cost(tokens).unwrap_or(u64::MAX)
    }
}

/// Returns the roofline of a model's expert on a GPU, in picoseconds, with tiles of [`TILE_TOKENS`] tokens.
pub fn expert_roofline(model: &MoeModel, gpu: &GpuSpec) -> Roofline {
    Roofline { read: gpu.read_ps(model), token: gpu.token_ps(model), tile: TILE_TOKENS }
}

/// Returns the time of the slowest rank. `quotas` is `[R * S]`. `speeds` holds the speed of each rank, `[R]`,
/// or nothing for equal ranks.
pub fn step_time<C: CostModel + ?Sized>(
    time: &C,
    quotas: &[u64],
    slots_per_rank: usize,
    speeds: &[u32],
) -> u64 {
    let ranks = quotas.chunks(slots_per_rank.max(1)).enumerate();
    ranks.map(|(rank, slots)| time.rank_ps(slots, speeds.get(rank).copied().unwrap_or(1))).max().unwrap_or(0)
}

/// Measured times of one expert, interpolated.
///
/// Between two measured numbers of tokens the time is linear. Fewer tokens than the fewest measured take as
/// long as these. More than the most measured take proportionally longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredCost {
    /// Tokens and picoseconds, both ascending.
    points: Vec<(u64, u64)>,
}

/// Error of measurements from which no [`MeasuredCost`] follows.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no measured time: expected at least one number of tokens from 1, with its time from 1 picosecond")]
pub struct NoMeasuredTime;

impl MeasuredCost {
    /// Creates a model from measured (tokens, picoseconds) of one expert, in any order.
    ///
    /// Several times of the same number of tokens are averaged. A time that is shorter than that of fewer
    /// tokens is noise, and is replaced by it.
    ///
    /// # Errors
    /// Fails if there is no point, or one without tokens or time.
    pub fn from_points(mut points: Vec<(u64, u64)>) -> Result<Self, NoMeasuredTime> {
        if points.is_empty() || points.iter().any(|&(tokens, time)| tokens == 0 || time == 0) {
            return Err(NoMeasuredTime);
        }
        points.sort_unstable();
        let mut merged: Vec<(u64, u64)> = vec![];
        for same in points.chunk_by(|a, b| a.0 == b.0) {
            let sum: u128 = same.iter().map(|&(_, time)| u128::from(time)).sum();
            let mean = u64::try_from(sum / same.len() as u128).unwrap_or(u64::MAX);
            let least = merged.last().map_or(0, |&(_, time)| time);
            merged.push((same[0].0, mean.max(least)));
        }
        Ok(Self { points: merged })
    }
}

impl CostModel for MeasuredCost {
    fn expert_ps(&self, tokens: u64) -> u64 {
        if tokens == 0 {
            return 0;
        }
        let at = self.points.partition_point(|&(measured, _)| measured < tokens);
        let scale = |time: u64, of: u64, per: u64| u128::from(time) * u128::from(of) / u128::from(per.max(1));
        let time = match (at.checked_sub(1).map(|before| self.points[before]), self.points.get(at)) {
            (None, Some(&(_, time))) => u128::from(time),
            (Some((from, low)), Some(&(to, high))) => {
                u128::from(low) + scale(high - low, tokens - from, to - from)
            }
            (Some((most, time)), None) => scale(time, tokens, most),
            (None, None) => 0,
        };
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

/// Cost model whose ranks also exchange the rows of their tokens over a link, before and after the experts.
#[derive(Debug, Clone)]
pub struct LinkedCost {
    experts: Arc<dyn CostModel>,
    row_ps: u64,
}

impl LinkedCost {
    /// Adds a link of `gbps` gigabits per second to the times of experts. Each token of an expert is a row
    /// that arrives in the precision of the weights and leaves in bfloat16. `None` if the link has no speed.
    pub fn new(experts: Arc<dyn CostModel>, model: &MoeModel, gbps: u64) -> Option<Self> {
        let row_bytes = model.hidden.saturating_mul(model.precision.bytes_per_weight() + 2);
        Some(Self { experts, row_ps: transfer_ps(row_bytes, gbps)? })
    }
}

impl CostModel for LinkedCost {
    fn expert_ps(&self, tokens: u64) -> u64 {
        self.experts.expert_ps(tokens)
    }

    fn exchange_ps(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(self.row_ps).saturating_add(self.experts.exchange_ps(tokens))
    }

    fn rank_ps(&self, slots: &[u64], speed: u32) -> u64 {
        // Measured kernels time a rank as a whole, not as the sum of its experts.
        let tokens = slots.iter().fold(0u64, |sum, &tokens| sum.saturating_add(tokens));
        self.experts.rank_ps(slots, speed).saturating_add(tokens.saturating_mul(self.row_ps))
    }
}

/// Returns the time in which a link of `gbps` gigabits per second carries bytes. `None` if it has no speed.
pub fn transfer_ps(bytes: u64, gbps: u64) -> Option<u64> {
    // 8 bits over 10^9 bits per second: 8000 / gbps picoseconds per byte.
    bytes.saturating_mul(8_000).checked_div(gbps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_add_up_by_hand() {
        let time = Roofline { read: 100, token: 3, tile: 10 };
        // 10 tokens are read-bound, 40 tokens take 4 tiles of 30.
        assert_eq!((time.rank_ps(&[10, 40, 0], 1), time.rank_ps(&[10, 40, 0], 2)), (220, 110));
        assert_eq!(step_time(&time, &[10, 40, 10, 0], 2, &[4, 1]), 100);
        let model: MoeModel = "deepseek-v3".parse().unwrap();
        let linked = LinkedCost::new(Arc::new(time), &model, 100).unwrap();
        // 7168 bytes arrive, 14336 leave, at 80 picoseconds per byte.
        assert_eq!((linked.exchange_ps(2), linked.expert_ps(10)), (2 * 21_504 * 80, 100));
        assert_eq!(linked.rank_ps(&[1, 1], 1), 200 + 2 * 21_504 * 80);
        assert!(LinkedCost::new(Arc::new(time), &model, 0).is_none());
        let whole = LinkedCost::new(Arc::new(WholeRank), &model, 100).unwrap();
        assert_eq!(whole.rank_ps(&[1, 1], 1), 7 + 2 * 21_504 * 80);
    }

    /// A rank whose time is no sum over its experts.
    #[derive(Debug)]
    struct WholeRank;

    impl CostModel for WholeRank {
        fn expert_ps(&self, _: u64) -> u64 {
            5
        }

        fn rank_ps(&self, _: &[u64], _: u32) -> u64 {
            7
        }
    }

    #[test]
    fn measured_times_are_interpolated_and_noise_is_levelled() {
        let measured = MeasuredCost::from_points(vec![(20, 300), (10, 100), (10, 140), (5, 150)]).unwrap();
        let times = [0, 1, 5, 10, 15, 20, 40].map(|tokens| measured.expert_ps(tokens));
        assert_eq!(times, [0, 150, 150, 150, 225, 300, 600]);
        for points in [vec![], vec![(0, 5)], vec![(5, 0)]] {
            assert_eq!(MeasuredCost::from_points(points), Err(NoMeasuredTime));
        }
    }

    proptest! {
        #[test]
        fn more_tokens_never_take_less_time(
            points in prop::collection::vec((1u64..200, 1u64..1000), 1..8),
            tokens in 0u64..400,
        ) {
            let measured = MeasuredCost::from_points(points).unwrap();
            prop_assert!(measured.expert_ps(tokens) <= measured.expert_ps(tokens + 1));
        }
    }
}
