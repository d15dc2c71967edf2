//! What was asked: one pass over a request body as it arrives, and the usage in its answer.
//!
//! ```text
//!  request body, chunk by chunk                       answer, chunk by chunk
//!        │                                                  │
//!    BodyScan ── enough ──> Asked { model, prompt, … }      ├─> UsageScan ──> Usage { tokens }
//!     │     └─ Prompt: canonical text, bounded              └─> EventSplitter ──> whole events only
//!     └─ Lexer: JSON, no tree, no buffer <── UsageScan
//! ```
//!
//! Nothing here does I/O or knows of HTTP, clocks or policies. Every scan gives the same result however its input
//! is cut into chunks, holds a bounded amount of memory, and takes time linear in its input.

mod answer;
mod api;
mod body;
mod json;
mod prompt;
mod sse;
#[cfg(test)]
mod testing;

pub use answer::{AnswerKind, Usage, UsageScan};
pub use api::Api;
pub use body::{Asked, BodyScan, LOOKAHEAD_BYTES, MODEL_BYTES_MAX, Malformed, Need, Progress};
pub use json::{DEPTH_MAX, NotJson};
pub use sse::{EventSplitter, TAIL_BYTES_MAX, error_event};
