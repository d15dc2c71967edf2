//! What requests may take in all: memory for their bodies, and places in flight. Guards give back what they took
//! when they are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use telemetry::Limit;

use crate::director::Director;
use crate::reason::{Reason, Refusal};

/// What requests may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one request's body.
    pub body_bytes_max: u64,
    /// Bytes that the bodies of all requests may hold in memory.
    pub bodies_bytes_max: u64,
    /// Requests sent on to model servers and not ended.
    pub requests_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { body_bytes_max: 32 << 20, bodies_bytes_max: 1 << 30, requests_max: 8192 }
    }
}

/// A count with a bound, taken from and given back to by many.
#[derive(Debug)]
pub(crate) struct Bounded {
    taken: AtomicU64,
    max: u64,
}

impl Bounded {
    pub(crate) fn new(max: u64) -> Bounded {
        Bounded { taken: AtomicU64::new(0), max }
    }

    /// How much is taken now.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    fn take(&self, count: u64) -> bool {
        let before = self.taken.fetch_add(count, Relaxed);
        let fits = before.checked_add(count).is_some_and(|sum| sum <= self.max);
        if !fits {
            self.give_back(count);
        }
        fits
    }

    fn give_back(&self, count: u64) {
        self.taken.fetch_sub(count, Relaxed);
    }
}

/// Memory that one request's body holds.
pub struct HeldBytes {
    director: Arc<Director>,
    bytes: u64,
}

impl HeldBytes {
    pub(crate) fn new(director: Arc<Director>) -> HeldBytes {
        HeldBytes { director, bytes: 0 }
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// When the bodies of all requests would hold more than they may; nothing is taken then.
    pub fn take(&mut self, bytes: u64) -> Result<(), Refusal> {
        if self.director.bodies().take(bytes) {
            self.bytes += bytes;
            return Ok(());
        }
        self.director.metrics().limits.reached(Limit::BodiesBytes);
        let bytes_max = self.director.limits().bodies_bytes_max;
        Err(Refusal::new(
            Reason::TooManyBytes,
            format!(
                "the bodies of all requests fill the {bytes_max} bytes of memory that they may have; ask again soon"
            ),
        ))
    }

    /// Takes or gives back as much as is needed to hold `bytes` in all.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub fn hold(&mut self, bytes: u64) -> Result<(), Refusal> {
        if bytes > self.bytes {
            return self.take(bytes - self.bytes);
        }
        self.director.bodies().give_back(self.bytes - bytes);
        self.bytes = bytes;
        Ok(())
    }

    /// Gives back all.
    pub fn give_back(&mut self) {
        self.director.bodies().give_back(std::mem::take(&mut self.bytes));
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A place among the requests in flight.
pub(crate) struct Place(Arc<Director>);

impl Place {
    /// One more request in flight.
    pub(crate) fn take(director: &Arc<Director>) -> Result<Place, Refusal> {
        if director.in_flight().take(1) {
            return Ok(Place(Arc::clone(director)));
        }
        director.metrics().limits.reached(Limit::Requests);
        let requests_max = director.limits().requests_max;
        Err(Refusal::new(
            Reason::TooManyRequests,
            format!("{requests_max} requests are in flight, and no more may be; ask again soon"),
        ))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight().give_back(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let bounded = Bounded::new(10);
        assert!(bounded.take(7));
        assert!(!bounded.take(4) && !bounded.take(u64::MAX));
        assert_eq!(bounded.taken(), 7);
        assert!(bounded.take(3));
        bounded.give_back(10);
        assert_eq!(bounded.taken(), 0);
    }
}
