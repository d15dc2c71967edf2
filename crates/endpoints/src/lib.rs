//! Who can serve and how loaded they are: scraper, in-flight ledger, immutable snapshots.
//!
//! ```text
//!   operator ── reconcile ──> EndpointSet ── snapshot ──> readers (one Arc, never a lock)
//!                                 ^
//!   engines <── scraper ── apply ─┘         Booking ──> Ledger (atomics of the shared Endpoint)
//! ```
//!
//! Invariants:
//! - One writer: only an [`EndpointSet`] makes snapshots; readers load one `Arc` and keep it as long as they like.
//! - Load is what the last good scrape said, corrected by what we have booked and released since ([`Snapshot::read_loads`]).
//!   No scrape, or an old one, is *unknown*: never zero and never full.
//! - An endpoint that is dead, hangs, trickles or lies costs its own task some time and nobody else anything.
//! - Nothing here knows how a choice is made.
//!
//! Time is [`Duration`](std::time::Duration) since the program's epoch and is passed in as `now`; only the scraper asks a
//! [`Clock`].

mod clock;
mod endpoint;
mod exposition;
mod health;
mod ledger;
mod metrics;
mod models;
mod scrape;
mod set;
mod snapshot;

pub use clock::Clock;
pub use endpoint::{Endpoint, EndpointId, IN_FLIGHT_UNKNOWN_MIN, Slot};
pub use exposition::{LINE_BYTES_MAX, LineError};
pub use health::{FAILURES_MAX, Health, OUT_FIRST, OUT_MAX, PROBE_LEASE, Standing};
pub use ledger::{Booking, Ledger};
pub use metrics::{CacheGeometry, EngineMetrics, Lora, PageError, PageReader};
pub use models::{MODELS_FRESH, MODELS_MAX, ModelList, ModelsError, ServedModel, Serving};
pub use scrape::{FailureReason, FetchError, ScrapeConfig, ScrapeError, ScrapeFailure, ScrapeStats, spawn};
pub use set::{Changes, EndpointSet, REFRESH_EVERY, Update};
pub use snapshot::{
    Entry, KV_USAGE_WITH_ROOM_MAX, Load, LoadStanding, Room, STALE_AFTER, Scraped, Snapshot,
    WAITING_WITH_ROOM_MAX,
};
