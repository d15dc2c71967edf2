//! How a request ends: one closed enum, the only road to status codes, `x-pointsman-reason`, metric labels and
//! log fields.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

/// How a request ended, or will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A model server answered and the whole answer was passed on.
    Served,
    /// A model server answered with a status of 400 to 499, passed on.
    RejectedByServer,
    /// A model server answered with a status of 500 or more, passed on.
    FailedByServer,
    /// The request is not what its path promises: broken JSON, no prompt, no model where one is needed.
    Malformed,
    /// No endpoint of the pool serves the model.
    UnknownModel,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// The head is larger than the limit, or has more fields.
    HeadersTooLarge,
    /// The client let its upload rest for too long.
    ClientTooSlow,
    /// As many requests are in flight as may be.
    TooManyRequests,
    /// The bodies of requests fill the memory they may have in all.
    TooManyBytes,
    /// Every endpoint is saturated, and the request has a negative priority.
    Shed,
    /// The request does not fit among those that wait, or had to make room for others.
    QueueFull,
    /// The request waited as long as it may.
    QueueTimeout,
    /// The pool was taken away while the request waited.
    PoolGone,
    /// The pool has no endpoint, or none that may take the request.
    NoEndpoint,
    /// Every endpoint that was tried failed before its first byte.
    UpstreamUnreachable,
    /// No first byte came in time.
    UpstreamTimeout,
    /// An answer broke off after its first byte.
    UpstreamBroken,
    /// The client hung up.
    ClientGone,
    /// The process stopped before the request was at its end.
    ShuttingDown,
    /// A fault of ours.
    Internal,
}

impl Reason {
    /// Every reason, for the reference and for labels.
    pub const ALL: [Reason; 21] = [
        Reason::Served,
        Reason::RejectedByServer,
        Reason::FailedByServer,
        Reason::Malformed,
        Reason::UnknownModel,
        Reason::BodyTooLarge,
        Reason::HeadersTooLarge,
        Reason::ClientTooSlow,
        Reason::TooManyRequests,
        Reason::TooManyBytes,
        Reason::Shed,
        Reason::QueueFull,
        Reason::QueueTimeout,
        Reason::PoolGone,
        Reason::NoEndpoint,
        Reason::UpstreamUnreachable,
        Reason::UpstreamTimeout,
        Reason::UpstreamBroken,
        Reason::ClientGone,
        Reason::ShuttingDown,
        Reason::Internal,
    ];

    /// How a request ended whose answer with that status was passed on whole.
    #[must_use]
    pub fn of_answer(status: StatusCode) -> Reason {
        match status.as_u16() {
            500.. => Reason::FailedByServer,
            400..=499 => Reason::RejectedByServer,
            _ => Reason::Served,
        }
    }

    /// The word of `x-pointsman-reason`, of labels and of logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Reason::Served => "served",
            Reason::RejectedByServer => "rejected_by_server",
            Reason::FailedByServer => "failed_by_server",
            Reason::Malformed => "malformed",
            Reason::UnknownModel => "unknown_model",
            Reason::BodyTooLarge => "body_too_large",
            Reason::HeadersTooLarge => "headers_too_large",
            Reason::ClientTooSlow => "client_too_slow",
            Reason::TooManyRequests => "too_many_requests",
            Reason::TooManyBytes => "too_many_bytes",
            Reason::Shed => "shed",
            Reason::QueueFull => "queue_full",
            Reason::QueueTimeout => "queue_timeout",
            Reason::PoolGone => "pool_gone",
            Reason::NoEndpoint => "no_endpoint",
            Reason::UpstreamUnreachable => "upstream_unreachable",
            Reason::UpstreamTimeout => "upstream_timeout",
            Reason::UpstreamBroken => "upstream_broken",
            Reason::ClientGone => "client_gone",
            Reason::ShuttingDown => "shutting_down",
            Reason::Internal => "internal",
        }
    }

    /// The status of an answer that tells this reason. Reasons that no client can be told any more have the status
    /// that would fit (499 for a client that hung up, as nginx logs it).
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Reason::Served => StatusCode::OK,
            Reason::Malformed | Reason::RejectedByServer => StatusCode::BAD_REQUEST,
            Reason::UnknownModel => StatusCode::NOT_FOUND,
            Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::ClientTooSlow => StatusCode::REQUEST_TIMEOUT,
            Reason::TooManyRequests
            | Reason::TooManyBytes
            | Reason::Shed
            | Reason::QueueFull
            | Reason::QueueTimeout => StatusCode::TOO_MANY_REQUESTS,
            Reason::NoEndpoint | Reason::PoolGone | Reason::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Reason::UpstreamUnreachable | Reason::UpstreamBroken | Reason::FailedByServer => {
                StatusCode::BAD_GATEWAY
            }
            Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            // 499 is within the range that a status may have.
            Reason::ClientGone => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the request's client did not get what it asked for.
    #[must_use]
    pub const fn is_error(self) -> bool {
        !matches!(self, Reason::Served)
    }

    /// How long a client should wait before it asks again, where asking again can help.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Reason::NoEndpoint
            | Reason::PoolGone
            | Reason::ShuttingDown
            | Reason::TooManyRequests
            | Reason::TooManyBytes
            | Reason::Shed
            | Reason::QueueFull
            | Reason::QueueTimeout => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The `type` of OpenAI's error object.
    const fn error_type(self) -> &'static str {
        match self {
            Reason::Malformed
            | Reason::UnknownModel
            | Reason::BodyTooLarge
            | Reason::HeadersTooLarge
            | Reason::ClientTooSlow
            | Reason::RejectedByServer => "invalid_request_error",
            Reason::TooManyRequests
            | Reason::TooManyBytes
            | Reason::Shed
            | Reason::QueueFull
            | Reason::QueueTimeout => "rate_limit_error",
            Reason::NoEndpoint | Reason::PoolGone | Reason::ShuttingDown => "service_unavailable_error",
            Reason::UpstreamUnreachable
            | Reason::UpstreamTimeout
            | Reason::UpstreamBroken
            | Reason::FailedByServer => "upstream_error",
            Reason::Served | Reason::ClientGone | Reason::Internal => "internal_error",
        }
    }

    /// The `code` of OpenAI's error object: OpenAI's own where it has one, else the reason's word.
    const fn error_code(self) -> &'static str {
        match self {
            Reason::UnknownModel => "model_not_found",
            _ => self.word(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A request that is not served: the reason, and what the client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people: what is wrong, where, and what to do.
    pub message: String,
    /// When to ask again, where that is known better than by the reason.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal for `reason` with `message` for people.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into(), retry_after: None }
    }

    /// The same, with a time after which asking again can help.
    #[must_use]
    pub fn after(self, wait: Duration) -> Refusal {
        Refusal { retry_after: Some(wait), ..self }
    }

    /// A body beyond the limit.
    #[must_use]
    pub fn body_too_large(bytes_max: u64) -> Refusal {
        let message = format!("the request's body is larger than the limit of {bytes_max} bytes");
        Refusal::new(Reason::BodyTooLarge, message)
    }

    /// OpenAI's error object: `{"error":{"message","type","param":null,"code"}}`.
    #[must_use]
    pub fn body(&self) -> String {
        serde_json::json!({
            "error": {
                "message": self.message,
                "type": self.reason.error_type(),
                "param": null,
                "code": self.reason.error_code(),
            }
        })
        .to_string()
    }

    /// The value of `Retry-After` in whole seconds, where one belongs.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let usual = self.reason.retry_after()?;
        let wait = self.retry_after.unwrap_or(usual);
        Some(wait.as_secs_f64().ceil().max(1.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn who_is_sent_away_is_told_when_to_come_back() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(reason, "x");
            assert_eq!(
                refusal.retry_after_seconds().is_some(),
                matches!(reason.status().as_u16(), 429 | 503),
                "{reason}"
            );
        }
    }

    #[test]
    fn the_error_body_has_the_shape_of_openai() {
        let body = Refusal::new(Reason::UnknownModel, "no \"x\"").body();
        let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(parsed["error"]["message"], "no \"x\"");
        assert_eq!(parsed["error"]["code"], "model_not_found");
        assert!(parsed["error"]["param"].is_null());
    }
}
