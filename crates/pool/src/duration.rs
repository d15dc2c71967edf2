//! Durations as Go writes them: `300ms`, `1.5h`, `2h45m`.
//!
//! The grammar, the rounding of fractions and the limits are those of Go's `time.ParseDuration`
//! (<https://pkg.go.dev/time#ParseDuration>), to the letter: what `kubectl` and the reference system accept is
//! accepted here, and nothing else. `tests/data/go-durations.tsv` holds what Go itself answers.

use std::fmt::Write as _;
use std::time::Duration;

use crate::fault::quoted;

/// The magnitude of the smallest int64: what a negative duration may reach, in nanoseconds.
const MAGNITUDE_MAX: u64 = 1 << 63;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// No number where one must be.
    #[error("{} is not a duration", quoted(.0))]
    NotADuration(String),
    /// A number without a unit.
    #[error("{} lacks a unit", quoted(.0))]
    MissingUnit(String),
    /// A unit that Go does not know.
    #[error("{} has the unknown unit {}", quoted(.text), quoted(.unit))]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The unit as written.
        unit: String,
    },
    /// More than int64 nanoseconds hold (about 292 years).
    #[error("{} is longer than int64 nanoseconds hold", quoted(.0))]
    Overflow(String),
    /// Below zero.
    #[error("{} is below zero", quoted(.0))]
    Negative(String),
}

/// Reads a duration as Go's `time.ParseDuration` does, and refuses what is below zero.
///
/// # Errors
/// [`DurationError`]: what Go refuses, and negative durations.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let nanos = parse_go_duration(text)?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| DurationError::Negative(text.to_owned()))
}

/// Reads a duration as Go's `time.ParseDuration` does: nanoseconds, with a sign.
pub(crate) fn parse_go_duration(text: &str) -> Result<i64, DurationError> {
    let overflow = || DurationError::Overflow(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(DurationError::NotADuration(text.to_owned()));
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number = Number::take(&mut rest, text)?;
        let unit_nanos = take_unit(&mut rest, text)?;
        total = number
            .in_nanos(unit_nanos)
            .and_then(|nanos| total.checked_add(nanos))
            .filter(|&sum| sum <= MAGNITUDE_MAX)
            .ok_or_else(overflow)?;
    }
    // The magnitude of the smallest int64 is one more than the largest.
    if negative { 0_i64.checked_sub_unsigned(total) } else { i64::try_from(total).ok() }.ok_or_else(overflow)
}

/// Writes a duration so that [`parse_duration`] reads the same back: `1h30m`, `1.5s`, `300ms`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit_nanos, unit) in [(1_000, "ns"), (1_000_000, "us"), (u128::from(NANOS_PER_SECOND), "ms")] {
        if nanos < unit_nanos {
            return decimal(nanos, unit_nanos / 1_000, unit);
        }
    }
    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    let rest = nanos % (60 * u128::from(NANOS_PER_SECOND));
    let mut text = String::new();
    for (count, unit) in [(hours, 'h'), (minutes, 'm')] {
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "{count}{unit}");
        }
    }
    if rest > 0 {
        text.push_str(&decimal(rest, u128::from(NANOS_PER_SECOND), "s"));
    }
    text
}

/// `digits.fraction`, the fraction as Go reads it: only as many of its digits as fit.
struct Number {
    whole: u64,
    fraction: u64,
    /// Ten to the number of digits that `fraction` holds.
    scale: f64,
}

impl Number {
    fn take(rest: &mut &str, text: &str) -> Result<Number, DurationError> {
        let whole_digits = take_digits(rest);
        let fraction_digits = rest.strip_prefix('.').map(|after| {
            *rest = after;
            take_digits(rest)
        });
        if whole_digits.is_empty() && fraction_digits.unwrap_or_default().is_empty() {
            return Err(DurationError::NotADuration(text.to_owned()));
        }
        let mut whole: u64 = 0;
        for digit in digits(whole_digits) {
            whole = whole
                .checked_mul(10)
                .and_then(|tenfold| tenfold.checked_add(digit))
                .filter(|&value| value <= MAGNITUDE_MAX)
                .ok_or_else(|| DurationError::Overflow(text.to_owned()))?;
        }
        let (fraction, scale) = read_fraction(fraction_digits.unwrap_or_default());
        Ok(Number { whole, fraction, scale })
    }

    /// `None` where it is more than the magnitude of an int64.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "Go computes the fraction in float64 and truncates: the letter of it is the point"
    )]
    fn in_nanos(&self, unit_nanos: u64) -> Option<u64> {
        let nanos = self.whole.checked_mul(unit_nanos).filter(|&nanos| nanos <= MAGNITUDE_MAX)?;
        let fraction = (self.fraction as f64 * (unit_nanos as f64 / self.scale)) as u64;
        nanos.checked_add(fraction).filter(|&nanos| nanos <= MAGNITUDE_MAX)
    }
}

/// Takes the unit, which reaches to the next digit or point, and gives its length in nanoseconds.
fn take_unit(rest: &mut &str, text: &str) -> Result<u64, DurationError> {
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(end);
    *rest = after;
    match unit {
        "ns" => Ok(1),
        // The micro sign U+00B5 and the Greek letter U+03BC.
        "us" | "\u{b5}s" | "\u{3bc}s" => Ok(1_000),
        "ms" => Ok(1_000_000),
        "s" => Ok(NANOS_PER_SECOND),
        "m" => Ok(60 * NANOS_PER_SECOND),
        "h" => Ok(3600 * NANOS_PER_SECOND),
        "" => Err(DurationError::MissingUnit(text.to_owned())),
        _ => Err(DurationError::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() }),
    }
}

/// The fraction and its scale; digits from the first on that an int64 cannot hold are dropped.
fn read_fraction(text: &str) -> (u64, f64) {
    let (mut fraction, mut scale) = (0_u64, 1_f64);
    for digit in digits(text) {
        if fraction > (MAGNITUDE_MAX - 1) / 10 || fraction * 10 + digit > MAGNITUDE_MAX {
            break;
        }
        fraction = fraction * 10 + digit;
        scale *= 10.0;
    }
    (fraction, scale)
}

fn take_digits<'t>(rest: &mut &'t str) -> &'t str {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    digits
}

fn digits(text: &str) -> impl Iterator<Item = u64> {
    text.bytes().map(|byte| u64::from(byte - b'0'))
}

/// `value / one` in decimal, without trailing zeros; `one` is a power of ten.
fn decimal(value: u128, one: u128, unit: &str) -> String {
    let (whole, fraction) = (value / one, value % one);
    if fraction == 0 {
        return format!("{whole}{unit}");
    }
    let width = one.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{whole}.{}{unit}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Go says: text, then nanoseconds or `error`.
    const GO: &str = include_str!("../tests/data/go-durations.tsv");

    #[test]
    fn agrees_with_go_on_every_line_of_its_table() {
        let mut lines = 0;
        for line in GO.lines().filter(|line| !line.starts_with('#')) {
            let (text, answer) = line.split_once('\t').expect("two columns");
            let ours = parse_go_duration(text).map_or_else(|_| "error".to_owned(), |nanos| nanos.to_string());
            assert_eq!(ours, answer, "{text:?}");
            lines += 1;
        }
        assert!(lines > 2000, "the table was read: {lines} lines");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, message) in [
            ("", "\"\" is not a duration"),
            ("5", "\"5\" lacks a unit"),
            ("1d", "\"1d\" has the unknown unit \"d\""),
            ("1h-2m", "\"1h-2m\" has the unknown unit \"h-\""),
            ("9223372036854775808ns", "\"9223372036854775808ns\" is longer than int64 nanoseconds hold"),
            ("-1s", "\"-1s\" is below zero"),
        ] {
            assert_eq!(parse_duration(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn writes_as_a_person_would() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5us"),
            (300_000_000, "300ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m"),
            (9_900_000_000_000, "2h45m"),
            (3_600_500_000_000, "1h0.5s"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(nanos in 0..=i64::MAX.unsigned_abs()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "[-+]?([0-9]{0,25}\\.?[0-9]{0,25}(ns|us|µs|μs|ms|s|m|h|\\PC)?){0,4}") {
            let _ = parse_go_duration(&text);
        }
    }
}
