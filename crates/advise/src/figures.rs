//! Balance of all placements that a search compares, each computed once.
//!
//! In: a trace, the kernels of the experts, and [`BalanceKey`]s. Out: [`BalanceFigures`] per key. A few
//! layers stand for all: those with the least, the median and the most skewed totals among them.

use crate::balance::{BalanceError, BalanceFigures, BalancePolicy, JudgedBatches, judge, place_layer};
use crate::batches::{BatchPool, TracePart};
use evenkeel::cluster::Cluster;
use evenkeel::evaluate::Progress;
use evenkeel::place::Placement;
use evenkeel::split::{CostModel, SplitMethod};
use evenkeel::trace::Trace;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Choice of a placement and a split for a group of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BalanceChoice {
    /// Ranks of the group.
    pub ranks: u64,
    /// Redundant slots of all ranks.
    pub redundant: u64,
    /// Rule of the placement.
    pub policy: BalancePolicy,
    /// True if batches are split exactly by their counts, false for the even split of the stacks.
    pub exact: bool,
}

impl BalanceChoice {
    /// Returns the split method.
    pub fn split(&self) -> SplitMethod {
        if self.exact { SplitMethod::Exact } else { SplitMethod::Even }
    }

    /// Returns the choices for a group of ranks: nothing, and both policies with up to `most` redundant slots
    /// per rank.
    pub fn of_ranks(ranks: u64, experts: u64, most: u64) -> Vec<Self> {
        let missing = (ranks - experts % ranks) % ranks;
        let mut found = Vec::new();
        if missing == 0 {
            found.push(Self { ranks, redundant: 0, policy: BalancePolicy::Nothing, exact: false });
        }
        for redundant in (0..=most).map(|each| missing + each * ranks) {
            // More replicas than ranks would put two of an expert on one rank.
            if redundant > experts * (ranks - 1) {
                continue;
            }
            for policy in [BalancePolicy::Eplb, BalancePolicy::Recourse] {
                let splits: &[bool] = if redundant == 0 { &[false] } else { &[false, true] };
                found.extend(splits.iter().map(|&exact| Self { ranks, redundant, policy, exact }));
            }
        }
        found
    }
}

/// Figures to compute: a choice, for batches of a number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BalanceKey {
    /// The placement and the split. Its ranks are groups of `expert_tp` GPUs.
    pub(crate) choice: BalanceChoice,
    /// GPUs that share every expert.
    pub(crate) expert_tp: u64,
    /// True for prefill. Its kernels may be others.
    pub(crate) is_prefill: bool,
    /// Tokens of a batch of all ranks.
    pub(crate) tokens: u64,
}

/// Tokens per rank of the batches on which placements are planned: between those of decode and of prefill.
const PLANNED_TOKENS: u64 = 512;
/// Number of layers that stand for all.
const SAMPLED_LAYERS: usize = 3;

/// Figures of all keys. A placement serves both phases.
#[derive(Debug)]
pub(crate) struct BalanceTable<'a> {
    pool: BatchPool<'a>,
    experts: usize,
    linked: u64,
    layers: Vec<usize>,
    placements: BTreeMap<BalanceChoice, Vec<(usize, Placement)>>,
    figures: BTreeMap<BalanceKey, BalanceFigures>,
}

impl<'a> BalanceTable<'a> {
    /// Creates an empty table. Groups of up to `linked` ranks are one node.
    pub(crate) fn new(trace: &'a Trace, top_k: usize, linked: u64, seed: u64) -> Self {
        Self {
            pool: BatchPool::new(trace, top_k, seed),
            experts: trace.experts(),
            linked,
            layers: sample_layers(trace),
            placements: BTreeMap::new(),
            figures: BTreeMap::new(),
        }
    }

    /// Returns the cluster of a choice. `None` if its slots do not divide over its ranks.
    fn cluster(&self, choice: &BalanceChoice) -> Option<Cluster> {
        let nodes = choice.ranks.div_ceil(self.linked.max(1)) as usize;
        Cluster::new(choice.ranks as usize, nodes, self.experts, choice.redundant as usize).ok()
    }

    /// Computes the figures of keys that are not known yet. `kernel` returns the times of the experts for
    /// slots of all ranks and a key. `progress` receives the numbers of planned and of all placements.
    ///
    /// # Errors
    /// Fails if a placement cannot be planned or judged.
    pub(crate) fn compute(
        &mut self,
        keys: &[BalanceKey],
        kernel: &(dyn Fn(u64, &BalanceKey) -> Arc<dyn CostModel> + Sync),
        progress: &dyn Progress,
    ) -> Result<(), BalanceError> {
        let mut missing: Vec<BalanceKey> =
            keys.iter().filter(|key| !self.figures.contains_key(key)).copied().collect();
        missing.sort_unstable();
        missing.dedup();
        self.plan(&missing, progress)?;
        let this = &*self;
        let mut by_size: BTreeMap<u64, Vec<BalanceKey>> = BTreeMap::new();
        for key in missing {
            by_size.entry(key.tokens).or_default().push(key);
        }
        // All choices are judged on the same batches, which are drawn once per size.
        let judge_size = |(&tokens, keys): (&u64, &Vec<BalanceKey>)| {
            let batches = JudgedBatches::new(&this.pool, &this.layers, tokens);
            let figures = |key: &BalanceKey| {
                let (cluster, placements) = (this.cluster(&key.choice)?, this.placements.get(&key.choice)?);
                let kernel = kernel(this.experts as u64 + key.choice.redundant, key);
                let figures = judge(&batches, placements, key.choice.split(), &cluster, kernel.as_ref());
                Some(figures.map(|figures| (*key, figures)))
            };
            keys.iter().filter_map(figures).collect::<Result<Vec<_>, BalanceError>>()
        };
        let found: Vec<Vec<(BalanceKey, BalanceFigures)>> =
            by_size.par_iter().map(judge_size).collect::<Result<_, _>>()?;
        self.figures.extend(found.into_iter().flatten());
        Ok(())
    }

    /// Plans the placements of keys that have none yet.
    fn plan(&mut self, keys: &[BalanceKey], progress: &dyn Progress) -> Result<(), BalanceError> {
        let mut choices: Vec<BalanceChoice> = keys.iter().map(|key| key.choice).collect();
        choices.dedup();
        choices.retain(|choice| !self.placements.contains_key(choice));
        let this = &*self;
        let work: Vec<(BalanceChoice, Cluster, usize)> = choices
            .iter()
            .filter_map(|choice| this.cluster(choice).map(|cluster| (*choice, cluster)))
            .flat_map(|(choice, cluster)| this.layers.iter().map(move |&layer| (choice, cluster, layer)))
            .collect();
        let done = AtomicUsize::new(0);
        let placed: Vec<(BalanceChoice, (usize, Placement))> = work
            .par_iter()
            .map(|(choice, cluster, layer)| {
                let tokens = PLANNED_TOKENS * choice.ranks;
                let placement = place_layer(
                    &this.pool,
                    (this.experts, *layer),
                    (choice.policy, choice.split()),
                    cluster,
                    (TracePart::First, tokens),
                )?;
                progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, work.len());
                Ok((*choice, (*layer, placement)))
            })
            .collect::<Result<_, BalanceError>>()?;
        for (choice, placement) in placed {
            self.placements.entry(choice).or_default().push(placement);
        }
        Ok(())
    }

    /// Returns the figures of a key, if they were computed.
    pub(crate) fn get(&self, key: &BalanceKey) -> Option<&BalanceFigures> {
        self.figures.get(key)
    }

    /// Returns the loads of one batch of `tokens` tokens, in the layer of median skew.
    pub(crate) fn typical_loads(&self, tokens: u64) -> Vec<u64> {
        let layer = self.layers.get(self.layers.len() / 2).copied().unwrap_or(0);
        self.pool.batches(layer, TracePart::Second, tokens, 1).concat()
    }

    /// Returns the figures of a key whose placement is planned on the judged half of the trace itself: the
    /// best that re-planning could reach.
    ///
    /// # Errors
    /// Fails if a placement cannot be planned or judged.
    pub(crate) fn hindsight(
        &self,
        key: &BalanceKey,
        kernel: &dyn CostModel,
    ) -> Result<Option<BalanceFigures>, BalanceError> {
        let Some(cluster) = self.cluster(&key.choice) else { return Ok(None) };
        let split = key.choice.split();
        let place = |&layer: &usize| {
            let part = (TracePart::Second, PLANNED_TOKENS * key.choice.ranks);
            let shape = (self.experts, layer);
            Ok((layer, place_layer(&self.pool, shape, (key.choice.policy, split), &cluster, part)?))
        };
        let placements: Vec<_> = self.layers.par_iter().map(place).collect::<Result<_, BalanceError>>()?;
        let batches = JudgedBatches::new(&self.pool, &self.layers, key.tokens);
        judge(&batches, &placements, split, &cluster, kernel).map(Some)
    }

    /// Returns the number of placements that were planned.
    pub(crate) fn planned(&self) -> usize {
        self.placements.values().map(Vec::len).sum()
    }
}

/// Returns the layers (by index) that stand for all: at equal distances in the order of their skew.
fn sample_layers(trace: &Trace) -> Vec<usize> {
    let idle = trace.idle_layers();
    let mut busy: Vec<usize> =
        (0..trace.layers().len()).filter(|layer| idle.binary_search(layer).is_err()).collect();
    let skew = |layer: &usize| {
        let totals = trace.totals(*layer);
        let sum: f64 = totals.iter().map(|&total| total as f64).sum();
        let square: f64 = totals.iter().map(|&total| (total as f64 / sum.max(1.0)).powi(2)).sum();
        (square * 1e12) as u64
    };
    busy.sort_by_key(|layer| (skew(layer), *layer));
    let count = busy.len().min(SAMPLED_LAYERS);
    (0..count).map(|at| busy[(2 * at + 1) * busy.len() / (2 * count)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel::split::Roofline;

    #[test]
    fn choices_fill_the_ranks() {
        let choices = BalanceChoice::of_ranks(32, 256, 2);
        assert_eq!(choices.len(), 1 + 2 + 4 + 4);
        // 96 ranks need 32 redundant slots for three slots each.
        let choices = BalanceChoice::of_ranks(96, 256, 1);
        assert!(choices.iter().all(|choice| (256 + choice.redundant) % 96 == 0));
        assert!(choices.iter().all(|choice| choice.policy != BalancePolicy::Nothing));
    }

    #[test]
    fn figures_are_computed_once_and_do_not_depend_on_the_order() {
        let loads: Vec<u64> = (0..6u64 * 5 * 8).map(|at| 10 + at * at % 37).collect();
        let steps = (0..6).map(|step| step.to_string()).collect();
        let trace = Trace::from_loads(8, vec![0, 1, 2, 3, 4], steps, loads).unwrap();
        let kernel = |_: u64, _: &BalanceKey| -> Arc<dyn CostModel> {
            Arc::new(Roofline { read: 1_000, token: 100, tile: 1 })
        };
        let key = |ranks, tokens| BalanceKey {
            choice: BalanceChoice { ranks, redundant: ranks, policy: BalancePolicy::Eplb, exact: true },
            expert_tp: 1,
            is_prefill: false,
            tokens,
        };
        let table = |keys: &[BalanceKey]| {
            let mut table = BalanceTable::new(&trace, 2, 8, 0);
            table.compute(keys, &kernel, &()).unwrap();
            table
        };
        let (first, second) =
            (table(&[key(2, 40), key(4, 80)]), table(&[key(4, 80), key(2, 40), key(4, 80)]));
        assert_eq!(first.layers.len(), SAMPLED_LAYERS);
        assert_eq!(first.planned(), 2 * SAMPLED_LAYERS);
        assert_eq!(first.get(&key(4, 80)), second.get(&key(4, 80)));
        assert!(first.get(&key(4, 80)).unwrap().imbalance >= 1.0);
    }
}
