//! How reading one endpoint goes, for telemetry.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::ScrapeError;

/// Why scrapes fail: a closed set, for metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// The name does not resolve, or nobody accepts the connection.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// It took too long.
    Timeout,
    /// The connection broke, or what came is no HTTP.
    Http,
    /// The status is not 200.
    Status,
    /// The page is larger than its bound.
    TooLarge,
    /// A needed line, or any line's length, is not Prometheus' format.
    Malformed,
    /// A needed value cannot be: NaN, infinite, negative, absurdly large.
    BadValue,
    /// Needed series are absent.
    MissingSeries,
}

/// The scrapes of one endpoint, counted.
#[derive(Debug, Default)]
pub struct ScrapeStats {
    ok: AtomicU64,
    failed: [AtomicU64; FailureReason::ALL.len()],
    /// Microseconds that the last good scrape took.
    duration_us: AtomicU64,
    /// When the last good scrape ended, in microseconds since the epoch, plus 1; 0 for never.
    ok_at_us: AtomicU64,
    last_failure: Mutex<Option<ScrapeFailure>>,
}

/// A scrape that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrapeFailure {
    /// When, since the epoch.
    pub at: Duration,
    /// Why.
    pub reason: FailureReason,
    /// The error's text.
    pub text: String,
}

impl FailureReason {
    /// All reasons, in the order of the enum.
    pub const ALL: [Self; 9] = [
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Http,
        Self::Status,
        Self::TooLarge,
        Self::Malformed,
        Self::BadValue,
        Self::MissingSeries,
    ];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Http => "http",
            Self::Status => "status",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::BadValue => "bad_value",
            Self::MissingSeries => "missing_series",
        }
    }
}

impl ScrapeStats {
    /// Good scrapes so far.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.ok.load(Ordering::Relaxed)
    }

    /// Failed scrapes so far, by reason; all reasons, in the order of [`FailureReason::ALL`].
    pub fn failed(&self) -> impl Iterator<Item = (FailureReason, u64)> + '_ {
        FailureReason::ALL
            .into_iter()
            .zip(&self.failed)
            .map(|(reason, n)| (reason, n.load(Ordering::Relaxed)))
    }

    /// How long the last good scrape took, from connecting to the last byte; none before the first.
    #[must_use]
    pub fn last_duration(&self) -> Option<Duration> {
        let ever = self.ok() > 0;
        ever.then(|| Duration::from_micros(self.duration_us.load(Ordering::Relaxed)))
    }

    /// Time since the last good scrape; none before the first.
    #[must_use]
    pub fn age(&self, now: Duration) -> Option<Duration> {
        let at_us = self.ok_at_us.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_sub(Duration::from_micros(at_us)))
    }

    /// The latest failure, if there ever was one.
    #[must_use]
    pub fn last_failure(&self) -> Option<ScrapeFailure> {
        self.last_failure.lock().clone()
    }

    pub(super) fn succeeded(&self, at: Duration, took: Duration) {
        self.duration_us.store(micros(took), Ordering::Relaxed);
        self.ok_at_us.store(micros(at).saturating_add(1), Ordering::Relaxed);
        self.ok.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed_with(&self, error: &ScrapeError, at: Duration) {
        let reason = error.reason();
        // The reasons are numbered as in `ALL`, one counter each.
        if let Some(counter) = self.failed.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        *self.last_failure.lock() = Some(ScrapeFailure { at, reason, text: error.to_string() });
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_label() {
        for (index, reason) in FailureReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let labels: std::collections::HashSet<_> = FailureReason::ALL.map(FailureReason::as_str).into();
        assert_eq!(labels.len(), FailureReason::ALL.len());
    }

    #[test]
    fn age_counts_from_the_last_good_scrape() {
        let stats = ScrapeStats::default();
        assert_eq!(stats.age(Duration::from_secs(9)), None);
        assert_eq!(stats.last_duration(), None);
        stats.succeeded(Duration::ZERO, Duration::from_millis(3));
        assert_eq!(stats.age(Duration::from_secs(9)), Some(Duration::from_secs(9)));
        assert_eq!(stats.last_duration(), Some(Duration::from_millis(3)));
    }
}
