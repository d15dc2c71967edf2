//! The client's body on its way to a model server: read once, kept within a bound so that it can be sent again to
//! the next endpoint when one fails before its first byte.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use director::{Director, HeldBytes, Reason, Refusal};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use telemetry::Limit;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

/// How much of a body is kept for another attempt once its endpoint is picked. What was read before the pick is
/// kept whole: it had to be held anyway.
pub const REPLAY_BYTES_MAX: usize = 1 << 20;

/// How much of a refused body is read on, and for how long.
const DRAIN_BYTES_MAX: u64 = 1 << 20;
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// What a request costs whose body has not come.
const REQUEST_BYTES: u64 = 4096;
/// What holding one part of a body costs besides its bytes.
const PART_BYTES: u64 = 64;
/// A body that waits is copied into one piece if it is longer.
const COMPACTED_BYTES_MIN: usize = 16 << 10;

/// A body that several attempts can send, one after the other. Dropping it lets go of the client's connection, also
/// where an abandoned attempt lives on in a connection that does not end.
pub(crate) struct Upload {
    shared: Arc<Mutex<Shared>>,
    /// How long the client may rest.
    stall: Duration,
}

struct Shared {
    director: Arc<Director>,
    announced: Option<u64>,
    /// The length that is announced to model servers.
    sends: Option<u64>,
    /// What came so far, so that it can be sent again; parts that were sent and cannot be needed again are empty.
    kept: Vec<Bytes>,
    /// Which of `kept` the present attempt sends next.
    next: usize,
    held: HeldBytes,
    kept_bytes: usize,
    /// What the client has not sent yet; `None` when the body is at its end.
    rest: Option<Incoming>,
    /// Since when the client lets us wait for more.
    waiting_since: Option<Instant>,
    trailers: Option<HeaderMap>,
    /// False once the body cannot be sent from its beginning any more.
    whole: bool,
    bytes: u64,
    /// Bytes that attempts took.
    taken: u64,
    failed: Option<Refusal>,
    /// Which attempt may read: an abandoned one must not take the wake-ups of its successor.
    attempts: u32,
    /// Told when the body is at its end.
    at_end: Arc<Notify>,
}

/// One attempt's reading of an [`Upload`], from its beginning.
pub(crate) struct Attempt {
    shared: Arc<Mutex<Shared>>,
    number: u32,
    sent: u64,
    announced: Option<u64>,
    done: bool,
}

/// The client's body could not be read to its end; the [`Upload`] knows why.
#[derive(Debug, thiserror::Error)]
#[error("the client's body broke off")]
pub(crate) struct BrokenUpload;

impl Upload {
    /// The body of a request, none of it read, of a client that may rest for `stall`.
    ///
    /// # Errors
    /// When there is no memory for one more.
    pub(crate) fn new(
        body: Incoming,
        announced: Option<u64>,
        director: Arc<Director>,
        stall: Duration,
    ) -> Result<Upload, Refusal> {
        let mut held = director.held_bytes();
        held.take(REQUEST_BYTES)?;
        let rest = (!body.is_end_stream()).then_some(body);
        let announced = if rest.is_none() { Some(0) } else { announced };
        Ok(Upload {
            stall,
            shared: Arc::new(Mutex::new(Shared {
                announced,
                sends: announced,
                kept: Vec::new(),
                next: 0,
                held,
                director,
                kept_bytes: 0,
                rest,
                waiting_since: None,
                trailers: None,
                whole: true,
                bytes: 0,
                taken: 0,
                failed: None,
                attempts: 0,
                at_end: Arc::default(),
            })),
        })
    }

    /// Reads the next part before an endpoint is picked. `None` at the end.
    ///
    /// # Errors
    /// When the client's body breaks off or rests for too long, or there is no memory to hold it.
    /// Nothing is lost where the future is dropped.
    pub(crate) async fn read(&mut self) -> Option<Result<Bytes, Refusal>> {
        loop {
            let frame = timeout(self.stall, poll_fn(|context| self.shared.lock().poll_frame(context))).await;
            let mut shared = self.shared.lock();
            match frame {
                Err(_) => return Some(Err(shared.stalled())),
                Ok(None) => {
                    shared.end();
                    return None;
                }
                Ok(Some(Err(error))) => return Some(Err(shared.fail(broken(&error)))),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        shared.count(data.len());
                        if let Err(refusal) = shared.keep(data.clone()) {
                            return Some(Err(shared.fail(refusal)));
                        }
                        return Some(Ok(data));
                    }
                    Err(frame) => shared.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }

    /// Reads on for a moment and within a bound: an answer sent over unread bytes may be lost to a reset.
    pub(crate) async fn drain(&mut self) {
        let is_short = {
            let mut shared = self.shared.lock();
            shared.attempts += 1;
            shared.announced.is_none_or(|bytes| bytes.saturating_sub(shared.bytes) <= DRAIN_BYTES_MAX)
        };
        if !is_short {
            return;
        }
        let reading = async {
            while let Some(Ok(_)) = self.read().await {
                if self.bytes() > DRAIN_BYTES_MAX {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_MAX, reading).await;
    }

    /// Whether nothing more comes from the client.
    pub(crate) fn is_at_end(&self) -> bool {
        self.shared.lock().rest.is_none()
    }

    /// Whether nothing of the body is left unread.
    pub(crate) fn is_read(&self) -> bool {
        let shared = self.shared.lock();
        shared.is_complete() && shared.failed.is_none()
    }

    /// Copies a long body, all of which was [read](Self::read), into one piece, before the first attempt. What it came in is
    /// let go: buffers that are larger than what came.
    pub(crate) fn compact(&self) {
        let mut shared = self.shared.lock();
        if shared.kept_bytes > COMPACTED_BYTES_MIN {
            let mut whole = Vec::with_capacity(shared.kept_bytes);
            shared.kept.iter().for_each(|part| whole.extend_from_slice(part));
            shared.kept = vec![Bytes::from(whole)];
        }
    }

    /// Puts `with` in the place of the bytes `span`, all of which were [read](Self::read), before the first attempt.
    /// Gives the length of what is sent, where it is known.
    pub(crate) fn replace(&self, span: Range<usize>, with: Bytes) -> Option<u64> {
        let mut shared = self.shared.lock();
        let (gone, come) = (span.len() as u64, with.len() as u64);
        let mut with = Some(with);
        let mut start = 0;
        let mut replaced = Vec::with_capacity(shared.kept.len() + 2);
        for part in std::mem::take(&mut shared.kept) {
            let end = start + part.len();
            replaced.push(part.slice(..span.start.clamp(start, end) - start));
            if end >= span.end {
                replaced.extend(with.take());
            }
            replaced.push(part.slice(span.end.clamp(start, end) - start..));
            start = end;
        }
        replaced.retain(|part| !part.is_empty());
        shared.kept = replaced;
        shared.sends = shared.sends.map(|bytes| bytes.saturating_sub(gone) + come);
        shared.sends
    }

    /// A body for the next attempt, from the beginning. Attempts made before are at their end.
    pub(crate) fn attempt(&self) -> Attempt {
        let mut shared = self.shared.lock();
        shared.attempts += 1;
        shared.next = 0;
        Attempt {
            shared: Arc::clone(&self.shared),
            number: shared.attempts,
            sent: 0,
            announced: shared.sends,
            done: false,
        }
    }

    /// Retires the attempts made so far. True when another could send the body from its beginning.
    pub(crate) fn restart(&self) -> bool {
        let mut shared = self.shared.lock();
        shared.attempts += 1;
        shared.whole
    }

    /// No other attempt will be made: what the present one has sent is let go.
    pub(crate) fn settle(&self) {
        self.shared.lock().keep_no_more();
    }

    /// Resolves when all of the body has come from the client; or when it has rested for too long, and
    /// [`Self::failure`] says so; or when the endpoint takes nothing of what came: then the time is the endpoint's.
    pub(crate) async fn complete(&self) {
        let at_end = Arc::clone(&self.shared.lock().at_end);
        let mut taken = None;
        loop {
            let told = at_end.notified();
            let waiting_since = {
                let shared = self.shared.lock();
                if shared.is_complete() {
                    return;
                }
                shared.waiting_since
            };
            let due = waiting_since.unwrap_or_else(Instant::now) + self.stall;
            tokio::select! {
                biased;
                () = told => return,
                () = sleep_until(due) => {}
            }
            if waiting_since.is_some() && self.shared.lock().waiting_since == waiting_since {
                // The part that was waited for may be here, and nobody asked for it: the endpoint has no room.
                if poll_fn(|context| Poll::Ready(self.shared.lock().poll_ahead(context))).await.is_pending() {
                    self.shared.lock().stalled();
                    return;
                }
            }
            let before = taken.replace(self.shared.lock().taken);
            if before == taken {
                return;
            }
        }
    }

    /// Why the client's side failed, if it did.
    pub(crate) fn failure(&self) -> Option<Refusal> {
        self.shared.lock().failed.clone()
    }

    /// Bytes that came from the client so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.lock().bytes
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut shared = self.shared.lock();
        shared.attempts += 1;
        shared.let_go();
        shared.end();
    }
}

impl Shared {
    fn end(&mut self) {
        self.rest = None;
        self.at_end.notify_waiters();
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.is_complete() {
            self.at_end.notify_waiters();
        }
    }

    /// Whether all that was announced has come, or the end.
    fn is_complete(&self) -> bool {
        self.rest.is_none() || Some(self.bytes) == self.announced
    }

    /// # Errors
    /// When there is no memory for it; then nothing is kept any more.
    fn keep(&mut self, data: Bytes) -> Result<(), Refusal> {
        self.held.take(data.len() as u64 + PART_BYTES)?;
        self.kept_bytes += data.len();
        self.kept.push(data);
        Ok(())
    }

    /// From now on a part is let go as soon as it is sent.
    fn keep_no_more(&mut self) {
        self.whole = false;
        if self.next >= self.kept.len() {
            self.let_go();
        } else {
            self.kept[..self.next].fill(Bytes::new());
        }
    }

    fn let_go(&mut self) {
        self.kept = Vec::new();
        self.next = 0;
        self.held.give_back();
    }

    fn fail(&mut self, refusal: Refusal) -> Refusal {
        self.end();
        self.failed.insert(refusal).clone()
    }

    fn stalled(&mut self) -> Refusal {
        self.director.metrics().limits.reached(Limit::BodyStall);
        let message = format!(
            "the request's body stopped after {} bytes; send it without long rests, or raise --body-stall-timeout",
            self.bytes
        );
        self.fail(Refusal::new(Reason::ClientTooSlow, message))
    }

    /// What the client sends next, as it comes.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(&mut *rest).poll_frame(context));
        if rest.is_end_stream() {
            self.rest = None;
        }
        Poll::Ready(frame)
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenUpload>>> {
        let Some(part) = self.kept.get_mut(self.next) else {
            return self.poll_rest(context);
        };
        let part = if self.whole { part.clone() } else { std::mem::take(part) };
        self.next += 1;
        self.taken += part.len() as u64;
        if !self.whole && self.next == self.kept.len() {
            self.let_go();
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenUpload>>> {
        if self.failed.is_some() {
            return Poll::Ready(Some(Err(BrokenUpload)));
        }
        let Some(rest) = self.rest.as_mut() else {
            return Poll::Ready(self.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        };
        let Poll::Ready(frame) = Pin::new(&mut *rest).poll_frame(context) else {
            self.waiting_since.get_or_insert_with(Instant::now);
            return Poll::Pending;
        };
        self.waiting_since = None;
        match frame {
            None => {
                self.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.fail(broken(&error));
                Poll::Ready(Some(Err(BrokenUpload)))
            }
            Some(Ok(frame)) => {
                let at_end = rest.is_end_stream();
                let taken = self.take(frame);
                if at_end {
                    self.end();
                }
                Poll::Ready(Some(taken))
            }
        }
    }

    /// Whether the client's next part is here; it is kept for the attempt that will ask for it.
    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (next, whole) = (self.next, self.whole);
        let Poll::Ready(frame) = self.poll_rest(context) else { return Poll::Pending };
        // A failure and the end are remembered by themselves, trailers too.
        if let Some(Ok(frame)) = frame
            && let Ok(data) = frame.into_data()
        {
            self.taken -= data.len() as u64;
            if !(whole && self.whole) {
                self.kept.push(data);
            }
            self.next = if whole && !self.whole { 0 } else { next };
        }
        Poll::Ready(())
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BrokenUpload> {
        let Some(data) = frame.data_ref() else {
            self.trailers = frame.trailers_ref().cloned();
            self.end();
            return Ok(frame);
        };
        self.count(data.len());
        self.taken += data.len() as u64;
        if self.bytes > self.director.limits().body_bytes_max {
            let refusal = self.director.body_too_large();
            self.fail(refusal);
            return Err(BrokenUpload);
        }
        // What does not fit is passed on all the same; it cannot be sent again.
        let fits = self.kept_bytes + data.len() <= REPLAY_BYTES_MAX;
        if self.whole && !(fits && self.keep(data.clone()).is_ok()) {
            self.keep_no_more();
        }
        self.next = self.kept.len();
        Ok(frame)
    }
}

impl Body for Attempt {
    type Data = Bytes;
    type Error = BrokenUpload;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenUpload>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let mut shared = this.shared.lock();
        let polled = if this.number == shared.attempts {
            shared.poll_next(context)
        } else {
            Poll::Ready(Some(Err(BrokenUpload)))
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Poll::Ready(_) => this.done = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        self.done
            || (shared.rest.is_none()
                && shared.failed.is_none()
                && shared.trailers.is_none()
                && shared.next >= shared.kept.len())
    }

    fn size_hint(&self) -> SizeHint {
        match self.announced {
            Some(bytes) => SizeHint::with_exact(bytes.saturating_sub(self.sent)),
            None => SizeHint::default(),
        }
    }
}

/// Why a client's body could not be read: it hung up, unless what it sent makes no sense.
fn broken(error: &hyper::Error) -> Refusal {
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    match cause {
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
            Refusal::new(Reason::Malformed, format!("the request's body cannot be read: {error}"))
        }
        _ => Refusal::new(Reason::ClientGone, "the client hung up before its body was complete"),
    }
}
