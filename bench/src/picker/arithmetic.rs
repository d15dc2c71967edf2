//! Percentiles, medians, and the times at which an open loop sends. Pure.

use std::time::Duration;

use crate::trace::mix;

/// The value below or at which this share (0 to 1) of the samples lies, by nearest rank; zero of no samples.
/// `sorted` ascends.
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The middle of these numbers and how far they lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of no numbers: zeros.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return Spread::default() };
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Spread { median: f64::midpoint(low, high), min, max }
    }
}

/// When the requests of an open loop are sent: offsets from its start, as a Poisson process has them.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    per_second: f64,
    at_s: f64,
    drawn: u64,
}

impl Arrivals {
    /// The same seed gives the same arrivals.
    pub(crate) fn new(per_second: f64, seed: u64) -> Arrivals {
        Arrivals { per_second, at_s: 0.0, drawn: mix(seed) }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.drawn = self.drawn.wrapping_add(1);
        // 53 bits make a number in [0, 1); one less it lies in (0, 1], where a logarithm is.
        let uniform = 1.0 - (mix(self.drawn) >> 11) as f64 / (1_u64 << 53) as f64;
        self.at_s -= uniform.ln() / self.per_second;
        Some(Duration::from_secs_f64(self.at_s))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let ms = |numbers: &[u64]| numbers.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
        let hundred = ms(&(1..=100).collect::<Vec<_>>());
        for (share, expected) in
            [(0.0, 1), (0.005, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.999, 100), (1.0, 100)]
        {
            assert_eq!(percentile(&hundred, share), Duration::from_millis(expected), "{share}");
        }
        assert_eq!(percentile(&ms(&[7]), 0.5), Duration::from_millis(7));
        assert_eq!(percentile(&[], 0.99), Duration::ZERO);
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([9.0, 1.0, 5.0]).median, 5.0);
        assert_eq!(Spread::of([]), Spread::default());
    }

    /// Gaps of a Poisson process: mean 1/rate, standard deviation 1/rate, and 1/e of them longer than the mean.
    #[test]
    fn arrivals_are_poisson() {
        const COUNT: usize = 100_000;
        let rate = 500.0;
        let times: Vec<f64> = Arrivals::new(rate, 1).take(COUNT).map(|at| at.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        let long = gaps.iter().filter(|gap| **gap > 1.0 / rate).count() as f64 / gaps.len() as f64;
        assert!((mean * rate - 1.0).abs() < 0.02, "mean {mean}");
        assert!((deviation * rate - 1.0).abs() < 0.03, "deviation {deviation}");
        assert!((long - (-1.0_f64).exp()).abs() < 0.01, "share of long gaps {long}");
    }

    proptest! {
        /// The oracle counts: at least that share lies at or below the answer, and less than it lies below.
        #[test]
        fn a_percentile_splits_the_samples(
            mut samples in prop::collection::vec(0_u64..50, 1..40), share in 0.01_f64..1.0,
        ) {
            samples.sort_unstable();
            let sorted: Vec<Duration> = samples.iter().copied().map(Duration::from_nanos).collect();
            let found = percentile(&sorted, share);
            let at_or_below = sorted.iter().filter(|sample| **sample <= found).count() as f64;
            let below = sorted.iter().filter(|sample| **sample < found).count() as f64;
            prop_assert!(at_or_below >= share * sorted.len() as f64);
            prop_assert!(below < share * sorted.len() as f64);
        }
    }
}
