//! The endpoint picker's door: each ext_proc stream of Envoy's is one request, asked of the director.
//!
//! ```text
//! grpc::Call ──> Stream ── message ──> ext_proc::Machine ── event ──> director: Intake, Exchange
//!                  │  <── answers ────────────┘                              │ ended by the stream's end,
//!                  └── closed right after the pick ──> Parked ── its entry ──┘ or by Envoy's access log
//! ```
//!
//! Invariants
//! - Everything that decides is the director's; what Envoy is told, and when, is the machine's; this crate carries.
//! - A request is booked from its pick until the first of: its answer's end, its entry in the access log, the end of
//!   its stream where no access log is kept, the end of the log. An Envoy that dies ends all of them.
//! - What a request waits for is never a client's id: entries are matched by numbers of ours.

mod access_log;
mod parked;
mod process;
mod service;

pub use service::{HEALTH_SERVICES, LIVENESS, Options, POOL, Picker};
