//! The picker's messages: read as far as they are checked, and made by the empty servers.

use bytes::Bytes;

use super::wire::{
    Fields, Malformed, Value, put_bytes, put_entry, put_number, put_varint, struct_of_strings,
};
use super::{BodyMode, DESTINATION, LB_NAMESPACE};

// Fields of ProcessingResponse beside those of `AnswerKind`.
const DYNAMIC_METADATA: u64 = 8;
const MODE_OVERRIDE: u64 = 9;

/// Which answer it is; the numbers are the fields of `ProcessingResponse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// To the request's headers.
    RequestHeaders = 1,
    /// To the response's headers.
    ResponseHeaders = 2,
    /// To a piece of the request's body, or a piece to be sent on.
    RequestBody = 3,
    /// To a piece of the response's body, or a piece to be sent on.
    ResponseBody = 4,
    /// To the request's trailers.
    RequestTrailers = 5,
    /// To the response's trailers.
    ResponseTrailers = 6,
    /// An answer to the client instead of an upstream's.
    Immediate = 7,
}

/// What a generator checks of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which answer it is.
    pub kind: AnswerKind,
    /// The destination that the header mutation sets.
    pub header_destination: Option<String>,
    /// The destination in the dynamic metadata.
    pub metadata_destination: Option<String>,
    /// A piece of body to be sent on, not copied, and whether it is the last.
    pub streamed: Option<(Bytes, bool)>,
    /// Whether the body is replaced or cleared, which is for the other body modes.
    pub replaces_body: bool,
    /// The mode that the picker wants for the response's body.
    pub response_body_mode: Option<BodyMode>,
    /// The status of an immediate response.
    pub immediate_status: Option<u64>,
}

impl Answer {
    /// Reads one message.
    ///
    /// # Errors
    /// Bytes that are no protobuf, or no answer of the kinds above.
    pub fn parse(message: &Bytes) -> Result<Answer, Malformed> {
        let (mut which, mut metadata_destination, mut response_body_mode) = (None, None, None);
        for field in Fields(message) {
            match field? {
                (number @ 1..=7, Value::Bytes(inner)) => which = Some((kind(number)?, inner)),
                (DYNAMIC_METADATA, Value::Bytes(inner)) => metadata_destination = destination_in(inner)?,
                (MODE_OVERRIDE, Value::Bytes(inner)) => response_body_mode = Some(response_mode(inner)?),
                _ => {}
            }
        }
        let (kind, inner) = which.ok_or(Malformed("answer: no message in it"))?;
        let mut answer = Answer {
            kind,
            header_destination: None,
            metadata_destination,
            streamed: None,
            replaces_body: false,
            response_body_mode,
            immediate_status: None,
        };
        match kind {
            AnswerKind::Immediate => {
                let status = find(inner, 1)?.map_or(&[][..], Value::bytes);
                answer.immediate_status = Some(find(status, 1)?.map_or(200, Value::number));
            }
            AnswerKind::RequestTrailers | AnswerKind::ResponseTrailers => {}
            _ => answer.read_common(message, find(inner, 1)?.map_or(&[], Value::bytes))?,
        }
        Ok(answer)
    }

    /// Reads a `CommonResponse`: header mutation and body mutation.
    fn read_common(&mut self, message: &Bytes, common: &[u8]) -> Result<(), Malformed> {
        for field in Fields(common) {
            match field? {
                (2, Value::Bytes(mutation)) => self.header_destination = destination_header(mutation)?,
                (3, Value::Bytes(mutation)) => match find(mutation, 3)? {
                    Some(streamed) => {
                        let body = find(streamed.bytes(), 1)?.map_or(&[][..], Value::bytes);
                        let end = find(streamed.bytes(), 2)?.is_some_and(|end| end.number() != 0);
                        // An empty slice may lie outside the message.
                        let body = if body.is_empty() { Bytes::new() } else { message.slice_ref(body) };
                        self.streamed = Some((body, end));
                    }
                    None => self.replaces_body = !mutation.is_empty(),
                },
                _ => {}
            }
        }
        Ok(())
    }
}

/// An answer to headers that lets them pass: of the request, or of the response.
pub fn headers_answer(kind: AnswerKind) -> Vec<u8> {
    let mut message = Vec::new();
    put_bytes(&mut message, kind as u64, &[]);
    message
}

/// An answer, to headers or to a body, that picks `destination`: in a header and in metadata, route cache cleared.
pub fn pick_answer(kind: AnswerKind, destination: &str) -> Vec<u8> {
    let [mut header, mut option, mut mutation, mut common, mut inner, mut message] =
        [const { Vec::new() }; 6];
    let [mut namespace, mut metadata] = [const { Vec::new() }; 2];
    put_bytes(&mut header, 1, DESTINATION.as_bytes());
    put_bytes(&mut header, 3, destination.as_bytes());
    put_bytes(&mut option, 1, &header);
    put_bytes(&mut mutation, 1, &option);
    put_bytes(&mut common, 2, &mutation);
    put_number(&mut common, 5, 1);
    put_bytes(&mut inner, 1, &common);
    put_bytes(&mut message, kind as u64, &inner);
    // The namespace is a value that holds a struct: Value.struct_value is field 5.
    put_bytes(&mut namespace, 5, &struct_of_strings(&[(DESTINATION, destination)]));
    put_entry(&mut metadata, 1, LB_NAMESPACE, &namespace);
    put_bytes(&mut message, DYNAMIC_METADATA, &metadata);
    message
}

/// A piece of body to be sent on, framed for gRPC, as what stands before the body and what stands behind it: so the
/// body itself need not be copied.
pub fn streamed_answer(kind: AnswerKind, body_bytes: usize, end_of_stream: bool) -> (Bytes, &'static [u8]) {
    let behind: &'static [u8] = if end_of_stream { &[0x10, 1] } else { &[] };
    let length_of = |body: usize| {
        let mut length = Vec::with_capacity(5);
        put_varint(&mut length, body as u64);
        length
    };
    // From the inside out: StreamedBodyResponse.body, BodyMutation.streamed_response, CommonResponse.body_mutation,
    // BodyResponse.response, ProcessingResponse. Each is a tag, a length and what came before.
    let mut layers = Vec::with_capacity(5);
    let mut inside = body_bytes;
    for tag in [1, 3, 3, 1, kind as u8] {
        let length = length_of(inside);
        inside += 1 + length.len();
        if layers.is_empty() {
            if body_bytes == 0 {
                inside = 0;
            }
            inside += behind.len();
        }
        layers.push((tag << 3 | 2, length));
    }
    let mut before = Vec::with_capacity(32);
    before.push(0);
    before.extend_from_slice(&(inside as u32).to_be_bytes());
    let skipped = usize::from(body_bytes == 0);
    for (tag, length) in layers.iter().skip(skipped).rev() {
        before.push(*tag);
        before.extend_from_slice(length);
    }
    (before.into(), behind)
}

fn kind(number: u64) -> Result<AnswerKind, Malformed> {
    use AnswerKind as Kind;
    [
        Kind::RequestHeaders,
        Kind::ResponseHeaders,
        Kind::RequestBody,
        Kind::ResponseBody,
        Kind::RequestTrailers,
        Kind::ResponseTrailers,
        Kind::Immediate,
    ]
    .into_iter()
    .find(|kind| *kind as u64 == number)
    .ok_or(Malformed("answer: a kind that is not known"))
}

/// The last field of that number, which is the one that counts.
fn find(message: &[u8], number: u64) -> Result<Option<Value<'_>>, Malformed> {
    let mut found = None;
    for field in Fields(message) {
        let field = field?;
        if field.0 == number {
            found = Some(field.1);
        }
    }
    Ok(found)
}

/// The value of the entry `key` in a map of strings to messages (field 1 of `map`).
fn entry<'a>(map: &'a [u8], key: &str) -> Result<Option<&'a [u8]>, Malformed> {
    for field in Fields(map) {
        if let (1, Value::Bytes(entry)) = field?
            && find(entry, 1)?.is_some_and(|found| found.bytes() == key.as_bytes())
        {
            return Ok(find(entry, 2)?.map(Value::bytes));
        }
    }
    Ok(None)
}

/// `["envoy.lb"]["x-gateway-destination-endpoint"]` of a `Struct`.
fn destination_in(metadata: &[u8]) -> Result<Option<String>, Malformed> {
    let Some(namespace) = entry(metadata, LB_NAMESPACE)? else { return Ok(None) };
    let fields = find(namespace, 5)?.map_or(&[][..], Value::bytes);
    let Some(value) = entry(fields, DESTINATION)? else { return Ok(None) };
    Ok(find(value, 3)?.map(|text| text_of(text.bytes())))
}

/// The destination that a `HeaderMutation` sets.
fn destination_header(mutation: &[u8]) -> Result<Option<String>, Malformed> {
    for field in Fields(mutation) {
        let (1, Value::Bytes(option)) = field? else { continue };
        let header = find(option, 1)?.map_or(&[][..], Value::bytes);
        if find(header, 1)?.is_some_and(|name| name.bytes() == DESTINATION.as_bytes()) {
            let raw = find(header, 3)?.map_or(&[][..], Value::bytes);
            let text = find(header, 2)?.map_or(&[][..], Value::bytes);
            return Ok(Some(text_of(if raw.is_empty() { text } else { raw })));
        }
    }
    Ok(None)
}

fn response_mode(mode: &[u8]) -> Result<BodyMode, Malformed> {
    let number = find(mode, 4)?.map_or(0, Value::number);
    BodyMode::from_number(number).ok_or(Malformed("mode override"))
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
    use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
    use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
    use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
    use envoy_types::pb::envoy::service::ext_proc::v3::{
        BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
        ProcessingResponse, StreamedBodyResponse,
    };
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use prost::Message as _;

    use super::*;
    use crate::ext_proc::Deframer;

    fn parse(response: &ProcessingResponse) -> Answer {
        Answer::parse(&response.encode_to_vec().into()).expect("an answer of generated types")
    }

    #[test]
    fn a_pick_is_read_as_generated_types_write_it() {
        let header = |value: &str, raw: &[u8]| HeaderValueOption {
            header: Some(HeaderValue {
                key: DESTINATION.to_owned(),
                value: value.to_owned(),
                raw_value: raw.to_vec(),
            }),
            ..Default::default()
        };
        for option in [header("10.0.0.7:8000", b""), header("", b"10.0.0.7:8000")] {
            let mutation = HeaderMutation { set_headers: vec![option], remove_headers: vec!["x".to_owned()] };
            let common = CommonResponse { header_mutation: Some(mutation), ..Default::default() };
            let answer = parse(&ProcessingResponse {
                response: Some(Response::RequestHeaders(HeadersResponse { response: Some(common) })),
                mode_override: Some(ProcessingMode { response_body_mode: 1, ..Default::default() }),
                ..Default::default()
            });
            assert_eq!(answer.header_destination.as_deref(), Some("10.0.0.7:8000"));
            assert_eq!(answer.response_body_mode, Some(BodyMode::Streamed));
            assert_eq!(answer.metadata_destination, None);
        }
    }

    #[test]
    fn what_the_empty_server_writes_generated_types_read() {
        let pick = pick_answer(AnswerKind::RequestBody, "[::1]:80");
        let read = ProcessingResponse::decode(&pick[..]).expect("a message");
        let lb = &read.dynamic_metadata.as_ref().expect("metadata").fields[LB_NAMESPACE];
        assert!(
            format!("{lb:?}")
                .contains(&format!("\"{DESTINATION}\": Value {{ kind: Some(StringValue(\"[::1]:80\"))"))
        );
        assert!(matches!(read.response, Some(Response::RequestBody(BodyResponse { response: Some(_) }))));
        let ours = Answer::parse(&pick.into()).expect("an answer");
        assert_eq!(ours.header_destination.as_deref(), Some("[::1]:80"));
        assert_eq!(ours.metadata_destination, ours.header_destination);
    }

    #[test]
    fn streamed_bodies_are_those_of_generated_types() {
        for (size, end) in [(0, true), (0, false), (1, true), (127, false), (128, true), (62_000, false)] {
            let body = vec![b'x'; size];
            let (before, behind) = streamed_answer(AnswerKind::ResponseBody, size, end);
            let mut deframer = Deframer::default();
            deframer.push([&before[..], &body, behind].concat().into());
            let message = deframer.message().expect("a frame").expect("a whole frame");
            assert!(!deframer.is_within_message());
            let streamed =
                StreamedBodyResponse { body: body.clone(), end_of_stream: end, ..Default::default() };
            let mutation = BodyMutation { mutation: Some(Mutation::StreamedResponse(streamed)) };
            let common = CommonResponse { body_mutation: Some(mutation), ..Default::default() };
            let expected = ProcessingResponse {
                response: Some(Response::ResponseBody(BodyResponse { response: Some(common) })),
                ..Default::default()
            };
            assert_eq!(ProcessingResponse::decode(&message[..]), Ok(expected));
            let answer = Answer::parse(&message).expect("an answer");
            assert_eq!(answer.streamed, Some((body.into(), end)));
        }
    }

    #[test]
    fn an_immediate_response_gives_its_status() {
        let answer = parse(&ProcessingResponse {
            response: Some(Response::ImmediateResponse(ImmediateResponse {
                status: Some(HttpStatus { code: 429 }),
                ..Default::default()
            })),
            ..Default::default()
        });
        assert_eq!((answer.kind, answer.immediate_status), (AnswerKind::Immediate, Some(429)));
    }

    #[test]
    fn a_replaced_body_is_told_from_a_streamed_one() {
        let mutation = BodyMutation { mutation: Some(Mutation::Body(b"{}".to_vec())) };
        let common = CommonResponse { body_mutation: Some(mutation), ..Default::default() };
        let answer = parse(&ProcessingResponse {
            response: Some(Response::RequestBody(BodyResponse { response: Some(common) })),
            ..Default::default()
        });
        assert!(answer.replaces_body && answer.streamed.is_none());
    }
}
