//! `envoy.service.ext_proc.v3` laid by hand: the few messages that matter, in the bytes that Envoy 1.40 sends.
//!
//! A load generator shares its machine with what it measures, so it encodes once and patches, and decodes only what it
//! checks. The tests hold this module against recorded messages of Envoy and against generated types. It shares no code
//! with the picker: what measures must not share faults with what is measured.

mod answer;
mod request;
mod wire;

pub use answer::{Answer, AnswerKind, headers_answer, pick_answer, streamed_answer};
pub use request::{
    BodyModes, Request, RequestKind, body_message, request_headers, response_headers, served_metadata,
};
pub use wire::{Deframer, Malformed, framed};

/// The path that Envoy asks for.
pub const PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// The header, and the key in the metadata namespace [`LB_NAMESPACE`], that name the endpoints picked.
pub const DESTINATION: &str = "x-gateway-destination-endpoint";
/// The key in the metadata namespace [`LB_NAMESPACE`] that names the endpoint that served, in the response phase.
pub const SERVED: &str = "x-gateway-destination-endpoint-served";
/// The metadata namespace that Envoy's load balancer reads.
pub const LB_NAMESPACE: &str = "envoy.lb";

/// How a body is shown to the picker: `ProcessingMode.BodySendMode`, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    /// Not at all.
    None = 0,
    /// In chunks, each answered before it goes on.
    Streamed = 1,
    /// Whole, in one message.
    Buffered = 2,
    /// What fits Envoy's buffer, in one message.
    BufferedPartial = 3,
    /// In chunks, which the picker gives back at its own pace.
    FullDuplexStreamed = 4,
}

impl BodyMode {
    /// The mode of this number; `None` for those that this module does not speak.
    pub fn from_number(number: u64) -> Option<BodyMode> {
        [Self::None, Self::Streamed, Self::Buffered, Self::BufferedPartial, Self::FullDuplexStreamed]
            .into_iter()
            .find(|mode| *mode as u64 == number)
    }
}
