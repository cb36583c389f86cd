//! What a page shows: `/history`, the imbalance over time and every decision; `/view`, how things stand.

use super::App;
use super::body::Asked;
use super::error::{ApiError, Refusals};
use super::models::PhaseState;
use crate::serve::lane::SHOWN;
use crate::serve::record::{Decision, Point};
use crate::serve::{Feed, Lane, Next, Phase, Shape};
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use std::sync::PoisonError;
use utoipa::{IntoParams, ToSchema};

/// Hottest experts that are listed.
const HOTTEST: usize = 24;
/// Decisions that a view has; all are in the history.
const DECISIONS: usize = 16;

/// Which phase.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PhaseQuery {
    /// The phase; needed where several are fed apart.
    phase: Option<Phase>,
}

/// The past of a phase.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct History {
    /// The imbalance, oldest first; the older, the more steps in a point. Where `plan` changes, another plan came in force.
    pub(crate) points: Vec<Point>,
    /// Decisions, oldest first.
    pub(crate) decisions: Vec<Decision>,
}

/// How a phase stands, in all that a page shows.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct View {
    /// The model's name.
    pub(crate) model: String,
    /// Its group.
    pub(crate) shape: Shape,
    /// Real ranks by their numbers in the plan: the columns of `heat`.
    pub(crate) ranks: Vec<u32>,
    /// How the phase stands.
    pub(crate) state: PhaseState,
    /// Steps that `heat` and `hottest` are about: the latest.
    pub(crate) steps: usize,
    /// Rank loads under the plan in force, layer by layer.
    pub(crate) heat: Vec<HeatLayer>,
    /// The experts that draw most, hottest first.
    pub(crate) hottest: Vec<Hot>,
    /// The plan that was last considered; its moves are made if its outcome is `acted`.
    pub(crate) next: Option<Next>,
    /// The latest decisions, oldest first.
    pub(crate) decisions: Vec<Decision>,
}

/// One layer's rank loads.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeatLayer {
    /// Real layer id.
    pub(crate) layer: u32,
    /// Mean of peak over mean.
    pub(crate) imbalance: f64,
    /// Load over mean of each rank, 1.0 is perfect, `[R]`.
    pub(crate) ranks: Vec<f32>,
}

/// An expert that draws much.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Hot {
    /// Real layer id.
    pub(crate) layer: u32,
    /// Logical expert.
    pub(crate) expert: u32,
    /// Tokens of the latest steps.
    pub(crate) tokens: u64,
    /// Tokens over those of an average expert of the layer.
    pub(crate) over_mean: f64,
    /// Copies in the plan in force.
    pub(crate) copies: usize,
    /// Real ranks that hold it.
    pub(crate) ranks: Vec<u32>,
}

/// Show the past: imbalance and decisions
#[utoipa::path(get, path = "/v1/models/{model}/history", tag = "view",
    params(("model" = String, Path, description = "the model's name"), PhaseQuery),
    responses((status = 200, body = History), Refusals))]
pub(super) async fn history(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked(query): Asked<PhaseQuery>,
) -> Result<Json<History>, ApiError> {
    let feed = app.feed(&name, query.phase)?;
    let points = feed.lane().points.all().to_vec();
    Ok(Json(History { points, decisions: decisions(&feed, usize::MAX) }))
}

/// Show how things stand, in one go
#[utoipa::path(get, path = "/v1/models/{model}/view", tag = "view",
    params(("model" = String, Path, description = "the model's name"), PhaseQuery),
    responses((status = 200, body = View), Refusals))]
pub(super) async fn view(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked(query): Asked<PhaseQuery>,
) -> Result<Json<View>, ApiError> {
    let feed = app.feed(&name, query.phase)?;
    let state = PhaseState::of(&app.service, &feed);
    let lane = feed.lane();
    Ok(Json(View {
        model: name,
        shape: lane.shape.clone(),
        ranks: lane.ranks(),
        state,
        steps: lane.recent.len().min(SHOWN),
        heat: heat(&lane),
        hottest: hottest(&lane),
        next: lane.next.clone(),
        decisions: decisions(&feed, DECISIONS),
    }))
}

fn decisions(feed: &Feed, most: usize) -> Vec<Decision> {
    let all = feed.decisions.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().skip(all.len().saturating_sub(most)).cloned().collect()
}

fn heat(lane: &Lane) -> Vec<HeatLayer> {
    let ranks = lane.cluster.ranks();
    let of = |at: usize| {
        let (mut loads, mut imbalance, mut busy) = (vec![0.0f64; ranks], 0.0, 0usize);
        for served in lane.recent.iter().rev().take(SHOWN).filter(|served| served.totals[at] > 0) {
            let mean = served.totals[at] as f64 / ranks as f64;
            imbalance += served.peaks[at] as f64 / mean;
            let row = &served.rank_loads[at * ranks..(at + 1) * ranks];
            loads.iter_mut().zip(row).for_each(|(sum, &load)| *sum += load as f64 / mean);
            busy += 1;
        }
        let steps = busy.max(1) as f64;
        HeatLayer {
            layer: lane.layers[at],
            imbalance: imbalance / steps,
            ranks: loads.into_iter().map(|load| (load / steps) as f32).collect(),
        }
    };
    (0..lane.layers.len()).map(of).collect()
}

fn hottest(lane: &Lane) -> Vec<Hot> {
    let mut tokens = vec![0u64; lane.layers.len() * lane.experts];
    for seen in lane.window.iter().rev().take(SHOWN) {
        tokens.iter_mut().zip(seen.counts.iter()).for_each(|(sum, &count)| *sum += u64::from(count));
    }
    let mut all: Vec<(f64, usize, usize)> = Vec::new();
    for (layer, row) in tokens.chunks(lane.experts).enumerate() {
        let mean = row.iter().sum::<u64>() as f64 / lane.experts as f64;
        if mean > 0.0 {
            all.extend(row.iter().enumerate().map(|(expert, &tokens)| (tokens as f64 / mean, layer, expert)));
        }
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let ranks = lane.ranks();
    let of = |&(over_mean, layer, expert): &(f64, usize, usize)| {
        let placement = &lane.placements()[layer];
        Hot {
            layer: lane.layers[layer],
            expert: expert as u32,
            tokens: tokens[layer * lane.experts + expert],
            over_mean,
            copies: placement.copies(expert).len(),
            ranks: placement
                .ranks_of(expert)
                .iter()
                .filter_map(|&r| ranks.get(r as usize).copied())
                .collect(),
        }
    };
    all.iter().take(HOTTEST).map(of).collect()
}
