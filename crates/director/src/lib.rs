//! The life of a request, whichever door it came through.
//!
//! ```text
//! door: head ──> Director::begin ──> Intake: push(chunk) … Enough ──> route() ──> Exchange: endpoint()
//!                                                                               │  next_endpoint(failure)
//!                                                                               │  answer, answer_bytes
//!                                                                               └─ end(reason), or dropped
//! ```
//!
//! Invariants
//! - Every request that [`Director::begin`] saw is counted exactly once, by the drop of one guard, also when it is
//!   refused, cancelled or panics.
//! - Work is booked on an endpoint at the pick and released by the one [`endpoints::Booking`].
//! - Match, pick, book and record happen under one short lock of the pool; no lock is held across an await.
//! - Policy, names and endpoints are swapped whole; a request in flight keeps what it began with.
//! - [`Reason`] is the only road to status codes, metric labels and `x-pointsman-reason`.

mod budget;
mod director;
mod ending;
mod gauges;
mod limits;
mod queue;
mod reason;
mod rename;
mod request;
mod served_pool;
mod view;

pub use director::{Director, random_seed};
pub use limits::{HeldBytes, Limits};
pub use reason::{Reason, Refusal};
pub use rename::Rename;
pub use request::{Control, Exchange, Failure, Head, Intake};
pub use served_pool::{Declaration, FALLBACKS_MAX, InForce, ServedPool};

pub use endpoints::{Clock, Endpoint};
pub use inference::{AnswerRename, Progress};
pub use pool::AppProtocol;
