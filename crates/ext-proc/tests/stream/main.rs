//! Streams of Envoy's, from its side: by its own definitions, message by message, in every mode and every ordering.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is a failure")]

mod endings;
mod envoy;
mod heads;
mod modes;
mod orderings;
mod recorded;
