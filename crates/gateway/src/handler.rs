//! One request through the HTTP door, from its head to the answer's head.

use std::convert::Infallible;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use director::{Director, Exchange, Failure, Head, Intake, Progress, Reason, Refusal};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use inference::{AnswerKind, Api};
use telemetry::{Limit, Metrics};
use tokio::time::sleep;

use crate::answer::{AnswerBody, Content, Passed, Relay};
use crate::connections::InService;
use crate::head;
use crate::headers::{self, ClientHeaders, X_POINTSMAN_REASON, X_REQUEST_ID};
use crate::limits::Limits;
use crate::upload::Upload;
use crate::upstream::Upstream;

/// The HTTP door in front of a director.
pub struct Gateway {
    director: Arc<Director>,
    upstream: Upstream,
    limits: Limits,
    client_headers: ClientHeaders,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) peer: IpAddr,
    /// Whether it asks over TLS.
    pub(crate) tls: bool,
    /// Whether the process drains: this request is the connection's last.
    pub(crate) draining: bool,
}

impl Client {
    /// Asks from `peer`, while nobody stops.
    pub(crate) fn new(peer: SocketAddr, tls: bool) -> Client {
        Client { peer: peer.ip(), tls, draining: false }
    }
}

/// A request that is refused, and whether it must be the last of its HTTP/1.1 connection.
struct Unserved {
    refusal: Refusal,
    last: bool,
}

/// An answer whose first byte is here.
struct Answer {
    response: Response<Incoming>,
    first: Option<Frame<Bytes>>,
}

impl Gateway {
    /// A door that sends requests where `director` says, over connections that `upstream` makes.
    #[must_use]
    pub fn new(
        director: Arc<Director>,
        upstream: Upstream,
        limits: Limits,
        client_headers: ClientHeaders,
    ) -> Arc<Gateway> {
        Arc::new(Gateway { director, upstream, limits, client_headers })
    }

    /// The bounds of this door.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        self.director.metrics()
    }

    /// Requests that are dropped from now on end because the process stops.
    pub(crate) fn cut_off(&self) {
        self.director.cut_off();
    }

    /// Answers one request. Dropping the future cancels the request upstream.
    pub(crate) async fn handle(
        self: Arc<Gateway>,
        mut request: Request<Incoming>,
        client: Client,
        service: InService,
    ) -> Result<Response<AnswerBody>, Infallible> {
        if self.client_headers == ClientHeaders::Distrust {
            headers::distrust(request.headers_mut());
        }
        let request_id = headers::request_id(request.headers());
        let version = request.version();
        let answer = if let Err(refusal) = head::check(&request, &self.limits, &self.metrics().limits) {
            // What comes behind a head that makes no sense may be anything.
            Err(Unserved { refusal: self.director.refuse(refusal), last: true })
        } else if is_models_list(&request) {
            self.models().await.map_err(|refusal| Unserved { refusal, last: false })
        } else {
            self.forward(request, client, &request_id).await
        };
        let last = client.draining || answer.as_ref().is_err_and(|unserved| unserved.last);
        let mut response = answer.unwrap_or_else(|unserved| refuse(&unserved.refusal));
        let answered = response.headers_mut();
        answered.entry(X_REQUEST_ID).or_insert(request_id);
        if last && version < Version::HTTP_2 {
            answered.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|content| AnswerBody::new(content, service)))
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        client: Client,
        request_id: &HeaderValue,
    ) -> Result<Response<Content>, Unserved> {
        let (mut parts, body) = request.into_parts();
        let api = Api::from_path(parts.uri.path()).filter(|_| parts.method == Method::POST);
        // Whoever waits to be told to go on (100) has sent nothing, and is not to.
        let waits = parts.headers.contains_key(header::EXPECT);
        let content_length = content_length(&parts.headers);
        let upload = Upload::new(body, content_length, Arc::clone(&self.director), self.limits.body_stall);
        let mut upload =
            upload.map_err(|refusal| Unserved { refusal: self.director.refuse(refusal), last: true })?;
        match self.ask(&mut parts, &mut upload, api, client, request_id).await {
            Ok((answer, exchange)) => Ok(self.pass(answer, exchange, upload, api)),
            Err(refusal) => {
                if !waits || upload.bytes() > 0 {
                    upload.drain().await;
                }
                // An HTTP/1.1 connection with the rest of a body in it cannot serve another request.
                Err(Unserved { refusal, last: !upload.is_read() })
            }
        }
    }

    /// Asks the director, and then model servers, until one answers.
    async fn ask(
        &self,
        parts: &mut Parts,
        upload: &mut Upload,
        api: Option<Api>,
        client: Client,
        request_id: &HeaderValue,
    ) -> Result<(Answer, Exchange), Refusal> {
        let content_length = content_length(&parts.headers);
        let readable = api.is_some() && is_readable(&parts.headers);
        let control = headers::control(&parts.headers);
        let head = Head {
            path: parts.uri.path(),
            safe: parts.method.is_safe(),
            content_length,
            readable,
            control,
            pool: None,
        };
        let mut intake = self.director.begin(head)?;
        while intake.progress() == Progress::More {
            match upload.read().await {
                Some(Ok(chunk)) => drop(intake.push(&chunk)?),
                Some(Err(refusal)) => return Err(intake.refuse(refusal)),
                None => {
                    intake.end_of_body()?;
                    break;
                }
            }
        }
        let mut exchange = route(&mut intake, upload).await?;
        headers::to_upstream(&mut parts.headers, &parts.uri, client, request_id);
        if let Some(rename) = exchange.rename() {
            let length = upload.replace(rename.span(), rename.replacement());
            headers::rewritten(&mut parts.headers, length);
        }
        let attempted = self.attempt_all(parts, upload, &mut exchange).await;
        exchange.request_bytes(upload.bytes());
        match attempted {
            Ok(answer) => Ok((answer, exchange)),
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
                biased;
                attempted = self.attempt(parts, upload, exchange) => attempted,
                () = self.out_of_time(upload, exchange) => Err(Failure::Timeout),
            };
            if let Some(refusal) = upload.failure() {
                return Err(refusal);
            }
            if matches!(attempted, Err(Failure::Timeout)) {
                self.metrics().limits.reached(Limit::FirstByte);
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

    /// Resolves when the endpoint has had its time. It begins when the whole request is here: a client that uploads
    /// slowly is not the endpoint's fault, one that rests is refused.
    async fn out_of_time(&self, upload: &Upload, exchange: &Exchange) {
        upload.complete().await;
        if upload.failure().is_some() {
            return;
        }
        exchange.delivered();
        sleep(if exchange.is_streamed() { self.limits.first_byte } else { self.limits.unstreamed }).await;
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
    async fn models(&self) -> Result<Response<Content>, Refusal> {
        let list = self.director.models().await?;
        let mut response = Response::new(Content::Whole(Some(Bytes::from(list))));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// The answer as the client gets it.
    fn pass(
        &self,
        answer: Answer,
        mut exchange: Exchange,
        upload: Upload,
        api: Option<Api>,
    ) -> Response<Content> {
        let (mut parts, rest) = answer.response.into_parts();
        let kind = answer_kind(&parts.headers);
        let rename = exchange.rename().zip(kind).map(|(rename, kind)| rename.answer(kind));
        if rename.is_some() {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        // An announced length leaves no room for an error event.
        let event_stream =
            kind == Some(AnswerKind::EventStream) && !parts.headers.contains_key(header::CONTENT_LENGTH);
        headers::to_client(&mut parts.headers);
        exchange.answer(parts.status, kind);
        upload.settle();
        let relay = Relay::of(rename, event_stream, api);
        let idle = self.limits.stream_idle;
        let passed =
            Passed::new(answer.first, rest, Reason::of_answer(parts.status), exchange, upload, relay, idle);
        parts.version = Version::default();
        parts.extensions = http::Extensions::default();
        Response::from_parts(parts, Content::Passed(Box::new(passed)))
    }
}

/// Has the request routed. While it waits the rest of its body is read: only behind that a client that hangs up is
/// noticed.
async fn route(intake: &mut Intake, upload: &mut Upload) -> Result<Exchange, Refusal> {
    let refusal = {
        let mut routing = pin!(intake.route());
        loop {
            tokio::select! {
                biased;
                routed = &mut routing => return routed,
                read = upload.read(), if !upload.is_at_end() => if let Some(Err(refusal)) = read {
                    break refusal;
                },
                () = ready(()), if upload.is_at_end() => {
                    // It waits, and all is here.
                    upload.compact();
                    return routing.await;
                }
            }
        }
    };
    Err(intake.refuse(refusal))
}

fn refuse(refusal: &Refusal) -> Response<Content> {
    let mut response = Response::new(Content::Whole(Some(Bytes::from(refusal.body()))));
    *response.status_mut() = refusal.reason.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_POINTSMAN_REASON, HeaderValue::from_static(refusal.reason.word()));
    if let Some(seconds) = refusal.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
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
