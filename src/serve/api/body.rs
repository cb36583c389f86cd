//! Request bodies within limits of size and time, and query strings.

use super::error::ApiError;
use crate::serve::service::Service;
use axum::body::Body;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The whole body.
pub(super) async fn bytes(service: &Service, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let limits = service.hub.config().limits.clone();
    let most = limits.body_mib << 20;
    let too_large = || {
        let error = "the body is too large";
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            error,
            format!("at most {} MiB (limits.body_mib)", limits.body_mib),
        )
    };
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > most) {
        drain(body, most).await;
        return Err(too_large());
    }
    let read =
        tokio::time::timeout(Duration::from_secs(limits.body_seconds), axum::body::to_bytes(body, most));
    match read.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            use std::error::Error as _;
            let limit = error.source().is_some_and(|source| source.to_string().contains("limit"));
            if limit {
                return Err(too_large());
            }
            Err(ApiError::bad(format!("the body ended early: {error}"), "a whole body"))
        }
        Err(_) => {
            let expected = format!("the whole body within {} s (limits.body_seconds)", limits.body_seconds);
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body took too long", expected))
        }
    }
}

/// Takes in some of what is not wanted, so that who sends it comes to read the refusal.
async fn drain(body: Body, most: usize) {
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

/// The content type without its parameters.
pub(super) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A query string whose unknown keys and wrong values are refused in JSON.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(ApiError::bad(error.body_text(), "the query parameters of /openapi.json")),
        }
    }
}
