//! What was asked: one pass over a request body as it arrives, and the usage in its answer.
//!
//! ```text
//!  request body, chunk by chunk                       answer, chunk by chunk
//!        │                                                  │
//!    BodyScan ── enough ──> Asked { model, prompt, … }      ├─> UsageScan ──> Usage { tokens }
//!     │     └─ Prompt: canonical text, bounded              ├─> EventSplitter ──> whole events only
//!     │                                                     └─> AnswerRename ──> the client's name of the model
//!     └─ Lexer: JSON, no tree, no buffer <── UsageScan
//! ```
//!
//! ```
//! use inference::{Api, BodyScan, Need, Progress};
//!
//! let need = Need { prompt_bytes_max: 8192, model_required: true, stream_wanted: false };
//! let mut scan = BodyScan::new(Api::Completions, need);
//! assert_eq!(scan.push(br#"{"model": "qwen", "pro"#)?, Progress::More);
//! assert_eq!(scan.push(br#"mpt": "Once upon a time"#)?, Progress::More);
//! assert_eq!(scan.push(br#"", "max_tokens": 16}"#)?, Progress::Enough);
//! let asked = scan.into_asked();
//! assert_eq!(asked.model.as_deref(), Some("qwen"));
//! assert_eq!(asked.prompt, b"Once upon a time");
//! # Ok::<(), inference::Malformed>(())
//! ```
//!
//! Nothing here does I/O or knows of HTTP, clocks or policies. Every scan gives the same result however its input
//! is cut into chunks, holds a bounded amount of memory, and takes time linear in its input.

mod answer;
mod api;
mod body;
mod json;
mod prompt;
mod rename;
mod sse;
#[cfg(test)]
mod testing;

pub use answer::{AnswerKind, Usage, UsageScan};
pub use api::Api;
pub use body::{Asked, BodyScan, LOOKAHEAD_BYTES, MODEL_BYTES_MAX, Malformed, Need, Progress};
pub use json::{DEPTH_MAX, NotJson};
pub use rename::{AnswerRename, json_string};
pub use sse::{EventSplitter, TAIL_BYTES_MAX, error_event};
