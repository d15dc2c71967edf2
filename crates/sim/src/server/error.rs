//! Errors to clients, in the shape that vLLM gives them.

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::engine::SubmitError;

/// An answer that is not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<&'static str>,
}

impl ApiError {
    /// The body is not a request at all: what FastAPI finds before vLLM sees it.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "Bad Request", message: message.into(), param: None }
    }

    /// A request that asks for something impossible.
    pub(crate) fn bad_request(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestError", message: message.into(), param }
    }

    /// No such model or adapter.
    pub(crate) fn unknown_model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist.");
        Self { status: StatusCode::NOT_FOUND, kind: "NotFoundError", message, param: Some("model") }
    }

    /// Anything else, with the status's own name as its type.
    pub(crate) fn of_status(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = status.canonical_reason().unwrap_or("Error");
        Self { status, kind, message: message.into(), param: None }
    }

    /// The same as a response in Anthropic's shape.
    pub(crate) fn anthropic(self) -> Response {
        let body = json!({"type": "error", "error": {"type": self.kind, "message": self.message}});
        json_response(self.status, body.to_string())
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::TooLong { tokens, tokens_max } => Self::bad_request(
                format!(
                    "This model's maximum context length is {tokens_max} tokens. However, you requested {tokens} \
                     tokens of prompt and output. Please reduce the length of either."
                ),
                None,
            ),
            SubmitError::QueueFull { .. } => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                kind: "ServiceUnavailableError",
                message: error.to_string(),
                param: None,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, kind, message, param } = self;
        let error = json!({"message": message, "type": kind, "param": param, "code": status.as_u16()});
        json_response(status, json!({ "error": error }).to_string())
    }
}

/// A response with a body of JSON.
pub(crate) fn json_response(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}
