//! What happened, as each side saw it: clients, model servers, and the gateway's own ends of all connections.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::http1::Head;

/// The record that all sides write.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Record>>);

#[derive(Default)]
pub(crate) struct Record {
    /// What must never happen and did.
    pub(crate) violations: Vec<String>,
    /// What each actor did, with its time.
    pub(crate) trace: BTreeMap<String, Vec<String>>,
    /// The bodies that clients mean to send, by tag.
    pub(crate) intents: BTreeMap<String, (String, Vec<u8>)>,
    /// Connections of clients, as the gateway's end saw them.
    pub(crate) doors: Vec<Door>,
    /// Requests that came to servers.
    pub(crate) arrivals: Vec<Arrival>,
    /// What clients got.
    pub(crate) outcomes: Vec<Outcome>,
    /// Tags of which the gateway passed a first byte of a body on.
    passed_on: BTreeMap<String, u64>,
    /// How often each tag was sent to a server.
    pub(crate) sent_on: BTreeMap<String, usize>,
    /// Connections to servers that the gateway holds.
    pub(crate) upstream_open: usize,
    /// Connections that servers closed between two requests without having said so.
    pub(crate) silent_closes: usize,
    /// Requests that HTTP/2 clients began, and those of which they got an answer's head.
    pub(crate) streams_begun: u64,
    pub(crate) streams_answered: u64,
    /// Clients that will end by themselves and have not.
    pub(crate) busy: usize,
}

/// One connection of a client at the gateway.
#[derive(Debug, Default)]
pub(crate) struct Door {
    /// Tags of the requests whose heads came whole.
    pub(crate) heads: Vec<String>,
    pub(crate) answers: Vec<Written>,
    pub(crate) closed: bool,
}

/// One answer that the gateway wrote.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Absent where the codec refused what it could not read.
    pub(crate) tag: Option<String>,
    pub(crate) status: u16,
    pub(crate) reason: Option<String>,
    pub(crate) whole: bool,
}

/// One request at a server.
#[derive(Default)]
pub(crate) struct Arrival {
    pub(crate) tag: String,
    pub(crate) server: usize,
    /// The body of the answer, all that the server means to send.
    pub(crate) answer: Vec<u8>,
    pub(crate) events: bool,
    /// The answer ends where the connection does.
    pub(crate) until_close: bool,
    /// The request was read and the answer written, both to the end.
    pub(crate) sound: bool,
}

/// One request at its client.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) client: usize,
    pub(crate) asked: usize,
    pub(crate) stayed: Stayed,
    /// How long the connection had rested; absent for its first request.
    pub(crate) rested: Option<Duration>,
    pub(crate) got: Option<Got>,
    /// The connection was closed soon after the answer, which had not said so.
    pub(crate) closed_soon: bool,
}

/// Whether a client did all that a client must to get an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stayed {
    /// It hung up.
    No,
    /// It got an answer, or was let go.
    ToTheEnd,
    /// Nothing more came, for longer than anything may take.
    InVain,
}

/// An answer as it came.
#[derive(Debug, Default)]
pub(crate) struct Got {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) whole: bool,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Arrival { tag, server, answer, events, until_close, sound } = self;
        let bytes = answer.len();
        write!(
            f,
            "{bytes} bytes for {tag} by server {server}, events {events}, until close {until_close}, sound {sound}"
        )
    }
}

impl History {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock()
    }

    /// Something that must not happen did.
    pub(crate) fn violated(&self, what: impl Into<String>) {
        self.lock().violations.push(what.into());
    }

    /// `actor` did something. Must be called within a simulated host.
    pub(crate) fn tell(&self, actor: &str, what: impl AsRef<str>) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        let line = format!("{at:6} {}", what.as_ref());
        self.lock().trace.entry(actor.to_owned()).or_default().push(line);
    }

    /// A connection of a client came; its number.
    pub(crate) fn door_opened(&self) -> usize {
        let mut record = self.lock();
        record.doors.push(Door::default());
        record.doors.len() - 1
    }

    /// A request came to a server: its number, and how many of its tag this server has seen.
    pub(crate) fn arrived(&self, server: usize, tag: &str) -> (usize, usize) {
        let mut record = self.lock();
        let before =
            record.arrivals.iter().filter(|arrival| arrival.server == server && arrival.tag == tag).count();
        record.arrivals.push(Arrival { tag: tag.to_owned(), server, ..Arrival::default() });
        (record.arrivals.len() - 1, before)
    }

    /// The gateway sends a request to a server.
    pub(crate) fn sends_on(&self, tag: &str) {
        let mut record = self.lock();
        *record.sent_on.entry(tag.to_owned()).or_default() += 1;
        if record.passed_on.contains_key(tag) {
            record.violations.push(format!("{tag} was tried again after its first byte was passed on"));
        }
    }

    /// The gateway passes bytes of an answer's body on.
    pub(crate) fn passes_on(&self, tag: &str, bytes: usize) {
        *self.lock().passed_on.entry(tag.to_owned()).or_default() += bytes as u64;
    }

    /// One number for all that happened.
    pub(crate) fn fingerprint(&self) -> u64 {
        let record = self.lock();
        let bytes = record.trace.iter().flat_map(|(actor, lines)| {
            actor.bytes().chain(lines.iter().flat_map(|line| line.bytes().chain(*b"\n")))
        });
        // FNV-1a, 64 bits.
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}
