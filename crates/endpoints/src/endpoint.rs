//! One model server that can be picked: who it is, what we have booked on it, whether it is left out.
//!
//! Invariant: identity (`id`, `slot`, `spec`) never changes; everything that does is an atomic or behind a lock of its own.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pool::EndpointSpec;
use tokio::sync::Notify;

use crate::health::Health;
use crate::ledger::Ledger;
use crate::scrape::ScrapeStats;

/// Who an endpoint is. Never used twice in one process, whatever the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

/// A small dense number, for per-endpoint arrays and the prefix index.
///
/// A slot is unique in its set at any moment and is given to another endpoint once its own is gone: whoever keeps state
/// by slot keeps the [`EndpointId`] beside it, or clears the slot when the membership changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

/// One address of a model server. Shared by `Arc`: bookings keep it alive after it left the set.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in the process.
    pub id: EndpointId,
    /// Unique in the set while the endpoint is a member.
    pub slot: Slot,
    /// What the operator declared.
    pub spec: EndpointSpec,
    authority: Arc<str>,
    /// What we have booked on it.
    pub ledger: Ledger,
    /// Whether it is left out after failures.
    pub health: Health,
    /// How reading its metrics goes, for telemetry.
    pub scrapes: ScrapeStats,
    /// The most that we had in flight on it while its metrics said that it had room.
    roomy_in_flight: AtomicU32,
    /// Told when a booking of the set is released.
    freed: Arc<Notify>,
}

/// An endpoint whose load is unknown has room for so many requests of ours at least.
pub const IN_FLIGHT_UNKNOWN_MIN: u32 = 16;

impl EndpointId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number itself, for logs.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Slot {
    /// The slot of that number.
    #[must_use]
    pub const fn new(slot: u32) -> Self {
        Self(slot)
    }

    /// The slot as an index into an array.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Endpoint {
    /// A new endpoint with a new id, nothing booked, in good standing.
    #[must_use]
    pub fn new(slot: Slot, spec: EndpointSpec) -> Self {
        Self::in_set(slot, spec, Arc::default())
    }

    /// A new endpoint of a set that is told of released bookings by `freed`.
    pub(crate) fn in_set(slot: Slot, spec: EndpointSpec, freed: Arc<Notify>) -> Self {
        Self {
            id: EndpointId::next(),
            slot,
            authority: authority(&spec.host, spec.port).into(),
            spec,
            ledger: Ledger::default(),
            health: Health::default(),
            scrapes: ScrapeStats::default(),
            roomy_in_flight: AtomicU32::new(0),
            freed,
        }
    }

    /// While its load is unknown: how many requests of ours may be in flight on it before it has no room. What it
    /// took while its metrics were read it can take, and [`IN_FLIGHT_UNKNOWN_MIN`] any can.
    #[must_use]
    pub fn in_flight_unknown_max(&self) -> u32 {
        self.roomy_in_flight.load(Ordering::Relaxed).max(IN_FLIGHT_UNKNOWN_MIN)
    }

    /// Its metrics said that it had room with so many requests of ours in flight.
    pub(crate) fn had_room_at(&self, in_flight: u32) {
        self.roomy_in_flight.fetch_max(in_flight, Ordering::Relaxed);
    }

    pub(crate) fn tell_freed(&self) {
        self.freed.notify_one();
    }

    /// `ip:port`, `[v6]:port` or `name:port`: what a `Host` header or a destination header carries.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The authority as a label value that metrics can keep without copying it.
    #[must_use]
    pub fn label(&self) -> Arc<str> {
        Arc::clone(&self.authority)
    }
}

/// `host:port`, with the brackets that an IPv6 address needs.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_brackets_only_what_is_ipv6() {
        assert_eq!(authority("10.0.0.1", 8000), "10.0.0.1:8000");
        assert_eq!(authority("fd00::1", 8000), "[fd00::1]:8000");
        assert_eq!(authority("[fd00::1]", 8000), "[fd00::1]:8000");
        assert_eq!(authority("vllm-0.vllm", 80), "vllm-0.vllm:80");
    }

    #[test]
    fn ids_are_never_used_twice_though_slots_are() {
        let spec = EndpointSpec { name: "a".into(), host: "127.0.0.1".into(), port: 1, tls: false };
        let first = Endpoint::new(Slot::new(0), spec.clone());
        let second = Endpoint::new(Slot::new(0), spec);
        assert_ne!(first.id, second.id);
        assert_eq!(first.slot, second.slot);
    }
}
