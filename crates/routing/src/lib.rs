//! Where to: scorers, prefix index, and a decision with its reasons.
//!
//! [`decide`] is a function of the request, what is known of the endpoints, the policy, the prefix index and a seed:
//! no I/O, no clock, no randomness of its own. It filters, prices each candidate in one unit ([`Cost`]: prompt
//! tokens to be computed before the request's first token), and ranks. [`Router`] bundles it with the index of one
//! pool, for a caller that holds one lock around pick and booking.

mod cost;
mod decision;
mod hash;
mod prefix;
mod router;

pub use cost::{BYTES_PER_TOKEN, Cost};
pub use decision::{Decision, Known, PickReason, Ranked, Request, Scratch, decide};
pub use hash::block_hashes;
pub use prefix::{PrefixIndex, Receipt};
pub use router::Router;
