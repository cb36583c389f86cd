//! Runs a plan step by step, compared with no plan and with perfect balance, and measures, checks and records
//! it.
//!
//! Input: a [`ExecRun`] and the trace on which its first placements are planned. Output: an [`RunReport`].
//! Every step runs the same tokens three times:
//!
//! 1. on the plan;
//! 2. on the contiguous placement without a split;
//! 3. as the second, but with other choices, which load every expert equally. No plan can beat this one.
//!
//! The first step of each is not timed.

mod backends;
mod placement;
mod report;

pub use report::{RunReport, RunVariant, StepRow, StepTime};

use super::activations::ActivationGenerator;
use super::backend::{Backend, ExecConfig, LayerRun, RoutingSource};
use super::batch_source::{BatchSource, balanced_ids, split_rows};
use super::error::ExecError;
use super::forward::{StepRun, run_step};
use super::migration::{ExpertMigrator, MigrationStats};
use super::reference::Reference;
use super::router::Router;
use super::weights::WeightSource;
use evenkeel::economics::MoveEconomics;
use evenkeel::place::{Contiguous, Placement, Policy};
use evenkeel::split::{Split, Splitter};
use std::ops::Range;
use std::sync::Arc;

/// The schedule of re-planning during a run.
#[derive(Debug, Clone)]
pub struct RunReplan {
    /// Steps between two re-plannings; each plans on the same number of past steps. A re-planning is skipped
    /// while the previous one is still being copied.
    pub every: usize,
    /// Bytes of weights to copy per step.
    pub budget: u64,
    /// Maximum number of moves per layer and plan; `None` sets no limit.
    pub max_moves: Option<usize>,
    /// Economics by which moves have to pay until the next plan; `None` accepts all moves.
    pub economics: Option<MoveEconomics>,
}

/// The description of a run.
#[derive(Clone)]
pub struct ExecRun<'a> {
    /// Shapes, group, router and split.
    pub exec: ExecConfig,
    /// The source of the weights.
    pub weights: Arc<dyn WeightSource>,
    /// The source of the batches.
    pub feed: &'a BatchSource,
    /// Layers that run: indices into the feed's trace. Any indices are valid if the feed has no trace.
    pub layers: Vec<usize>,
    /// Steps of the feed that run.
    pub steps: Range<usize>,
    /// The source of the token vectors.
    pub activations: ActivationGenerator,
    /// The policy that computes placements.
    pub policy: &'a dyn Policy,
    /// The schedule of re-planning, if any.
    pub replan: Option<RunReplan>,
    /// True to compare the results with the reference.
    pub check: bool,
    /// True to run the steps also without a plan, and with perfect balance.
    pub compare: bool,
}

impl std::fmt::Debug for ExecRun<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("exec", &self.exec).field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// Receiver of the progress of a run, called after each step.
pub trait StepProgress {
    /// Reports that `done` of `total` steps have run.
    fn report_steps(&self, done: usize, total: usize);
}

impl StepProgress for () {
    fn report_steps(&self, _: usize, _: usize) {}
}

impl ExecRun<'_> {
    /// Runs all steps on `planned`, whose placements change at each re-planning. Also runs them on `plain` if
    /// given, which has the contiguous placement and no split.
    ///
    /// # Errors
    /// Fails if there is nothing to run, or if a step fails.
    pub fn run(
        &self,
        planned: &mut dyn Backend,
        mut plain: Option<&mut dyn Backend>,
        progress: &dyn StepProgress,
    ) -> Result<RunReport, ExecError> {
        if self.steps.is_empty() || self.layers.is_empty() {
            return Err(ExecError::Nothing("nothing to run: no steps, or no layers".into()));
        }
        let contiguous = self.contiguous_placement()?;
        let mut reference = self.check.then(|| Reference::new(self.exec.clone(), Arc::clone(&self.weights)));
        if self.replan.is_some() && self.exec.dynamic_slots().is_some() {
            return Err(ExecError::Combination("dynamic slots and re-planning during a run"));
        }
        let mut outcome = RunReport::new(self);
        let mut predictors = self.load_predictors(planned)?;
        let mut mover = ExpertMigrator::new(self.replan.as_ref().map_or(0, |replan| replan.budget));
        for (at, of_feed) in self.steps.clone().enumerate() {
            let moved = mover.between_steps(planned)?;
            let batch = StepBatch::new(self, of_feed, &contiguous, planned);
            let mut row = StepRow { tokens: batch.tokens, moved, ..StepRow::default() };
            // Each variant goes first equally often.
            for turn in 0..3 {
                let variant = RunVariant::ALL[(at + turn) % 3];
                let (backend, reference): (&mut dyn Backend, _) = match (variant, plain.as_deref_mut()) {
                    (RunVariant::Plan, _) => (&mut *planned, reference.as_mut()),
                    (_, Some(plain)) => (plain, None),
                    (_, None) => continue,
                };
                let run = batch.run_variant(self, of_feed, variant, backend, reference)?;
                if variant == RunVariant::Plan {
                    row.predicted = self.predict_loads(backend, &run, &mut predictors)?;
                }
                row.record_variant(variant, &run);
                outcome.record_step(variant, &run, at > 0 || self.steps.len() == 1);
            }
            outcome.record_memory(planned);
            outcome.steps.push(row);
            // A plan that has not arrived yet is not replaced. Otherwise a small budget would never complete
            // one.
            let due = |replan: &&RunReplan| (at + 1).is_multiple_of(replan.every.max(1)) && mover.is_done();
            if let Some(replan) = self.replan.as_ref().filter(due) {
                let recent = outcome.load_trace()?;
                let window = (at + 1).saturating_sub(replan.every)..at + 1;
                for layer in 0..self.layers.len() {
                    // No copy is under way, so the current plan is the one to start from.
                    let previous = planned.placement(layer);
                    let placement = self.replan_layer(&recent, layer, window.clone(), previous, replan)?;
                    planned.check_next_placement(layer, &placement)?;
                    mover.set_target(planned, layer, placement);
                }
                outcome.replans += 1;
            }
            progress.report_steps(at + 1, self.steps.len());
        }
        Ok(outcome)
    }

    /// Returns a splitter per layer that remembers the contents of dynamic slots, or none without such slots.
    fn load_predictors(&self, backend: &dyn Backend) -> Result<Vec<Splitter>, ExecError> {
        let Some(slots) = self.exec.dynamic_slots() else { return Ok(Vec::new()) };
        let of_layer =
            |layer| Ok(Splitter::builder(backend.placement(layer).clone()).dynamic_slots(slots).build()?);
        (0..self.layers.len()).map(of_layer).collect()
    }

    /// Returns the load of every rank that the split of each layer's counts predicts, `[layer][R]`, without
    /// running anything.
    fn predict_loads(
        &self,
        backend: &dyn Backend,
        run: &StepRun,
        predictors: &mut [Splitter],
    ) -> Result<Vec<Vec<u64>>, ExecError> {
        let Some(method) = self.exec.method else { return Ok(Vec::new()) };
        let of_layer = |(layer, run): (usize, &LayerRun)| {
            if let Some(splitter) = predictors.get_mut(layer) {
                let mut split = Split::default();
                splitter.split(&run.counts, &mut split)?;
                splitter.check(&run.counts, &split)?;
                return Ok(split.rank_loads);
            }
            let placement = backend.placement(layer);
            if let (Some(_), Some(mut planner)) = (self.exec.tie_break, self.exec.create_planner(placement)?)
            {
                let counts = run.source_counts();
                let loads = planner.split(&counts)?.rank_loads.clone();
                planner.check(&counts)?;
                return Ok(loads);
            }
            let nodes = self.exec.cluster.nodes();
            let (mut split, mut splitter) =
                (Split::default(), Splitter::builder(placement.clone()).method(method).nodes(nodes).build()?);
            splitter.split(&run.counts, &mut split)?;
            splitter.check(&run.counts, &split)?;
            Ok(split.rank_loads)
        };
        run.layers.iter().enumerate().map(of_layer).collect()
    }

    /// Returns the placement of a run without a plan.
    ///
    /// # Errors
    /// Fails if the group cannot hold the experts.
    pub fn contiguous_placement(&self) -> Result<Placement, ExecError> {
        Ok(Contiguous::placement(self.exec.model.experts, &self.exec.cluster)?)
    }
}

/// The tokens and choices of one step.
struct StepBatch {
    tokens: usize,
    /// Tokens per rank, `[token][H]`. Empty for ranks of another process.
    x: Vec<Vec<f32>>,
    /// Recorded choices per layer and rank, `[token][k]`. `None` if nothing was recorded.
    recorded: Option<Vec<Vec<Vec<i32>>>>,
    /// Balanced choices per rank, `[token][k]`.
    balanced: Vec<Vec<i32>>,
    top_k: usize,
}

impl StepBatch {
    fn new(run: &ExecRun<'_>, of_feed: usize, contiguous: &Placement, backend: &dyn Backend) -> Self {
        let ranks = run.exec.cluster.ranks();
        let tokens = run.feed.token_count(of_feed, &run.layers);
        let top_k = run.feed.top_k().or(run.exec.router.fixed_top_k()).unwrap_or(run.exec.model.top_k);
        let recorded = run
            .layers
            .iter()
            .map(|&layer| Some(split_rows(&run.feed.expert_ids(of_feed, layer, tokens)?, top_k, ranks)))
            .collect::<Option<Vec<_>>>();
        // The first expert of every rank comes first, then the second of every rank: consecutive choices go
        // to different ranks.
        let per_rank = contiguous.slots_per_rank();
        let order = (0..per_rank).flat_map(|s| (0..ranks).map(move |r| r * per_rank + s));
        let experts: Vec<u32> = order.filter_map(|slot| contiguous.slots()[slot]).collect();
        let balanced = split_rows(&balanced_ids(tokens, top_k, &experts), top_k, ranks);
        let of_rank = |(rank, ids): (usize, &Vec<i32>)| {
            let tokens = if backend.is_local(rank) { ids.len() / top_k.max(1) } else { 0 };
            run.activations.token_vectors(of_feed as u64, rank, tokens)
        };
        let x = balanced.iter().enumerate().map(of_rank).collect();
        Self { tokens, x, recorded, balanced, top_k }
    }

    fn run_variant(
        &self,
        run: &ExecRun<'_>,
        of_feed: usize,
        variant: RunVariant,
        backend: &mut dyn Backend,
        reference: Option<&mut Reference>,
    ) -> Result<StepRun, ExecError> {
        let replay = |ids, and_route| RoutingSource::Replay {
            ids,
            top_k: self.top_k,
            weights: None,
            slots: None,
            also_run_router: and_route,
        };
        let routed = |layer: usize| match (&self.recorded, variant) {
            // The mixtures of a soft router are already balanced.
            (None, RunVariant::Balanced) if !matches!(run.exec.router, Router::Soft { .. }) => {
                replay(&self.balanced[..], true)
            }
            (None, _) => RoutingSource::Router,
            (Some(_), RunVariant::Balanced) => replay(&self.balanced[..], false),
            (Some(recorded), _) => replay(&recorded[layer][..], false),
        };
        let mut x = self.x.clone();
        run_step(backend, run.layers.len(), of_feed as u64, &mut x, routed, reference)
    }
}
