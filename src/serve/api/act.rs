//! Requests that make a model plan: `POST .../replan`, `POST .../ranks/{rank}/down` and `/up`.

use super::App;
use super::body::Asked;
use super::error::{ApiError, Refusals};
use crate::serve::decide::Ask;
use crate::serve::record::{Decision, Trigger};
use crate::serve::{Next, Phase};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How to plan again.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplanQuery {
    /// The phase; needed where several are fed apart.
    phase: Option<Phase>,
    /// Only show what it would gain.
    #[serde(default)]
    #[param(default = false)]
    dry_run: bool,
}

/// A decision and the plan that it considered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Replanned {
    /// The decision.
    pub(crate) decision: Decision,
    /// What was considered, move by move.
    pub(crate) next: Option<Next>,
}

/// Decisions of all phases.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankChanged {
    /// One per phase that was fed.
    pub(crate) decisions: Vec<Decision>,
}

/// Decide now
///
/// On the steps seen so far, by the same rules as when a decision is due. With `dry_run=true` nothing changes and nothing is
/// recorded.
#[utoipa::path(post, path = "/v1/models/{model}/replan", tag = "plan",
    params(("model" = String, Path, description = "the model's name"), ReplanQuery),
    responses((status = 200, body = Replanned), Refusals))]
pub(super) async fn replan(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked(query): Asked<ReplanQuery>,
) -> Result<Json<Replanned>, ApiError> {
    let feed = app.feed(&name, query.phase)?;
    if feed.lane().accepted() == 0 {
        return Err(ApiError::new(StatusCode::CONFLICT, "no step was looked at yet", "loads first"));
    }
    let answer = feed.ask(Ask::Replan { trigger: Trigger::Asked, dry_run: query.dry_run });
    let decision = answer.await.map_err(|_| ending())??;
    let next = feed.lane().next.clone();
    Ok(Json(Replanned { decision, next }))
}

/// Plan without a rank
///
/// The ranks that are left keep what they have; experts whose last copy is lost come back first. In the plan they are numbered
/// without gaps; the header `evenkeel-ranks` of the plan says which rank is which.
#[utoipa::path(post, path = "/v1/models/{model}/ranks/{rank}/down", tag = "ranks",
    params(("model" = String, Path, description = "the model's name"), ("rank" = usize, Path, description = "the rank that is gone")),
    responses((status = 200, body = RankChanged), Refusals))]
pub(super) async fn down(
    State(app): State<App>,
    Path((name, rank)): Path<(String, String)>,
) -> Result<Json<RankChanged>, ApiError> {
    change(&app, &name, &rank, Ask::Down).await
}

/// Plan with a rank that is back
#[utoipa::path(post, path = "/v1/models/{model}/ranks/{rank}/up", tag = "ranks",
    params(("model" = String, Path, description = "the model's name"), ("rank" = usize, Path, description = "the rank that is back")),
    responses((status = 200, body = RankChanged), Refusals))]
pub(super) async fn up(
    State(app): State<App>,
    Path((name, rank)): Path<(String, String)>,
) -> Result<Json<RankChanged>, ApiError> {
    change(&app, &name, &rank, Ask::Up).await
}

async fn change(
    app: &App,
    name: &str,
    rank: &str,
    ask: fn(usize) -> Ask,
) -> Result<Json<RankChanged>, ApiError> {
    let model = app.model(name)?;
    let last = model.shape.ranks.saturating_sub(1);
    let number = rank.parse::<usize>().ok().filter(|&rank| rank <= last);
    let number =
        number.ok_or_else(|| ApiError::not_found(format!("no rank {rank:?}"), format!("0 to {last}")))?;
    let feeds = model.feeds();
    if feeds.is_empty() {
        return Err(ApiError::not_found(
            format!("no loads of {name} yet"),
            "POST /v1/models/{model}/loads first",
        ));
    }
    let answers: Vec<_> = feeds.iter().map(|feed| feed.ask(ask(number))).collect();
    let mut decisions = Vec::new();
    for answer in answers {
        decisions.push(answer.await.map_err(|_| ending())??);
    }
    Ok(Json(RankChanged { decisions }))
}

fn ending() -> ApiError {
    ApiError::later(StatusCode::SERVICE_UNAVAILABLE, "the service is ending", 5)
}
