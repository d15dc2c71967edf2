//! Faults to order: what a server does wrong, so that tests can see how others take it.

use serde::{Deserialize, Serialize};

/// The longest that `first_byte_delay_ms` may be.
const DELAY_MS_MAX: u64 = 600_000;

/// What is wrong now. `POST /sim/faults` replaces all of it; what is left out is sound again. Paths below `/sim/`
/// have no faults, so that every fault can be lifted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Every request ends with its connection closed (HTTP/2: its stream reset) and no byte of an answer.
    pub refuse: bool,
    /// Requests other than for metrics are read and never answered.
    pub hang: bool,
    /// Requests other than for metrics are answered with this status, 400 to 599.
    pub status: Option<u16>,
    /// Requests other than for metrics are answered this much later, in milliseconds, at most 10 minutes.
    pub first_byte_delay_ms: u64,
    /// An answer, streamed or not, is cut off after so many tokens: the connection breaks, nothing ends properly.
    pub break_after_tokens: Option<u32>,
    /// What the metrics page does.
    pub metrics: MetricsFault,
}

/// What the metrics page does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsFault {
    /// It tells the truth.
    #[default]
    Ok,
    /// It never answers.
    Hang,
    /// It sends its head at once, then 256 bytes every 100 ms.
    Slow,
    /// It answers 500.
    Error,
    /// Every value is `NaN`.
    Nan,
    /// Every value is -1.
    Negative,
    /// Every value is 10^30.
    Huge,
    /// It is a web page, with status 200.
    Html,
    /// It is the true page, then 100 MB of other series.
    Big,
    /// It is nothing, with status 200.
    Empty,
}

/// Faults that were not set, because they make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// Not a status of an error.
    #[error("status {status} is not an error: expected 400 to 599")]
    Status {
        /// What was asked for.
        status: u16,
    },
    /// Longer than anybody waits.
    #[error("first_byte_delay_ms {delay_ms} is more than {DELAY_MS_MAX}")]
    Delay {
        /// What was asked for.
        delay_ms: u64,
    },
}

impl Faults {
    /// The same, if it makes sense.
    pub fn checked(self) -> Result<Self, FaultError> {
        match self {
            Self { status: Some(status), .. } if !(400..600).contains(&status) => {
                Err(FaultError::Status { status })
            }
            Self { first_byte_delay_ms: delay_ms, .. } if delay_ms > DELAY_MS_MAX => {
                Err(FaultError::Delay { delay_ms })
            }
            sound => Ok(sound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_not_set() {
        let status = |status| Faults { status: Some(status), ..Faults::default() }.checked();
        assert_eq!(status(200), Err(FaultError::Status { status: 200 }));
        assert!(status(503).is_ok());
        let delay = Faults { first_byte_delay_ms: DELAY_MS_MAX + 1, ..Faults::default() };
        assert!(delay.checked().is_err());
    }
}
