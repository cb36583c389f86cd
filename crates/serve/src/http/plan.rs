//! `GET /v1/models/{model}/plan`.

use super::AppState;
use super::auth::{RequestPeer, SharedReply};
use super::body::StrictQuery;
use super::error::{ApiError, ErrorResponses};
use super::models::run_blocking;
use crate::Phase;
use crate::runtime::worker::{PublishedPlan, plan_etag};
use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use evenkeel::export::Dialect;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use utoipa::IntoParams;

/// The longest wait for another plan, in seconds.
const MAX_WAIT_SECONDS: f64 = 300.0;

/// The parameters of a plan request.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanQuery {
    /// The phase; required if several phases have loads.
    phase: Option<Phase>,
    /// `evenkeel` (the default), `sglang`, `trtllm`, `vllm`, `vllm-ascend` or `eplb`.
    #[param(pattern = "^(evenkeel|sglang|trtllm|vllm|vllm-ascend|eplb)$")]
    format: Option<String>,
    /// The seconds to wait for a plan other than that of `If-None-Match`, or for the first one; at most 300.
    #[param(minimum = 0, maximum = 300)]
    wait: Option<f64>,
}

/// Get the current plan
///
/// If `If-None-Match` has the ETag of the current plan, the answer is 304. With `wait` the answer comes when
/// the plan changes, or after that many seconds.
#[utoipa::path(get, path = "/v1/models/{model}/plan", tag = "plan",
    params(("model" = String, Path, description = "the model's name"), PlanQuery,
        ("If-None-Match" = Option<String>, Header, description = "an ETag")),
    responses(
        (status = 200, description = "The plan", content((serde_json::Value = "application/json"), (serde_json::Value = "application/yaml")),
            headers(("etag" = String), ("evenkeel-plan-version" = u64), ("evenkeel-ranks" = String))),
        (status = 304, description = "The plan of that ETag is still the current one"),
        ErrorResponses))]
pub(super) async fn get_plan(
    State(app): State<AppState>,
    Path(name): Path<String>,
    StrictQuery(query): StrictQuery<PlanQuery>,
    peer: Option<Extension<RequestPeer>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = query.format.as_deref().unwrap_or("evenkeel");
    let dialect = match format {
        "evenkeel" => None,
        name => Some(name.parse::<Dialect>().map_err(|_| {
            ApiError::bad_request(
                format!("unknown format {name:?}"),
                "evenkeel, sglang, trtllm, vllm, vllm-ascend or eplb",
            )
        })?),
    };
    let wait = query.wait.unwrap_or(0.0);
    if !(0.0..=MAX_WAIT_SECONDS).contains(&wait) {
        return Err(ApiError::bad_request(format!("wait={wait}"), "0 to 300 seconds"));
    }
    let worker = app.find_worker(&name, query.phase)?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let is_known = |served: &PublishedPlan| {
        let etag = plan_etag(served.version, format, &served.digest);
        known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == etag))
    };
    let mut version = worker.version.subscribe();
    version.borrow_and_update();
    let mut served = worker.published_plan();
    if wait > 0.0 && served.as_deref().is_none_or(is_known) {
        let _waits = app.waits.acquire_slot(peer.as_deref(), &app.service)?;
        let mut ending = app.ending.clone();
        let changed = async {
            loop {
                tokio::select! {
                    changed = version.changed() => if changed.is_err() { return },
                    _ = ending.wait_for(|ending| *ending) => return,
                }
                if worker.published_plan().as_deref().is_some_and(|served| !is_known(served)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs_f64(wait), changed).await;
        served = worker.published_plan();
    }
    let Some(served) = served else {
        let (accepted, after) = (worker.state().accepted_steps(), worker.state().options().first_after);
        let error = format!("no plan yet: {accepted} steps were processed");
        return Err(ApiError::not_found(
            error,
            format!("the first plan after {after} steps; ?wait=SECONDS waits for it"),
        ));
    };
    app.service.context.counters.plans.fetch_add(1, Ordering::Relaxed);
    if is_known(&served) {
        return Ok((StatusCode::NOT_MODIFIED, plan_headers(&served, format)).into_response());
    }
    let texts = served.clone();
    // Writing the first text in a dialect takes milliseconds. Further replies share it.
    let text = run_blocking(move || texts.texts.get(&texts.plan, dialect)).await?;
    let text =
        text.map_err(|error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error, "another format"))?;
    let kind = if dialect == Some(Dialect::TrtLlm) { "application/yaml" } else { "application/json" };
    let kind = [(header::CONTENT_TYPE, kind)];
    Ok((kind, plan_headers(&served, format), Extension(SharedReply), text).into_response())
}

fn plan_headers(served: &Arc<PublishedPlan>, format: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let ranks: Vec<String> = served.ranks.iter().map(ToString::to_string).collect();
    let named = [
        (header::ETAG, plan_etag(served.version, format, &served.digest)),
        (HeaderName::from_static("evenkeel-plan-version"), served.version.to_string()),
        (HeaderName::from_static("evenkeel-plan-accepted"), served.accepted.to_string()),
        (HeaderName::from_static("evenkeel-ranks"), ranks.join(",")),
        (header::CACHE_CONTROL, "no-cache".into()),
    ];
    let step = served.step.map(|step| (HeaderName::from_static("evenkeel-plan-step"), step.to_string()));
    for (name, value) in named.into_iter().chain(step) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers
}
