//! Model servers that speak HTTP/2 in the clear: the same acts, a stream for each request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use turmoil::net::TcpStream;

use crate::history::History;
use crate::http1::Head;
use crate::server::{Act, Framing, PATIENCE, Server, Shape, draw_shape};

/// An answer's body, part by part.
struct Reply {
    left: VecDeque<Bytes>,
    pause: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    end: End,
    arrival: usize,
    history: History,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Break,
    Hang,
}

/// The server breaks its answer off.
#[derive(Debug, thiserror::Error)]
#[error("the server breaks off")]
struct BreakOff;

impl Server {
    /// Serves one HTTP/2 connection to its end.
    pub(crate) async fn serve_streams(self, stream: TcpStream) {
        let drop_all = CancellationToken::new();
        let service = service_fn(|request| {
            let (server, drop_all) = (self.clone(), drop_all.clone());
            async move { Ok::<_, Infallible>(server.answer(request, &drop_all).await) }
        });
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_stream_window_size(1 << 17);
        let _ = drop_all.run_until_cancelled(builder.serve_connection(TokioIo::new(stream), service)).await;
    }

    async fn answer(&self, request: Request<Incoming>, drop_all: &CancellationToken) -> Response<Reply> {
        let head = head(&request);
        let tag = head.field("x-request-id").unwrap_or("none").to_owned();
        // When it was sent is not known: it may have been held on its way.
        *self.history.lock().sent_on.entry(tag.clone()).or_default() += 1;
        let (arrival, before) = self.history.arrived(self.number, &tag);
        let mut draw = self.draw.of(&format!("{tag} {before}"));
        let act = self.act(&mut draw);
        self.tell(&tag, &format!("{act:?}"));
        self.check_head(&tag, &head);
        if !matches!(act, Act::Early { .. } | Act::Drop) {
            self.read_stream(&tag, request.into_body()).await;
        }
        let shape = draw_shape(&tag, &mut draw, false);
        let status = match act {
            Act::Status(status) => status,
            Act::Early { .. } => 413,
            _ => 200,
        };
        let end = match act {
            Act::Drop | Act::CloseSilently | Act::Babble => {
                self.cut_answers();
                drop_all.cancel();
                return std::future::pending().await;
            }
            Act::Hang { midway: false } => {
                sleep(PATIENCE).await;
                End::Break
            }
            Act::Hang { midway: true } => End::Hang,
            Act::HeadAlone | Act::BreakOff => End::Break,
            Act::Answer | Act::Status(_) | Act::Early { .. } => End::Whole,
        };
        let share = match (act, end) {
            (Act::HeadAlone, _) => 0,
            (_, End::Whole) => 100,
            _ => draw.between(1, 99),
        };
        sleep(shape.before).await;
        self.reply(&tag, arrival, status, &shape, share, end)
    }

    /// The answer, or a share (in hundredths) of its parts.
    fn reply(
        &self,
        tag: &str,
        arrival: usize,
        status: u16,
        shape: &Shape,
        share: usize,
        end: End,
    ) -> Response<Reply> {
        let mut record = self.history.lock();
        record.arrivals[arrival].answer = shape.parts.concat();
        record.arrivals[arrival].events = shape.events;
        drop(record);
        let kind = if shape.events { "text/event-stream" } else { "application/json" };
        let mut answer = Response::builder()
            .status(status)
            .header("x-tag", tag)
            .header("x-arrival", arrival)
            .header("content-type", kind);
        if shape.framing == Framing::Length {
            answer = answer.header("content-length", shape.parts.concat().len());
        }
        let sent = (shape.parts.len() * share).div_ceil(100);
        let reply = Reply {
            left: shape.parts[..sent].iter().map(|part| Bytes::copy_from_slice(part)).collect(),
            pause: shape.pause,
            timer: None,
            end,
            arrival,
            history: self.history.clone(),
        };
        answer.body(reply).unwrap()
    }

    /// Answers on other streams of the connection may be on their way.
    fn cut_answers(&self) {
        let mut record = self.history.lock();
        let ours = record.arrivals.iter_mut().filter(|arrival| arrival.server == self.number);
        ours.for_each(|arrival| arrival.sound = false);
    }

    async fn read_stream(&self, tag: &str, mut body: Incoming) {
        let (mut read, mut whole) = (Vec::new(), true);
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => read.extend(data),
                Ok(Err(_)) => {}
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        self.check_body(tag, &read, whole);
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BreakOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BreakOff>>> {
        let pause = self.pause;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(pause)));
        ready!(timer.as_mut().poll(context));
        let part = self.left.pop_front();
        if part.is_some() || self.end == End::Whole {
            self.timer = None;
        }
        if self.left.is_empty() && self.end == End::Whole {
            self.history.lock().arrivals[self.arrival].sound = true;
        }
        match (part, self.end) {
            (Some(part), _) => Poll::Ready(Some(Ok(Frame::data(part)))),
            (None, End::Whole) => Poll::Ready(None),
            (None, End::Break) => Poll::Ready(Some(Err(BreakOff))),
            // Nobody wakes this any more.
            (None, End::Hang) => Poll::Pending,
        }
    }
}

/// The head as it would be in HTTP/1.1.
fn head(request: &Request<Incoming>) -> Head {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Head {
        line: format!("{} {} HTTP/1.1", request.method(), request.uri().path()),
        fields: request.headers().iter().map(field).collect(),
    }
}
