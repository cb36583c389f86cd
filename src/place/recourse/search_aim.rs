//! Objective of a search: peaks of exact splits, peaks under a fixed rule, both, or copies into dynamic
//! slots.

use super::share_rule::ShareRule;
use crate::cluster::Cluster;
use crate::split::SplitMethod;

/// Unit of the weight of the score under the rule: this number stands for a weight of 1.
const RULE_WEIGHT_UNIT: u64 = 16;

/// Parts of a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SearchAim {
    /// Peaks of exact splits.
    Exact,
    /// Peaks under a fixed rule.
    Rule(SplitMethod),
    /// Sum of the exact score and a number of sixteenths of the score under the even split.
    Both(u64),
    /// Copies before each batch, with this number of dynamic slots on every rank.
    Copies(u32),
}

impl SearchAim {
    /// Returns true if exact splits count.
    pub(crate) fn counts_exact(self) -> bool {
        matches!(self, SearchAim::Exact | SearchAim::Both(_))
    }

    /// Returns the rule if one counts.
    pub(crate) fn share_rule(self, cluster: &Cluster) -> Option<ShareRule> {
        match self {
            SearchAim::Exact | SearchAim::Copies(_) => None,
            SearchAim::Rule(method) => Some(ShareRule::new(method, cluster)),
            SearchAim::Both(_) => Some(ShareRule::new(SplitMethod::Even, cluster)),
        }
    }

    /// Returns the weighted score under the rule.
    pub(crate) fn weighted_rule_score(self, score: u64) -> u64 {
        match self {
            SearchAim::Exact | SearchAim::Copies(_) => 0,
            SearchAim::Rule(_) => score,
            SearchAim::Both(weight) => score.saturating_mul(weight) / RULE_WEIGHT_UNIT,
        }
    }

    /// Returns the sum of both parts of the score. Copies are one part, in place of the exact one.
    pub(crate) fn total_score(self, exact: u64, rule: u64) -> u64 {
        if matches!(self, SearchAim::Copies(_)) {
            return exact;
        }
        let exact = if self.counts_exact() { exact } else { 0 };
        exact.saturating_add(self.weighted_rule_score(rule))
    }
}
