//! `GET /v1/models/{model}/events`: the events of a model, as server-sent events.

use super::AppState;
use super::auth::RequestPeer;
use super::error::{ApiError, ErrorResponses};
use crate::wire::event::ModelEvent;
use axum::Extension;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures_util::stream;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Follow a model
///
/// The stream has the events `loads`, `planning`, `decision`, `plan` and `run`, whose data is the JSON of the
/// schema of that name. A listener that was too slow gets `missed` with the number of lost events.
#[utoipa::path(get, path = "/v1/models/{model}/events", tag = "events",
    params(("model" = String, Path, description = "the model's name")),
    responses((status = 200, description = "A stream of events", body = ModelEvent, content_type = "text/event-stream"), ErrorResponses))]
pub(super) async fn stream_events(
    State(app): State<AppState>,
    Path(name): Path<String>,
    peer: Option<Extension<RequestPeer>>,
) -> Result<impl IntoResponse, ApiError> {
    let model = app.find_model(&name)?;
    let permit = app.streams.acquire_slot(peer.as_deref(), &app.service)?;
    let state = (model.events.subscribe(), app.ending.clone(), permit);
    let events = stream::unfold(state, |(mut events, mut ending, permit)| async move {
        let received = tokio::select! {
            received = events.recv() => received,
            _ = ending.wait_for(|ending| *ending) => return None,
        };
        let message = match received {
            Ok(event) => {
                let data = serde_json::to_string(&*event).unwrap_or_default();
                SseEvent::default().event(event.name()).data(data)
            }
            Err(RecvError::Lagged(missed)) => SseEvent::default().event("missed").data(missed.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(message), (events, ending, permit)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}
