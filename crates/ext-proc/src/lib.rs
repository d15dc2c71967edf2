//! Envoy's external processing protocol as an endpoint picker speaks it (`envoy.service.ext_proc.v3`), without I/O.
//!
//! ```text
//!  gRPC messages ──> message ──> Machine ──> Event ──> whoever decides
//!       of one        (read)       │  ^                     │
//!       stream                     │  └── routed, refused <─┘
//!  gRPC messages <── answer  <─────┘
//!                   (written)
//! ```
//!
//! Invariants
//! - No clock, task, lock or director in here: a stream is a value, and what it says follows from what it was told.
//! - A request that begins ([`Event::Request`]) ends exactly once: by an event that says `last`, by
//!   [`Machine::refused`], or by what [`Machine::close`] returns.
//! - In lock-step modes each message gets one answer. In FULL_DUPLEX_STREAMED headers get one, before the body; a body
//!   gets its own bytes back, in order and as the very [`bytes::Bytes`] that came in; its end is marked once.
//! - The pick goes with the first answer that leaves after it, which is the headers' wherever those can wait for it.
//! - What comes behind an end, be it a second one, is swallowed. After a refusal nothing is answered.
//! - Bytes from outside never panic, recurse, or allocate more than a bounded multiple of what came.
//!   [`Machine::held_bytes`] tells what a stream holds; whoever drives it bounds that.
//!
//! How each body mode is answered:
//!
//! | request body mode | headers are answered | the decision may use | the body is answered |
//! |---|---|---|---|
//! | NONE, STREAMED | with the pick | the headers | part by part, untouched |
//! | BUFFERED, BUFFERED_PARTIAL | at once; with the pick if it is made by then | the body that Envoy holds | with the pick |
//! | FULL_DUPLEX_STREAMED | with the pick, whenever it is made | as much of the body as it waits for | by itself |
//! | not told (Envoy before 1.32) | with the pick | the headers | part by part, untouched |
//!
//! Without a body (end of stream on the headers) all are answered by the pick.

pub mod answer;
mod head;
mod lane;
mod machine;
pub mod message;

pub use answer::Immediate;
pub use head::{
    AnswerHead, Control, DESTINATION, Head, NAMESPACE, SERVED, SUBSET, SUBSET_NAMESPACE, Subset, Text,
};
pub use lane::CHUNK_BYTES_MAX;
pub use machine::{Broken, Event, Left, Machine, Pick, Rest, Rewrite};
pub use protobuf::Segments;

pub use inference::AnswerKind;
