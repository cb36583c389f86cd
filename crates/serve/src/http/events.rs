//! `GET /v1/models/{model}/events`: what happens, as server-sent events.

use super::App;
use super::error::{ApiError, Refusals};
use crate::serve::events::Event;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use futures_util::stream;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Follow a model
///
/// Server-sent events: `loads`, `planning`, `decision`, `plan` with the JSON of the schemas of that name as data; `missed`
/// with the number of events that a listener was too slow for.
#[utoipa::path(get, path = "/v1/models/{model}/events", tag = "events",
    params(("model" = String, Path, description = "the model's name")),
    responses((status = 200, description = "A stream of events", body = Event, content_type = "text/event-stream"), Refusals))]
pub(super) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let model = app.model(&name)?;
    let permit = app.stream()?;
    let state = (model.events.subscribe(), app.ending.clone(), permit);
    let events = stream::unfold(state, |(mut events, mut ending, permit)| async move {
        let received = tokio::select! {
            received = events.recv() => received,
            _ = ending.wait_for(|ending| *ending) => return None,
        };
        let sent = match received {
            Ok(event) => {
                let data = serde_json::to_string(&*event).unwrap_or_default();
                Sent::default().event(event.name()).data(data)
            }
            Err(RecvError::Lagged(missed)) => Sent::default().event("missed").data(missed.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(sent), (events, ending, permit)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}
