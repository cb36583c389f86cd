//! A run: step after step on a plan, beside no plan and a perfect balance, measured, checked and recorded.
//!
//! In: a [`Run`] and the trace that its first placements are planned on. Out: an [`Outcome`]. Every step runs the same tokens
//! three times: as planned; on the contiguous placement with nothing planned; and there again with the choices replaced by
//! ones that load every expert alike, which is what no plan can beat. The first step of each is not timed.

mod outcome;
mod plan;
mod processes;

pub use outcome::{Outcome, StepRow, Timed, Variant};

use super::activations::Activations;
use super::backend::{Backend, ExecConfig, LayerRun, Routed};
use super::cpu::Cpu;
#[cfg(feature = "cuda")]
use super::cuda::{Cuda, Options};
use super::error::ExecError;
use super::feed::{Feed, balanced, parts};
use super::forward::{StepRun, step};
use super::moves::{Moved, Mover};
use super::reference::Reference;
use super::router::Router;
use super::weights::WeightSource;
use crate::place::{Contiguous, Placement, Policy};
use crate::split::{Split, Splitter};
use std::ops::Range;
use std::sync::Arc;

/// Planning again while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replan {
    /// Steps from one plan to the next, or the next but one where the last has not arrived; each is made of so many steps.
    pub every: usize,
    /// Bytes of weights to copy per step.
    pub budget: u64,
    /// Moves per layer and plan, where they are limited.
    pub max_moves: Option<usize>,
}

/// What to run.
#[derive(Clone)]
pub struct Run<'a> {
    /// Shapes, group, router, split.
    pub exec: ExecConfig,
    /// Where weights come from.
    pub weights: Arc<dyn WeightSource>,
    /// Where batches come from.
    pub feed: &'a Feed,
    /// Layers that run: indices into the feed's trace, or any where there is none.
    pub layers: Vec<usize>,
    /// Steps of the feed that run.
    pub steps: Range<usize>,
    /// The tokens themselves.
    pub activations: Activations,
    /// What places.
    pub policy: &'a dyn Policy,
    /// Whether to plan again.
    pub replan: Option<Replan>,
    /// Whether to ask the reference.
    pub check: bool,
    /// Whether to run without a plan, and perfectly balanced, as well.
    pub compare: bool,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("exec", &self.exec).field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// Told after each step.
pub trait Progress {
    /// `done` of `total` steps have run.
    fn steps(&self, done: usize, total: usize);
}

impl Progress for () {
    fn steps(&self, _: usize, _: usize) {}
}

impl Run<'_> {
    /// Runs all steps on the CPU; `placements` is one per layer.
    ///
    /// # Errors
    /// As [`Run::run`].
    pub fn on_cpu(&self, placements: Vec<Placement>, progress: &dyn Progress) -> Result<Outcome, ExecError> {
        let mut planned = Cpu::new(self.exec.clone(), self.weights.as_ref(), placements)?;
        if !self.compare {
            return self.run(&mut planned, None, progress);
        }
        let contiguous = vec![self.contiguous()?; self.layers.len()];
        let mut plain = planned.with(self.weights.as_ref(), contiguous, None)?;
        self.run(&mut planned, Some(&mut plain), progress)
    }

    /// Runs all steps on GPUs. `place` makes the placements, one per layer; it is given the backend that plans nothing, on which it
    /// may profile.
    ///
    /// # Errors
    /// As [`Run::run`], [`Cuda::new`] and `place`.
    #[cfg(feature = "cuda")]
    pub fn on_cuda<E: From<ExecError>>(
        &self,
        options: Options,
        place: impl FnOnce(&mut dyn Backend) -> Result<Vec<Placement>, E>,
        progress: &dyn Progress,
    ) -> Result<Outcome, E> {
        let (weights, exec) = (self.weights.as_ref(), ExecConfig { method: None, ..self.exec.clone() });
        let contiguous = vec![self.contiguous()?; self.layers.len()];
        let mut plain = Cuda::new(exec, options, weights, contiguous)?;
        let placements = place(&mut plain)?;
        let planned = plain.with(weights, placements, self.exec.method)?;
        Ok(self.beside(planned, plain, progress)?)
    }

    /// Runs all steps on `planned`, beside `plain` if they are compared; if not, that one's memory is free again.
    fn beside<B: Backend>(
        &self,
        mut planned: B,
        plain: B,
        progress: &dyn Progress,
    ) -> Result<Outcome, ExecError> {
        let mut plain = self.compare.then_some(plain);
        self.run(&mut planned, plain.as_mut().map(|plain| plain as &mut dyn Backend), progress)
    }

    /// Runs all steps on `planned`, whose placements change where it is planned again, and beside it on `plain`, which has the
    /// contiguous placement and plans nothing.
    ///
    /// # Errors
    /// When there is nothing to run, or a step fails.
    pub fn run(
        &self,
        planned: &mut dyn Backend,
        mut plain: Option<&mut dyn Backend>,
        progress: &dyn Progress,
    ) -> Result<Outcome, ExecError> {
        if self.steps.is_empty() || self.layers.is_empty() {
            return Err(ExecError::Nothing("nothing to run: no steps, or no layers".into()));
        }
        let contiguous = self.contiguous()?;
        let mut reference = self.check.then(|| Reference::new(self.exec.clone(), Arc::clone(&self.weights)));
        let mut outcome = Outcome::new(self);
        let mut mover = Mover::new(self.replan.map_or(0, |replan| replan.budget));
        for (at, of_feed) in self.steps.clone().enumerate() {
            let moved = mover.between_steps(planned)?;
            let batch = Batch::new(self, of_feed, &contiguous, planned);
            let mut row = StepRow { tokens: batch.tokens, moved, ..StepRow::default() };
            // Each goes first as often as the others.
            for turn in 0..3 {
                let variant = Variant::ALL[(at + turn) % 3];
                let (backend, reference): (&mut dyn Backend, _) = match (variant, plain.as_deref_mut()) {
                    (Variant::Plan, _) => (&mut *planned, reference.as_mut()),
                    (_, Some(plain)) => (plain, None),
                    (_, None) => continue,
                };
                let run = batch.step(self, of_feed, variant, backend, reference)?;
                if variant == Variant::Plan {
                    row.predicted = self.predict(backend, &run)?;
                }
                row.take(variant, &run);
                outcome.take(variant, &run, at > 0 || self.steps.len() == 1);
            }
            outcome.memory(planned);
            outcome.steps.push(row);
            // A plan that has not arrived yet is not replaced: else a small budget would never see one through.
            let due = |replan: &Replan| (at + 1).is_multiple_of(replan.every.max(1)) && mover.is_done();
            if let Some(replan) = self.replan.filter(due) {
                let recent = outcome.trace()?;
                let window = (at + 1).saturating_sub(replan.every)..at + 1;
                for layer in 0..self.layers.len() {
                    // Nothing is under way, so what is in force is what to come from.
                    let previous = planned.placement(layer);
                    let placement =
                        self.replan(&recent, layer, window.clone(), previous, replan.max_moves)?;
                    planned.agree(layer, &placement)?;
                    mover.aim(planned, layer, placement);
                }
                outcome.replans += 1;
            }
            progress.steps(at + 1, self.steps.len());
        }
        Ok(outcome)
    }

    /// What the split of each layer's counts says that every rank serves, `[layer][R]`, without running anything.
    fn predict(&self, backend: &dyn Backend, run: &StepRun) -> Result<Vec<Vec<u64>>, ExecError> {
        let Some(method) = self.exec.method else { return Ok(Vec::new()) };
        let of_layer = |(layer, run): (usize, &LayerRun)| {
            let placement = backend.placement(layer);
            if let (Some(_), Some(mut planner)) = (self.exec.then, self.exec.planner(placement)?) {
                let counts = run.sources();
                let loads = planner.split(&counts)?.rank_loads.clone();
                planner.check(&counts)?;
                return Ok(loads);
            }
            let nodes = self.exec.cluster.nodes();
            let (mut split, mut splitter) =
                (Split::default(), Splitter::on_nodes(placement.clone(), method, nodes)?);
            splitter.split(&run.counts, &mut split)?;
            splitter.check(&run.counts, &split)?;
            Ok(split.rank_loads)
        };
        run.layers.iter().enumerate().map(of_layer).collect()
    }

    /// The placement of a run without a plan.
    ///
    /// # Errors
    /// When the group cannot hold the experts.
    pub fn contiguous(&self) -> Result<Placement, ExecError> {
        Ok(Contiguous::placement(self.exec.model.experts, &self.exec.cluster)?)
    }
}

/// One step's tokens and choices.
struct Batch {
    tokens: usize,
    /// Per rank `[token][H]`; empty where another process has them.
    x: Vec<Vec<f32>>,
    /// Per layer and rank `[token][k]`, where recorded.
    recorded: Option<Vec<Vec<Vec<i32>>>>,
    /// Per rank `[token][k]`.
    balanced: Vec<Vec<i32>>,
    top_k: usize,
}

impl Batch {
    fn new(run: &Run<'_>, of_feed: usize, contiguous: &Placement, backend: &dyn Backend) -> Self {
        let ranks = run.exec.cluster.ranks();
        let tokens = run.feed.tokens(of_feed, &run.layers);
        let top_k = run.feed.top_k().or(run.exec.router.fixed_top_k()).unwrap_or(run.exec.model.top_k);
        let recorded = run
            .layers
            .iter()
            .map(|&layer| Some(parts(&run.feed.ids(of_feed, layer, tokens)?, top_k, ranks)))
            .collect::<Option<Vec<_>>>();
        // First the first expert of every rank, then the second, ..: consecutive choices go to different ranks.
        let per_rank = contiguous.slots_per_rank();
        let order = (0..per_rank).flat_map(|s| (0..ranks).map(move |r| r * per_rank + s));
        let experts: Vec<u32> = order.filter_map(|slot| contiguous.slots()[slot]).collect();
        let balanced = parts(&balanced(tokens, top_k, &experts), top_k, ranks);
        let of_rank = |(rank, ids): (usize, &Vec<i32>)| {
            let tokens = if backend.holds(rank) { ids.len() / top_k.max(1) } else { 0 };
            run.activations.of(of_feed as u64, rank, tokens)
        };
        let x = balanced.iter().enumerate().map(of_rank).collect();
        Self { tokens, x, recorded, balanced, top_k }
    }

    fn step(
        &self,
        run: &Run<'_>,
        of_feed: usize,
        variant: Variant,
        backend: &mut dyn Backend,
        reference: Option<&mut Reference>,
    ) -> Result<StepRun, ExecError> {
        let replay =
            |ids, and_route| Routed::Replay { ids, top_k: self.top_k, weights: None, slots: None, and_route };
        let routed = |layer: usize| match (&self.recorded, variant) {
            // Mixtures are balanced as they are.
            (None, Variant::Balanced) if !matches!(run.exec.router, Router::Soft { .. }) => {
                replay(&self.balanced[..], true)
            }
            (None, _) => Routed::Router,
            (Some(_), Variant::Balanced) => replay(&self.balanced[..], false),
            (Some(recorded), _) => replay(&recorded[layer][..], false),
        };
        let mut x = self.x.clone();
        step(backend, run.layers.len(), of_feed as u64, &mut x, routed, reference)
    }
}
