//! `POST /v1/models/{model}/loads`.

use super::App;
use super::body::{bytes, content_type};
use super::error::{ApiError, Refusals};
use super::models::blocking;
use crate::serve::binary;
use crate::serve::{Loads, LoadsBody, Receipt};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;

/// Post the token counts of one or several steps
///
/// Answered once they are durable. Idempotent by step id: a step posted before with the same counts is acknowledged
/// (`repeated`), with other counts the whole post is refused (409). The compact form is described in docs/serve.md.
#[utoipa::path(post, path = "/v1/models/{model}/loads", tag = "loads",
    params(("model" = String, Path, description = "the model's name")),
    request_body(content(
        (LoadsBody = "application/json"),
        (Vec<u8> = "application/x-evenkeel-loads"),
    )),
    responses((status = 200, body = Receipt), Refusals))]
pub(super) async fn post(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Receipt>, ApiError> {
    let counters = &app.service.hub.counters;
    counters.posts.fetch_add(1, Ordering::Relaxed);
    let done = take(&app, &name, &headers, body).await;
    if done.is_err() {
        counters.refused.fetch_add(1, Ordering::Relaxed);
    }
    done
}

async fn take(app: &App, name: &str, headers: &HeaderMap, body: Body) -> Result<Json<Receipt>, ApiError> {
    let model = app.model(name)?;
    let form = content_type(headers);
    if !["", "application/json", binary::CONTENT_TYPE].contains(&form.as_str()) {
        let expected = format!("application/json or {}", binary::CONTENT_TYPE);
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("content type {form}"),
            expected,
        ));
    }
    let body = bytes(&app.service, headers, body).await?;
    let service = app.service.clone();
    let (send, receive) = oneshot::channel();
    // Reading and digesting a large post takes milliseconds: not between other requests.
    blocking(move || {
        let loads =
            if form == binary::CONTENT_TYPE { binary::decode(&body) } else { Loads::from_json(&body) };
        let loads = loads.map_err(ApiError::from)?;
        let feed = service.feed_for(&model, &loads)?;
        feed.accept(&loads, send);
        Ok::<_, ApiError>(())
    })
    .await??;
    let receipt = receive.await.map_err(|_| ApiError::internal("the post was dropped"))??;
    Ok(Json(receipt))
}
