//! Evaluation of a plan: every busy layer is placed, and then judged on the trace of the planning.

use super::{LayerChange, LayerPlan, LinkUse, Plan, PlanProvenance, SplitFigure, TraceFile};
use crate::cluster::Cluster;
use crate::evaluate::{
    EvaluateError, LayerEvaluation, Progress, SummaryStats, busy_layers, evaluate_on_nodes,
};
use crate::export::RuntimeTarget;
use crate::forecast::History;
use crate::place::{
    Eplb, PlaceError, PlaceRequest, Placement, PlacementBound, Policy as _, TieBreak, placement_bound,
};
use crate::split::SplitMethod;
use crate::trace::Trace;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Plan with its figures and the time of planning.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlanReport {
    /// Plan itself.
    pub plan: Plan,
    /// Judged batches under the split of the provenance, one entry per planned layer.
    pub evaluations: Vec<LayerEvaluation>,
    /// Proved lower bounds for all placements on these batches, one entry per planned layer.
    pub bounds: Vec<PlacementBound>,
    /// Planning time summed over the layers, without judging.
    pub plan_time: Duration,
    /// Changes from the previous plan, one entry per planned layer. Empty without a previous plan.
    pub changes: Vec<LayerChange>,
    /// Use of the link budget, if there is one.
    pub links: Option<LinkUse>,
    /// Redundant slots of each planned layer, if they share a memory budget.
    pub redundant: Option<Vec<usize>>,
}

/// Part of a plan's [`PlanProvenance`] that neither the trace nor the policy determines.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchProvenance {
    /// Seed of everything random in reading and planning.
    pub seed: u64,
    /// Description of how batches were formed.
    pub batches: String,
    /// Runtime for which the plan is made, if known.
    pub target: Option<RuntimeTarget>,
    /// Split to which the plan's imbalance refers.
    pub split: SplitMethod,
}

impl BatchProvenance {
    /// Sets [`Self::seed`](#structfield.seed).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`Self::batches`](#structfield.batches).
    #[must_use]
    pub fn batches(mut self, batches: impl Into<String>) -> Self {
        self.batches = batches.into();
        self
    }

    /// Sets [`Self::target`](#structfield.target).
    #[must_use]
    pub fn target(mut self, target: impl Into<Option<RuntimeTarget>>) -> Self {
        self.target = target.into();
        self
    }

    /// Sets [`Self::split`](#structfield.split).
    #[must_use]
    pub fn split(mut self, split: SplitMethod) -> Self {
        self.split = split;
        self
    }
}

impl Default for BatchProvenance {
    /// Returns an origin without a runtime and with exact splits.
    fn default() -> Self {
        Self { seed: 0, batches: String::new(), target: None, split: SplitMethod::Exact }
    }
}

/// Placement and figures of one layer.
struct PlacedLayer {
    placement: Placement,
    /// Judged batches by method, in the order of [`compared_splits`].
    evaluations: Vec<LayerEvaluation>,
    /// Judged batches of EPLB's placement, if EPLB supports the shape.
    eplb: Option<Vec<LayerEvaluation>>,
    bound: PlacementBound,
    plan_time: Duration,
}

/// Returns the splits by which a plan is judged: its own, the even one, the exact one.
fn compared_splits(split: SplitMethod) -> Vec<SplitMethod> {
    let others = [SplitMethod::Even, SplitMethod::Exact].into_iter().filter(|&other| other != split);
    std::iter::once(split).chain(others).collect()
}

impl Plan {
    /// Places every busy layer by `place`, which receives the layer's index and history, and judges the
    /// placements. They must have the ranks and slots of `cluster`. `policy` is the name of the policy.
    pub(super) fn evaluate_layers(
        trace: &Trace,
        cluster: &Cluster,
        policy: &str,
        origin: &BatchProvenance,
        progress: &dyn Progress,
        place: impl Fn(usize, &History<'_>) -> Result<Placement, PlaceError> + Sync,
    ) -> Result<PlanReport, EvaluateError> {
        let busy = busy_layers(trace)?;
        let done = AtomicUsize::new(0);
        let methods = compared_splits(origin.split);
        let placed: Vec<PlacedLayer> = busy
            .par_iter()
            .map(|&layer| {
                let history = History::from_trace(trace, layer);
                let failed = |source| EvaluateError::Place { layer: trace.layers()[layer], source };
                let begun = Instant::now();
                let placement = place(layer, &history).map_err(failed)?;
                let plan_time = begun.elapsed();
                let judge = |placement: &Placement| -> Result<Vec<LayerEvaluation>, EvaluateError> {
                    let all = 0..trace.steps().len();
                    let judge = |&method: &SplitMethod| {
                        evaluate_on_nodes(trace, layer, all.clone(), placement, method, cluster.nodes())
                    };
                    methods.iter().map(judge).collect()
                };
                let judged = judge(&placement)?;
                if judged.iter().all(|judged| judged.peaks.is_empty()) {
                    return Err(EvaluateError::NoBatch { layer: trace.layers()[layer] });
                }
                let eplb = Eplb::new(1, TieBreak::LowestExpert).place(&PlaceRequest::new(&history, cluster));
                let eplb = eplb.ok().map(|placed| judge(&placed.placement)).transpose()?;
                let bound = placement_bound(&history, cluster, Some(&placement)).map_err(failed)?;
                progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok(PlacedLayer { placement, evaluations: judged, eplb, bound, plan_time })
            })
            .collect::<Result<_, EvaluateError>>()?;

        let imbalances = |j: &LayerEvaluation| (0..j.peaks.len()).map(|b| j.imbalance(b)).collect::<Vec<_>>();
        let figures: Vec<SplitFigure> = methods
            .iter()
            .enumerate()
            .map(|(m, method)| {
                let eplb: Option<Vec<f64>> = placed
                    .iter()
                    .map(|one| Some(imbalances(&one.eplb.as_ref()?[m])))
                    .collect::<Option<Vec<_>>>()
                    .map(|layers| layers.concat());
                SplitFigure {
                    split: method.to_string(),
                    imbalance: SummaryStats::from_values(
                        placed.iter().flat_map(|one| imbalances(&one.evaluations[m])).collect(),
                    ),
                    eplb: eplb.map(SummaryStats::from_values),
                }
            })
            .collect();
        let layers = busy.iter().zip(&placed).map(|(&layer, one)| LayerPlan {
            layer: trace.layers()[layer],
            placement: one.placement.clone(),
            imbalance: SummaryStats::from_values(imbalances(&one.evaluations[0])).mean,
            bound: SummaryStats::from_values(
                (0..one.evaluations[0].peaks.len()).map(|b| one.evaluations[0].lower_bound(b)).collect(),
            )
            .mean,
        });
        let name =
            |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut plan = Plan {
            cluster: *cluster,
            experts: trace.experts(),
            layers: layers.collect(),
            idle_layers: (0..trace.layers().len())
                .filter(|layer| !busy.contains(layer))
                .map(|layer| trace.layers()[layer])
                .collect(),
            unrecorded_layers: vec![],
            provenance: PlanProvenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                policy: policy.to_owned(),
                target: origin.target.map(|target| target.to_string()),
                split: origin.split.to_string(),
                seed: origin.seed,
                batches: origin.batches.clone(),
                judged: placed.iter().map(|one| one.evaluations[0].peaks.len()).sum(),
                imbalance: figures.first().map_or_else(SummaryStats::default, |figure| figure.imbalance),
                figures,
                trace: trace
                    .files()
                    .iter()
                    .map(|f| TraceFile { file: name(&f.path), sha256: f.sha256.clone() })
                    .collect(),
            },
        };
        plan.guess_moe_layers();
        let plan_time = placed.iter().map(|one| one.plan_time).sum();
        let bounds = placed.iter().map(|one| one.bound).collect();
        let judged = placed.into_iter().map(|mut one| one.evaluations.swap_remove(0)).collect();
        let (changes, links, redundant) = (vec![], None, None);
        Ok(PlanReport { plan, evaluations: judged, bounds, plan_time, changes, links, redundant })
    }
}
