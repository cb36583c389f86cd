//! The data of the page: `/history` has the imbalance over time and every decision, `/view` the current
//! state.

use super::AppState;
use super::body::StrictQuery;
use super::error::{ApiError, ErrorResponses};
use super::models::PhaseStatus;
use crate::controller::state::DISPLAYED_STEPS;
use crate::wire::decision::{Decision, HistoryPoint};
use crate::{ModelSpec, Phase, PhaseState, PhaseWorker, PlanPreview};
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use std::sync::PoisonError;
use utoipa::{IntoParams, ToSchema};

/// The number of hottest experts that are listed.
const MAX_HOTTEST: usize = 24;
/// The number of decisions in a view. The history has all of them.
const MAX_VIEW_DECISIONS: usize = 16;

/// The choice of a phase.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PhaseQuery {
    /// The phase; required if several phases have loads.
    phase: Option<Phase>,
}

/// The past of a phase.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PhaseHistory {
    /// The imbalance, oldest first. Older points cover more steps. A change of `plan` marks a new current
    /// plan.
    pub(crate) points: Vec<HistoryPoint>,
    /// The decisions, oldest first.
    pub(crate) decisions: Vec<Decision>,
}

/// The state of a phase, with everything that the page shows.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PhaseView {
    /// The model's name.
    pub(crate) model: String,
    /// The shape of its expert-parallel group.
    pub(crate) shape: ModelSpec,
    /// Real ranks, indexed by their numbers in the plan: the columns of `heat`.
    pub(crate) ranks: Vec<u32>,
    /// The state of the phase.
    pub(crate) state: PhaseStatus,
    /// The number of latest steps that `heat` and `hottest` cover.
    pub(crate) steps: usize,
    /// The rank loads of each layer under the current plan.
    pub(crate) heat: Vec<HeatLayer>,
    /// The experts with the highest loads, hottest first.
    pub(crate) hottest: Vec<HotExpert>,
    /// The plan that was last considered. Its moves are made if its outcome is `applied`.
    pub(crate) preview: Option<PlanPreview>,
    /// The latest decisions, oldest first.
    pub(crate) decisions: Vec<Decision>,
}

/// The rank loads of one layer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeatLayer {
    /// The real layer id.
    pub(crate) layer: u32,
    /// The mean imbalance.
    pub(crate) imbalance: f64,
    /// The load of each rank over the mean, `[R]`. 1.0 is perfect.
    pub(crate) ranks: Vec<f32>,
}

/// An expert with a high load.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HotExpert {
    /// The real layer id.
    pub(crate) layer: u32,
    /// The logical expert.
    pub(crate) expert: u32,
    /// The tokens of the latest steps.
    pub(crate) tokens: u64,
    /// The tokens over those of an average expert of the layer.
    pub(crate) over_mean: f64,
    /// The number of replicas in the current plan.
    pub(crate) replicas: usize,
    /// The real ranks that hold the expert.
    pub(crate) ranks: Vec<u32>,
}

/// Show the past: imbalance and decisions
#[utoipa::path(get, path = "/v1/models/{model}/history", tag = "view",
    params(("model" = String, Path, description = "the model's name"), PhaseQuery),
    responses((status = 200, body = PhaseHistory), ErrorResponses))]
pub(super) async fn get_history(
    State(app): State<AppState>,
    Path(name): Path<String>,
    StrictQuery(query): StrictQuery<PhaseQuery>,
) -> Result<Json<PhaseHistory>, ApiError> {
    let worker = app.find_worker(&name, query.phase)?;
    let points = worker.state().points.as_slice().to_vec();
    Ok(Json(PhaseHistory { points, decisions: latest_decisions(&worker, usize::MAX) }))
}

/// Show the current state in one reply
#[utoipa::path(get, path = "/v1/models/{model}/view", tag = "view",
    params(("model" = String, Path, description = "the model's name"), PhaseQuery),
    responses((status = 200, body = PhaseView), ErrorResponses))]
pub(super) async fn get_view(
    State(app): State<AppState>,
    Path(name): Path<String>,
    StrictQuery(query): StrictQuery<PhaseQuery>,
) -> Result<Json<PhaseView>, ApiError> {
    let worker = app.find_worker(&name, query.phase)?;
    let status = PhaseStatus::from_worker(&app.service, &worker);
    let state = worker.state();
    Ok(Json(PhaseView {
        model: name,
        shape: state.shape.clone(),
        ranks: state.active_ranks(),
        state: status,
        steps: state.recent.len().min(DISPLAYED_STEPS),
        heat: heatmap_layers(&state),
        hottest: hottest_experts(&state),
        preview: state.preview.clone(),
        decisions: latest_decisions(&worker, MAX_VIEW_DECISIONS),
    }))
}

fn latest_decisions(worker: &PhaseWorker, most: usize) -> Vec<Decision> {
    let all = worker.decisions.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().skip(all.len().saturating_sub(most)).cloned().collect()
}

fn heatmap_layers(state: &PhaseState) -> Vec<HeatLayer> {
    let ranks = state.cluster.ranks();
    let of = |at: usize| {
        let (mut loads, mut imbalance, mut busy) = (vec![0.0f64; ranks], 0.0, 0usize);
        for served in state.recent.iter().rev().take(DISPLAYED_STEPS).filter(|served| served.totals[at] > 0) {
            let mean = served.totals[at] as f64 / ranks as f64;
            imbalance += served.peaks[at] as f64 / mean;
            let row = &served.rank_loads[at * ranks..(at + 1) * ranks];
            loads.iter_mut().zip(row).for_each(|(sum, &load)| *sum += load as f64 / mean);
            busy += 1;
        }
        let steps = busy.max(1) as f64;
        HeatLayer {
            layer: state.layers[at],
            imbalance: imbalance / steps,
            ranks: loads.into_iter().map(|load| (load / steps) as f32).collect(),
        }
    };
    (0..state.layers.len()).map(of).collect()
}

fn hottest_experts(state: &PhaseState) -> Vec<HotExpert> {
    let mut tokens = vec![0u64; state.layers.len() * state.experts];
    for seen in state.window.iter().rev().take(DISPLAYED_STEPS) {
        tokens.iter_mut().zip(seen.counts.iter()).for_each(|(sum, &count)| *sum += u64::from(count));
    }
    let mut all: Vec<(f64, usize, usize)> = Vec::new();
    for (layer, row) in tokens.chunks(state.experts).enumerate() {
        let mean = row.iter().sum::<u64>() as f64 / state.experts as f64;
        if mean > 0.0 {
            all.extend(row.iter().enumerate().map(|(expert, &tokens)| (tokens as f64 / mean, layer, expert)));
        }
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let ranks = state.active_ranks();
    let of = |&(over_mean, layer, expert): &(f64, usize, usize)| {
        let placement = &state.placements()[layer];
        HotExpert {
            layer: state.layers[layer],
            expert: expert as u32,
            tokens: tokens[layer * state.experts + expert],
            over_mean,
            replicas: placement.replicas(expert).len(),
            ranks: placement
                .ranks_of(expert)
                .iter()
                .filter_map(|&r| ranks.get(r as usize).copied())
                .collect(),
        }
    };
    all.iter().take(MAX_HOTTEST).map(of).collect()
}
