//! The retry budget: retries may be a share of requests, with a floor so that a quiet or just started gateway can
//! still route around dead endpoints. Without a budget, a pool that fails as a whole would be hit once more for
//! every endpoint on every request.
//!
//! A token bucket without a lock: a fifth of a token for each request, [`FLOOR_PER_SECOND`] tokens a second
//! whatever the traffic, at most [`TOKENS_MAX`] saved.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Retries that may be saved up: a first burst onto a pool with dead endpoints costs no client an error.
const TOKENS_MAX: u64 = 128;
/// Retries a second that are always allowed.
const FLOOR_PER_SECOND: u64 = 16;

/// Thousandths of a token, so that a deposit is a whole number.
const UNIT: u64 = 1000;
/// What each request brings: a fifth of a retry.
const DEPOSIT: u64 = UNIT / 5;

/// How many retries may still be made.
pub(crate) struct RetryBudget {
    units: AtomicU64,
    refilled_at_ms: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget { units: AtomicU64::new(TOKENS_MAX * UNIT), refilled_at_ms: AtomicU64::new(0) }
    }
}

impl RetryBudget {
    /// A request came: it brings its share of a retry.
    pub(crate) fn deposit(&self) {
        self.add(DEPOSIT);
    }

    /// Takes one retry; false when the budget is spent.
    pub(crate) fn withdraw(&self, now: Duration) -> bool {
        self.refill(now);
        self.units.fetch_update(Relaxed, Relaxed, |units| units.checked_sub(UNIT)).is_ok()
    }

    fn refill(&self, now: Duration) {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let since_ms = self.refilled_at_ms.fetch_max(now_ms, Relaxed);
        self.add(now_ms.saturating_sub(since_ms).saturating_mul(FLOOR_PER_SECOND));
    }

    fn add(&self, units: u64) {
        let full = TOKENS_MAX * UNIT;
        let _ = self.units.fetch_update(Relaxed, Relaxed, |present| {
            (present < full).then(|| present.saturating_add(units).min(full))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(budget: &RetryBudget, now: Duration) -> u64 {
        (0..10 * TOKENS_MAX).filter(|_| budget.withdraw(now)).count() as u64
    }

    #[test]
    fn a_first_burst_may_retry_and_a_failing_pool_may_not_for_ever() {
        let budget = RetryBudget::default();
        assert_eq!(drain(&budget, Duration::ZERO), TOKENS_MAX);
        assert!(!budget.withdraw(Duration::ZERO));
    }

    #[test]
    fn the_floor_comes_back_without_traffic() {
        let budget = RetryBudget::default();
        drain(&budget, Duration::ZERO);
        assert_eq!(drain(&budget, Duration::from_secs(1)), FLOOR_PER_SECOND);
    }

    #[test]
    fn requests_bring_a_share_of_a_retry() {
        let budget = RetryBudget::default();
        drain(&budget, Duration::ZERO);
        for _ in 0..100 {
            budget.deposit();
        }
        assert_eq!(drain(&budget, Duration::ZERO), 20);
    }
}
