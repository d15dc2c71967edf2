//! The answer's body on its way to the client: chunk by chunk, watched for usage, and honest about a break.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use director::{Exchange, Reason};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use inference::{Api, EventSplitter};

use crate::handler::outcome_of;

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
    exchange: Option<Exchange>,
    ended_as: Reason,
}

struct Events {
    splitter: EventSplitter,
    ready: VecDeque<Bytes>,
    api: Option<Api>,
    ended: bool,
}

/// The answer broke off; the client's connection is closed so that it can tell.
#[derive(Debug, thiserror::Error)]
#[error("the model server's answer broke off")]
pub(crate) struct BrokenAnswer;

impl Passed {
    /// The body whose `first` frame is here already. `events` where it is an event stream of `api`.
    pub(crate) fn new(
        first: Option<Frame<Bytes>>,
        rest: Incoming,
        status: http::StatusCode,
        exchange: Exchange,
        event_stream: bool,
        api: Option<Api>,
    ) -> Passed {
        let events = event_stream.then(|| Events {
            splitter: EventSplitter::default(),
            ready: VecDeque::new(),
            api,
            ended: false,
        });
        Passed { first, rest, events, exchange: Some(exchange), ended_as: outcome_of(status) }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenAnswer>>> {
        loop {
            if let Some(events) = &mut self.events {
                if let Some(ready) = events.ready.pop_front() {
                    return Poll::Ready(Some(Ok(Frame::data(ready))));
                }
                if events.ended {
                    return Poll::Ready(None);
                }
            }
            let frame = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => std::task::ready!(Pin::new(&mut self.rest).poll_frame(context)),
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Some(passed) = self.pass(frame) {
                        return Poll::Ready(Some(Ok(passed)));
                    }
                }
                None => {
                    self.end(self.ended_as);
                    let Some(events) = &mut self.events else { return Poll::Ready(None) };
                    events.ended = true;
                    events.ready.extend(std::mem::take(&mut events.splitter).finish());
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "an answer broke off after its first byte");
                    self.end(Reason::UpstreamBroken);
                    let Some(events) = &mut self.events else {
                        return Poll::Ready(Some(Err(BrokenAnswer)));
                    };
                    events.ended = true;
                    if events.splitter.is_inside_event() {
                        events.ready.push_back(Bytes::from_static(b"\n\n"));
                    }
                    // A half event that was held back is dropped: a client could not read it.
                    events.ready.push_back(broken_off(events.api));
                }
            }
        }
    }

    /// What of `frame` goes on at once.
    fn pass(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Some(trailers),
        };
        if let Some(exchange) = &mut self.exchange {
            exchange.answer_bytes(&data);
        }
        match &mut self.events {
            None => Some(Frame::data(data)),
            Some(events) => {
                events.ready.extend(events.splitter.push(data));
                events.ready.pop_front().map(Frame::data)
            }
        }
    }

    fn end(&mut self, reason: Reason) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.end(reason);
        }
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
            AnswerBody::Passed(_) => false,
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

fn broken_off(api: Option<Api>) -> Bytes {
    const MESSAGE: &str = "the model server's answer broke off; what came so far is incomplete, ask again";
    inference::error_event(api.unwrap_or(Api::ChatCompletions), Reason::UpstreamBroken.word(), MESSAGE)
}
