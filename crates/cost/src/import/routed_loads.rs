//! Loads of the timed rank for every row of a table.
//!
//! In: [`RoutingKey`]s. Out: the drawn loads of each. Many rows share a key, so each is drawn once, in
//! parallel. The seed of a key is a hash of its fields.

use super::collector::LoadRule;
use super::hold_out::stable_hash;
use super::{ImportStage, Progress};
use crate::rank_load::RankLoad;
use crate::routing::{Distribution, RoundingRule, RoutingShape, TimedRouting, TimedRows};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Draws per skewed row. The error of a mean over 12 draws is below that of the measurements, which average
/// 5.
const DRAWS: usize = 12;

/// Draws per row of wide expert parallelism, and the number of those kept that are nearest to the recorded
/// tokens. The collector made a single draw.
const WIDE_EP_DRAWS: usize = 24;
const WIDE_EP_NEAREST: usize = 6;

/// Everything that the load of the timed rank depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoutingKey {
    pub(crate) rule: LoadRule,
    pub(crate) grouped: bool,
    pub(crate) shape: RoutingShape,
    /// Exponent of the power law in thousandths; 0 is balanced.
    pub(crate) exponent: u32,
    /// Slots of all ranks if EPLB places replicas.
    pub(crate) eplb_slots: Option<u64>,
    /// Recorded tokens that enter the timed rank.
    pub(crate) entering: Option<u64>,
}

/// Loads of many keys.
#[derive(Debug, Default)]
pub(crate) struct RoutedLoads {
    /// Loads by their key without the recorded tokens.
    drawn: HashMap<RoutingKey, Vec<RankLoad>>,
}

impl RoutedLoads {
    /// Draws the loads of keys that have none yet.
    pub(crate) fn draw_missing(&mut self, keys: &BTreeSet<RoutingKey>, progress: Progress<'_>) {
        let keys: BTreeSet<RoutingKey> = keys.iter().map(RoutingKey::without_recorded_tokens).collect();
        let keys: Vec<RoutingKey> = keys.into_iter().filter(|key| !self.drawn.contains_key(key)).collect();
        let (done, total) = (AtomicUsize::new(0), keys.len());
        let drawn = keys.into_par_iter().map(|key| {
            let loads = key.draw();
            progress(ImportStage::Routing, done.fetch_add(1, Ordering::Relaxed) + 1, total);
            (key, loads)
        });
        self.drawn.par_extend(drawn);
    }

    /// Returns the loads of a key. With recorded tokens these are the draws nearest to them.
    pub(crate) fn loads_of(&self, key: &RoutingKey) -> Cow<'_, [RankLoad]> {
        let drawn = self.drawn.get(&key.without_recorded_tokens()).map(Vec::as_slice).unwrap_or_default();
        let Some(entering) = key.entering else { return Cow::Borrowed(drawn) };
        let mut loads = drawn.to_vec();
        loads.sort_by_key(|load| load.tokens.abs_diff(entering));
        loads.truncate(WIDE_EP_NEAREST);
        Cow::Owned(loads)
    }
}

impl RoutingKey {
    fn without_recorded_tokens(&self) -> Self {
        Self { entering: None, ..*self }
    }

    fn draw(&self) -> Vec<RankLoad> {
        let RoutingShape { tokens, experts, top_k, ranks } = self.shape;
        let text = format!(
            "{}|{}|{tokens}|{experts}|{top_k}|{ranks}|{}|{}",
            self.rule.seed_name(),
            u8::from(self.grouped),
            self.exponent,
            self.eplb_slots.unwrap_or(0)
        );
        let seed = stable_hash(&text);
        let distribution = match self.exponent {
            0 => Distribution::Balanced,
            exponent => Distribution::PowerLaw(f64::from(exponent) / 1e3),
        };
        let (rule, timed) = match self.rule {
            LoadRule::Local | LoadRule::AllRows | LoadRule::DeepEp => {
                (RoundingRule::RoundRanks, TimedRows::Local)
            }
            LoadRule::LocalOlderSampler => (RoundingRule::RoundExperts, TimedRows::Local),
            LoadRule::Clamped => (RoundingRule::RoundRanks, TimedRows::ClampedRemote),
            LoadRule::WideEp => (RoundingRule::RoundExperts, TimedRows::LocalOfEntering),
        };
        let (grouped, eplb_slots) = (self.grouped, self.eplb_slots);
        let routing = TimedRouting { shape: self.shape, distribution, rule, timed, grouped, eplb_slots };
        match (self.rule, self.exponent) {
            (LoadRule::DeepEp, 0) => vec![self.even_load()],
            (LoadRule::WideEp, _) => routing.draw_loads(WIDE_EP_DRAWS, seed),
            _ => routing.draw_loads(DRAWS, seed),
        }
    }

    /// Returns the load of SGLang's DeepEP collector with even routing. Every expert has the same whole
    /// number of rows. With fewer rows than experts, some experts have one row.
    fn even_load(&self) -> RankLoad {
        let RoutingShape { tokens, experts, top_k, ranks } = self.shape;
        let local = experts / ranks.max(1);
        let rows = self.shape.rows() / experts.max(1);
        let single = local.min(tokens / ranks.max(1) * top_k);
        let count = |expert: u64| if rows > 0 { rows } else { u64::from(expert < single) };
        RankLoad::from_rows((0..local).map(count), tokens)
    }
}
