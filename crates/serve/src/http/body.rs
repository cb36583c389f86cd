//! Request bodies within limits of size and time, and query strings.

use super::auth::RequestPeer;
use super::error::ApiError;
use super::memory::{MemoryPart, MemoryReservation};
use crate::connections::ClientConnection;
use crate::runtime::service::Service;
use axum::body::Body;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The content type of JSON.
pub(super) const JSON_TYPE: &str = "application/json";
/// The most bytes that are read of a body that is not needed.
const MAX_DISCARDED: usize = 64 << 10;

/// A whole body, and the memory that counts for it until its steps are stored.
pub(super) struct ReceivedBody {
    pub(super) bytes: Bytes,
    pub(super) reserved: MemoryReservation,
}

/// Receives a body whose parsing takes at most `cost` bytes of memory per byte.
pub(super) async fn receive_body(
    service: &Service,
    peer: Option<&RequestPeer>,
    headers: &HeaderMap,
    body: Body,
    cost: usize,
) -> Result<ReceivedBody, ApiError> {
    let config = service.context.config();
    let limits = &config.limits;
    let most = limits.body_mib << 20;
    let too_large = || {
        let expected = format!("at most {} MiB (limits.body_mib)", limits.body_mib);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", expected)
    };
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > most) {
        drain_body(body, most).await;
        return Err(too_large());
    }
    let no_memory = || {
        let error = "too many bodies are being read (limits.memory_mib)";
        ApiError::retry_later(StatusCode::SERVICE_UNAVAILABLE, error, 1)
    };
    let mut reserved = service.memory.reserve(MemoryPart::for_body(announced));
    let memory = limits.memory_bytes();
    if !reserved.try_grow(announced.unwrap_or(0).saturating_mul(cost), memory) {
        drain_body(body, most).await;
        return Err(no_memory());
    }
    let read = async {
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(MAX_DISCARDED));
        let mut parts = body.into_data_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|error| {
                ApiError::bad_request(format!("the body ended early: {error}"), "a whole body")
            })?;
            if part.len() > most - bytes.len() {
                drop(bytes);
                drain_body(Body::from_stream(parts), most).await;
                return Err(too_large());
            }
            if announced.is_none() && !reserved.try_grow(part.len().saturating_mul(cost), memory) {
                drop(bytes);
                drain_body(Body::from_stream(parts), most).await;
                return Err(no_memory());
            }
            bytes.extend_from_slice(&part);
        }
        Ok(Bytes::from(bytes))
    };
    let _waits = peer.map(|peer| BodyWaitGuard::new(&peer.connection));
    let Ok(read) = tokio::time::timeout(Duration::from_secs(limits.body_seconds), read).await else {
        let expected = format!("the whole body within {} s (limits.body_seconds)", limits.body_seconds);
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body took too long", expected));
    };
    Ok(ReceivedBody { bytes: read?, reserved })
}

/// A guard: while it lives, the connection counts as waiting for a body.
struct BodyWaitGuard<'a>(&'a ClientConnection);

impl<'a> BodyWaitGuard<'a> {
    fn new(connection: &'a ClientConnection) -> Self {
        connection.set_waiting_request(true);
        Self(connection)
    }
}

impl Drop for BodyWaitGuard<'_> {
    fn drop(&mut self) {
        self.0.set_waiting_request(false);
    }
}

/// Reads a part of an unwanted body, so that the sender gets to read the refusal.
async fn drain_body(body: Body, most: usize) {
    let mut parts = body.into_data_stream();
    let read = async {
        let mut left = most;
        while let Some(Ok(part)) = parts.next().await {
            let Some(rest) = left.checked_sub(part.len()) else { break };
            left = rest;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
}

/// Reads the body of a request that needs none, so that the connection can be reused. Some clients send an
/// empty body in chunks, whose end may arrive after the headers.
pub(super) async fn discard_body(body: Body) {
    if !body.is_end_stream() {
        drain_body(body, MAX_DISCARDED).await;
    }
}

/// Returns the content type, which has to be one of those expected.
pub(super) fn content_type(headers: &HeaderMap, expected: &[&'static str]) -> Result<&'static str, ApiError> {
    let given = stated_content_type(headers);
    expected.iter().copied().find(|known| *known == given).ok_or_else(|| {
        let error = if given.is_empty() { "no content type".into() } else { format!("content type {given}") };
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, expected.join(" or "))
    })
}

/// Returns the content type without its parameters.
fn stated_content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A query string. Unknown keys and wrong values are refused with a JSON document.
pub(super) struct StrictQuery<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for StrictQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => {
                Err(ApiError::bad_request(error.body_text(), "the query parameters of /openapi.json"))
            }
        }
    }
}
