//! The answer's body on its way to the client: chunk by chunk, watched for usage, and honest about a break.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use director::{Exchange, Reason};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use inference::{Api, EventSplitter};
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
    /// Present for event streams: events are passed on whole.
    events: Option<Events>,
    /// Taken when the answer is at its end.
    exchange: Option<Exchange>,
    ended_as: Reason,
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

/// The events of a stream on their way.
pub(crate) struct Events {
    splitter: EventSplitter,
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
    /// The body whose `first` frame is here already; `None` when it has none. As a stream of `events` where there are
    /// some; the model server may rest for `idle`.
    pub(crate) fn new(
        first: Option<Frame<Bytes>>,
        rest: Incoming,
        ended_as: Reason,
        exchange: Exchange,
        upload: Upload,
        events: Option<Events>,
        idle: Duration,
    ) -> Passed {
        let mut passed = Passed {
            first,
            rest,
            events,
            exchange: Some(exchange),
            ended_as,
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
            if let Some(ready) = self.events.as_mut().and_then(|events| events.ready.pop_front()) {
                return Poll::Ready(Some(Ok(ready)));
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
                    let Some(events) = &mut self.events else {
                        return Poll::Ready(Some(Err(BrokenAnswer)));
                    };
                    events.break_off(reason);
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
        match &mut self.events {
            None => Some(frame),
            Some(events) => {
                events.take(frame);
                events.ready.pop_front()
            }
        }
    }

    fn finish(&mut self) {
        self.end(self.ended_as);
        if let Some(events) = &mut self.events {
            events.flush();
        }
    }

    fn end(&mut self, reason: Reason) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.end(reason);
        }
    }

    fn is_done(&self) -> bool {
        self.exchange.is_none() && self.events.as_ref().is_none_or(|events| events.ready.is_empty())
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

impl Events {
    /// Events in the shape of `api`.
    pub(crate) fn of(api: Option<Api>) -> Events {
        Events { splitter: EventSplitter::default(), ready: VecDeque::new(), api }
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.ready.extend(self.splitter.push(data).map(Frame::data)),
            Err(trailers) => {
                self.flush();
                self.ready.push_back(trailers);
            }
        }
    }

    /// The stream ended well: what was held back of it is passed on.
    fn flush(&mut self) {
        self.ready.extend(std::mem::take(&mut self.splitter).finish().map(Frame::data));
    }

    /// The stream broke. A half event that was held back is dropped: a client could not read it.
    fn break_off(&mut self, reason: Reason) {
        const MESSAGE: &str =
            "the model server's answer broke off; what came so far is incomplete, ask again";
        if self.splitter.is_inside_event() {
            self.ready.push_back(Frame::data(Bytes::from_static(b"\n\n")));
        }
        let api = self.api.unwrap_or(Api::ChatCompletions);
        let event = inference::error_event(api, reason.word(), MESSAGE);
        self.ready.push_back(Frame::data(event));
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
