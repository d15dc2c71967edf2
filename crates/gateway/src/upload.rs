//! The client's body on its way to a model server: read once, kept within a bound so that it can be sent again to
//! the next endpoint when one fails before its first byte.

use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use director::{Reason, Refusal};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How much of a body is kept for another attempt once its endpoint is picked. What was read before the pick is
/// kept whole: it had to be held anyway.
pub const REPLAY_BYTES_MAX: usize = 1 << 20;

/// How much of a refused body is read on, and for how long.
const DRAIN_BYTES_MAX: u64 = 1 << 20;
const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// A body that several attempts can send, one after the other. Dropping it lets go of the client's connection, also
/// where an abandoned attempt lives on in a connection that does not end.
pub(crate) struct Upload {
    shared: Arc<Mutex<Shared>>,
    announced: Option<u64>,
}

struct Shared {
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// What the client has not sent yet; `None` when the body is at its end.
    rest: Option<Incoming>,
    trailers: Option<HeaderMap>,
    /// False once a part was passed on that is not kept.
    whole: bool,
    bytes: u64,
    bytes_max: u64,
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
    next: usize,
    sent: u64,
    announced: Option<u64>,
    done: bool,
}

/// The client's body could not be read to its end; the [`Upload`] knows why.
#[derive(Debug, thiserror::Error)]
#[error("the client's body broke off")]
pub(crate) struct BrokenUpload;

impl Upload {
    /// The body of a request, none of it read.
    pub(crate) fn new(body: Incoming, announced: Option<u64>, bytes_max: u64) -> Upload {
        let rest = (!body.is_end_stream()).then_some(body);
        Upload {
            announced: if rest.is_none() { Some(0) } else { announced },
            shared: Arc::new(Mutex::new(Shared {
                kept: Vec::new(),
                kept_bytes: 0,
                rest,
                trailers: None,
                whole: true,
                bytes: 0,
                bytes_max,
                failed: None,
                attempts: 0,
                at_end: Arc::default(),
            })),
        }
    }

    /// Reads the next part before an endpoint is picked. `None` at the end.
    ///
    /// # Errors
    /// When the client's body breaks off.
    pub(crate) async fn read(&mut self) -> Option<Result<Bytes, Refusal>> {
        loop {
            // Taken out while it is awaited: no lock across an await.
            let mut rest = self.shared.lock().rest.take()?;
            let frame = rest.frame().await;
            let mut shared = self.shared.lock();
            match frame {
                None => {
                    shared.end();
                    return None;
                }
                Some(Err(error)) => return Some(Err(shared.fail(broken(&error)))),
                Some(Ok(frame)) => {
                    shared.rest = (!rest.is_end_stream()).then_some(rest);
                    match frame.into_data() {
                        Ok(data) => {
                            shared.bytes += data.len() as u64;
                            shared.keep(data.clone());
                            return Some(Ok(data));
                        }
                        Err(frame) => shared.trailers = frame.into_trailers().ok(),
                    }
                }
            }
        }
    }

    /// Reads on for a moment and within a bound: an answer sent over unread bytes may be lost to a reset.
    pub(crate) async fn drain(&mut self) {
        let reading = async {
            while let Some(Ok(_)) = self.read().await {
                if self.bytes() > DRAIN_BYTES_MAX {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_MAX, reading).await;
    }

    /// A body for the next attempt, from the beginning. Attempts made before are at their end.
    pub(crate) fn attempt(&self) -> Attempt {
        let mut shared = self.shared.lock();
        shared.attempts += 1;
        Attempt {
            shared: Arc::clone(&self.shared),
            number: shared.attempts,
            next: 0,
            sent: 0,
            announced: self.announced,
            done: false,
        }
    }

    /// Retires the attempts made so far. True when another could send the body from its beginning.
    pub(crate) fn restart(&self) -> bool {
        let mut shared = self.shared.lock();
        shared.attempts += 1;
        shared.whole
    }

    /// Resolves when all of the body has come from the client.
    pub(crate) async fn complete(&self) {
        let at_end = Arc::clone(&self.shared.lock().at_end);
        loop {
            let told = at_end.notified();
            if self.shared.lock().rest.is_none() {
                return;
            }
            told.await;
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
        shared.kept = Vec::new();
        shared.end();
    }
}

impl Shared {
    fn end(&mut self) {
        self.rest = None;
        self.at_end.notify_waiters();
    }

    fn keep(&mut self, data: Bytes) {
        self.kept_bytes += data.len();
        self.kept.push(data);
    }

    fn fail(&mut self, refusal: Refusal) -> Refusal {
        self.end();
        self.failed.insert(refusal).clone()
    }

    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenUpload>>> {
        if self.failed.is_some() {
            return Poll::Ready(Some(Err(BrokenUpload)));
        }
        let Some(rest) = self.rest.as_mut() else {
            return Poll::Ready(self.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        };
        match std::task::ready!(Pin::new(&mut *rest).poll_frame(context)) {
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

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BrokenUpload> {
        let Some(data) = frame.data_ref() else {
            self.trailers = frame.trailers_ref().cloned();
            self.end();
            return Ok(frame);
        };
        self.bytes += data.len() as u64;
        if self.bytes > self.bytes_max {
            self.fail(Refusal::body_too_large(self.bytes_max));
            return Err(BrokenUpload);
        }
        if self.whole && self.kept_bytes + data.len() <= REPLAY_BYTES_MAX {
            self.keep(data.clone());
        } else {
            self.whole = false;
            self.kept = Vec::new();
        }
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
        let polled = if this.number != shared.attempts {
            Poll::Ready(Some(Err(BrokenUpload)))
        } else if let Some(kept) = shared.kept.get(this.next).cloned() {
            this.next += 1;
            Poll::Ready(Some(Ok(Frame::data(kept))))
        } else {
            let polled = shared.poll_rest(context);
            this.next = shared.kept.len();
            polled
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
                && self.next >= shared.kept.len())
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
