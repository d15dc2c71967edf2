//! How many leave in a second, lately.

use std::time::Duration;

/// What happened longer ago counts for less: by a factor of e for each of these.
const MEMORY: Duration = Duration::from_secs(10);
/// The longest that anybody is told to stay away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// The shortest: what `Retry-After` can say.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// A count that fades.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    faded: f64,
    at: Duration,
}

impl Rate {
    /// One more, at `now`.
    pub fn count(&mut self, now: Duration) {
        *self = Rate { faded: self.faded_by(now) + 1.0, at: self.at.max(now) };
    }

    /// A second.
    #[must_use]
    pub fn per_second(&self, now: Duration) -> f64 {
        self.faded_by(now) / MEMORY.as_secs_f64()
    }

    /// When one that asks again behind `ahead` others can hope for its turn. Without anything to go by, soon.
    #[must_use]
    pub fn retry_after(&self, now: Duration, ahead: usize) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let seconds = ahead as f64 / self.per_second(now).max(f64::MIN_POSITIVE);
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or(RETRY_AFTER_MAX);
        wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }

    fn faded_by(&self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64() / MEMORY.as_secs_f64();
        self.faded * (-age).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_flow_is_known_and_forgotten() {
        let mut rate = Rate::default();
        for number in 0..1000_u32 {
            rate.count(Duration::from_millis(100) * number);
        }
        let end = Duration::from_secs(100);
        assert!((9.0..11.0).contains(&rate.per_second(end)), "{}", rate.per_second(end));
        assert_eq!(rate.retry_after(end, 0), Duration::from_secs(1));
        assert!((4.0..6.0).contains(&rate.retry_after(end, 50).as_secs_f64()));
        assert_eq!(rate.retry_after(end, 1_000_000), RETRY_AFTER_MAX);
        assert!(rate.per_second(end + Duration::from_secs(100)) < 0.01);
    }

    #[test]
    fn without_anything_to_go_by_it_is_bounded() {
        assert_eq!(Rate::default().retry_after(Duration::ZERO, 0), RETRY_AFTER_MIN);
        assert_eq!(Rate::default().retry_after(Duration::ZERO, 1), RETRY_AFTER_MAX);
    }
}
