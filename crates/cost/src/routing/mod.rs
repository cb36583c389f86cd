//! Synthetic routing of the collectors behind NVIDIA's tables, drawn again from the published description.
//!
//! In: a [`RoutingShape`], a [`Distribution`] and a seed. Out: rows per expert, or the [`RankLoad`] of the
//! rank that a collector times. Counts are whole rows, and the same seed gives the same counts. The power
//! law needs `powf`, whose last bit may differ between platforms; a count may then differ by one.

mod eplb_slots;
mod power_law;
mod token_sets;

use crate::rank_load::RankLoad;
pub use eplb_slots::draw_slot_counts;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use token_sets::{TokenRun, balanced_runs, limit_groups, runs_of_counts};

/// Number of tokens, experts and ranks of a routed layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoutingShape {
    /// Tokens of all ranks.
    pub tokens: u64,
    /// Experts of the layer.
    pub experts: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Ranks, each with the same number of experts.
    pub ranks: u64,
}

impl RoutingShape {
    /// Returns the rows of all experts: one per token and chosen expert.
    pub fn rows(&self) -> u64 {
        self.tokens.saturating_mul(self.top_k)
    }
}

/// Distribution of rows over experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Every expert gets the same number of rows, as far as possible.
    Balanced,
    /// A bounded power law with this exponent, which is not 1.
    PowerLaw(f64),
}

impl Distribution {
    /// Returns the distribution that a table names: `balanced`, `uniform` or `power_law_EXPONENT`.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "balanced" || name == "uniform" {
            return Some(Distribution::Balanced);
        }
        let exponent: f64 = name.strip_prefix("power_law_")?.parse().ok()?;
        // At an exponent of 1 the inverse distribution is undefined.
        let usable = exponent.is_finite() && exponent > 0.0 && (exponent - 1.0).abs() > 1e-6;
        usable.then_some(Distribution::PowerLaw(exponent))
    }
}

/// Rule by which rounding differences are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoundingRule {
    /// Round the ranks, to the smallest or from the largest expert of each.
    RoundRanks,
    /// Round the experts from the smallest, as older collectors do.
    RoundExperts,
}

/// Draws rows per expert by a power law. The rank with the most rows comes first. The counts sum to
/// [`RoutingShape::rows`] and are at most the number of tokens, unless `top_k` exceeds the experts.
pub fn draw_power_law(shape: &RoutingShape, exponent: f64, rule: RoundingRule, seed: u64) -> Vec<u64> {
    draw_counts(&mut ChaCha8Rng::seed_from_u64(seed), shape, exponent, rule)
}

fn draw_counts(rng: &mut ChaCha8Rng, shape: &RoutingShape, exponent: f64, rule: RoundingRule) -> Vec<u64> {
    // More choices than experts cannot be met with one row per token and expert.
    let shape = RoutingShape { top_k: shape.top_k.min(shape.experts), ..*shape };
    match rule {
        RoundingRule::RoundRanks => power_law::current_counts(rng, &shape, exponent),
        RoundingRule::RoundExperts => power_law::legacy_counts(rng, &shape, exponent),
    }
}

/// Returns the rows per expert of the balanced pattern.
pub fn balanced_counts(shape: &RoutingShape) -> Vec<u64> {
    let mut counts = vec![0; shape.experts as usize];
    for run in balanced_runs(shape) {
        run.experts.iter().for_each(|&expert| counts[expert as usize] += run.tokens);
    }
    counts
}

/// Rows that the timed rank computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimedRows {
    /// All tokens enter, and the rows of the rank's own experts are computed.
    Local,
    /// Tokens with an own expert enter, and the rows of the rank's own experts are computed.
    LocalOfEntering,
    /// Tokens with an own expert enter, and all their rows are computed, remote ones as rows of expert 0.
    ClampedRemote,
}

/// Description of the load that a collector puts on the timed rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimedRouting {
    /// Sizes.
    pub shape: RoutingShape,
    /// Distribution of rows over experts.
    pub distribution: Distribution,
    /// Rule for rounding differences.
    pub rule: RoundingRule,
    /// Rows that are computed.
    pub timed: TimedRows,
    /// True if DeepSeek-V3's router limits a token to half of the groups of experts.
    pub grouped: bool,
    /// Slots of all ranks if EPLB places replicas, for skewed distributions only.
    pub eplb_slots: Option<u64>,
}

impl TimedRouting {
    /// Draws loads of the timed rank. A balanced routing has a single one.
    pub fn draw_loads(&self, draws: usize, seed: u64) -> Vec<RankLoad> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let Distribution::PowerLaw(exponent) = self.distribution else {
            return vec![self.load_of_runs(balanced_runs(&self.shape))];
        };
        (0..draws)
            .map(|_| {
                let counts = match self.eplb_slots {
                    Some(slots) => eplb_slots::slot_counts(&mut rng, &self.shape, exponent, slots),
                    None => draw_counts(&mut rng, &self.shape, exponent, self.rule),
                };
                if self.timed == TimedRows::Local && !self.grouped {
                    RankLoad::from_rows(counts.into_iter().take(self.local_slots()), self.shape.tokens)
                } else {
                    self.load_of_runs(runs_of_counts(&counts, &self.shape))
                }
            })
            .collect()
    }

    /// Returns the number of experts or slots of the timed rank.
    fn local_slots(&self) -> usize {
        (self.eplb_slots.unwrap_or(self.shape.experts) / self.shape.ranks.max(1)) as usize
    }

    fn load_of_runs(&self, mut runs: Vec<TokenRun>) -> RankLoad {
        if self.grouped {
            limit_groups(&mut runs, &self.shape);
        }
        let clamped = self.timed == TimedRows::ClampedRemote && self.shape.ranks > 1;
        let local = self.local_slots();
        let is_local = |expert: &&u32| (**expert as usize) < local;
        let mut rows = vec![0u64; local];
        let mut tokens = 0;
        for run in &runs {
            let own = run.experts.iter().filter(is_local).count();
            if own == 0 && self.timed != TimedRows::Local {
                continue;
            }
            tokens += run.tokens;
            run.experts.iter().filter(is_local).for_each(|&expert| rows[expert as usize] += run.tokens);
            if let Some(first) = rows.first_mut().filter(|_| clamped) {
                *first += run.tokens * (run.experts.len() - own) as u64;
            }
        }
        RankLoad::from_rows(rows, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape_of(tokens: u64, per_rank: u64, ranks: u64, top_k: u64) -> RoutingShape {
        RoutingShape { tokens, experts: per_rank * ranks, top_k: top_k.min(per_rank * ranks), ranks }
    }

    #[test]
    fn remote_rows_are_clamped_by_hand() {
        // Stride 2: tokens choose experts (0, 2), (1, 3), (2, 0), (3, 1), and rank 0 has experts 0 and 1.
        let shape = shape_of(4, 2, 2, 2);
        let routing = |timed| TimedRouting {
            shape,
            distribution: Distribution::Balanced,
            rule: RoundingRule::RoundRanks,
            timed,
            grouped: false,
            eplb_slots: None,
        };
        let load = |timed| routing(timed).draw_loads(3, 1);
        assert_eq!(load(TimedRows::Local), [RankLoad::from_rows([2, 2], 4)]);
        assert_eq!(load(TimedRows::ClampedRemote), [RankLoad::from_rows([6, 2], 4)]);
        let one_token = RoutingShape { tokens: 1, ..shape };
        let remote = TimedRouting { shape: one_token, ..routing(TimedRows::LocalOfEntering) };
        assert_eq!(remote.draw_loads(1, 1), [RankLoad::from_rows([1], 1)]);
    }

    #[test]
    fn names_of_distributions_are_read() {
        assert_eq!(Distribution::from_name("uniform"), Some(Distribution::Balanced));
        assert_eq!(Distribution::from_name("power_law_1.01"), Some(Distribution::PowerLaw(1.01)));
        for name in ["power_law_1", "power_law_x", "zipf"] {
            assert_eq!(Distribution::from_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn counts_are_conserved_and_the_fullest_rank_is_first(
            (tokens, per_rank, ranks, top_k) in (1u64..400, 1u64..9, 1u64..9, 1u64..9),
            exponent in prop::sample::select(vec![0.6, 1.01, 1.2]),
            legacy in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let shape = shape_of(tokens, per_rank, ranks, top_k);
            let rule = if legacy { RoundingRule::RoundExperts } else { RoundingRule::RoundRanks };
            let counts = draw_power_law(&shape, exponent, rule, seed);
            prop_assert_eq!(counts.iter().sum::<u64>(), shape.rows());
            prop_assert!(counts.iter().all(|&count| count <= tokens));
            let sums: Vec<u64> = counts.chunks(per_rank as usize).map(|rank| rank.iter().sum()).collect();
            prop_assert_eq!(sums.iter().max(), sums.first());
            prop_assert_eq!(&counts, &draw_power_law(&shape, exponent, rule, seed));

            let runs = runs_of_counts(&counts, &shape);
            prop_assert_eq!(runs.iter().map(|run| run.tokens).sum::<u64>(), tokens);
            prop_assert!(runs.iter().all(|run| run.experts.len() as u64 == shape.top_k));
        }

        #[test]
        fn slots_of_eplb_serve_all_rows(
            (tokens, per_rank, ranks, more) in (1u64..400, 1u64..9, 1u64..9, 0u64..3),
            seed in any::<u64>(),
        ) {
            let shape = shape_of(tokens, per_rank, ranks, 4);
            let slots = (per_rank + more) * ranks;
            let counts = draw_slot_counts(&shape, 1.01, slots, seed);
            prop_assert_eq!(counts.len() as u64, slots);
            prop_assert_eq!(counts.iter().sum::<u64>(), shape.rows());
        }

        #[test]
        fn balanced_counts_are_even((tokens, per_rank, ranks, top_k) in (1u64..400, 1u64..9, 1u64..9, 1u64..9)) {
            let shape = shape_of(tokens, per_rank, ranks, top_k);
            let counts = balanced_counts(&shape);
            prop_assert_eq!(counts.iter().sum::<u64>(), shape.rows());
            // The collector's stride may wrap around the experts. A token then visits an expert twice.
            let stride = shape.experts.div_ceil(shape.top_k);
            let wraps = (shape.top_k - 1) * stride >= shape.experts;
            prop_assert!(wraps || counts.iter().all(|&count| count <= tokens));
        }
    }
}
