//! What a run found.

use super::{Moved, Run};
use crate::exec::backend::{Backend, Phase, Times};
use crate::exec::error::ExecError;
use crate::exec::forward::StepRun;
use crate::exec::reference::Check;
use crate::planner::Copies;
use crate::simulate::Summary;
use crate::trace::Trace;
use std::time::Duration;

/// What runs beside what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The contiguous placement, no copies, nothing planned.
    None,
    /// The plan.
    Plan,
    /// As many choices, but every expert gets as many; contiguous, nothing planned.
    Balanced,
}

impl Variant {
    /// All of them, in the order in which tables show them.
    pub const ALL: [Variant; 3] = [Variant::None, Variant::Plan, Variant::Balanced];

    /// As tables and documents call it.
    pub fn name(self) -> &'static str {
        match self {
            Variant::None => "none",
            Variant::Plan => "plan",
            Variant::Balanced => "balanced",
        }
    }
}

/// How long one step took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timed {
    /// If all ranks ran at once: between two exchanges everybody waits for the slowest, each timed alone; wires cost nothing.
    pub modelled: Duration,
    /// All ranks one after the other.
    pub wall: Duration,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepRow {
    /// Tokens of all ranks.
    pub tokens: usize,
    /// What every rank really served on the plan, `[layer][R]`.
    pub served: Vec<Vec<u64>>,
    /// What the split alone says about it, `[layer][R]`.
    pub predicted: Vec<Vec<u64>>,
    /// What every rank served without a plan, `[layer][R]`.
    pub unplanned: Vec<Vec<u64>>,
    /// By [`Variant::ALL`].
    pub times: [Timed; 3],
    /// What moved before it.
    pub moved: Moved,
}

impl StepRow {
    pub(super) fn take(&mut self, variant: Variant, run: &StepRun) {
        self.times[variant as usize] = Timed { modelled: run.modelled(), wall: run.wall };
        let served = || run.layers.iter().map(|layer| layer.rank_loads.clone()).collect();
        match variant {
            Variant::None => self.unplanned = served(),
            Variant::Plan => self.served = served(),
            Variant::Balanced => {}
        }
    }
}

/// A whole run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Step by step.
    pub steps: Vec<StepRow>,
    /// What the reference says about all of them, where it was asked.
    pub check: Option<Check>,
    /// Time per rank and phase over the timed steps, by [`Variant::ALL`], `[R]` each.
    pub times: [Vec<Times>; 3],
    /// Bytes of experts per rank, in use and in staging slots, at their most.
    pub memory: Vec<[u64; 2]>,
    /// What travelled on the plan.
    pub copies: Copies,
    /// Choices that found no room, on the plan.
    pub dropped: u64,
    /// Mean load-balancing loss and z-loss of the router, over steps, layers and sources with tokens; 0 where none ran.
    pub loss: [f64; 2],
    /// Plans made while it ran.
    pub replans: usize,
    experts: usize,
    layers: Vec<u32>,
    first: usize,
    /// `[step][layer][E]`
    loads: Vec<u64>,
    losses: usize,
}

impl Outcome {
    pub(super) fn new(run: &Run<'_>) -> Self {
        let ranks = run.exec.cluster.ranks();
        let id = |&layer: &usize| run.feed.trace().map_or(layer as u32, |trace| trace.layers()[layer]);
        Self {
            steps: Vec::new(),
            check: None,
            times: std::array::from_fn(|_| vec![Times::default(); ranks]),
            memory: vec![[0; 2]; ranks],
            copies: Copies::default(),
            dropped: 0,
            loss: [0.0; 2],
            replans: 0,
            experts: run.exec.model.experts,
            layers: run.layers.iter().map(id).collect(),
            first: run.steps.start,
            loads: Vec::new(),
            losses: 0,
        }
    }

    pub(super) fn take(&mut self, variant: Variant, run: &StepRun, timed: bool) {
        for layer in &run.layers {
            if timed {
                for (sum, times) in self.times[variant as usize].iter_mut().zip(&layer.times) {
                    sum.iter_mut().zip(times).for_each(|(sum, &time)| *sum += time);
                }
            }
            if variant != Variant::Plan {
                continue;
            }
            self.loads.extend(&layer.counts);
            self.copies = self.copies.plus(layer.copies);
            for routed in layer.routed.iter().filter(|routed| routed.elsewhere || !routed.logits.is_empty()) {
                self.dropped += routed.routing.dropped;
                self.losses += 1;
                let loss = [routed.routing.loss.balance, routed.routing.loss.z];
                let n = self.losses as f64;
                self.loss.iter_mut().zip(loss).for_each(|(mean, loss)| *mean += (loss - *mean) / n);
            }
        }
        if let Some(check) = run.check {
            self.check = Some(self.check.unwrap_or_default().and(check));
        }
    }

    pub(super) fn memory(&mut self, backend: &dyn Backend) {
        for (most, now) in self.memory.iter_mut().zip(backend.memory()) {
            most.iter_mut().zip(now).for_each(|(most, now)| *most = now.max(*most));
        }
    }

    /// The loads of what ran, as a trace.
    ///
    /// # Errors
    /// When there are more than a trace can hold.
    pub fn trace(&self) -> Result<Trace, ExecError> {
        let steps = self.loads.len() / (self.experts * self.layers.len()).max(1);
        let labels = (self.first..self.first + steps).map(|step| step.to_string()).collect();
        Ok(Trace::from_loads(self.experts, self.layers.clone(), labels, self.loads.clone())?)
    }

    /// Peak over mean of every batch with tokens, layer by layer as a simulation has them.
    fn imbalance(&self, of: impl Fn(&StepRow) -> &[Vec<u64>]) -> Summary {
        let one = |loads: &Vec<u64>| {
            let (sum, peak) = (loads.iter().sum::<u64>(), loads.iter().copied().max().unwrap_or(0));
            (sum > 0).then(|| peak as f64 / (sum as f64 / loads.len() as f64))
        };
        let layers = 0..self.layers.len();
        let all = layers.flat_map(|layer| self.steps.iter().map(move |step| (step, layer)));
        Summary::of(all.filter_map(|(step, layer)| one(of(step).get(layer)?)).collect())
    }

    /// The imbalance of what every rank served.
    pub fn measured(&self) -> Summary {
        self.imbalance(|step| &step.served)
    }

    /// What the split alone says it is.
    pub fn predicted(&self) -> Summary {
        self.imbalance(|step| &step.predicted)
    }

    /// That without a plan.
    pub fn unplanned(&self) -> Summary {
        self.imbalance(|step| &step.unplanned)
    }

    /// Whether every rank served in every batch just the tokens that the split says.
    pub fn to_the_token(&self) -> bool {
        self.steps.iter().all(|step| step.served == step.predicted)
    }

    /// Steps that count for times: all but the first, unless there is only one.
    pub fn timed(&self) -> &[StepRow] {
        if self.steps.len() > 1 { &self.steps[1..] } else { &self.steps }
    }

    /// Median over the steps of a variant's tokens per second; `None` where it did not run.
    pub fn rate(&self, variant: Variant, of: fn(&Timed) -> Duration) -> Option<f64> {
        let one = |step: &StepRow| {
            let time = of(&step.times[variant as usize]);
            (!time.is_zero()).then(|| step.tokens as f64 / time.as_secs_f64())
        };
        let rates: Vec<f64> = self.timed().iter().filter_map(one).collect();
        (!rates.is_empty()).then(|| Summary::of(rates).p50)
    }

    /// How fast a variant is as a share of perfectly balanced: the median over the steps of the ratio of modelled times.
    pub fn share_of_balanced(&self, variant: Variant) -> Option<f64> {
        let one = |step: &StepRow| {
            let [time, balanced] = [variant, Variant::Balanced].map(|v| step.times[v as usize].modelled);
            (!time.is_zero() && !balanced.is_zero()).then(|| balanced.as_secs_f64() / time.as_secs_f64())
        };
        let shares: Vec<f64> = self.timed().iter().filter_map(one).collect();
        (!shares.is_empty()).then(|| Summary::of(shares).p50)
    }

    /// Mean time of a phase per step on a rank.
    pub fn phase(&self, variant: Variant, rank: usize, phase: Phase) -> Duration {
        let steps = self.timed().len().max(1) as u32;
        self.times[variant as usize][rank][phase as usize] / steps
    }

    /// Copies, their bytes, layer switches, time waited for copies, and time copied to each rank beside the forward pass.
    pub fn moves(&self) -> Moved {
        let mut all = Moved { copied: vec![Duration::ZERO; self.memory.len()], ..Moved::default() };
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
