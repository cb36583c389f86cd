//! `POST /v1/models/{model}/loads`.

use super::AppState;
use super::auth::RequestPeer;
use super::body::{JSON_TYPE, ReceivedBody, StrictQuery, content_type, receive_body};
use super::error::{ApiError, ErrorResponses};
use super::models::run_blocking;
use crate::config::check_name;
use crate::runtime::worker::LoadsOrigin;
use crate::wire::loads_json;
use crate::{Loads, LoadsBody, Receipt, binary};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde::Deserialize;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;
use utoipa::IntoParams;

/// The run of the engine to which the steps belong.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RunQuery {
    /// An id of the engine's start, 1 to 64 letters, digits, `-`, `_` or `.`. A new id begins a new sequence
    /// of step numbers.
    run: Option<String>,
}

/// Post the token counts of one or several steps
///
/// The answer follows once the steps are durable. Posts are idempotent by step id. A step with the counts of
/// an earlier one is acknowledged (`repeated`). With other counts the whole post is refused (409). A
/// restarted engine states a new `run`. Without one, the service recognises a restarted counter.
/// docs/serve.md describes the binary form.
#[utoipa::path(post, path = "/v1/models/{model}/loads", tag = "loads",
    params(("model" = String, Path, description = "the model's name"), RunQuery),
    request_body(content(
        (LoadsBody = "application/json"),
        (Vec<u8> = "application/x-evenkeel-loads"),
    )),
    responses((status = 200, body = Receipt), ErrorResponses))]
pub(super) async fn post_loads(
    State(app): State<AppState>,
    Path(name): Path<String>,
    StrictQuery(query): StrictQuery<RunQuery>,
    peer: Option<Extension<RequestPeer>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Receipt>, ApiError> {
    let counters = &app.service.context.counters;
    counters.posts.fetch_add(1, Ordering::Relaxed);
    let done = accept_post(&app, &name, query.run, peer.as_deref(), &headers, body).await;
    if done.is_err() {
        counters.refused.fetch_add(1, Ordering::Relaxed);
    }
    done
}

async fn accept_post(
    app: &AppState,
    name: &str,
    run: Option<String>,
    peer: Option<&RequestPeer>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Json<Receipt>, ApiError> {
    let model = app.find_model(name)?;
    if let Some(run) = &run {
        check_name(run).map_err(|reason| {
            ApiError::bad_request(format!("run: {reason}"), "an id of the engine's start")
        })?;
    }
    let form = content_type(headers, &[JSON_TYPE, binary::CONTENT_TYPE])?;
    let cost =
        if form == JSON_TYPE { loads_json::MEMORY_PER_BODY_BYTE } else { binary::MEMORY_PER_BODY_BYTE };
    let ReceivedBody { bytes, reserved } = receive_body(&app.service, peer, headers, body, cost).await?;
    let service = app.service.clone();
    let (send, receive) = oneshot::channel();
    // Parsing and hashing a large post takes milliseconds, so it runs outside the request threads. Its memory
    // stays counted if the client disconnects meanwhile.
    let reserved = run_blocking(move || {
        let loads = if form == JSON_TYPE { Loads::from_json(&bytes) } else { binary::decode(&bytes) };
        drop(bytes);
        let loads = loads.map_err(ApiError::from)?;
        let worker = service.worker_for(&model, &loads)?;
        worker.accept_loads(&loads, LoadsOrigin::Post(run.as_deref()), send);
        Ok::<_, ApiError>(reserved)
    })
    .await??;
    let receipt = receive.await.map_err(|_| ApiError::internal_error("the post was dropped"))??;
    drop(reserved);
    Ok(Json(receipt))
}
