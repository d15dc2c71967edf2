//! The HTTP door: HTTP/1.1 and HTTP/2 in, the director in the middle, model servers out.
//!
//! ```text
//! listener ─> handler ─┬─ head     what a client may ask: within bounds, and one meaning only
//!  │ connections       ├─ upload   the client's body: kept for another attempt, within a bound
//!                      ├─ upstream the connections to model servers
//!                      ├─ headers  what a proxy must drop, keep and add
//!                      └─ answer   the model server's body, chunk by chunk; a broken stream says so
//! ```
//!
//! Invariants
//! - Everything that decides (endpoint, refusal, retry) is the director's; this crate carries bytes.
//! - Nothing here is without a bound: [`Limits`] names each, and a counter tells when it is reached.
//! - A client that hangs up drops the handler's future or the answer's body, and with it the upstream request and
//!   the booking; also where bytes lie unread before the end of its stream (`hang_up`).
//! - After the first byte of an answer's body went to the client no other endpoint is tried.
//! - A body that needs no change is passed on byte for byte.

mod answer;
mod connections;
mod handler;
mod hang_up;
mod head;
mod headers;
mod limits;
mod listener;
mod upload;
mod upstream;

pub use handler::Gateway;
pub use hang_up::ClientStream;
pub use headers::ClientHeaders;
pub use limits::Limits;
pub use listener::{ALPN, Listen, serve};
pub use upload::REPLAY_BYTES_MAX;
pub use upstream::{Dial, Dialling, Stream, Upstream, dial_tcp};
