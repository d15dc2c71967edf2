//! A small gRPC server (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>) on bare HTTP/2.
//!
//! ```text
//! listener ──> worker thread: connections ──> Call: next() message … send(rope) … finish(status)
//!                                        └──> health
//! ```
//!
//! Why not a framework: a picker's work is a few microseconds, and what a stack of layers, a boxed stream for each and
//! a wake-up from thread to thread cost is many times that (docs/benchmarks.md, ADR 22).
//!
//! Invariants
//! - A connection lives on one thread from its first byte to its last, and so does every call on it.
//! - A message that came whole in one frame is a slice of that frame; an answer is a rope of such slices.
//! - What a peer can make us hold is bounded: windows, one message being put together, answers not yet taken.

mod call;
mod health;
mod rope;
mod server;

pub use call::{Broken, Call, Code, Status};
pub use health::{Health, Serving};
pub use rope::Rope;
pub use server::{Server, Service, Settings};
