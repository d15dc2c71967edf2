//! The answer's body on its way to the client: chunk by chunk, watched for usage, and honest about a break.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use director::{Exchange, Reason};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use inference::{AnswerRename, Api, EventSplitter};
use telemetry::Limit;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::connections::InService;
use crate::upload::Upload;

/// The body of an answer to a client, and the request's stay on its connection.
pub(crate) struct AnswerBody {
    content: Content,
    service: InService,
}

/// What an answer consists of.
pub(crate) enum Content {
    /// Ours, whole.
    Whole(Option<Bytes>),
    /// A model server's, as it comes.
    Passed(Box<Passed>),
}

/// A model server's body, and the request it answers.
pub(crate) struct Passed {
    first: Option<Frame<Bytes>>,
    rest: Incoming,
    /// Present where the answer is more than passed on.
    relay: Option<Relay>,
    /// Taken when the answer is at its end.
    exchange: Option<Exchange>,
    ended_as: Reason,
    /// The answer broke off, and the client is not told yet.
    broken: bool,
    idle: Idle,
    /// What the client still uploads while it is answered.
    _upload: Upload,
}

/// How long a model server may rest in the middle of its answer. The timer is set when the answer first lets us wait,
/// and only looks again when it goes off: parts in between cost nothing.
struct Idle {
    most: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    last: Instant,
}

/// What an answer goes through where it is more than passed on.
pub(crate) struct Relay {
    /// Present where the model server knows the model by another name.
    rename: Option<AnswerRename>,
    /// Present for event streams: events are passed on whole.
    events: Option<EventSplitter>,
    ready: VecDeque<Frame<Bytes>>,
    api: Option<Api>,
}

/// The answer broke off; the client's connection is closed so that it can tell.
#[derive(Debug, thiserror::Error)]
#[error("the model server's answer broke off")]
pub(crate) struct BrokenAnswer;

impl AnswerBody {
    pub(crate) fn new(content: Content, service: InService) -> AnswerBody {
        AnswerBody { content, service }
    }
}

impl Passed {
    /// The body whose `first` frame is here already; `None` when it has none. The model server may rest for `idle`.
    pub(crate) fn new(
        first: Option<Frame<Bytes>>,
        rest: Incoming,
        ended_as: Reason,
        exchange: Exchange,
        upload: Upload,
        relay: Option<Relay>,
        idle: Duration,
    ) -> Passed {
        let mut passed = Passed {
            first,
            rest,
            relay,
            exchange: Some(exchange),
            ended_as,
            broken: false,
            idle: Idle { most: idle, timer: None, last: Instant::now() },
            _upload: upload,
        };
        if passed.first.is_none() {
            passed.end(passed.ended_as);
        }
        passed
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        loop {
            if let Some(ready) = self.relay.as_mut().and_then(|relay| relay.ready.pop_front()) {
                return Poll::Ready(Some(Ok(ready)));
            }
            if std::mem::take(&mut self.broken) {
                return Poll::Ready(Some(Err(BrokenAnswer)));
            }
            if self.exchange.is_none() {
                return Poll::Ready(None);
            }
            match std::task::ready!(self.poll_answer(context)) {
                Some(Ok(frame)) => {
                    let passed = self.pass(frame);
                    // Whoever knows the answer's length does not ask for what comes after its last byte.
                    if self.rest.is_end_stream() {
                        self.finish();
                    }
                    if let Some(passed) = passed {
                        return Poll::Ready(Some(Ok(passed)));
                    }
                }
                None => self.finish(),
                Some(Err(reason)) => {
                    self.end(reason);
                    if !self.relay.as_mut().is_some_and(|relay| relay.break_off(reason)) {
                        // The codec drops what it has not written when it hears of the break: it hears of it one turn
                        // later.
                        self.broken = true;
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// The next part from the model server, or why none will come.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        match Pin::new(&mut self.rest).poll_frame(context) {
            Poll::Ready(frame) => {
                self.idle.over();
                Poll::Ready(frame.map(|frame| {
                    frame.map_err(|error| {
                        tracing::debug!(%error, "an answer broke off after its first byte");
                        Reason::UpstreamBroken
                    })
                }))
            }
            Poll::Pending => {
                std::task::ready!(self.idle.poll_too_long(context));
                if let Some(exchange) = &self.exchange {
                    exchange.metrics().limits.reached(Limit::StreamIdle);
                }
                Poll::Ready(Some(Err(Reason::UpstreamTimeout)))
            }
        }
    }

    /// What of `frame` goes on at once.
    fn pass(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        if let (Some(exchange), Some(data)) = (&mut self.exchange, frame.data_ref()) {
            exchange.answer_bytes(data);
        }
        match &mut self.relay {
            None => Some(frame),
            Some(relay) => {
                relay.take(frame);
                relay.ready.pop_front()
            }
        }
    }

    fn finish(&mut self) {
        self.end(self.ended_as);
        if let Some(relay) = &mut self.relay {
            relay.flush();
        }
    }

    fn end(&mut self, reason: Reason) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.end(reason);
        }
    }

    fn is_done(&self) -> bool {
        self.exchange.is_none()
            && !self.broken
            && self.relay.as_ref().is_none_or(|relay| relay.ready.is_empty())
    }
}

impl Idle {
    /// A part came.
    fn over(&mut self) {
        if self.timer.is_some() {
            self.last = Instant::now();
        }
    }

    /// Resolves when nothing came for too long.
    fn poll_too_long(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (most, last) = (self.most, &mut self.last);
        let timer = self.timer.get_or_insert_with(|| {
            *last = Instant::now();
            Box::pin(sleep_until(*last + most))
        });
        while timer.as_mut().poll(context).is_ready() {
            if self.last.elapsed() >= most {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.last + most);
        }
        Poll::Pending
    }
}

impl Relay {
    /// What is needed where the model is to be renamed, or the answer is an event stream in the shape of `api`.
    pub(crate) fn of(rename: Option<AnswerRename>, event_stream: bool, api: Option<Api>) -> Option<Relay> {
        let events = event_stream.then(EventSplitter::default);
        let needed = rename.is_some() || events.is_some();
        needed.then(|| Relay { rename, events, ready: VecDeque::new(), api })
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                let Relay { rename, events, ready, .. } = self;
                match rename {
                    None => split(events, ready, data),
                    Some(rename) => rename.push(&data, |part| split(events, ready, part)),
                }
            }
            Err(trailers) => {
                self.flush();
                self.ready.push_back(trailers);
            }
        }
    }

    /// The answer ended well: what was held back of it is passed on.
    fn flush(&mut self) {
        let Relay { rename, events, ready, .. } = self;
        if let Some(rest) = rename.take().and_then(AnswerRename::finish) {
            split(events, ready, rest);
        }
        if let Some(events) = events {
            ready.extend(std::mem::take(events).finish().map(Frame::data));
        }
    }

    /// The answer broke. A half event that was held back is dropped: a client could not read it. False where there is
    /// no way to tell.
    fn break_off(&mut self, reason: Reason) -> bool {
        const MESSAGE: &str =
            "the model server's answer broke off; what came so far is incomplete, ask again";
        let Some(events) = &self.events else { return false };
        if events.is_inside_event() {
            self.ready.push_back(Frame::data(Bytes::from_static(b"\n\n")));
        }
        let api = self.api.unwrap_or(Api::ChatCompletions);
        let event = inference::error_event(api, reason.word(), MESSAGE);
        self.ready.push_back(Frame::data(event));
        true
    }
}

/// Makes `data` ready, as whole events where it is some.
fn split(events: &mut Option<EventSplitter>, ready: &mut VecDeque<Frame<Bytes>>, data: Bytes) {
    match events {
        Some(events) => ready.extend(events.push(data).map(Frame::data)),
        None => ready.push_back(Frame::data(data)),
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenAnswer;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        let this = self.get_mut();
        this.service.asked();
        let polled = match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Passed(passed) => passed.poll(context),
        };
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            this.service.offer();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::Passed(passed) => passed.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            // The answer's own content-length header, where it has one, is passed on as it is.
            Content::Passed(_) => SizeHint::default(),
        }
    }
}
