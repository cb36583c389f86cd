//! `GET /v1/models/{model}/plan`.

use super::App;
use super::body::Asked;
use super::error::{ApiError, Refusals};
use crate::export::{self, Dialect};
use crate::serve::Phase;
use crate::serve::feed::{Served, etag};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use utoipa::IntoParams;

/// Longest wait for another plan, in seconds.
const LONGEST: f64 = 300.0;

/// Which plan, in which format.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanQuery {
    /// The phase; needed where several are fed apart.
    phase: Option<Phase>,
    /// `evenkeel` (the default), `sglang`, `trtllm`, `vllm`, `vllm-ascend` or `eplb`.
    #[param(pattern = "^(evenkeel|sglang|trtllm|vllm|vllm-ascend|eplb)$")]
    format: Option<String>,
    /// Seconds to wait for a plan other than that of `If-None-Match`, or for the first; at most 300.
    #[param(minimum = 0, maximum = 300)]
    wait: Option<f64>,
}

/// Get the plan in force
///
/// With `If-None-Match` of a plan's ETag the answer is 304 while that plan is in force; with `wait` it is given when another
/// plan comes, or after so many seconds.
#[utoipa::path(get, path = "/v1/models/{model}/plan", tag = "plan",
    params(("model" = String, Path, description = "the model's name"), PlanQuery,
        ("If-None-Match" = Option<String>, Header, description = "an ETag")),
    responses(
        (status = 200, description = "The plan", content((serde_json::Value = "application/json"), (serde_json::Value = "application/yaml")),
            headers(("etag" = String), ("evenkeel-plan-version" = u64), ("evenkeel-ranks" = String))),
        (status = 304, description = "That plan is in force still"),
        Refusals))]
pub(super) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
    Asked(query): Asked<PlanQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = query.format.as_deref().unwrap_or("evenkeel");
    let dialect = match format {
        "evenkeel" => None,
        name => Some(name.parse::<Dialect>().map_err(|_| {
            ApiError::bad(
                format!("unknown format {name:?}"),
                "evenkeel, sglang, trtllm, vllm, vllm-ascend or eplb",
            )
        })?),
    };
    let wait = query.wait.unwrap_or(0.0);
    if !(0.0..=LONGEST).contains(&wait) {
        return Err(ApiError::bad(format!("wait={wait}"), "0 to 300 seconds"));
    }
    let feed = app.feed(&name, query.phase)?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let is_known = |served: &Served| {
        let etag = etag(served.version, format, &served.digest);
        known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == etag))
    };
    let mut version = feed.version.subscribe();
    version.borrow_and_update();
    let mut served = feed.served();
    if wait > 0.0 && served.as_deref().is_none_or(is_known) {
        let _stream = app.stream()?;
        let mut ending = app.ending.clone();
        let changed = async {
            loop {
                tokio::select! {
                    changed = version.changed() => if changed.is_err() { return },
                    _ = ending.wait_for(|ending| *ending) => return,
                }
                if feed.served().as_deref().is_some_and(|served| !is_known(served)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs_f64(wait), changed).await;
        served = feed.served();
    }
    let Some(served) = served else {
        let (accepted, after) = (feed.lane().accepted(), feed.lane().options.first_after);
        let error = format!("no plan yet: {accepted} steps were looked at");
        return Err(ApiError::not_found(
            error,
            format!("the first plan after {after} steps; ?wait=SECONDS waits for it"),
        ));
    };
    app.service.hub.counters.plans.fetch_add(1, Ordering::Relaxed);
    if is_known(&served) {
        return Ok((StatusCode::NOT_MODIFIED, headers_of(&served, format)).into_response());
    }
    let text = match dialect {
        None => served.plan.to_json().map_err(|error| ApiError::internal(error.to_string()))?,
        Some(dialect) => export::write(&served.plan, dialect).map_err(|error| {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string(), "another format")
        })?,
    };
    let kind = if dialect == Some(Dialect::TrtLlm) { "application/yaml" } else { "application/json" };
    Ok(([(header::CONTENT_TYPE, kind)], headers_of(&served, format), text).into_response())
}

fn headers_of(served: &Arc<Served>, format: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let ranks: Vec<String> = served.ranks.iter().map(ToString::to_string).collect();
    let named = [
        (header::ETAG, etag(served.version, format, &served.digest)),
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
