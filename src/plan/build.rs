//! Making a plan: every busy layer placed, then judged on the trace it was planned on.

use super::{LayerPlan, Plan, Provenance, SplitFigure, TraceFile};
use crate::cluster::Cluster;
use crate::export::Target;
use crate::forecast::History;
use crate::place::{Bound, Eplb, PlaceError, Placement, Policy, Ties, placement_bound};
use crate::simulate::{Judged, Progress, SimulateError, Summary, busy_layers, judge_on_nodes};
use crate::split::Method;
use crate::trace::Trace;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A plan and how it was come by.
#[derive(Debug, Clone)]
pub struct Made {
    /// The plan.
    pub plan: Plan,
    /// Its expected batches under the split of its provenance, one entry per planned layer.
    pub judged: Vec<Judged>,
    /// What is proved that no placement can be below on these batches, one entry per planned layer.
    pub bounds: Vec<Bound>,
    /// Planning time, summed over the layers, without judging.
    pub plan_time: Duration,
}

/// What goes into a plan's [`Provenance`] besides what the trace and the policy say themselves.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Seed of everything random in reading and planning.
    pub seed: u64,
    /// How batches were formed, in words.
    pub batches: String,
    /// The runtime that the plan is for, where it is known.
    pub target: Option<Target>,
    /// The split that the plan's imbalance is for.
    pub split: Method,
}

impl Default for Origin {
    /// No runtime is named, and batches are split exactly.
    fn default() -> Self {
        Self { seed: 0, batches: String::new(), target: None, split: Method::Exact }
    }
}

/// One layer, placed and judged.
struct Placed {
    placement: Placement,
    /// By method, in the order of [`methods`].
    judged: Vec<Judged>,
    /// The same of EPLB's placement, where it can serve the shape.
    eplb: Option<Vec<Judged>>,
    bound: Bound,
    plan_time: Duration,
}

/// The splits that a plan is judged by: its own, the even one, the exact one.
fn methods(split: Method) -> Vec<Method> {
    let others = [Method::Even, Method::Exact].into_iter().filter(|&other| other != split);
    std::iter::once(split).chain(others).collect()
}

impl Plan {
    /// Places every layer that routed tokens, looking at the whole trace, and judges each placement on all steps held: with
    /// the split of `origin`, the even and the exact one, and EPLB's placement as well.
    ///
    /// # Errors
    /// When no layer holds a token, the policy cannot serve the shape, or a split fails.
    pub fn make(
        trace: &Trace,
        cluster: &Cluster,
        policy: &dyn Policy,
        origin: Origin,
        progress: &dyn Progress,
    ) -> Result<Made, SimulateError> {
        Self::make_by(trace, cluster, &policy.name(), origin, progress, |_, history| {
            policy.place(history, cluster)
        })
    }

    /// As [`Plan::make`], with any way of placing a layer, which is given its index and its history. Placements must be
    /// of `cluster`'s ranks and slots.
    ///
    /// # Errors
    /// As [`Plan::make`]; [`SimulateError::Place`] names the layer for which `place` fails.
    pub fn make_by(
        trace: &Trace,
        cluster: &Cluster,
        policy: &str,
        origin: Origin,
        progress: &dyn Progress,
        place: impl Fn(usize, &History<'_>) -> Result<Placement, PlaceError> + Sync,
    ) -> Result<Made, SimulateError> {
        let busy = busy_layers(trace)?;
        let done = AtomicUsize::new(0);
        let methods = methods(origin.split);
        let placed: Vec<Placed> = busy
            .par_iter()
            .map(|&layer| {
                let history = History::whole(trace, layer);
                let failed = |source| SimulateError::Place { layer: trace.layers()[layer], source };
                let begun = Instant::now();
                let placement = place(layer, &history).map_err(failed)?;
                let plan_time = begun.elapsed();
                let judge = |placement: &Placement| -> Result<Vec<Judged>, SimulateError> {
                    let all = 0..trace.steps().len();
                    let judge = |&method: &Method| {
                        judge_on_nodes(trace, layer, all.clone(), placement, method, cluster.nodes())
                    };
                    methods.iter().map(judge).collect()
                };
                let judged = judge(&placement)?;
                let eplb = Eplb::new(1, Ties::LowestExpert).place(&history, cluster).ok();
                let eplb = eplb.map(|placement| judge(&placement)).transpose()?;
                let bound = placement_bound(&history, cluster, Some(&placement)).map_err(failed)?;
                progress.layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok(Placed { placement, judged, eplb, bound, plan_time })
            })
            .collect::<Result<_, SimulateError>>()?;

        let imbalances = |j: &Judged| (0..j.peaks.len()).map(|b| j.imbalance(b)).collect::<Vec<_>>();
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
                    imbalance: Summary::of(
                        placed.iter().flat_map(|one| imbalances(&one.judged[m])).collect(),
                    ),
                    eplb: eplb.map(Summary::of),
                }
            })
            .collect();
        let layers = busy.iter().zip(&placed).map(|(&layer, one)| LayerPlan {
            layer: trace.layers()[layer],
            placement: one.placement.clone(),
            imbalance: Summary::of(imbalances(&one.judged[0])).mean,
            bound: Summary::of(
                (0..one.judged[0].peaks.len()).map(|b| one.judged[0].lower_bound(b)).collect(),
            )
            .mean,
        });
        let name =
            |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let plan = Plan {
            cluster: *cluster,
            experts: trace.experts(),
            layers: layers.collect(),
            idle_layers: (0..trace.layers().len())
                .filter(|layer| !busy.contains(layer))
                .map(|layer| trace.layers()[layer])
                .collect(),
            provenance: Provenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                policy: policy.to_owned(),
                target: origin.target.map(|target| target.to_string()),
                split: origin.split.to_string(),
                seed: origin.seed,
                batches: origin.batches,
                judged: placed.iter().map(|one| one.judged[0].peaks.len()).sum(),
                imbalance: figures.first().map_or_else(Summary::default, |figure| figure.imbalance),
                figures,
                trace: trace
                    .files()
                    .iter()
                    .map(|f| TraceFile { file: name(&f.path), sha256: f.sha256.clone() })
                    .collect(),
            },
        };
        let plan_time = placed.iter().map(|one| one.plan_time).sum();
        let bounds = placed.iter().map(|one| one.bound).collect();
        let judged = placed.into_iter().map(|mut one| one.judged.swap_remove(0)).collect();
        Ok(Made { plan, judged, bounds, plan_time })
    }
}
