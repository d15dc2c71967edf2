//! The answer's body on its way to the client: chunk by chunk, watched for usage, and honest about a break.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use director::{Exchange, Reason};
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use inference::{Api, EventSplitter};

use crate::handler::outcome_of;
use crate::upload::Upload;

/// The body of an answer to a client.
pub(crate) enum AnswerBody {
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
    /// What the client still uploads while it is answered.
    _upload: Upload,
}

struct Events {
    splitter: EventSplitter,
    ready: VecDeque<Frame<Bytes>>,
    api: Option<Api>,
}

/// The answer broke off; the client's connection is closed so that it can tell.
#[derive(Debug, thiserror::Error)]
#[error("the model server's answer broke off")]
pub(crate) struct BrokenAnswer;

impl Passed {
    /// The body whose `first` frame is here already; `None` when it has none. As an event stream of `api` where
    /// `event_stream`.
    pub(crate) fn new(
        first: Option<Frame<Bytes>>,
        rest: Incoming,
        status: StatusCode,
        exchange: Exchange,
        upload: Upload,
        event_stream: bool,
        api: Option<Api>,
    ) -> Passed {
        let events =
            event_stream.then(|| Events { splitter: EventSplitter::default(), ready: VecDeque::new(), api });
        let mut passed = Passed {
            first,
            rest,
            events,
            exchange: Some(exchange),
            ended_as: outcome_of(status),
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
            let frame = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => std::task::ready!(Pin::new(&mut self.rest).poll_frame(context)),
            };
            match frame {
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
                Some(Err(error)) => {
                    tracing::debug!(%error, "an answer broke off after its first byte");
                    self.end(Reason::UpstreamBroken);
                    let Some(events) = &mut self.events else {
                        return Poll::Ready(Some(Err(BrokenAnswer)));
                    };
                    events.break_off();
                }
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

impl Events {
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
    fn break_off(&mut self) {
        const MESSAGE: &str =
            "the model server's answer broke off; what came so far is incomplete, ask again";
        if self.splitter.is_inside_event() {
            self.ready.push_back(Frame::data(Bytes::from_static(b"\n\n")));
        }
        let api = self.api.unwrap_or(Api::ChatCompletions);
        let event = inference::error_event(api, Reason::UpstreamBroken.word(), MESSAGE);
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
        match self.get_mut() {
            AnswerBody::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            AnswerBody::Passed(passed) => passed.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Whole(bytes) => bytes.is_none(),
            AnswerBody::Passed(passed) => passed.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            // The answer's own content-length header, where it has one, is passed on as it is.
            AnswerBody::Passed(_) => SizeHint::default(),
        }
    }
}
