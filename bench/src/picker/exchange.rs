//! One request of Envoy's, from its headers to the end of the stream: what is sent when, and what must come back.
//!
//! Whatever the picker does wrong is a [`Fault`], so a fast wrong answer does not count as a fast answer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bench::ext_proc::{
    Answer, AnswerKind, BodyMode, BodyModes, Deframer, Malformed, PATH, RequestKind, body_message, framed,
    request_headers, response_headers, served_metadata,
};
use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use tokio::sync::Barrier;
use tokio::time::timeout;

use super::prompts::{Piece, Prompts, Shape, digits};

/// How long the end of a body is held back for the pick to come first.
const HOLD_MAX: Duration = Duration::from_millis(100);
/// A longer exchange is a fault.
const EXCHANGE_MAX: Duration = Duration::from_secs(20);
/// Stands in the template where each request's own id goes; as long as two numbers of a prompt.
const ID: &str = "00000000000000000000000000000000";
/// What a model server sends for a token, as a chunk.
const EVENT: &[u8] = b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"tiny\",\
    \"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"}}]}\n\n";
/// What it sends last.
const LAST_EVENT: &[u8] =
    b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"tiny\",\
    \"choices\":[],\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":200,\"total_tokens\":400}}\n\n\
    data: [DONE]\n\n";

/// What every request of a measurement is like.
pub(crate) struct Plan {
    /// The first message, framed, and where its request id stands.
    headers: Bytes,
    id_at: usize,
    prompts: Prompts,
    modes: BodyModes,
    response: ResponsePhase,
    checks: Checks,
}

/// How a request's body is sent and taken back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checks {
    /// The last message of a body in chunks is held back until the pick is there, for 100 ms at most.
    pub(crate) hold_end: bool,
    /// A body may come back changed: there are pickers that decode JSON and encode it again.
    pub(crate) body_may_change: bool,
}

/// What comes after the pick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponsePhase {
    /// Whether the response is shown at all (`response_header_mode: SEND`).
    pub(crate) headers: bool,
    /// Events in the response's body, each a chunk; the end comes in an empty message of its own.
    pub(crate) chunks: usize,
    /// `allow_mode_override`.
    pub(crate) mode_override: bool,
}

impl Plan {
    /// Encodes what all requests have in common.
    pub(crate) fn new(
        shape: &Shape,
        prompts: Prompts,
        response_body: BodyMode,
        response: ResponsePhase,
        checks: Checks,
    ) -> Plan {
        let modes = BodyModes { request: shape.mode, response: response_body };
        let length = prompts.body_bytes().to_string();
        let headers = framed(&request_headers(
            &[
                (":authority", "models.example.com"),
                (":path", "/v1/chat/completions"),
                (":method", "POST"),
                (":scheme", "http"),
                ("user-agent", "pointsman-bench"),
                ("accept", "*/*"),
                ("content-type", "application/json"),
                ("content-length", &length),
                ("x-forwarded-proto", "http"),
                ("x-request-id", ID),
            ],
            modes,
        ));
        let id_at = headers.windows(ID.len()).position(|window| window == ID.as_bytes()).unwrap_or_default();
        Plan { headers, id_at, prompts, modes, response, checks }
    }

    /// The first message of this request.
    fn headers(&self, number: u64) -> Bytes {
        let mut frame = BytesMut::from(&self.headers[..]);
        let half = ID.len() / 2;
        frame[self.id_at..self.id_at + half].copy_from_slice(&digits(number));
        frame[self.id_at + half..self.id_at + ID.len()].copy_from_slice(&digits(!number));
        frame.freeze()
    }
}

/// An exchange that went as it must.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was picked; `Err` has the status of an immediate response, which is a sound answer too.
    pub(crate) picked: Result<String, u64>,
    pub(crate) pick_at: Instant,
    /// When the last answer was there.
    pub(crate) done_at: Instant,
    /// Whether the pick came while the end of the body was held back.
    pub(crate) early: bool,
    /// Whether the request's body came back other than it was sent.
    pub(crate) body_changed: bool,
}

/// What a picker did wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("HTTP/2: {0}")]
    Transport(#[from] h2::Error),
    #[error("HTTP status {0}")]
    Status(StatusCode),
    #[error("gRPC status {0}")]
    GrpcStatus(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("no end within 20 s")]
    Timeout,
    #[error("the stream ended where {0:?} was due")]
    Ended(AnswerKind),
    #[error("{got:?} came where {due:?} was due")]
    Unexpected { due: AnswerKind, got: AnswerKind },
    #[error("an answer too many: {0:?}")]
    TooMany(AnswerKind),
    #[error("no destination was picked")]
    NoPick,
    #[error("header and metadata name different destinations")]
    Disagree,
    #[error("a body came back changed")]
    BodyChanged,
    #[error("a body's end came back too early or twice")]
    End,
    #[error("a body was streamed or replaced in a mode that has no such answer")]
    Mutation,
}

/// Makes request `number` of the plan. Between pick and response it waits at `barrier`, so that a burst is in
/// flight as a whole.
pub(crate) async fn exchange(
    sender: SendRequest<Bytes>,
    plan: &Plan,
    number: u64,
    barrier: Option<&Barrier>,
) -> Result<Outcome, Fault> {
    let whole = async {
        let mut exchange = Exchange::open(sender, plan).await?;
        exchange.stream.send(plan.headers(number))?;
        let pieces = plan.prompts.pieces(number);
        let refused = match plan.modes.request {
            BodyMode::FullDuplexStreamed => exchange.duplex_request(pieces).await?,
            _ => exchange.request(pieces).await?,
        };
        let (picked, pick_at) = match refused {
            Some(status) => (Err(status), Instant::now()),
            None => exchange.pick.take().map(|(list, at)| (Ok(list), at)).ok_or(Fault::NoPick)?,
        };
        if let Some(barrier) = barrier {
            barrier.wait().await;
        }
        if let (Ok(destination), true) = (&picked, plan.response.headers) {
            exchange.response(destination).await?;
        }
        let done_at = Instant::now();
        match exchange.finish().await {
            // Who has refused may end the stream first.
            Err(Fault::Transport(_)) if picked.is_err() => {}
            ended => ended?,
        }
        Ok(Outcome { picked, pick_at, done_at, early: exchange.early, body_changed: exchange.body_changed })
    };
    timeout(EXCHANGE_MAX, whole).await.unwrap_or(Err(Fault::Timeout))
}

struct Exchange<'a> {
    plan: &'a Plan,
    stream: Stream,
    pick: Option<(String, Instant)>,
    early: bool,
    body_changed: bool,
}

impl<'a> Exchange<'a> {
    async fn open(sender: SendRequest<Bytes>, plan: &'a Plan) -> Result<Exchange<'a>, Fault> {
        Ok(Exchange {
            plan,
            stream: Stream::open(sender).await?,
            pick: None,
            early: false,
            body_changed: false,
        })
    }

    /// Modes in which each message is answered before the next is sent. `Some` is the status of a refusal.
    async fn request(&mut self, pieces: impl Iterator<Item = Piece>) -> Result<Option<u64>, Fault> {
        if let Err(status) = self.due(AnswerKind::RequestHeaders).await? {
            return Ok(Some(status));
        }
        for piece in pieces {
            self.stream.send(piece.frame)?;
            match self.due(AnswerKind::RequestBody).await? {
                Ok(answer) if answer.streamed.is_some() || answer.replaces_body => {
                    return Err(Fault::Mutation);
                }
                Ok(_) => {}
                Err(status) => return Ok(Some(status)),
            }
        }
        Ok(None)
    }

    /// FULL_DUPLEX_STREAMED: the body goes out at once, the answer to the headers comes when it comes, then the body.
    async fn duplex_request(
        &mut self,
        pieces: impl ExactSizeIterator<Item = Piece>,
    ) -> Result<Option<u64>, Fault> {
        let mut sent = Sent::new(VecDeque::new(), true, self.plan.checks.body_may_change);
        let mut last = None;
        let behind_last = pieces.len().saturating_sub(1);
        for (place, piece) in pieces.enumerate() {
            sent.pieces.push_back(piece.body);
            if self.plan.checks.hold_end && place == behind_last {
                last = Some(piece.frame);
            } else {
                self.stream.send(piece.frame)?;
            }
        }
        if let Some(last) = last {
            // Cutting the wait short loses nothing: what has come stays in the deframer.
            self.early = timeout(HOLD_MAX, self.stream.arrived()).await.is_ok();
            self.stream.send(last)?;
        }
        if let Err(status) = self.due(AnswerKind::RequestHeaders).await? {
            return Ok(Some(status));
        }
        if self.pick.is_none() {
            return Err(Fault::NoPick);
        }
        loop {
            let answer = match self.due(AnswerKind::RequestBody).await? {
                Ok(answer) => answer,
                Err(status) => return Ok(Some(status)),
            };
            if sent.came_back(answer)? {
                self.body_changed = sent.changed;
                return Ok(None);
            }
        }
    }

    /// The response's headers, and its body if the picker is to see it.
    async fn response(&mut self, picked: &str) -> Result<(), Fault> {
        let served = picked.split(',').next().unwrap_or_default();
        let metadata = served_metadata(picked, served);
        let headers = [
            (":status", "200"),
            ("content-type", "text/event-stream; charset=utf-8"),
            ("x-envoy-upstream-service-time", "7"),
        ];
        self.stream.send(framed(&response_headers(&headers, &metadata)))?;
        let answer = match self.due(AnswerKind::ResponseHeaders).await? {
            Ok(answer) => answer,
            Err(_) => return Ok(()),
        };
        let mode = match answer.response_body_mode {
            Some(mode) if self.plan.response.mode_override => mode,
            _ => self.plan.modes.response,
        };
        if mode == BodyMode::None {
            return Ok(());
        }
        let encoded =
            |body: &[u8], end| framed(&body_message(RequestKind::ResponseBody, body, end, &metadata).0);
        let (event, last) = (encoded(EVENT, false), encoded(LAST_EVENT, false));
        for place in 1..=self.plan.response.chunks {
            let (frame, body) =
                if place == self.plan.response.chunks { (&last, LAST_EVENT) } else { (&event, EVENT) };
            self.response_body(mode, frame.clone(), body, false).await?;
        }
        self.response_body(mode, encoded(&[], true), &[], true).await
    }

    /// Sends a piece of the response's body and waits for what it is answered: tokens come one by one.
    async fn response_body(
        &mut self,
        mode: BodyMode,
        frame: Bytes,
        body: &'static [u8],
        end: bool,
    ) -> Result<(), Fault> {
        self.stream.send(frame)?;
        let mut sent = Sent::new(VecDeque::from([Bytes::from_static(body)]), end, false);
        loop {
            let Ok(answer) = self.due(AnswerKind::ResponseBody).await? else { return Ok(()) };
            if mode != BodyMode::FullDuplexStreamed {
                let mutated = answer.streamed.is_some() || answer.replaces_body;
                return if mutated { Err(Fault::Mutation) } else { Ok(()) };
            }
            let ended = sent.came_back(answer)?;
            if ended || (!end && sent.is_all_back()) {
                return Ok(());
            }
        }
    }

    /// The answer that is due; `Err` is the status of an immediate response in its place.
    async fn due(&mut self, due: AnswerKind) -> Result<Result<Answer, u64>, Fault> {
        let answer = self.stream.answer().await?.ok_or(Fault::Ended(due))?;
        if answer.kind == AnswerKind::Immediate {
            return Ok(Err(answer.immediate_status.unwrap_or_default()));
        }
        if answer.kind != due {
            return Err(Fault::Unexpected { due, got: answer.kind });
        }
        match (&answer.header_destination, &answer.metadata_destination) {
            (Some(header), Some(metadata)) if header == metadata => {
                self.pick.get_or_insert_with(|| (header.clone(), Instant::now()));
            }
            (None, None) => {}
            _ => return Err(Fault::Disagree),
        }
        Ok(Ok(answer))
    }

    /// Ends our side as Envoy does, and waits for the picker's end.
    async fn finish(&mut self) -> Result<(), Fault> {
        self.stream.send.send_data(Bytes::new(), true)?;
        match self.stream.answer().await? {
            Some(answer) => Err(Fault::TooMany(answer.kind)),
            None => Ok(()),
        }
    }
}

/// What was sent of a body and has not come back yet.
struct Sent {
    pieces: VecDeque<Bytes>,
    /// Whether the end was sent too.
    ends: bool,
    may_change: bool,
    changed: bool,
}

impl Sent {
    fn new(pieces: VecDeque<Bytes>, ends: bool, may_change: bool) -> Sent {
        Sent { pieces, ends, may_change, changed: false }
    }

    fn is_all_back(&self) -> bool {
        self.pieces.iter().all(Bytes::is_empty)
    }

    /// Takes a piece that came back, cut as it may be; true at the end.
    fn came_back(&mut self, answer: Answer) -> Result<bool, Fault> {
        let Some((body, end)) = answer.streamed else { return Err(Fault::Mutation) };
        self.changed = self.changed || !self.is_next(body);
        let short = end && !self.changed && !self.is_all_back();
        if (self.changed || short) && !self.may_change {
            return Err(if self.changed { Fault::BodyChanged } else { Fault::End });
        }
        self.changed |= short;
        if end && !self.ends { Err(Fault::End) } else { Ok(end) }
    }

    /// Whether these are the bytes that were due; takes them.
    fn is_next(&mut self, mut body: Bytes) -> bool {
        while !body.is_empty() {
            let Some(expected) = self.pieces.front_mut() else { return false };
            let length = expected.len().min(body.len());
            if expected.split_to(length) != body.split_to(length) {
                return false;
            }
            if length == 0 {
                self.pieces.pop_front();
            }
        }
        true
    }
}

/// A gRPC stream.
struct Stream {
    send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    deframer: Deframer,
    /// What came while the end of a body was held back.
    ahead: Option<Bytes>,
}

impl Stream {
    async fn open(sender: SendRequest<Bytes>) -> Result<Stream, Fault> {
        let mut request = Request::post(format!("http://picker{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-envoy-internal", "true")
            .header("x-forwarded-for", "127.0.0.1")
            .body(())
            .map_err(|_| Malformed("request"))?;
        *request.version_mut() = http::Version::HTTP_2;
        let (response, send) = sender.ready().await?.send_request(request, false)?;
        Ok(Stream { send, response: Some(response), body: None, deframer: Deframer::default(), ahead: None })
    }

    fn send(&mut self, frame: Bytes) -> Result<(), Fault> {
        Ok(self.send.send_data(frame, false)?)
    }

    /// Waits until a message is there, without taking it. May be dropped without loss.
    async fn arrived(&mut self) -> Result<(), Fault> {
        self.ahead = self.message().await?;
        Ok(())
    }

    /// The next answer; `None` when the stream has ended well.
    async fn answer(&mut self) -> Result<Option<Answer>, Fault> {
        let message = match self.ahead.take() {
            Some(message) => Some(message),
            None => self.message().await?,
        };
        message.map(|message| Ok(Answer::parse(&message)?)).transpose()
    }

    async fn message(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            if let Some(message) = self.deframer.message()? {
                return Ok(Some(message));
            }
            if let Some(response) = &mut self.response {
                let begun = response.await?;
                self.response = None;
                self.body = begin(begun)?;
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.data().await {
                Some(data) => {
                    let data = data?;
                    body.flow_control().release_capacity(data.len())?;
                    self.deframer.push(data);
                }
                None => {
                    let trailers = body.trailers().await?.unwrap_or_default();
                    check_grpc_status(&trailers)?;
                    self.body = None;
                    if self.deframer.is_within_message() {
                        return Err(Malformed("gRPC frame").into());
                    }
                }
            }
        }
    }
}

/// The body of a response; none of one that is all trailers and says that all is well.
fn begin(response: Response<RecvStream>) -> Result<Option<RecvStream>, Fault> {
    if response.status() != StatusCode::OK {
        return Err(Fault::Status(response.status()));
    }
    if response.headers().contains_key("grpc-status") {
        check_grpc_status(response.headers())?;
        return Ok(None);
    }
    Ok(Some(response.into_body()))
}

fn check_grpc_status(headers: &http::HeaderMap) -> Result<(), Fault> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("missing");
    match text("grpc-status") {
        "0" => Ok(()),
        status => Err(Fault::GrpcStatus(format!("{status}, message {}", text("grpc-message")))),
    }
}

#[cfg(test)]
mod tests;
