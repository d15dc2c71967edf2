//! Leaving an endpoint out after failures before the first byte, and letting it back in.
//!
//! Pure: time is passed in. The whole state is one atomic word (consecutive failures, probe taken, deadline), so that a
//! reader sees one state and a writer changes it by one compare-and-swap.
//!
//! | from | event | to |
//! |---|---|---|
//! | in | [`FAILURES_MAX`] failures in a row | out, for a while |
//! | out | the while is over | probation: one request may try |
//! | probation | [`Health::try_probe`] | out, for [`PROBE_LEASE`] at most |
//! | probe under way | failed | out, for a longer while |
//! | probe under way | the lease is over | probation |
//! | any | succeeded | in, all forgotten |

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Consecutive failures before the first byte after which an endpoint is left out.
pub const FAILURES_MAX: u8 = 2;
/// The first while that an endpoint is left out; each failed probe doubles it.
pub const OUT_FIRST: Duration = Duration::from_millis(500);
/// The longest while: an endpoint is tried again at most this much later.
pub const OUT_MAX: Duration = Duration::from_secs(10);
/// How long the one probe may take before another is let through.
pub const PROBE_LEASE: Duration = Duration::from_secs(10);

/// Whether an endpoint takes part, by how its last requests went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Takes part.
    In,
    /// One request may try it: whoever wins [`Health::try_probe`].
    Probation,
    /// Left out.
    Out,
}

/// The failures of one endpoint: connection refused, reset or timed out, or 502/503, before the first byte.
#[derive(Debug, Default)]
pub struct Health(AtomicU64);

/// The unpacked word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// Consecutive failures, saturating.
    failures: u8,
    /// The deadline is that of a probe's lease rather than of a while.
    probing: bool,
    /// Microseconds since the epoch; 55 bits are a thousand years.
    deadline_us: u64,
}

impl Health {
    /// How the endpoint stands at `now`.
    #[must_use]
    pub fn standing(&self, now: Duration) -> Standing {
        State::unpack(self.0.load(Ordering::Relaxed)).standing(now)
    }

    /// Whether a request may go to the endpoint at `now`: it is in, or this request becomes the one probe.
    pub fn admits(&self, now: Duration) -> bool {
        match self.standing(now) {
            Standing::In => true,
            Standing::Probation => self.try_probe(now),
            Standing::Out => false,
        }
    }

    /// Takes the one probe of an endpoint on probation; true for exactly one caller until it
    /// [`succeeded`](Self::succeeded), [`failed`](Self::failed) or [`PROBE_LEASE`] passed.
    pub fn try_probe(&self, now: Duration) -> bool {
        let seen = self.0.load(Ordering::Relaxed);
        let state = State::unpack(seen);
        if state.standing(now) != Standing::Probation {
            return false;
        }
        let leased = State { probing: true, deadline_us: micros(now + PROBE_LEASE), ..state };
        self.0.compare_exchange(seen, leased.pack(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A request to the endpoint failed before its first byte.
    ///
    /// The failures of a burst that was under way when the endpoint was left out count once, not each.
    pub fn failed(&self, now: Duration) {
        // The closure always gives a state, so the update cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            Some(State::unpack(word).after_failure(now).pack())
        });
    }

    /// The first byte of an answer came: in again, and the growing while is forgotten.
    pub fn succeeded(&self) {
        // Read first: the word is shared by all who look, and on the way of nearly all requests it is 0 already.
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }
}

impl State {
    const PROBING: u64 = 1 << 55;
    const DEADLINE: u64 = Self::PROBING - 1;

    fn unpack(word: u64) -> Self {
        let [failures, ..] = word.to_be_bytes();
        Self { failures, probing: word & Self::PROBING != 0, deadline_us: word & Self::DEADLINE }
    }

    fn pack(self) -> u64 {
        let probing = if self.probing { Self::PROBING } else { 0 };
        u64::from(self.failures) << 56 | probing | self.deadline_us.min(Self::DEADLINE)
    }

    fn standing(self, now: Duration) -> Standing {
        if self.failures < FAILURES_MAX {
            Standing::In
        } else if micros(now) < self.deadline_us {
            Standing::Out
        } else {
            Standing::Probation
        }
    }

    fn after_failure(self, now: Duration) -> Self {
        let left_out_already = self.standing(now) == Standing::Out && !self.probing;
        if left_out_already {
            return self;
        }
        let failures = self.failures.saturating_add(1);
        let deadline_us = if failures < FAILURES_MAX { 0 } else { micros(now + out_for(failures)) };
        Self { failures, probing: false, deadline_us }
    }
}

/// The while after that many consecutive failures: 0.5 s, 1 s, 2 s … at most [`OUT_MAX`].
fn out_for(failures: u8) -> Duration {
    let doublings = u32::from(failures.saturating_sub(FAILURES_MAX)).min(16);
    OUT_FIRST.saturating_mul(1 << doublings).min(OUT_MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
