//! How many tests passed and failed, read from what test programs print last.

use std::ops::AddAssign;

/// Tests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ended well.
    pub(crate) passed: u64,
    /// Failed, or broke before they could.
    pub(crate) failed: u64,
}

impl Tally {
    /// A check that counts as one test.
    pub(crate) fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed) }
    }

    /// What a line of output adds: cargo's `test result: ok. 3 passed; 0 failed; …`, pytest's
    /// `==== 3 passed, 1 error in 0.2s ====`. Nothing for any other line.
    pub(crate) fn read(line: &str) -> Self {
        let line = line.trim().trim_matches('=').trim();
        let cargo = line.starts_with("test result: ");
        let pytest = line.starts_with(|first: char| first.is_ascii_digit()) && {
            let seconds = line.rsplit_once(" in ").map(|(_, time)| time.split(' ').next().unwrap_or(time));
            seconds.and_then(|time| time.strip_suffix('s')).is_some_and(|time| time.parse::<f64>().is_ok())
        };
        let mut tally = Self::default();
        if !(cargo || pytest) {
            return tally;
        }
        let words: Vec<_> = line.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => tally.passed += count,
                "failed" | "error" | "errors" => tally.failed += count,
                _ => {}
            }
        }
        tally
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_cargo_and_pytest_are_counted() {
        for (line, passed, failed) in [
            (
                "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                12,
                0,
            ),
            ("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; finished in 0.01s", 3, 2),
            ("========= 40 passed in 61.02s (0:01:01) =========", 40, 0),
            ("1 failed, 2 passed, 1 skipped, 2 errors in 3.10s", 2, 3),
            ("5 passed, 1 error in 0.2s", 5, 1),
        ] {
            assert_eq!(Tally::read(line), Tally { passed, failed }, "{line}");
        }
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in
            ["", "running 3 tests", "test a ... ok", "3 passed the gate in time", "99 passed", "7 in 2s"]
        {
            assert_eq!(Tally::read(line), Tally::default(), "{line}");
        }
    }
}
