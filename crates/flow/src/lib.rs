//! Who may go now: requests that wait for an endpoint, in the order in which they are to leave.
//!
//! ```text
//! arrive ──> Queue: bands by priority ──> flows by fairness id ──> requests in the order they came
//!              │ dispatch: the highest band, in it the flow that is furthest behind its share, of it the first
//!              │ remove (the client is gone), expire (it waited too long), arrive and set_limits (no place for it)
//!              └──> Left: the waiter and how long it waited
//! ```
//!
//! Invariants
//! - No clock, task, lock or randomness in here: time is passed in, and never goes back.
//! - Whoever arrived leaves exactly once, by the one call that says so.
//! - What waits never takes more bytes than the capacity, nor are there more than `waiting_max`.
//! - Nobody leaves for an endpoint before one of a higher priority that could go, nor before one of its own flow that
//!   came earlier.
//! - Two flows of a band that both have requests waiting have been given work that differs by no more than the work of
//!   one request of each (self-clocked fair queueing: Golestani, INFOCOM 1994; ADR 23).
//! - State belongs to what waits: a band or a flow without requests is forgotten.

mod list;
mod queue;
mod rate;
mod slab;

pub use queue::{Arrival, Band, Left, Limits, Queue, Ticket, Verdict};
pub use rate::Rate;
