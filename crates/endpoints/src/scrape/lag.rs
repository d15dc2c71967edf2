//! How far an engine's page lags behind what we sent it.

use std::time::Duration;

/// What the pages of an endpoint that was never seen to count our requests have not shown for so long they never will.
const LAG_MAX: Duration = Duration::from_secs(1);
/// The same for one that counts them. An engine counts at each of its steps: one that does not take a step for seconds is
/// stuck in its work, and its page tells what was before.
const STALL_MAX: Duration = Duration::from_secs(10);

/// Finds what one endpoint's pages never show.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// When the present window began, and the fewest unseen requests in it.
    window: Option<(Duration, u32)>,
    never_shown: u32,
    /// What the page before said.
    counted: Option<u32>,
    /// Whether its count was ever seen to rise while requests of ours were unanswered.
    counts_ours: bool,
}

impl Lag {
    /// A page that came at `at` counts so many requests, while so many of ours were `unanswered`. Gives how many of ours have
    /// not been shown for [`LAG_MAX`] or [`STALL_MAX`] at least, and twice that at most.
    pub(super) fn note(&mut self, at: Duration, counted: u32, unanswered: u32) -> u32 {
        let rose = self.counted.replace(counted).is_some_and(|before| before < counted);
        self.counts_ours |= rose && unanswered > 0;
        let unseen = unanswered.saturating_sub(counted);
        let (began, least) = self.window.unwrap_or((at, unseen));
        let least = least.min(unseen);
        if at.saturating_sub(began) >= if self.counts_ours { STALL_MAX } else { LAG_MAX } {
            self.never_shown = least;
            self.window = Some((at, unseen));
        } else {
            self.never_shown = self.never_shown.min(unseen);
            self.window = Some((began, least));
        }
        self.never_shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages that count nothing, with what was unanswered.
    fn noted(pages: &[(u64, u32)]) -> Vec<u32> {
        let mut lag = Lag::default();
        pages.iter().map(|&(at, unseen)| lag.note(Duration::from_millis(at), 0, unseen)).collect()
    }

    #[test]
    fn what_is_shown_within_the_second_was_only_late() {
        assert_eq!(noted(&[(0, 0), (400, 6), (800, 6), (900, 0), (1400, 6), (2000, 6)]), [0; 6]);
    }

    #[test]
    fn what_is_not_shown_for_a_second_never_is() {
        assert_eq!(
            noted(&[(0, 6), (500, 6), (1000, 6), (1500, 12), (2000, 12), (3000, 12)]),
            [0, 0, 6, 6, 6, 12]
        );
    }

    #[test]
    fn what_is_shown_after_all_counts_at_once() {
        assert_eq!(noted(&[(0, 6), (1000, 6), (1100, 2), (1200, 8)]), [0, 6, 2, 2]);
    }

    #[test]
    fn a_page_that_counted_ours_before_is_waited_for_longer() {
        let mut lag = Lag::default();
        let mut note = |at, counted, unanswered| lag.note(Duration::from_millis(at), counted, unanswered);
        assert_eq!([note(0, 0, 0), note(100, 3, 3)], [0, 0]);
        let stalled: Vec<_> = (1..=20).map(|second| note(second * 1000, 3, 9)).collect();
        assert_eq!(stalled[..10], [0; 10]);
        assert_eq!(stalled[19], 6);
        assert_eq!(note(20_100, 9, 9), 0, "the step is over");
    }

    #[test]
    fn a_count_that_rises_by_the_work_of_others_tells_nothing() {
        let mut lag = Lag::default();
        let mut note = |at, counted, unanswered| lag.note(Duration::from_millis(at), counted, unanswered);
        note(0, 0, 0);
        note(100, 4, 0);
        assert_eq!([note(200, 4, 10), note(1200, 4, 10), note(2200, 4, 10)], [0, 0, 6]);
    }
}
