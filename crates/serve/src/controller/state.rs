//! One phase of one model: what has been seen, the plan in force, and what follows from both.
//!
//! In: accepted steps one after the other, and requests (plan now, a rank went). Out: how each step was served, and
//! proposals ([`Proposal`]) that take effect when they are applied. A lane knows no clock, thread or file: the same steps and
//! requests in the same order give the same plans, whether live, after a restart, or in a replay without any server.

use super::decide::{Figures, Proposal};
use super::options::{DecideOptions, Shape, SpecError};
use super::points::Points;
use super::price::{CopyBudget, CopyPrice};
use super::record::{CopyStatus, Decision, Point, Trigger};
use super::{Next, Phase};
use crate::cluster::Cluster;
use crate::place::{Contiguous, PlaceError, Placement};
use crate::plan::{LayerPlan, Plan, Provenance};
use crate::simulate::Summary;
use crate::split::{Layers, Method, SplitError};
use crate::trace::TraceError;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use thiserror::Error;

/// Latest steps whose rank loads are kept for display.
pub(crate) const SHOWN: usize = 16;

/// A step that was accepted.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its place in the order of acceptance, from 1.
    pub accepted: u64,
    /// The poster's number.
    pub id: u64,
    /// Tokens, `[L][E]`.
    pub counts: Arc<[u32]>,
}

/// How one step was served: exact splits on the plan in force.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// Busiest rank's tokens of each layer, `[L]`.
    pub peaks: Vec<u64>,
    /// Tokens of each layer, `[L]`.
    pub totals: Vec<u64>,
    /// Tokens of each rank of each layer, `[L][R]`.
    pub rank_loads: Vec<u64>,
}

impl Served {
    /// Mean over the busy layers of peak over mean, the worst layer's, and the mean of the least possible.
    pub fn imbalance(&self, ranks: usize) -> (f64, f64, f64) {
        let (mut sum, mut max, mut bound, mut busy) = (0.0, 0.0f64, 0.0, 0usize);
        for (&peak, &total) in self.peaks.iter().zip(&self.totals).filter(|&(_, &total)| total > 0) {
            let mean = total as f64 / ranks as f64;
            sum += peak as f64 / mean;
            max = max.max(peak as f64 / mean);
            bound += total.div_ceil(ranks as u64) as f64 / mean;
            busy += 1;
        }
        let busy = busy.max(1) as f64;
        (sum / busy, max, bound / busy)
    }
}

/// Why a lane could not do something.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The shape or options do not fit.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The policy failed.
    #[error("layer {layer}: {source}")]
    Place {
        /// Real layer id.
        layer: u32,
        /// Why.
        source: PlaceError,
    },
    /// A batch could not be split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The window is no trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A placement cannot be had.
    #[error(transparent)]
    Policy(#[from] PlaceError),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Asked(String),
}

/// One phase of one model.
#[derive(Debug)]
pub struct Lane {
    pub(super) shape: Shape,
    pub(super) options: DecideOptions,
    pub(super) phase: Phase,
    /// Real layer ids, `[L]`.
    pub(super) layers: Vec<u32>,
    pub(super) experts: usize,
    /// The whole group.
    pub(super) base: Cluster,
    /// What is left of it.
    pub(super) cluster: Cluster,
    pub(super) down: BTreeSet<usize>,
    pub(super) accepted: u64,
    pub(super) last_step: Option<u64>,
    /// The latest steps, for planning.
    pub(super) window: VecDeque<Seen>,
    /// In force, `[L]`; contiguous until there is a plan.
    pub(super) placements: Vec<Placement>,
    /// Has the layer been planned? `[L]`
    pub(super) planned: Vec<bool>,
    /// What to expect of each layer, `[L]`.
    pub(super) figures: Vec<Figures>,
    pub(super) splitters: Layers,
    /// Plans of this lane are numbered from 1; 0: none yet.
    pub(super) version: u64,
    /// The steps that the plan in force was decided after.
    pub(super) plan_accepted: u64,
    pub(super) plan_step: Option<u64>,
    /// Steps accepted when a decision was last made.
    pub(super) decided: u64,
    /// The imbalance that decision expected.
    pub(super) expected: f64,
    /// Decisions so far.
    pub(super) decisions: u64,
    pub(super) points: Points,
    /// The price of copies, and the time that they may take.
    pub(super) copies: CopyBudget,
    /// How the latest steps are served by the plan in force.
    pub(super) recent: VecDeque<Served>,
    /// The plan that was last considered.
    pub(super) next: Option<Next>,
    loads: Vec<u64>,
}

impl Lane {
    /// An empty lane: nothing seen, experts in order.
    ///
    /// # Errors
    /// When the experts do not fit the shape, or the policy is unknown.
    pub fn new(
        shape: Shape,
        options: DecideOptions,
        phase: Phase,
        layers: Vec<u32>,
        experts: usize,
    ) -> Result<Self, LaneError> {
        let base = shape.cluster(experts)?;
        let placement = Contiguous::placement(experts, &base)?;
        let placements = vec![placement; layers.len()];
        let price = CopyPrice::of(&shape, layers.len(), experts)?;
        Ok(Self {
            splitters: Layers::new(placements.iter().cloned(), Method::Exact)?,
            planned: vec![false; layers.len()],
            figures: vec![Figures::default(); layers.len()],
            placements,
            copies: CopyBudget::of(price, &options),
            shape,
            options,
            phase,
            layers,
            experts,
            base,
            cluster: base,
            down: BTreeSet::new(),
            accepted: 0,
            last_step: None,
            window: VecDeque::new(),
            version: 0,
            plan_accepted: 0,
            plan_step: None,
            decided: 0,
            expected: 0.0,
            decisions: 0,
            points: Points::default(),
            recent: VecDeque::new(),
            next: None,
            loads: Vec::new(),
        })
    }

    /// Takes the next step in: how it was served, and whether a decision is due now.
    ///
    /// # Errors
    /// When the batch cannot be split: its counts do not fit, or their sum overflows.
    pub fn step(&mut self, seen: Seen, at: u64) -> Result<Option<Trigger>, LaneError> {
        let served = self.serve(&seen.counts)?;
        let (mean, max, bound) = served.imbalance(self.cluster.ranks());
        self.accepted = seen.accepted;
        self.last_step = Some(seen.id);
        self.copies.step();
        self.points.push(Point {
            accepted: seen.accepted,
            step: seen.id,
            steps: 1,
            mean,
            max,
            bound,
            plan: self.version,
            at,
        });
        self.recent.push_back(served);
        while self.recent.len() > self.recent_kept() {
            self.recent.pop_front();
        }
        self.window.push_back(seen);
        while self.window.len() > self.options.kept() {
            self.window.pop_front();
        }
        Ok(self.due())
    }

    /// Whether a decision is due.
    pub(super) fn due(&self) -> Option<Trigger> {
        let since = self.accepted.saturating_sub(self.decided);
        if self.version == 0 {
            return (since >= self.options.first_after).then_some(Trigger::First);
        }
        if since >= self.options.every {
            return Some(Trigger::Interval);
        }
        let drifts = self.options.drift > 0.0 && since >= self.options.min_every;
        (drifts && self.drifted() > self.expected + self.options.drift).then_some(Trigger::Drift)
    }

    /// Mean imbalance of the last `min_every` steps.
    pub(super) fn drifted(&self) -> f64 {
        let steps = usize::try_from(self.options.min_every).unwrap_or(1).clamp(1, self.recent.len().max(1));
        let ranks = self.cluster.ranks();
        let sum: f64 = self.recent.iter().rev().take(steps).map(|served| served.imbalance(ranks).0).sum();
        sum / steps as f64
    }

    fn recent_kept(&self) -> usize {
        SHOWN.max(usize::try_from(self.options.min_every).unwrap_or(SHOWN).min(256))
    }

    fn serve(&mut self, counts: &[u32]) -> Result<Served, LaneError> {
        self.loads.clear();
        self.loads.extend(counts.iter().map(|&count| u64::from(count)));
        let splits = self.splitters.split(&self.loads)?;
        let mut served = Served::default();
        for split in splits {
            served.peaks.push(split.peak());
            served.totals.push(split.rank_loads.iter().sum());
            served.rank_loads.extend_from_slice(&split.rank_loads);
        }
        Ok(served)
    }

    /// Puts a proposal in force, or only notes that it was made.
    ///
    /// # Errors
    /// When its placements cannot be split on; the lane is as it was.
    pub fn apply(&mut self, proposal: &Proposal) -> Result<(), LaneError> {
        if proposal.acts {
            let splitters = Layers::new(proposal.placements.iter().cloned(), Method::Exact)?;
            self.splitters = splitters;
            self.cluster = proposal.cluster;
            self.down.clone_from(&proposal.down);
            self.placements.clone_from(&proposal.placements);
            self.planned.clone_from(&proposal.planned);
            self.figures.clone_from(&proposal.figures);
            if proposal.decision.plan > self.version {
                self.version = proposal.decision.plan;
                self.plan_accepted = self.accepted;
                self.plan_step = self.last_step;
            }
            self.serve_recent_again()?;
        }
        if !proposal.asked_only {
            if proposal.acts {
                self.copies.pay(proposal.decision.moves);
            }
            self.note(&proposal.decision);
            self.expected = proposal.expected;
        }
        self.next.clone_from(&proposal.next);
        Ok(())
    }

    /// Counts a decision that changes nothing.
    pub fn note(&mut self, decision: &Decision) {
        self.decisions = decision.number;
        self.decided = self.accepted;
    }

    /// The latest steps as the plan in force serves them.
    pub(super) fn serve_recent_again(&mut self) -> Result<(), LaneError> {
        let skip = self.window.len().saturating_sub(self.recent_kept());
        let steps: Vec<Arc<[u32]>> = self.window.iter().skip(skip).map(|seen| seen.counts.clone()).collect();
        self.recent.clear();
        for counts in steps {
            let served = self.serve(&counts)?;
            self.recent.push_back(served);
        }
        Ok(())
    }

    /// Real ranks by their numbers in the plan.
    pub fn ranks(&self) -> Vec<u32> {
        (0..self.base.ranks()).filter(|rank| !self.down.contains(rank)).map(|rank| rank as u32).collect()
    }

    /// Ranks that are gone.
    pub fn down(&self) -> BTreeSet<usize> {
        self.down.clone()
    }

    /// The plan in force; none before the first.
    pub fn plan(&self) -> Option<Plan> {
        if self.version == 0 {
            return None;
        }
        let planned =
            |planned: bool| (0..self.layers.len()).filter(move |&layer| self.planned[layer] == planned);
        let layers: Vec<LayerPlan> = planned(true)
            .map(|layer| LayerPlan {
                layer: self.layers[layer],
                placement: self.placements[layer].clone(),
                imbalance: self.figures[layer].after.max(self.figures[layer].bound),
                bound: self.figures[layer].bound,
            })
            .collect();
        Some(Plan {
            cluster: self.cluster,
            experts: self.experts,
            idle_layers: planned(false).map(|layer| self.layers[layer]).collect(),
            provenance: Provenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                policy: self.options.policy.clone(),
                target: None,
                split: Method::Exact.to_string(),
                seed: 0,
                batches: format!(
                    "live steps ({}), decided after step {}, the {}th accepted",
                    self.phase,
                    self.plan_step.map_or("none".into(), |step| step.to_string()),
                    self.plan_accepted
                ),
                judged: self.figures.iter().map(|figures| figures.batches).sum(),
                imbalance: Summary::of(layers.iter().map(|layer| layer.imbalance).collect()),
                figures: vec![],
                trace: vec![],
            },
            layers,
        })
    }

    /// Steps accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Version of the plan in force; 0: none yet.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// In force, `[L]`.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// The latest step's imbalance: mean over layers, the worst layer's, the least possible.
    pub fn last_served(&self) -> Option<(f64, f64, f64)> {
        self.recent.back().map(|served| served.imbalance(self.cluster.ranks()))
    }

    /// Returns the price of copies, the time that they may take, and the time that they took so far.
    pub fn copies(&self) -> CopyStatus {
        self.copies.status()
    }

    /// The latest point of the history.
    pub fn latest(&self) -> Option<&Point> {
        self.points.all().last()
    }

    /// Takes other options from the next step on.
    pub fn set_options(&mut self, options: DecideOptions) {
        self.copies = CopyBudget::of(self.copies.price.clone(), &options).going_on(self.copies.ledger);
        self.options = options;
    }
}
