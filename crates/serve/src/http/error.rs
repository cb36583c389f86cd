//! How the service says no: one JSON document, with the status that fits.

use crate::serve::ingest::Refusal;
use crate::serve::lane::LaneError;
use crate::serve::loads::LoadsError;
use crate::serve::service::ModelError;
use crate::serve::store_error::StoreError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response as ApiResponse, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

/// Why a request was not served.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What is wrong.
    pub(crate) error: String,
    /// What was expected instead, or what to do.
    pub(crate) expected: String,
}

/// A refusal on its way out.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    /// Seconds after which to try again.
    retry_after: Option<u32>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: error.into(), expected: expected.into() }, retry_after: None }
    }

    pub(crate) fn bad(error: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, expected)
    }

    pub(crate) fn not_found(error: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, expected)
    }

    pub(crate) fn later(status: StatusCode, error: impl Into<String>, seconds: u32) -> Self {
        let expected = format!("the same request again in {seconds} s");
        Self { retry_after: Some(seconds), ..Self::new(status, error, expected) }
    }

    pub(crate) fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error, "no such error: please report it")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<LoadsError> for ApiError {
    fn from(error: LoadsError) -> Self {
        Self::bad(format!("{}: {}", error.at, error.found), error.expected)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Full(_) => {
                let expected = "room on the disk; the plan in force is served meanwhile";
                Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string(), expected)
            }
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), "a store that can be written"),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Shape { expected, .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text, expected),
            Refusal::Other(_) => Self::new(
                StatusCode::CONFLICT,
                text,
                "the same counts, or another step id; nothing was taken",
            ),
            Refusal::Forgotten { forgotten, .. } => Self::new(
                StatusCode::CONFLICT,
                text,
                format!("step ids above {forgotten}; nothing was taken"),
            ),
            Refusal::Storing(_) => Self::later(StatusCode::SERVICE_UNAVAILABLE, text, 1),
            Refusal::Behind { .. } => Self::later(StatusCode::TOO_MANY_REQUESTS, text, 1),
            Refusal::Store(error) => error.into(),
        }
    }
}

impl From<LaneError> for ApiError {
    fn from(error: LaneError) -> Self {
        let text = crate::in_words(&error);
        match error {
            LaneError::Asked(_) => {
                Self::new(StatusCode::CONFLICT, text, "a rank that is up, or down, respectively")
            }
            _ => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text, "a shape that the loads fit"),
        }
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        let text = crate::in_words(&error);
        match error {
            ModelError::Name(_) => Self::bad(text, "1 to 64 letters, digits, -, _ or ."),
            ModelError::Spec(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text, "a shape that can be"),
            ModelError::Reshaped(stored) => {
                Self::new(StatusCode::CONFLICT, "the model has another shape already", stored)
            }
            ModelError::TooMany(_) => {
                Self::new(StatusCode::CONFLICT, text, "fewer models, or a higher limits.models")
            }
            ModelError::Store(error) => error.into(),
            ModelError::Lane(error) => error.into(),
            ModelError::Io(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text, "threads to be had"),
        }
    }
}

/// The refusals that any operation may answer with.
pub(crate) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<ApiResponse>> {
        let all = [
            ("400", "The request is malformed."),
            ("401", "No bearer token, or a wrong one."),
            ("403", "A page of another site asked, or by another name."),
            ("404", "No such model, phase, plan or path."),
            ("405", "Another method."),
            ("408", "The body took too long."),
            ("409", "It contradicts what is known."),
            ("413", "The body is too large."),
            ("415", "Another content type."),
            ("422", "It cannot be applied to this model."),
            ("429", "Too many requests, or too many steps waiting."),
            ("503", "Too many at a time, or the store cannot be written."),
            ("507", "The disk is full."),
        ];
        let body = || ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response = |text: &str| {
            RefOr::T(ResponseBuilder::new().description(text).content("application/json", body()).build())
        };
        all.into_iter().map(|(status, text)| (status.to_owned(), response(text))).collect()
    }
}
