//! Making a plan: every busy layer placed, then judged on the trace it was planned on.

use super::{LayerPlan, Plan, Provenance, TraceFile};
use crate::cluster::Cluster;
use crate::forecast::History;
use crate::place::{Bound, PlaceError, Placement, Policy, placement_bound};
use crate::simulate::{Judged, Progress, SimulateError, Summary, busy_layers, judge};
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
    /// Its expected batches, one entry per planned layer.
    pub judged: Vec<Judged>,
    /// What is proved that no placement can be below on these batches, one entry per planned layer.
    pub bounds: Vec<Bound>,
    /// Planning time, summed over the layers, without judging.
    pub plan_time: Duration,
}

/// What goes into a plan's [`Provenance`] besides what the trace and the policy say themselves.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Seed of everything random in reading and planning.
    pub seed: u64,
    /// How batches were formed, in words.
    pub batches: String,
}

impl Plan {
    /// Places every layer that routed tokens, looking at the whole trace, and judges each placement with the exact
    /// split on all steps held.
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
        let placed: Vec<(Placement, Judged, Bound, Duration)> = busy
            .par_iter()
            .map(|&layer| {
                let history = History::whole(trace, layer);
                let begun = Instant::now();
                let placement = place(layer, &history)
                    .map_err(|source| SimulateError::Place { layer: trace.layers()[layer], source })?;
                let plan_time = begun.elapsed();
                let judged = judge(trace, layer, 0..trace.steps().len(), &placement, Method::Exact)?;
                let bound = placement_bound(&history, cluster, Some(&placement))
                    .map_err(|source| SimulateError::Place { layer: trace.layers()[layer], source })?;
                progress.layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok((placement, judged, bound, plan_time))
            })
            .collect::<Result<_, SimulateError>>()?;

        let imbalances = |j: &Judged| (0..j.peaks.len()).map(|b| j.imbalance(b)).collect::<Vec<_>>();
        let all: Vec<f64> = placed.iter().flat_map(|(_, judged, ..)| imbalances(judged)).collect();
        let layers = busy.iter().zip(&placed).map(|(&layer, (placement, judged, ..))| LayerPlan {
            layer: trace.layers()[layer],
            placement: placement.clone(),
            imbalance: Summary::of(imbalances(judged)).mean,
            bound: Summary::of((0..judged.peaks.len()).map(|b| judged.lower_bound(b)).collect()).mean,
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
                split: Method::Exact.to_string(),
                seed: origin.seed,
                batches: origin.batches,
                judged: all.len(),
                imbalance: Summary::of(all),
                trace: trace
                    .files()
                    .iter()
                    .map(|f| TraceFile { file: name(&f.path), sha256: f.sha256.clone() })
                    .collect(),
            },
        };
        let plan_time = placed.iter().map(|(.., time)| *time).sum();
        let bounds = placed.iter().map(|(_, _, bound, _)| *bound).collect();
        Ok(Made {
            plan,
            judged: placed.into_iter().map(|(_, judged, ..)| judged).collect(),
            bounds,
            plan_time,
        })
    }
}
