//! Errors as one JSON document with the matching status.

use crate::MAX_STEP_JUMP;
use crate::controller::state::PhaseError;
use crate::runtime::error::ModelError;
use crate::runtime::mailbox::BusyError;
use crate::store::error::StateStoreError;
use crate::wire::loads::LoadsError;
use crate::wire::receipt::Refusal;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response as ApiResponse, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

/// The error of a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// The error.
    pub(crate) error: String,
    /// The expected input, or advice.
    pub(crate) expected: String,
}

/// An error on its way to the client.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    /// The seconds after which to try again.
    retry_after: Option<u32>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: error.into(), expected: expected.into() }, retry_after: None }
    }

    pub(crate) fn bad_request(error: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, expected)
    }

    pub(crate) fn not_found(error: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, expected)
    }

    pub(crate) fn retry_later(status: StatusCode, error: impl Into<String>, seconds: u32) -> Self {
        let expected = format!("the same request again in {seconds} s");
        Self { retry_after: Some(seconds), ..Self::new(status, error, expected) }
    }

    pub(crate) fn internal_error(error: impl Into<String>) -> Self {
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
        Self::bad_request(format!("{}: {}", error.at, error.found), error.expected)
    }
}

impl From<StateStoreError> for ApiError {
    fn from(error: StateStoreError) -> Self {
        match &error {
            StateStoreError::Full(_) => {
                let expected = "free disk space; the service still serves the current plan";
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
            Refusal::DifferentCounts(_) => Self::new(
                StatusCode::CONFLICT,
                text,
                "the same counts, another step number, or ?run=ID with a new id after a restart of the engine; \
                 nothing was accepted",
            ),
            Refusal::Forgotten { highest, .. } | Refusal::Jump { highest, .. } => Self::new(
                StatusCode::CONFLICT,
                text,
                format!(
                    "step numbers above {highest}, by at most {MAX_STEP_JUMP}, or ?run=ID with a new id after a restart \
                     of the engine; nothing was accepted"
                ),
            ),
            Refusal::Ended { .. } => Self::new(
                StatusCode::CONFLICT,
                text,
                "steps of the current run, or a new run id; nothing was accepted",
            ),
            Refusal::Deleted => Self::not_found(text, "PUT /v1/models/{model} creates it"),
            Refusal::Storing(_) => Self::retry_later(StatusCode::SERVICE_UNAVAILABLE, text, 1),
            Refusal::TooFarBehind { .. } => Self::retry_later(StatusCode::TOO_MANY_REQUESTS, text, 1),
            Refusal::Store(error) => error.into(),
        }
    }
}

impl From<BusyError> for ApiError {
    fn from(busy: BusyError) -> Self {
        Self::retry_later(StatusCode::TOO_MANY_REQUESTS, busy.to_string(), 1)
    }
}

impl From<PhaseError> for ApiError {
    fn from(error: PhaseError) -> Self {
        let text = evenkeel::error_chain(&error);
        match error {
            PhaseError::Invalid(_) => Self::new(
                StatusCode::CONFLICT,
                text,
                "a rank that is up for /down, a rank that is down for /up",
            ),
            _ => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text, "a shape that the loads fit"),
        }
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        let text = evenkeel::error_chain(&error);
        match error {
            ModelError::Name(_) | ModelError::Config(_) => {
                Self::bad_request(text, "1 to 64 letters, digits, -, _ or .")
            }
            ModelError::Spec(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text, "a valid shape"),
            ModelError::Reshaped(stored) => {
                Self::new(StatusCode::CONFLICT, "the model exists with another shape", stored)
            }
            ModelError::TooMany(_) => {
                Self::new(StatusCode::CONFLICT, text, "fewer models, or a higher limits.models")
            }
            ModelError::Window { most, .. } => {
                let expected =
                    format!("at most {most} MiB (limits.window_mib); decide.window is the number of steps");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, text, expected)
            }
            ModelError::Store(error) => error.into(),
            ModelError::Phase(error) => error.into(),
            ModelError::Io(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text, "free threads and files"),
        }
    }
}

/// The errors of any operation.
pub(crate) struct ErrorResponses;

impl IntoResponses for ErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<ApiResponse>> {
        let all = [
            ("400", "The request is malformed."),
            ("401", "No bearer token, or a wrong one."),
            ("403", "A cross-site request, or a request with another host name."),
            ("404", "No such model, phase, plan or path."),
            ("405", "The path has no such method."),
            ("408", "The body took too long."),
            ("409", "The request contradicts the stored state."),
            ("413", "The body is too large."),
            ("415", "The content type is not supported."),
            ("422", "The request does not fit this model."),
            ("429", "Too many requests, or too many steps waiting."),
            ("503", "Too many requests at a time, or the store cannot be written."),
            ("507", "The disk is full."),
        ];
        let body = || ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response = |text: &str| {
            RefOr::T(ResponseBuilder::new().description(text).content("application/json", body()).build())
        };
        all.into_iter().map(|(status, text)| (status.to_owned(), response(text))).collect()
    }
}
