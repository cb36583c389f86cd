//! What a search minimises: peaks of exact splits, peaks under a fixed rule, or both.

use super::share_rule::ShareRule;
use crate::cluster::Cluster;
use crate::split::Method;

/// A weight of 1 for the score under the rule.
const WHOLE: u64 = 16;

/// The parts of a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Every batch is split exactly.
    Exact,
    /// The rule splits every batch.
    Rule(Method),
    /// The exact score, and a number of sixteenths of the score under the even split.
    Both(u64),
}

impl Aim {
    /// Whether exact splits count.
    pub(crate) fn exact(self) -> bool {
        !matches!(self, Aim::Rule(_))
    }

    /// The rule, where one counts.
    pub(crate) fn rule(self, cluster: &Cluster) -> Option<ShareRule> {
        match self {
            Aim::Exact => None,
            Aim::Rule(method) => Some(ShareRule::new(method, cluster)),
            Aim::Both(_) => Some(ShareRule::new(Method::Even, cluster)),
        }
    }

    /// A score under the rule as it counts in the whole.
    pub(crate) fn weighed(self, score: u64) -> u64 {
        match self {
            Aim::Exact => 0,
            Aim::Rule(_) => score,
            Aim::Both(weight) => score.saturating_mul(weight) / WHOLE,
        }
    }

    /// The score of both parts.
    pub(crate) fn total(self, exact: u64, rule: u64) -> u64 {
        let exact = if self.exact() { exact } else { 0 };
        exact.saturating_add(self.weighed(rule))
    }
}
