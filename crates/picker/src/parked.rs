//! Requests whose stream ended right after the pick, booked until the access log tells how they went.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use director::{Clock, Exchange};
use hashbrown::HashMap;
use parking_lot::Mutex;

/// A request of which no entry came for so long had none: the longest that a generation may take, twice.
const AGE_MAX: Duration = Duration::from_secs(2 * 3600);
/// How many are parked between two looks for old ones.
const LOOK_EVERY: u64 = 4096;

/// Who waits for an entry.
pub(crate) struct Parked {
    clock: Clock,
    next: AtomicU64,
    /// Access log streams that are open: without one nobody waits.
    logs: AtomicUsize,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

struct Waiting {
    exchange: Box<Exchange>,
    since: Duration,
}

/// An access log stream that is open.
pub(crate) struct OpenLog<'a>(&'a Parked);

impl Parked {
    pub(crate) fn new(clock: Clock) -> Parked {
        Parked { clock, next: AtomicU64::new(1), logs: AtomicUsize::new(0), waiting: Mutex::default() }
    }

    /// A number that no other request of this process has.
    pub(crate) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Keeps `exchange` booked until its entry comes; gives it back where no log is open.
    pub(crate) fn park(&self, number: u64, exchange: Box<Exchange>) -> Option<Box<Exchange>> {
        let mut waiting = self.waiting.lock();
        if self.logs.load(Relaxed) == 0 {
            return Some(exchange);
        }
        let since = self.clock.now();
        waiting.insert(number, Waiting { exchange, since });
        if number.is_multiple_of(LOOK_EVERY) {
            waiting.retain(|_, waiting| since.saturating_sub(waiting.since) < AGE_MAX);
        }
        None
    }

    /// The request whose entry came.
    pub(crate) fn take(&self, number: u64) -> Option<Box<Exchange>> {
        self.waiting.lock().remove(&number).map(|waiting| waiting.exchange)
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
        let mut waiting = self.0.waiting.lock();
        if self.0.logs.fetch_sub(1, Relaxed) == 1 {
            let left = std::mem::take(&mut *waiting);
            drop(waiting);
            // Nobody will tell how they went: they end here.
            drop(left);
        }
    }
}
