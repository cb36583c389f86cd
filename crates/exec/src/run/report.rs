//! The results of a run.

use super::{ExecRun, MigrationStats};
use crate::backend::{Backend, LayerStage, StageTimes};
use crate::error::ExecError;
use crate::forward::StepRun;
use crate::placement_state::WeightBytes;
use crate::reference::ReferenceCheck;
use crate::router::RouterLoss;
use evenkeel::evaluate::SummaryStats;
use evenkeel::planner::TokenCopies;
use evenkeel::trace::Trace;
use std::time::Duration;

/// The three variants that a run compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunVariant {
    /// The contiguous placement, without redundant slots and without a split.
    None,
    /// The plan.
    Plan,
    /// The contiguous placement without a split, with the same number of choices, spread equally over the
    /// experts.
    Balanced,
}

impl RunVariant {
    /// All variants, in the order of tables.
    pub const ALL: [RunVariant; 3] = [RunVariant::None, RunVariant::Plan, RunVariant::Balanced];

    /// Returns the name in tables and documents.
    pub fn name(self) -> &'static str {
        match self {
            RunVariant::None => "none",
            RunVariant::Plan => "plan",
            RunVariant::Balanced => "balanced",
        }
    }
}

/// The time of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StepTime {
    /// The time if all ranks ran at once: between two exchanges every rank waits for the slowest. Each rank
    /// is timed alone, and links cost nothing.
    pub modelled: Duration,
    /// The time of all ranks one after the other.
    pub wall: Duration,
}

/// The results of one step.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct StepRow {
    /// Tokens of all ranks.
    pub tokens: usize,
    /// The load that every rank served on the plan, `[layer][R]`.
    pub served: Vec<Vec<u64>>,
    /// The load that the split alone predicts, `[layer][R]`.
    pub predicted: Vec<Vec<u64>>,
    /// The load that every rank served without a plan, `[layer][R]`.
    pub unplanned: Vec<Vec<u64>>,
    /// Times, indexed by [`RunVariant::ALL`].
    pub(super) times: [StepTime; 3],
    /// The moves before this step.
    pub moved: MigrationStats,
    /// Experts copied into dynamic slots on the plan, over all layers.
    pub expert_copies: u64,
    /// Time for which the slowest rank waited for copies, over all layers.
    pub copy_wait: Duration,
}

impl StepRow {
    /// Returns the time of a variant; 0 if it did not run.
    pub fn time(&self, variant: RunVariant) -> StepTime {
        self.times[variant as usize]
    }

    pub(super) fn record_variant(&mut self, variant: RunVariant, run: &StepRun) {
        self.times[variant as usize] = StepTime { modelled: run.modelled_time(), wall: run.wall };
        let served = || run.layers.iter().map(|layer| layer.rank_loads.clone()).collect();
        match variant {
            RunVariant::None => self.unplanned = served(),
            RunVariant::Plan => {
                self.served = served();
                self.expert_copies = run.layers.iter().map(|layer| layer.expert_copies).sum();
                let waits = run.layers.iter().map(|layer| layer.copy_waits.iter().copied().max());
                self.copy_wait = waits.map(Option::unwrap_or_default).sum();
            }
            RunVariant::Balanced => {}
        }
    }
}

/// The results of a whole run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunReport {
    /// The results of each step.
    pub steps: Vec<StepRow>,
    /// The deviation from the reference over all steps, if the run was checked.
    pub check: Option<ReferenceCheck>,
    /// Time per rank and phase over the timed steps, indexed by [`RunVariant::ALL`], `[R]` each.
    times: [Vec<StageTimes>; 3],
    /// Largest number of bytes of experts per rank, in use and in staging slots.
    pub memory: Vec<WeightBytes>,
    /// The token rows that travelled on the plan.
    pub copies: TokenCopies,
    /// Choices on the plan that exceeded the capacity.
    pub dropped: u64,
    /// Mean losses of the router, over steps, layers and sources with tokens. 0 if no router ran.
    pub loss: RouterLoss,
    /// Number of re-plannings.
    pub replans: usize,
    experts: usize,
    layers: Vec<u32>,
    first: usize,
    /// Loads on the plan, `[step][layer][E]`.
    loads: Vec<u64>,
    losses: usize,
}

impl RunReport {
    pub(super) fn new(run: &ExecRun<'_>) -> Self {
        let ranks = run.exec.cluster.ranks();
        let id = |&layer: &usize| run.feed.trace().map_or(layer as u32, |trace| trace.layers()[layer]);
        Self {
            steps: Vec::new(),
            check: None,
            times: std::array::from_fn(|_| vec![StageTimes::default(); ranks]),
            memory: vec![WeightBytes::default(); ranks],
            copies: TokenCopies::default(),
            dropped: 0,
            loss: RouterLoss::default(),
            replans: 0,
            experts: run.exec.model.experts,
            layers: run.layers.iter().map(id).collect(),
            first: run.steps.start,
            loads: Vec::new(),
            losses: 0,
        }
    }

    pub(super) fn record_step(&mut self, variant: RunVariant, run: &StepRun, timed: bool) {
        for layer in &run.layers {
            if timed {
                for (sum, times) in self.times[variant as usize].iter_mut().zip(&layer.times) {
                    sum.iter_mut().zip(times).for_each(|(sum, &time)| *sum += time);
                }
            }
            if variant != RunVariant::Plan {
                continue;
            }
            self.loads.extend(&layer.counts);
            self.copies = self.copies.plus(layer.copies);
            for routed in layer.routed.iter().filter(|routed| routed.is_remote || !routed.logits.is_empty()) {
                self.dropped += routed.routing.dropped;
                self.losses += 1;
                let (loss, n) = (routed.routing.loss, self.losses as f64);
                self.loss.balance += (loss.balance - self.loss.balance) / n;
                self.loss.z += (loss.z - self.loss.z) / n;
            }
        }
        if let Some(check) = run.check {
            self.check = Some(self.check.unwrap_or_default().merge(check));
        }
    }

    pub(super) fn record_memory(&mut self, backend: &dyn Backend) {
        for (most, now) in self.memory.iter_mut().zip(backend.memory()) {
            most.in_use = now.in_use.max(most.in_use);
            most.staged = now.staged.max(most.staged);
        }
    }

    /// Returns the loads of the run as a trace.
    ///
    /// # Errors
    /// Fails if there are more loads than a trace can hold.
    pub fn load_trace(&self) -> Result<Trace, ExecError> {
        let steps = self.loads.len() / (self.experts * self.layers.len()).max(1);
        let labels = (self.first..self.first + steps).map(|step| step.to_string()).collect();
        Ok(Trace::from_loads(self.experts, self.layers.clone(), labels, self.loads.clone())?)
    }

    /// Returns the peak divided by the mean of every batch with tokens, layer by layer as in a simulation.
    fn imbalance_of(&self, of: impl Fn(&StepRow) -> &[Vec<u64>]) -> SummaryStats {
        let one = |loads: &Vec<u64>| {
            let (sum, peak) = (loads.iter().sum::<u64>(), loads.iter().copied().max().unwrap_or(0));
            (sum > 0).then(|| peak as f64 / (sum as f64 / loads.len() as f64))
        };
        let layers = 0..self.layers.len();
        let all = layers.flat_map(|layer| self.steps.iter().map(move |step| (step, layer)));
        SummaryStats::from_values(all.filter_map(|(step, layer)| one(of(step).get(layer)?)).collect())
    }

    /// Returns the imbalance of the measured loads.
    pub fn measured_imbalance(&self) -> SummaryStats {
        self.imbalance_of(|step| &step.served)
    }

    /// Returns the imbalance that the split alone predicts.
    pub fn predicted_imbalance(&self) -> SummaryStats {
        self.imbalance_of(|step| &step.predicted)
    }

    /// Returns the imbalance without a plan.
    pub fn unplanned_imbalance(&self) -> SummaryStats {
        self.imbalance_of(|step| &step.unplanned)
    }

    /// Returns whether every rank served exactly the predicted tokens in every batch.
    pub fn matches_prediction(&self) -> bool {
        self.steps.iter().all(|step| step.served == step.predicted)
    }

    /// Returns the timed steps: all but the first, unless there is only one.
    pub fn timed_steps(&self) -> &[StepRow] {
        if self.steps.len() > 1 { &self.steps[1..] } else { &self.steps }
    }

    /// Returns the median over the steps of a variant's tokens per second; `None` if it did not run.
    pub fn token_rate(&self, variant: RunVariant, of: fn(&StepTime) -> Duration) -> Option<f64> {
        let one = |step: &StepRow| {
            let time = of(&step.time(variant));
            (!time.is_zero()).then(|| step.tokens as f64 / time.as_secs_f64())
        };
        let rates: Vec<f64> = self.timed_steps().iter().filter_map(one).collect();
        (!rates.is_empty()).then(|| SummaryStats::from_values(rates).p50)
    }

    /// Returns the speed of a variant as a share of perfect balance: the median over the steps of the ratio
    /// of modelled times.
    pub fn share_of_balanced(&self, variant: RunVariant) -> Option<f64> {
        let one = |step: &StepRow| {
            let [time, balanced] = [variant, RunVariant::Balanced].map(|v| step.time(v).modelled);
            (!time.is_zero() && !balanced.is_zero()).then(|| balanced.as_secs_f64() / time.as_secs_f64())
        };
        let shares: Vec<f64> = self.timed_steps().iter().filter_map(one).collect();
        (!shares.is_empty()).then(|| SummaryStats::from_values(shares).p50)
    }

    /// Returns the mean time of a phase per step on a rank.
    pub fn stage_time(&self, variant: RunVariant, rank: usize, phase: LayerStage) -> Duration {
        let steps = self.timed_steps().len().max(1) as u32;
        self.times[variant as usize][rank][phase as usize] / steps
    }

    /// Returns the sums over all steps: copies, their bytes, layer switches, the time spent waiting for
    /// copies, and the background copying time to each rank.
    pub fn total_moves(&self) -> MigrationStats {
        let mut all =
            MigrationStats { copied: vec![Duration::ZERO; self.memory.len()], ..MigrationStats::default() };
        for moved in self.steps.iter().map(|step| &step.moved) {
            all.copies += moved.copies;
            all.bytes += moved.bytes;
            all.waited += moved.waited;
            all.switched.extend(&moved.switched);
            all.copied.iter_mut().zip(&moved.copied).for_each(|(sum, &time)| *sum += time);
        }
        all
    }
}
