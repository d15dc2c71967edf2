//! How far an engine's page lags behind what we sent it.

use std::time::Duration;

/// What a page has not shown for so long it never will: an engine counts at each of its steps, and those are shorter.
const LAG_MAX: Duration = Duration::from_secs(1);

/// Finds what one endpoint's pages never show.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// When the present window began, and the fewest unseen requests in it.
    window: Option<(Duration, u32)>,
    never_shown: u32,
}

impl Lag {
    /// A page that came at `at` did not show `unseen` of our requests. Gives how many have not been shown for
    /// [`LAG_MAX`] at least, and twice that at most.
    pub(super) fn note(&mut self, at: Duration, unseen: u32) -> u32 {
        let (began, least) = self.window.unwrap_or((at, unseen));
        let least = least.min(unseen);
        if at.saturating_sub(began) >= LAG_MAX {
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

    fn noted(pages: &[(u64, u32)]) -> Vec<u32> {
        let mut lag = Lag::default();
        pages.iter().map(|&(at, unseen)| lag.note(Duration::from_millis(at), unseen)).collect()
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
}
