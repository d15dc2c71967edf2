//! Clients that speak HTTP/2: all their requests at once, each on a stream of one connection.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::client::{Asker, FOR_EVER, PATIENCE, STALL};
use crate::history::{Got, Stayed};
use crate::http1::Head;
use crate::plan::{Asking, OBJECTIVE, Quit, Reading};

/// A client's body, piece by piece.
struct Pieces {
    left: VecDeque<Bytes>,
    pause: Duration,
    stalls: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// How many pieces go before the client hangs up.
    quits_after: Option<usize>,
}

/// The client hangs up in the middle of its body.
#[derive(Debug, thiserror::Error)]
#[error("the client hangs up")]
struct HangUp;

impl Asker {
    /// Asks everything on streams of one connection.
    pub(crate) async fn ask_on_streams(&self, tasks: &TaskTracker) {
        let Some(stream) = self.dial().await else { return };
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_stream_window_size(1 << 15);
        let Ok(Ok((sender, connection))) = timeout(PATIENCE, builder.handshake(TokioIo::new(stream))).await
        else {
            return self.tell("no HTTP/2");
        };
        tasks.spawn(connection);
        // Who never reads is not waited for.
        let waited_for = usize::from(self.plan.reading != Reading::Never);
        self.history.lock().busy -= 1 - waited_for;
        let streams = TaskTracker::new();
        for asked in 0..self.plan.requests.len() {
            let (asker, sender) = (self.clone(), sender.clone());
            streams.spawn(async move { asker.ask_on_stream(asked, sender).await });
        }
        streams.close();
        streams.wait().await;
        self.history.lock().busy += 1 - waited_for;
    }

    async fn ask_on_stream(&self, asked: usize, mut sender: SendRequest<Pieces>) {
        let asking = &self.plan.requests[asked];
        sleep(asking.pause_before).await;
        let mut got = None;
        let patience = if self.plan.reading == Reading::Never { FOR_EVER } else { PATIENCE };
        let end = timeout(patience, self.exchange(asking, &mut sender, &mut got)).await;
        let stayed = match end {
            Err(_) => Stayed::InVain,
            Ok(true) => Stayed::ToTheEnd,
            Ok(false) => Stayed::No,
        };
        self.remember(asked, stayed, None, got);
    }

    /// One request; false when the client hung up.
    async fn exchange(
        &self,
        asking: &Asking,
        sender: &mut SendRequest<Pieces>,
        got: &mut Option<Got>,
    ) -> bool {
        if sender.ready().await.is_err() {
            return true;
        }
        self.history.lock().streams_begun += 1;
        let sending = sender.send_request(request(asking));
        let quits_early = matches!(asking.quits, Quit::BeforeBody | Quit::MidBody);
        let patience = if let Quit::Waiting(patience) = asking.quits { patience } else { FOR_EVER };
        let Ok(answer) = timeout(patience, sending).await else { return false };
        let Ok(answer) = answer else { return !quits_early };
        *got = Some(Got { head: head(&answer), ..Got::default() });
        self.history.lock().streams_answered += 1;
        if self.plan.reading == Reading::Never {
            sleep(FOR_EVER).await;
        }
        self.read(asking, answer.into_body(), got.as_mut().unwrap()).await && !quits_early
    }

    /// Reads the answer's body; false when the client hung up.
    async fn read(&self, asking: &Asking, mut body: Incoming, got: &mut Got) -> bool {
        let bytes_max = if let Quit::MidAnswer(bytes) = asking.quits { bytes } else { usize::MAX };
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return true };
            if let Ok(data) = frame.into_data() {
                self.history.passes_on(&asking.tag, data.len());
                got.body.extend(data);
            }
            if got.body.len() >= bytes_max {
                return false;
            }
            if let Reading::Slow(_, pause) = self.plan.reading {
                sleep(pause).await;
            }
        }
        got.whole = true;
        true
    }
}

impl Pieces {
    fn of(asking: &Asking) -> Pieces {
        let size = asking.body.len().div_ceil(asking.pieces).max(1);
        Pieces {
            left: asking.body.chunks(size).map(Bytes::copy_from_slice).collect(),
            pause: asking.pause,
            stalls: asking.stalls,
            timer: None,
            quits_after: match asking.quits {
                Quit::BeforeBody => Some(0),
                Quit::MidBody => Some(1),
                _ => None,
            },
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = HangUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HangUp>>> {
        let pause = if self.stalls && self.left.len() == 1 { STALL } else { self.pause };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(pause)));
        ready!(timer.as_mut().poll(context));
        self.timer = None;
        match self.quits_after.as_mut() {
            Some(0) => return Poll::Ready(Some(Err(HangUp))),
            Some(left) => *left -= 1,
            None => {}
        }
        Poll::Ready(self.left.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}

fn request(asking: &Asking) -> Request<Pieces> {
    let mut request = Request::post(format!("http://door{}", asking.path))
        .version(http::Version::HTTP_2)
        .header("x-request-id", &asking.tag)
        .header("content-type", "application/json");
    if asking.chunked.is_none() {
        request = request.header("content-length", asking.body.len());
    }
    if let Some(objective) = asking.objective {
        request = request.header(OBJECTIVE, objective);
    }
    if asking.big_head {
        request = request.header("x-big", "h".repeat(5000));
    }
    request.body(Pieces::of(asking)).unwrap()
}

fn head(answer: &Response<Incoming>) -> Head {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Head { line: format!("HTTP/2 {}", answer.status()), fields: answer.headers().iter().map(field).collect() }
}
