//! The last requests as they arrived, for tests that ask what a proxy has made of them. Bounded.

use std::collections::VecDeque;

use axum::http::{HeaderMap, Method};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// Requests kept; the oldest is forgotten.
pub const REQUESTS_MAX: usize = 256;

/// One request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// How many requests came before it.
    pub number: u64,
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers in order, names in lower case, values that are not text with their odd bytes replaced.
    pub headers: Vec<(String, String)>,
    /// Length of the body.
    pub body_bytes: usize,
    /// XXH3 (64 bits, seed 0) of the body, 16 hexadecimal digits.
    pub body_xxh3: String,
}

/// The last requests, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: Mutex<(u64, VecDeque<Received>)>,
}

impl Journal {
    /// Notes one request.
    pub(crate) fn note(&self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())));
        let mut received = Received {
            number: 0,
            method: method.to_string(),
            path: path.to_owned(),
            headers: headers.collect(),
            body_bytes: body.len(),
            body_xxh3: format!("{:016x}", XxHash3_64::oneshot(body)),
        };
        let mut entries = self.entries.lock();
        let (count, kept) = &mut *entries;
        received.number = *count;
        *count += 1;
        if kept.len() == REQUESTS_MAX {
            kept.pop_front();
        }
        kept.push_back(received);
    }

    /// What is kept, oldest first.
    pub(crate) fn entries(&self) -> Vec<Received> {
        self.entries.lock().1.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_and_numbered() {
        let journal = Journal::default();
        for _ in 0..REQUESTS_MAX + 3 {
            journal.note(&Method::POST, "/v1/completions", &HeaderMap::new(), b"{}");
        }
        let entries = journal.entries();
        assert_eq!((entries.len(), entries[0].number), (REQUESTS_MAX, 3));
        assert_eq!(entries[0].body_xxh3, format!("{:016x}", XxHash3_64::oneshot(b"{}")));
    }
}
