//! A model server that is not real: OpenAI API, engine metrics, a model of prefill, decode and KV cache.
//!
//! - [`engine`]: one inference engine in virtual time. Pure, deterministic.
//! - [`replay`]: many engines in one virtual time, and traces to feed them.
//! - [`server`]: engines behind HTTP in real time, with the pages and errors of the real ones, and faults to order.
//! - [`tokens`]: what a token and an equal prefix are, here.
//!
//! Invariant: this crate knows nothing of the rest of the workspace. A fake that shares code with what it tests
//! cannot find its bugs.

pub mod engine;
pub mod replay;
pub mod server;
pub mod tokens;
