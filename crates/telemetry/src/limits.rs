//! The limits that protect the program from its clients, and how often each was reached.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// A limit, by the flag that sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `--header-bytes-max`
    HeaderBytes,
    /// `--headers-max`
    Headers,
    /// `--body-bytes-max`
    BodyBytes,
    /// `--bodies-bytes-max`
    BodiesBytes,
    /// `--requests-max`
    Requests,
    /// `--connections-max`
    Connections,
    /// `--streams-max`
    Streams,
    /// `--header-read-timeout`
    HeaderRead,
    /// `--body-stall-timeout`
    BodyStall,
    /// `--answer-stall-timeout`
    AnswerStall,
    /// `--idle-timeout`
    Idle,
    /// `--first-byte-timeout`
    FirstByte,
    /// `--stream-idle-timeout`
    StreamIdle,
}

impl Limit {
    /// Every limit, in the order of the counters.
    pub const ALL: [Limit; 13] = [
        Limit::HeaderBytes,
        Limit::Headers,
        Limit::BodyBytes,
        Limit::BodiesBytes,
        Limit::Requests,
        Limit::Connections,
        Limit::Streams,
        Limit::HeaderRead,
        Limit::BodyStall,
        Limit::AnswerStall,
        Limit::Idle,
        Limit::FirstByte,
        Limit::StreamIdle,
    ];

    /// The label value.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Limit::HeaderBytes => "header_bytes",
            Limit::Headers => "headers",
            Limit::BodyBytes => "body_bytes",
            Limit::BodiesBytes => "bodies_bytes",
            Limit::Requests => "requests",
            Limit::Connections => "connections",
            Limit::Streams => "streams",
            Limit::HeaderRead => "header_read",
            Limit::BodyStall => "body_stall",
            Limit::AnswerStall => "answer_stall",
            Limit::Idle => "idle",
            Limit::FirstByte => "first_byte",
            Limit::StreamIdle => "stream_idle",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

/// A counter for each limit, all of them printed from the start: an alert needs the zero.
#[derive(Clone, Debug)]
pub struct LimitCounters {
    family: Family<LimitLabel, Counter>,
    counters: Arc<[Counter]>,
}

impl LimitCounters {
    pub(crate) fn family(&self) -> impl prometheus_client::registry::Metric + Clone + use<> {
        self.family.clone()
    }

    /// Counts that `limit` was reached: something was refused, closed or made to wait.
    pub fn reached(&self, limit: Limit) {
        self.counter(limit).inc();
    }

    /// How often `limit` was reached so far.
    #[must_use]
    pub fn count(&self, limit: Limit) -> u64 {
        self.counter(limit).get()
    }

    fn counter(&self, limit: Limit) -> &Counter {
        &self.counters[limit as usize]
    }
}

impl Default for LimitCounters {
    fn default() -> LimitCounters {
        let family = Family::<LimitLabel, Counter>::default();
        let counters = Limit::ALL
            .iter()
            .map(|limit| family.get_or_create_owned(&LimitLabel { limit: limit.word() }))
            .collect();
        LimitCounters { family, counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_counts_under_a_word_of_its_own() {
        let counters = LimitCounters::default();
        for (index, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, index, "{limit:?}");
            counters.reached(limit);
            assert_eq!(counters.family.get_or_create(&LimitLabel { limit: limit.word() }).get(), 1);
        }
    }
}
