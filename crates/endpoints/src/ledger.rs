//! What this process has booked on an endpoint and not yet released: the truth between two scrapes.
//!
//! Invariants: only a [`Booking`] changes a [`Ledger`]; each booking takes once and releases once, also on panic, cancel
//! or a forgotten early return, because the release is its `Drop`. Counts never go below zero.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::endpoint::Endpoint;

/// Requests and prompt tokens booked on one endpoint by this process.
#[derive(Debug, Default)]
pub struct Ledger {
    requests: AtomicU32,
    unanswered: AtomicU32,
    prefill_tokens: AtomicU64,
    last_booked: AtomicU64,
    /// Set while the scraper sleeps out its idle interval: the next booking wakes it, so that load is read while it lasts.
    scraper_idle: AtomicBool,
    booked: Notify,
}

/// One request's place in an endpoint's [`Ledger`], from the pick to the end of the request.
#[derive(Debug)]
#[must_use = "a booking that is dropped is released"]
pub struct Booking {
    endpoint: Arc<Endpoint>,
    prefill_tokens: u64,
    /// Counted among the unanswered.
    delivered: AtomicBool,
    answered: bool,
}

impl Ledger {
    /// Requests booked and not yet ended.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests that the endpoint has whole and whose first byte has not come yet: so many at least run or wait there.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Prompt tokens of requests whose first byte has not come yet.
    #[must_use]
    pub fn prefill_tokens(&self) -> u64 {
        self.prefill_tokens.load(Ordering::Relaxed)
    }

    /// Sequence number of the latest booking, 0 before the first. Among equal endpoints the lowest waited longest.
    #[must_use]
    pub fn last_booked(&self) -> u64 {
        self.last_booked.load(Ordering::SeqCst)
    }

    /// Resolves as soon as there is a booking later than the one numbered `seen`.
    pub(crate) async fn booked_after(&self, seen: u64) {
        // Announced before the check, as `Booking::book` counts before it looks (both SeqCst): one of the two sees the
        // other, so no booking is slept through.
        loop {
            self.scraper_idle.store(true, Ordering::SeqCst);
            if self.last_booked() != seen {
                return;
            }
            self.booked.notified().await;
        }
    }

    fn take(&self, prefill_tokens: u64, sequence: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.prefill_tokens.fetch_add(prefill_tokens, Ordering::Relaxed);
        self.last_booked.fetch_max(sequence, Ordering::SeqCst);
        if self.scraper_idle.load(Ordering::SeqCst) && self.scraper_idle.swap(false, Ordering::SeqCst) {
            self.booked.notify_one();
        }
    }

    fn release_prefill(&self, tokens: u64) {
        let before = self
            .prefill_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(tokens)));
        debug_assert!(before.is_ok_and(|before| before >= tokens), "prefill tokens released twice");
    }

    fn release_request(&self) {
        let before = decrement(&self.requests);
        debug_assert!(before >= 1, "request released twice");
    }

    fn release_unanswered(&self) {
        let before = decrement(&self.unanswered);
        debug_assert!(before >= 1, "an unanswered request released twice");
    }
}

impl Booking {
    /// Books one request of `prefill_tokens` prompt tokens (those the endpoint must compute) on `endpoint`.
    ///
    /// `sequence` numbers the bookings of a set from 1 upwards; [`EndpointSet::book`](crate::EndpointSet::book) draws it.
    pub fn book(endpoint: &Arc<Endpoint>, prefill_tokens: u64, sequence: u64) -> Self {
        endpoint.ledger.take(prefill_tokens, sequence);
        let delivered = AtomicBool::new(false);
        Self { endpoint: Arc::clone(endpoint), prefill_tokens, delivered, answered: false }
    }

    /// The endpoint that this is booked on.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The endpoint has, or is about to have, the whole request. Later calls do nothing, nor do calls after the first byte.
    pub fn delivered(&self) {
        if !self.answered && !self.delivered.swap(true, Ordering::Relaxed) {
            self.endpoint.ledger.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The first byte of the answer came: the prompt is computed, its tokens are released. Later calls do nothing.
    pub fn first_byte(&mut self) {
        self.answered = true;
        if std::mem::take(self.delivered.get_mut()) {
            self.endpoint.ledger.release_unanswered();
        }
        let tokens = std::mem::take(&mut self.prefill_tokens);
        if tokens > 0 {
            self.endpoint.ledger.release_prefill(tokens);
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.first_byte();
        self.endpoint.ledger.release_request();
        self.endpoint.tell_freed();
    }
}

/// Takes one away, down to 0; what there was.
fn decrement(count: &AtomicU32) -> u32 {
    let fewer = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(1)));
    fewer.unwrap_or_else(|before| before)
}

#[cfg(test)]
mod tests;
