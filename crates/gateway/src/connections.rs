//! The connections of clients: how many are open, what each is doing, and which must go.
//!
//! A connection's task writes what happens into its [`Connection`] (a few atomics, no clock); one sweep every half
//! second looks at all of them and tells those that overstayed. So ten thousand idle connections cost one loop, not
//! ten thousand timers.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use telemetry::{Limit, Metrics};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::limits::Limits;

/// How often all connections are looked at: timeouts of connections are met within this.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// At the bound this part of it is freed at once, so that a flood costs a look at all connections seldom.
const EVICT_PART: usize = 64;
/// A connection that rests for less may be about to bring a request: it is not closed to make room.
const REST_MIN: Duration = Duration::from_secs(1);
/// How an HTTP/2 connection begins (RFC 9113, section 3.4), in however many pieces.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// All connections of one listener.
pub(crate) struct Connections {
    limits: Limits,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
    began: Instant,
    /// Microseconds since `began` at the last sweep, and one: exact enough for every timeout here.
    now_us: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_number: BTreeMap<u64, Arc<Connection>>,
}

/// One connection, as the sweep sees it.
pub(crate) struct Connection {
    connections: Arc<Connections>,
    is_http2: AtomicBool,
    /// Whether it ever brought a request.
    served: AtomicBool,
    /// Requests that are being served.
    requests: AtomicU32,
    /// When the last request ended, or the connection began.
    resting_since_us: AtomicU64,
    /// When the first byte after that came; 0: none.
    head_since_us: AtomicU64,
    /// Answers of which a part was given to the connection and the next not asked for yet: the client's turn.
    offered: AtomicU32,
    /// When the client last took something of an answer.
    taken_at_us: AtomicU64,
    fate: AtomicU8,
    told: Notify,
}

/// What must become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It ends by itself.
    Open = 0,
    /// Closed as the protocol has it; what is in flight ends.
    Close = 1,
    /// Cut off.
    Cut = 2,
}

/// A connection that is open; it is forgotten when this is dropped.
pub(crate) struct Member {
    number: u64,
    connection: Arc<Connection>,
    _room: OwnedSemaphorePermit,
}

/// A request that is being served on a connection.
pub(crate) struct InService {
    connection: Arc<Connection>,
    offered: bool,
}

/// A client's stream, with its traffic noted.
pub(crate) struct Noted<S> {
    stream: S,
    connection: Arc<Connection>,
    /// How much of HTTP/2's preface came so far; `None` once it is known whether it came.
    preface: Option<usize>,
}

impl Connections {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Arc<Connections> {
        Arc::new(Connections {
            limits,
            metrics,
            room: Arc::new(Semaphore::new(limits.connections_max)),
            began: Instant::now(),
            now_us: AtomicU64::new(1),
            open: Mutex::default(),
        })
    }

    /// Resolves when there is room for one more connection, which waits.
    pub(crate) async fn room(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                return permit;
            }
            self.metrics.limits.reached(Limit::Connections);
            self.make_room();
            let acquired = Arc::clone(&self.room).acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(SWEEP_EVERY, acquired).await {
                return permit;
            }
        }
    }

    /// Takes in a connection that was accepted.
    pub(crate) fn admit(self: &Arc<Connections>, room: OwnedSemaphorePermit) -> Member {
        let now = self.exact_us();
        let connection = Arc::new(Connection {
            connections: Arc::clone(self),
            is_http2: AtomicBool::new(false),
            served: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            resting_since_us: AtomicU64::new(now),
            head_since_us: AtomicU64::new(0),
            offered: AtomicU32::new(0),
            taken_at_us: AtomicU64::new(now),
            fate: AtomicU8::new(Fate::Open as u8),
            told: Notify::new(),
        });
        let mut open = self.open.lock();
        open.next += 1;
        let number = open.next;
        open.by_number.insert(number, Arc::clone(&connection));
        self.metrics.connections.inc();
        Member { number, connection, _room: room }
    }

    /// Looks at all connections, now and again, for ever.
    pub(crate) async fn sweep(self: Arc<Connections>) {
        let mut sweeps = tokio::time::interval(SWEEP_EVERY);
        sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            sweeps.tick().await;
            self.now_us.store(self.exact_us(), Relaxed);
            for connection in self.open.lock().by_number.values() {
                if let Some((limit, fate)) = connection.overstayed(&self.limits)
                    && connection.decide(fate)
                {
                    self.metrics.limits.reached(limit);
                }
            }
        }
    }

    /// Microseconds since the listener began, as of the last sweep.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us.load(Relaxed)
    }

    /// Microseconds since the listener began, and one, by the clock: what rests longest is told apart by it.
    fn exact_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn since(&self, then_us: u64) -> Duration {
        Duration::from_micros(self.now_us().saturating_sub(then_us))
    }

    /// Closes those that rest longest.
    fn make_room(&self) {
        let open = self.open.lock();
        let mut resting: Vec<&Arc<Connection>> = open
            .by_number
            .values()
            .filter(|connection| connection.is_resting() && connection.rests_for(REST_MIN))
            .collect();
        let count = (self.limits.connections_max / EVICT_PART).max(1).min(resting.len());
        if count < resting.len() {
            resting.select_nth_unstable_by_key(count, |connection| connection.resting_since_us.load(Relaxed));
        }
        for connection in &resting[..count] {
            connection.decide(Fate::Close);
        }
    }
}

impl Connection {
    /// A request begins.
    pub(crate) fn serve(self: &Arc<Connection>) -> InService {
        self.served.store(true, Relaxed);
        self.head_since_us.store(0, Relaxed);
        let requests = self.requests.fetch_add(1, Relaxed) + 1;
        if requests == self.connections.limits.streams_max && self.is_http2() {
            self.connections.metrics.limits.reached(Limit::Streams);
        }
        InService { connection: Arc::clone(self), offered: false }
    }

    /// Whether it speaks HTTP/2; false as long as nobody knows.
    pub(crate) fn is_http2(&self) -> bool {
        self.is_http2.load(Relaxed)
    }

    /// Whether no request is being served on it.
    pub(crate) fn is_without_request(&self) -> bool {
        self.requests.load(Relaxed) == 0
    }

    /// Resolves when the connection must go, or be cut off where `closing` has begun.
    pub(crate) async fn fate(&self, closing: bool) -> Fate {
        loop {
            let told = self.told.notified();
            match self.fate.load(Relaxed) {
                fate if fate == Fate::Cut as u8 => return Fate::Cut,
                fate if fate == Fate::Close as u8 && !closing => return Fate::Close,
                _ => told.await,
            }
        }
    }

    /// False when that was decided before, or worse.
    fn decide(&self, fate: Fate) -> bool {
        let before = self.fate.fetch_max(fate as u8, Relaxed);
        self.told.notify_one();
        before < fate as u8
    }

    fn is_resting(&self) -> bool {
        self.is_without_request() && self.fate.load(Relaxed) == Fate::Open as u8
    }

    fn rests_for(&self, least: Duration) -> bool {
        self.connections.since(self.resting_since_us.load(Relaxed)) >= least
    }

    /// Which limit the connection is beyond, and what that means for it.
    fn overstayed(&self, limits: &Limits) -> Option<(Limit, Fate)> {
        let beyond = |since: u64, most: Duration| self.connections.since(since) >= most;
        if self.offered.load(Relaxed) > 0 && beyond(self.taken_at_us.load(Relaxed), limits.answer_stall) {
            return Some((Limit::AnswerStall, Fate::Cut));
        }
        if !self.is_without_request() {
            return None;
        }
        let head_since = self.head_since_us.load(Relaxed);
        if self.is_http2() || (self.served.load(Relaxed) && head_since == 0) {
            return self.rests_for(limits.idle).then_some((Limit::Idle, Fate::Close));
        }
        let overdue = if head_since == 0 {
            self.rests_for(limits.header_read * 3)
        } else {
            beyond(head_since, limits.header_read)
        };
        overdue.then_some((Limit::HeaderRead, Fate::Cut))
    }

    /// Bytes came from the client.
    fn heard(&self) {
        if self.requests.load(Relaxed) == 0 && self.head_since_us.load(Relaxed) == 0 {
            self.head_since_us.store(self.connections.now_us(), Relaxed);
        }
    }
}

impl Member {
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let connections = &self.connection.connections;
        connections.open.lock().by_number.remove(&self.number);
        connections.metrics.connections.dec();
    }
}

impl InService {
    /// Microseconds, as of the last sweep.
    pub(crate) fn now_us(&self) -> u64 {
        self.connection.connections.now_us()
    }

    /// The connection asks for (more of) the answer: the client took what was offered.
    pub(crate) fn asked(&mut self) {
        if std::mem::take(&mut self.offered) {
            self.connection.offered.fetch_sub(1, Relaxed);
            self.connection.taken_at_us.store(self.now_us(), Relaxed);
        }
    }

    /// A part of the answer was given to the connection.
    pub(crate) fn offer(&mut self) {
        if !std::mem::replace(&mut self.offered, true) && self.connection.offered.fetch_add(1, Relaxed) == 0 {
            self.connection.taken_at_us.store(self.now_us(), Relaxed);
        }
    }
}

impl Drop for InService {
    fn drop(&mut self) {
        self.asked();
        self.connection.resting_since_us.store(self.connection.connections.exact_us(), Relaxed);
        self.connection.requests.fetch_sub(1, Relaxed);
    }
}

impl<S> Noted<S> {
    pub(crate) fn new(stream: S, connection: Arc<Connection>) -> Noted<S> {
        Noted { stream, connection, preface: Some(0) }
    }

    /// Looks for HTTP/2's preface.
    fn recognise(&mut self, bytes: &[u8]) {
        let Some(seen) = self.preface else { return };
        let expected = &HTTP2_PREFACE[seen..];
        let common = expected.iter().zip(bytes).take_while(|(expected, byte)| expected == byte).count();
        self.preface = (common == bytes.len() && common < expected.len()).then_some(seen + common);
        if common == expected.len() {
            self.connection.is_http2.store(true, Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let new = &buffer.filled()[before..];
        if !new.is_empty() {
            self.recognise(new);
            self.connection.heard();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(limits: Limits) -> Arc<Connections> {
        Connections::new(limits, Arc::new(Metrics::new("test")))
    }

    impl Connections {
        fn at(&self, us: u64) {
            self.now_us.store(us, Relaxed);
        }
    }

    async fn open(connections: &Arc<Connections>) -> Member {
        connections.admit(connections.room().await)
    }

    #[tokio::test]
    async fn each_state_of_a_connection_has_its_timeout() {
        let limits = Limits::default();
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap();
        let all = connections(limits);
        let member = open(&all).await;
        let connection = member.connection();

        all.at(us(limits.header_read * 3) - 1_000_000);
        assert_eq!(connection.overstayed(&limits), None);
        all.at(us(limits.header_read * 3) + 1_000_000);
        assert_eq!(connection.overstayed(&limits), Some((Limit::HeaderRead, Fate::Cut)));

        let mut now = 1_000_000_000;
        all.at(now);
        connection.heard();
        now += us(limits.header_read);
        all.at(now);
        assert_eq!(connection.overstayed(&limits), Some((Limit::HeaderRead, Fate::Cut)));

        let mut service = connection.serve();
        now += us(limits.unstreamed);
        all.at(now);
        assert_eq!(connection.overstayed(&limits), None, "a long generation is not a hang");
        service.offer();
        now += us(limits.answer_stall);
        all.at(now);
        assert_eq!(connection.overstayed(&limits), Some((Limit::AnswerStall, Fate::Cut)));
        service.asked();
        assert_eq!(connection.overstayed(&limits), None);
        drop(service);
        now = us(limits.idle) + 1_000_000;
        all.at(now);
        assert_eq!(connection.overstayed(&limits), Some((Limit::Idle, Fate::Close)));
    }

    #[tokio::test]
    async fn http2_that_rests_is_idle_and_not_late() {
        let limits = Limits::default();
        let all = connections(limits);
        let member = open(&all).await;
        let mut noted = Noted::new((), Arc::clone(member.connection()));
        noted.recognise(&HTTP2_PREFACE[..1]);
        noted.recognise(&HTTP2_PREFACE[1..20]);
        assert!(!member.connection().is_http2());
        noted.recognise(&HTTP2_PREFACE[20..]);
        member.connection().heard();
        all.at(60_000_000);
        assert_eq!(member.connection().overstayed(&limits), None);
        all.at(u64::MAX);
        assert_eq!(member.connection().overstayed(&limits), Some((Limit::Idle, Fate::Close)));
    }

    #[tokio::test]
    async fn what_only_begins_like_http2_is_not() {
        let all = connections(Limits::default());
        for text in [&b"P"[..], b"PUT / HTTP/1.1", b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n", HTTP2_PREFACE] {
            let member = open(&all).await;
            let mut noted = Noted::new((), Arc::clone(member.connection()));
            noted.recognise(text);
            noted.recognise(b"RI");
            assert_eq!(member.connection().is_http2(), text == HTTP2_PREFACE);
        }
    }

    #[tokio::test]
    async fn at_the_bound_the_one_that_rests_longest_makes_room() {
        let all = connections(Limits { connections_max: 3, ..Limits::default() });
        let busy = open(&all).await;
        let _service = busy.connection().serve();
        let older = open(&all).await;
        let younger = open(&all).await;
        younger.connection().resting_since_us.fetch_add(100, Relaxed);
        all.make_room();
        assert!(older.connection().is_resting(), "it may be about to bring a request");
        all.at(2_000_000);
        let newcomer = tokio::join!(open(&all), async move {
            assert_eq!(older.connection().fate(false).await, Fate::Close);
            drop(older);
        })
        .0;
        assert!(younger.connection().is_resting() && newcomer.connection().is_resting());
        assert_eq!(all.metrics.limits.count(Limit::Connections), 1);
        assert_eq!(all.metrics.connections.get(), 3);
    }
}
