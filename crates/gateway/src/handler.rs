//! One request through the HTTP door, from its head to the answer's head.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use director::{Director, Exchange, Failure, Head, Progress, Reason, Refusal};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use inference::{AnswerKind, Api};
use tokio::time::sleep;

use crate::answer::{AnswerBody, Passed};
use crate::headers::{self, X_POINTSMAN_REASON, X_REQUEST_ID};
use crate::upload::Upload;
use crate::upstream::{Timeouts, Upstream};

/// The HTTP door in front of a director.
pub struct Gateway {
    director: Arc<Director>,
    upstream: Upstream,
    timeouts: Timeouts,
}

/// An answer whose first byte is here.
struct Answer {
    response: Response<Incoming>,
    first: Option<Frame<Bytes>>,
}

impl Gateway {
    /// A door that sends requests where `director` says.
    #[must_use]
    pub fn new(director: Arc<Director>, timeouts: Timeouts) -> Arc<Gateway> {
        Arc::new(Gateway { director, upstream: Upstream::new(timeouts), timeouts })
    }

    /// Answers one request. Dropping the future cancels the request upstream.
    pub(crate) async fn handle(
        self: Arc<Gateway>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let request_id = headers::request_id(request.headers());
        let answer = if is_models_list(&request) {
            self.models(&request_id).await
        } else {
            self.forward(request, peer, &request_id).await
        };
        Ok(answer.unwrap_or_else(|refusal| refuse(&refusal, &request_id)))
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        request_id: &HeaderValue,
    ) -> Result<Response<AnswerBody>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let api = Api::from_path(parts.uri.path()).filter(|_| parts.method == Method::POST);
        let content_length = content_length(&parts.headers);
        let readable = api.is_some() && is_readable(&parts.headers);
        let mut intake = self.director.begin(Head { path: parts.uri.path(), content_length, readable })?;
        let mut upload = Upload::new(body, content_length, self.director.limits().body_bytes_max);
        while intake.progress() == Progress::More {
            match upload.read().await {
                Some(Ok(chunk)) => {
                    if let Err(refusal) = intake.push(&chunk) {
                        upload.drain().await;
                        return Err(refusal);
                    }
                }
                Some(Err(refusal)) => return Err(intake.refuse(refusal)),
                None => {
                    intake.end_of_body()?;
                    break;
                }
            }
        }
        let mut exchange = intake.route().await?;
        headers::to_upstream(&mut parts.headers, &parts.uri, peer.ip(), request_id);
        let attempted = self.attempt_all(&parts, &upload, &mut exchange).await;
        exchange.request_bytes(upload.bytes());
        match attempted {
            Ok(answer) => Ok(pass(answer, exchange, upload, api, request_id)),
            Err(refusal) => {
                exchange.end(refusal.reason);
                Err(refusal)
            }
        }
    }

    /// Tries the endpoints of the exchange's list in order until one sends its first byte.
    async fn attempt_all(
        &self,
        parts: &Parts,
        upload: &Upload,
        exchange: &mut Exchange,
    ) -> Result<Answer, Refusal> {
        loop {
            let attempted = tokio::select! {
                attempted = self.attempt(parts, upload, exchange) => attempted,
                () = self.out_of_time(upload, exchange) => Err(Failure::Timeout),
            };
            if let Some(refusal) = upload.failure() {
                return Err(refusal);
            }
            let failure = match &attempted {
                Ok(answer) => Failure::of_status(answer.response.status()),
                Err(failure) => Some(*failure),
            };
            if let Some(failure) = failure {
                exchange.failed(failure);
                // What was not streamed may be generated to half by now: beginning again would cost as much.
                let worth_it = failure != Failure::Timeout || exchange.is_streamed();
                if worth_it && upload.restart() && exchange.next_endpoint(failure) {
                    continue;
                }
            }
            return attempted.map_err(gave_up);
        }
    }

    /// Resolves when the endpoint has had its time. It begins when it has the whole request: a client that uploads
    /// slowly is not the endpoint's fault.
    async fn out_of_time(&self, upload: &Upload, exchange: &Exchange) {
        upload.complete().await;
        sleep(if exchange.is_streamed() { self.timeouts.first_byte } else { self.timeouts.unstreamed }).await;
    }

    /// One attempt, up to the first part of the answer's body: engines send the head of a stream long before its
    /// first token, and until that token the request can still be saved.
    async fn attempt(&self, parts: &Parts, upload: &Upload, exchange: &Exchange) -> Result<Answer, Failure> {
        let mut request = Request::new(upload.attempt());
        request.method_mut().clone_from(&parts.method);
        request.uri_mut().clone_from(&parts.uri);
        request.headers_mut().clone_from(&parts.headers);
        let mut response = self.upstream.send(request, exchange.endpoint(), exchange.app_protocol()).await?;
        let first = response.body_mut().frame().await.transpose().map_err(|_| Failure::Reset)?;
        Ok(Answer { response, first })
    }

    /// `GET /v1/models`: the models of all endpoints.
    async fn models(&self, request_id: &HeaderValue) -> Result<Response<AnswerBody>, Refusal> {
        let list = self.director.models().await?;
        let mut response = Response::new(AnswerBody::Whole(Some(Bytes::from(list))));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(X_REQUEST_ID, request_id.clone());
        Ok(response)
    }
}

/// How a request ended whose answer was passed on whole.
pub(crate) fn outcome_of(status: StatusCode) -> Reason {
    match status.as_u16() {
        500.. => Reason::FailedByServer,
        400..=499 => Reason::RejectedByServer,
        _ => Reason::Served,
    }
}

fn pass(
    answer: Answer,
    mut exchange: Exchange,
    upload: Upload,
    api: Option<Api>,
    request_id: &HeaderValue,
) -> Response<AnswerBody> {
    let (mut parts, rest) = answer.response.into_parts();
    let kind = answer_kind(&parts.headers);
    // An announced length leaves no room for an error event.
    let event_stream =
        kind == Some(AnswerKind::EventStream) && !parts.headers.contains_key(header::CONTENT_LENGTH);
    headers::to_client(&mut parts.headers, request_id);
    exchange.answer(parts.status, kind);
    let passed = Passed::new(answer.first, rest, parts.status, exchange, upload, event_stream, api);
    parts.version = http::Version::default();
    parts.extensions = http::Extensions::default();
    Response::from_parts(parts, AnswerBody::Passed(Box::new(passed)))
}

fn refuse(refusal: &Refusal, request_id: &HeaderValue) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Some(Bytes::from(refusal.body()))));
    *response.status_mut() = refusal.reason.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_POINTSMAN_REASON, HeaderValue::from_static(refusal.reason.word()));
    headers.insert(X_REQUEST_ID, request_id.clone());
    if let Some(seconds) = refusal.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal.reason == Reason::BodyTooLarge {
        // The rest of the body is not read: the connection cannot serve another request.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn gave_up(failure: Failure) -> Refusal {
    let what = match failure {
        Failure::Connect => "no connection could be made",
        Failure::Reset => "the connection broke before the first byte of the answer",
        Failure::Timeout => "no first byte of an answer came in time",
        Failure::BadGateway => "it answered 502",
        Failure::Unavailable => "it answered 503",
    };
    Refusal::new(failure.reason(), format!("the model server failed, and no other could be tried: {what}"))
}

fn is_models_list<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET && request.uri().path() == "/v1/models"
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether a body can be scanned as JSON: compressed and multipart ones cannot.
fn is_readable(headers: &HeaderMap) -> bool {
    let encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    !encoded && !starts_with(headers, "multipart/")
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    starts_with(headers, "text/event-stream")
}

fn answer_kind(headers: &HeaderMap) -> Option<AnswerKind> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        None
    } else if is_event_stream(headers) {
        Some(AnswerKind::EventStream)
    } else {
        starts_with(headers, "application/json").then_some(AnswerKind::Json)
    }
}

fn starts_with(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().get(..media_type.len()))
        .is_some_and(|start| start.eq_ignore_ascii_case(media_type.as_bytes()))
}
