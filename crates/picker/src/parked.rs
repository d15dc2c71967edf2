//! Requests whose stream ended right after the pick, booked until the access log tells how they went.
//!
//! Streams and the log come over connections of their own: an entry may be here before its stream's end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use director::{Clock, Exchange};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::access_log::Entry;

/// A request of which no entry came for so long had none: the longest that a generation may take, twice.
const AGE_MAX: Duration = Duration::from_secs(2 * 3600);
/// The same where Envoy learned of our number with the pick alone: the entry of one whose client left just then has no number. Those are
/// GETs and what bodies are not shown of.
const AGE_MAX_UNNAMED: Duration = Duration::from_secs(600);
/// Entries that are kept for streams which have not ended; of more the oldest go.
const EARLY_MAX: usize = 1024;
/// How many are parked between two looks for old ones.
const LOOK_EVERY: u64 = 256;

/// Who waits for an entry.
pub(crate) struct Parked {
    clock: Clock,
    /// The first number of this process. Random: Envoy may give us the entries of another picker's requests.
    first: u64,
    next: AtomicU64,
    /// Access log streams that are open: without one nobody waits.
    logs: AtomicUsize,
    state: Mutex<State>,
    /// Told when nobody waits any more.
    rest: Notify,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    /// Entries of ours for which nobody waits yet, the oldest first; most of them never will be.
    early: VecDeque<(u64, Entry)>,
}

struct Waiting {
    exchange: Box<Exchange>,
    until: Duration,
}

/// An access log stream that is open.
pub(crate) struct OpenLog<'a>(&'a Parked);

impl Parked {
    pub(crate) fn new(clock: Clock) -> Parked {
        let first = director::random_seed();
        Parked {
            clock,
            first,
            next: AtomicU64::new(first),
            logs: AtomicUsize::new(0),
            state: Mutex::default(),
            rest: Notify::new(),
        }
    }

    /// A number that no other request has.
    pub(crate) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Whether entries will come.
    pub(crate) fn is_watched(&self) -> bool {
        self.logs.load(Relaxed) > 0
    }

    /// Keeps `exchange` booked until its entry comes; ends it with an entry that is here already, and gives it back
    /// where no log is open. Whether Envoy was told the number before the pick is `named`.
    pub(crate) fn park(&self, number: u64, named: bool, exchange: Box<Exchange>) -> Option<Box<Exchange>> {
        let mut state = self.state.lock();
        if self.logs.load(Relaxed) == 0 {
            return Some(exchange);
        }
        if let Some(at) = state.early.iter().position(|(early, _)| *early == number) {
            let entry = state.early.remove(at);
            drop(state);
            if let Some((_, entry)) = entry {
                entry.end(*exchange);
            }
            return None;
        }
        let now = self.clock.now();
        let until = now + if named { AGE_MAX } else { AGE_MAX_UNNAMED };
        state.waiting.insert(number, Waiting { exchange, until });
        if number.is_multiple_of(LOOK_EVERY) {
            state.waiting.retain(|_, waiting| now < waiting.until);
        }
        None
    }

    /// An entry came: ends its request, or keeps it for the request whose stream has not ended.
    pub(crate) fn tell(&self, number: u64, entry: Entry) {
        let issued = self.next.load(Relaxed).wrapping_sub(self.first);
        if number.wrapping_sub(self.first) >= issued {
            return;
        }
        let mut state = self.state.lock();
        if let Some(waiting) = state.waiting.remove(&number) {
            if state.waiting.is_empty() {
                self.rest.notify_waiters();
            }
            drop(state);
            return entry.end(*waiting.exchange);
        }
        if state.early.len() == EARLY_MAX {
            state.early.pop_front();
        }
        state.early.push_back((number, entry));
    }

    /// Resolves when nobody waits for an entry.
    pub(crate) async fn at_rest(&self) {
        loop {
            let told = self.rest.notified();
            if self.state.lock().waiting.is_empty() {
                return;
            }
            told.await;
        }
    }

    /// A log is open from now on.
    pub(crate) fn open_log(&self) -> OpenLog<'_> {
        self.logs.fetch_add(1, Relaxed);
        OpenLog(self)
    }
}

impl Drop for OpenLog<'_> {
    fn drop(&mut self) {
        // Under the lock: whoever parks now either sees the log closed, or is found here.
        let mut state = self.0.state.lock();
        if self.0.logs.fetch_sub(1, Relaxed) == 1 {
            let left = std::mem::take(&mut *state);
            drop(state);
            // Nobody will tell how they went: they end here.
            drop(left);
        }
    }
}
