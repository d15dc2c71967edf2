//! The one place where this program's time begins.
//!
//! Pure code takes `now` as the [`Duration`] since the program's epoch; shells ask a [`Clock`]. The clock is tokio's, so
//! a test that pauses tokio's time pauses this one as well.

use std::time::Duration;

use tokio::time::Instant;

/// Monotonic time since the program's epoch. Copies share the epoch.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose epoch is this moment.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the epoch.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_paused_time_and_copies_share_the_epoch() {
        let clock = Clock::start();
        tokio::time::advance(Duration::from_millis(1500)).await;
        let copy = clock;
        assert_eq!(clock.now(), Duration::from_millis(1500));
        assert_eq!(copy.now(), clock.now());
    }
}
