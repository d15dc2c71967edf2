//! The hand-laid messages against code generated from Envoy's own definitions, both ways, and against hostile bytes.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption, Metadata};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::{ClientWindowUpdate, Request};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody, HttpHeaders,
    HttpTrailers, ImmediateResponse, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
    StreamedBodyResponse, TrailersResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use ext_proc::answer::{self, BodyChange, Changes, Direction, ModeOverride};
use ext_proc::message::{BodyMode, Message, Part};
use ext_proc::{Immediate, Machine, Segments};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;
use protobuf::Malformed;

/// Few enough that maps meet the keys that are asked for, and each other.
const WORDS: [&str; 3] = ["envoy.lb", "x-gateway-destination-endpoint-served", ""];

/// A `ProcessingRequest` as far as it is read here, in plain words.
#[derive(Debug, PartialEq)]
struct View {
    /// Its kind, its headers, its bytes, and whether it is the last.
    part: Option<(&'static str, Pairs, Vec<u8>, bool)>,
    observed: bool,
    modes: Option<(u32, u32)>,
    strings: Vec<Option<Vec<Vec<u8>>>>,
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

impl View {
    /// As our reader has it.
    fn ours(message: &Message) -> Result<View, Malformed> {
        let headers = |headers: &ext_proc::message::Headers| {
            let mut list = Vec::new();
            headers.map.for_each(|name, value| list.push((name.to_vec(), value.to_vec())))?;
            Ok::<_, Malformed>((list, headers.end_of_stream))
        };
        let part = match &message.part {
            None => None,
            Some(Part::RequestHeaders(part)) => {
                headers(part).map(|(list, end)| Some(("request headers", list, vec![], end)))?
            }
            Some(Part::ResponseHeaders(part)) => {
                headers(part).map(|(list, end)| Some(("response headers", list, vec![], end)))?
            }
            Some(Part::RequestBody(part)) => {
                Some(("request body", vec![], part.bytes.to_vec(), part.end_of_stream))
            }
            Some(Part::ResponseBody(part)) => {
                Some(("response body", vec![], part.bytes.to_vec(), part.end_of_stream))
            }
            Some(Part::RequestTrailers) => Some(("request trailers", vec![], vec![], false)),
            Some(Part::ResponseTrailers) => Some(("response trailers", vec![], vec![], false)),
        };
        let mut strings = Vec::new();
        for (namespace, key) in pairs() {
            strings.push(match message.metadata.value(namespace, key)? {
                None => None,
                Some(value) => {
                    let mut list = Vec::new();
                    value.for_each_string(|string| list.push(string.to_vec()))?;
                    Some(list)
                }
            });
        }
        let modes = message.protocol.map(|it| (it.request_body.number(), it.response_body.number()));
        Ok(View { part, observed: message.observed, modes, strings })
    }

    /// As the generated code has it.
    fn theirs(message: &ProcessingRequest) -> View {
        let headers = |part: &HttpHeaders| {
            let list = part.headers.iter().flat_map(|map| &map.headers).map(|header| {
                let raw = &header.raw_value;
                let value = if raw.is_empty() { header.value.as_bytes() } else { raw };
                (header.key.as_bytes().to_vec(), value.to_vec())
            });
            (list.collect::<Vec<_>>(), part.end_of_stream)
        };
        let part = message.request.as_ref().map(|part| match part {
            Request::RequestHeaders(part) => {
                let (list, end) = headers(part);
                ("request headers", list, vec![], end)
            }
            Request::ResponseHeaders(part) => {
                let (list, end) = headers(part);
                ("response headers", list, vec![], end)
            }
            Request::RequestBody(part) => ("request body", vec![], part.body.clone(), part.end_of_stream),
            Request::ResponseBody(part) => ("response body", vec![], part.body.clone(), part.end_of_stream),
            Request::RequestTrailers(_) => ("request trailers", vec![], vec![], false),
            Request::ResponseTrailers(_) => ("response trailers", vec![], vec![], false),
        });
        let string = |value: &Value| match &value.kind {
            Some(Kind::StringValue(string)) => Some(string.as_bytes().to_vec()),
            _ => None,
        };
        let metadata = message.metadata_context.clone().unwrap_or_default();
        let strings = pairs().map(|(namespace, key)| {
            let value = metadata.filter_metadata.get(namespace)?.fields.get(key)?;
            Some(match &value.kind {
                Some(Kind::ListValue(list)) => list.values.iter().filter_map(string).collect(),
                _ => string(value).into_iter().collect(),
            })
        });
        let modes = message
            .protocol_config
            .map(|it| (it.request_body_mode.cast_unsigned(), it.response_body_mode.cast_unsigned()));
        View { part, observed: message.observability_mode, modes, strings: strings.collect() }
    }
}

fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
    WORDS.into_iter().flat_map(|namespace| WORDS.into_iter().map(move |key| (namespace, key)))
}

/// Reads bytes as a `ProcessingRequest`, all that is read late included.
fn read(bytes: &[u8]) -> Result<View, Malformed> {
    View::ours(&Message::decode(&Bytes::copy_from_slice(bytes))?)
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![3 => proptest::sample::select(&WORDS[..]).prop_map(str::to_owned), 1 => ".{0,6}"]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    // Lengths around which the length of a length changes.
    prop_oneof![vec(any::<u8>(), 0..8), vec(any::<u8>(), 126..130)]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(None),
        Just(Some(Kind::NullValue(0))),
        any::<f64>()
            .prop_filter("NaN is not itself", |it| !it.is_nan())
            .prop_map(|it| Some(Kind::NumberValue(it))),
        any::<bool>().prop_map(|it| Some(Kind::BoolValue(it))),
        word().prop_map(|it| Some(Kind::StringValue(it))),
    ];
    leaf.prop_map(|kind| Value { kind }).prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4)
                .prop_map(|values| Value { kind: Some(Kind::ListValue(ListValue { values })) }),
            structure(inner).prop_map(|it| Value { kind: Some(Kind::StructValue(it)) }),
        ]
    })
}

fn structure(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Struct> {
    vec((word(), value), 0..4).prop_map(|fields| Struct { fields: HashMap::from_iter(fields) })
}

fn http_headers() -> impl Strategy<Value = HttpHeaders> {
    let header =
        (word(), ".{0,4}", bytes()).prop_map(|(key, value, raw_value)| HeaderValue { key, value, raw_value });
    let map = option::of(vec(header, 0..4).prop_map(|headers| HeaderMap { headers }));
    (map, any::<bool>()).prop_map(|(headers, end_of_stream)| HttpHeaders {
        headers,
        end_of_stream,
        ..HttpHeaders::default()
    })
}

fn http_body() -> impl Strategy<Value = HttpBody> {
    (bytes(), any::<bool>(), any::<bool>()).prop_map(|(body, end_of_stream, grpc_message_compressed)| {
        HttpBody { body, end_of_stream, grpc_message_compressed, ..HttpBody::default() }
    })
}

fn processing_request() -> impl Strategy<Value = ProcessingRequest> {
    let part = prop_oneof![
        http_headers().prop_map(Request::RequestHeaders),
        http_headers().prop_map(Request::ResponseHeaders),
        http_body().prop_map(Request::RequestBody),
        http_body().prop_map(Request::ResponseBody),
        Just(Request::RequestTrailers(HttpTrailers::default())),
        Just(Request::ResponseTrailers(HttpTrailers::default())),
    ];
    let metadata = vec((word(), structure(value())), 0..4).prop_map(|namespaces| Metadata {
        filter_metadata: HashMap::from_iter(namespaces),
        ..Metadata::default()
    });
    let protocol = (0..6, 0..6, any::<bool>()).prop_map(
        |(request_body_mode, response_body_mode, send_body_without_waiting_for_header_response)| {
            ProtocolConfiguration {
                request_body_mode,
                response_body_mode,
                send_body_without_waiting_for_header_response,
            }
        },
    );
    let attributes = vec((word(), structure(value())), 0..2).prop_map(HashMap::from_iter);
    let window = any::<i64>().prop_map(|bytes| ClientWindowUpdate {
        window_increment_sidestream_to_upstream: bytes,
        ..ClientWindowUpdate::default()
    });
    (
        option::of(part),
        option::of(metadata),
        any::<bool>(),
        option::of(protocol),
        attributes,
        option::of(window),
    )
        .prop_map(
            |(request, metadata_context, observability_mode, protocol_config, attributes, window)| {
                ProcessingRequest {
                    request,
                    metadata_context,
                    observability_mode,
                    protocol_config,
                    attributes,
                    client_window_update: window,
                    ..ProcessingRequest::default()
                }
            },
        )
}

/// Bytes that begin as messages and end as anything.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let bent =
        (processing_request(), vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4), any::<usize>());
    let bent = bent.prop_map(|(message, changes, length)| {
        let mut bytes = message.encode_to_vec();
        for (at, byte) in changes {
            if !bytes.is_empty() {
                *at.get_mut(&mut bytes) = byte;
            }
        }
        // Half of them whole.
        bytes.truncate(length % (2 * bytes.len() + 1));
        bytes
    });
    prop_oneof![4 => bent, 1 => vec(any::<u8>(), 0..64)]
}

fn is_stricter(malformed: Malformed) -> bool {
    matches!(malformed, Malformed::Twice { .. } | Malformed::WireType { wire_type: 3, .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_envoy_writes_is_read_as_it_was_meant(message in processing_request()) {
        prop_assert_eq!(read(&message.encode_to_vec()), Ok(View::theirs(&message)));
    }

    #[test]
    fn of_what_is_there_twice_the_last_counts_or_it_is_refused(
        first in processing_request(),
        second in processing_request(),
    ) {
        let both = [first.encode_to_vec(), second.encode_to_vec()].concat();
        let theirs = ProcessingRequest::decode(&*both).expect("protobuf merges");
        match read(&both) {
            Ok(ours) => prop_assert_eq!(ours, View::theirs(&theirs)),
            Err(malformed) => prop_assert!(is_stricter(malformed), "{malformed}"),
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_read_as_protobuf_reads_them(bytes in hostile()) {
        match (read(&bytes), ProcessingRequest::decode(&*bytes)) {
            (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, View::theirs(&theirs)),
            // They look into fields that are skipped here, and want text to be UTF-8.
            (Ok(_), Err(_)) | (Err(_), Err(_)) => {}
            (Err(malformed), Ok(_)) => prop_assert!(is_stricter(malformed), "{malformed}"),
        }
    }

    #[test]
    fn a_machine_survives_any_bytes_and_holds_no_more_than_came(messages in vec(hostile(), 0..8)) {
        let mut machine = Machine::new();
        let mut came = 0;
        for message in messages {
            came += message.len() as u64 + 64;
            let _ = machine.receive(&Bytes::from(message));
            prop_assert!(machine.held_bytes() <= came);
            while machine.next_answer().is_some() {}
        }
        machine.close();
    }

    #[test]
    fn what_we_write_is_read_as_it_was_meant(
        (request_path, kind) in (any::<bool>(), 0..3),
        (sets, removes) in (vec((word(), word()), 0..3), vec(word(), 0..3)),
        clear_route_cache in any::<bool>(),
        strings in option::of((word(), vec((word(), word()), 0..3))),
        mode in option::of((0u64..5, 0u64..5, any::<bool>())),
        (change, parts, end_of_stream) in (0..3, vec(bytes(), 1..4), any::<bool>()),
    ) {
        let direction = if request_path { Direction::Request } else { Direction::Response };
        let mut changes = Changes { clear_route_cache, ..Changes::default() };
        sets.iter().for_each(|(name, value)| changes.headers.set(name, value));
        removes.iter().for_each(|name| changes.headers.remove(name));
        if let Some((namespace, strings)) = &strings {
            let strings = strings.iter().map(|(key, value)| (&**key, &**value));
            changes.metadata = answer::metadata(namespace, strings);
        }
        changes.mode = mode.map(|(request, response, response_head)| ModeOverride {
            request_body: mode_of(request),
            response_body: mode_of(response),
            response_head,
        });
        let parts: Segments = parts.into_iter().map(Bytes::from).collect();
        let body = match change {
            0 => BodyChange::Keep,
            1 => BodyChange::Replace(parts.clone()),
            _ => BodyChange::Stream { bytes: parts[0].clone(), end_of_stream },
        };
        let written = match kind {
            0 => answer::headers(direction, &changes),
            1 => answer::body(direction, &changes, body.clone()),
            _ => answer::trailers(direction, &changes),
        };

        let header_mutation = (!sets.is_empty() || !removes.is_empty()).then(|| HeaderMutation {
            set_headers: sets.iter().map(|(name, value)| set(name, value)).collect(),
            remove_headers: removes.clone(),
        });
        let mutation = match body {
            _ if kind == 0 => None,
            BodyChange::Keep => None,
            BodyChange::Replace(parts) => Some(Mutation::Body(parts.concat())),
            BodyChange::Stream { bytes, end_of_stream } => {
                Some(Mutation::StreamedResponse(StreamedBodyResponse {
                    body: bytes.to_vec(),
                    end_of_stream,
                    ..StreamedBodyResponse::default()
                }))
            }
        };
        let common = CommonResponse {
            header_mutation: header_mutation.clone(),
            body_mutation: mutation.map(|mutation| BodyMutation { mutation: Some(mutation) }),
            clear_route_cache,
            ..CommonResponse::default()
        };
        let nothing = common == CommonResponse::default() && strings.is_none() && mode.is_none();
        let response = (!nothing).then_some(common);
        let response = match (kind, request_path) {
            (0, true) => Response::RequestHeaders(HeadersResponse { response }),
            (0, false) => Response::ResponseHeaders(HeadersResponse { response }),
            (1, true) => Response::RequestBody(BodyResponse { response }),
            (1, false) => Response::ResponseBody(BodyResponse { response }),
            (_, true) => Response::RequestTrailers(TrailersResponse::default()),
            (_, false) => Response::ResponseTrailers(TrailersResponse::default()),
        };
        let meant = ProcessingResponse {
            response: Some(response),
            dynamic_metadata: strings.map(|(namespace, strings)| struct_of(namespace, strings)),
            mode_override: mode.filter(|_| kind != 2).map(override_of),
            ..ProcessingResponse::default()
        };
        prop_assert_eq!(ProcessingResponse::decode(&*written.concat()), Ok(meant));
    }

    #[test]
    fn a_refusal_is_read_as_it_was_meant(
        status in 200u16..600,
        headers in vec((word(), word()), 0..3),
        body in bytes(),
        details in word(),
    ) {
        let borrowed: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let reply =
            Immediate { status, headers: &borrowed, body: Bytes::from(body.clone()), details: &details };
        let meant = ImmediateResponse {
            status: Some(HttpStatus { code: status.into() }),
            headers: (!headers.is_empty()).then(|| HeaderMutation {
                set_headers: headers.iter().map(|(name, value)| set(name, value)).collect(),
                ..HeaderMutation::default()
            }),
            body,
            details: details.clone(),
            grpc_status: None,
        };
        let read = ProcessingResponse::decode(&*answer::immediate(&reply).concat());
        prop_assert_eq!(read.map(|read| read.response), Ok(Some(Response::ImmediateResponse(meant))));
    }
}

fn set(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.into(), raw_value: value.into(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn struct_of(namespace: String, strings: Vec<(String, String)>) -> Struct {
    let string = |(key, value)| (key, Value { kind: Some(Kind::StringValue(value)) });
    let fields = strings.into_iter().map(string).collect();
    let value = Value { kind: Some(Kind::StructValue(Struct { fields })) };
    Struct { fields: [(namespace, value)].into() }
}

fn mode_of(number: u64) -> BodyMode {
    use BodyMode::{Buffered, BufferedPartial, FullDuplexStreamed, None, Streamed};
    [None, Streamed, Buffered, BufferedPartial, FullDuplexStreamed][number as usize]
}

fn override_of((request, response, response_head): (u64, u64, bool)) -> ProcessingMode {
    let trailers = |mode| i32::from(matches!(mode, 1 | 4));
    ProcessingMode {
        response_header_mode: i32::from(response_head),
        request_body_mode: request as i32,
        response_body_mode: response as i32,
        request_trailer_mode: trailers(request),
        response_trailer_mode: trailers(response),
        ..ProcessingMode::default()
    }
}

#[test]
fn lengths_that_lie_cost_nothing() {
    let huge =
        [&b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\x7f"[..], b"\x22\xff\xff\xff\xff\x0f", b"\x22\x7fshort"];
    for bytes in huge {
        assert_eq!(read(bytes), Err(Malformed::Truncated { field: 4 }), "{bytes:?}");
    }
    assert_eq!(read(&[0xff; 11]), Err(Malformed::VarintTooLong { field: 0 }));
    assert_eq!(
        read(b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
        Err(Malformed::VarintTooLong { field: 4 })
    );
    assert_eq!(read(b"\x80"), Err(Malformed::KeyTruncated));
    assert_eq!(read(b"\x00"), Err(Malformed::NotAKey { key: 0 }));
    assert_eq!(read(b"\x20\x01"), Err(Malformed::OtherType { field: 4 }));
    assert_eq!(read(b"\x23"), Err(Malformed::WireType { field: 4, wire_type: 3 }));
}

#[test]
fn metadata_as_deep_as_it_will_is_walked_by_no_stack() {
    // A list in a list in a list.
    let mut value = Vec::new();
    for _ in 0..10_000 {
        value = nest(&[6, 1], &value);
    }
    let entry = [b"\x0a\x01k".to_vec(), nest(&[2], &value)].concat();
    let namespace = [b"\x0a\x08envoy.lb".to_vec(), nest(&[2, 1], &entry)].concat();
    let message = nest(&[8, 1], &namespace);
    let message = Message::decode(&Bytes::from(message)).unwrap();
    let found = message.metadata.value("envoy.lb", "k").unwrap().unwrap();
    found.for_each_string(|string| panic!("{string:?}")).unwrap();
}

/// `message` as field of a message in a field of a message, outermost first.
fn nest(fields: &[u32], message: &[u8]) -> Vec<u8> {
    fields.iter().rev().fold(message.to_vec(), |inner, field| {
        let mut outer = Vec::with_capacity(inner.len() + 12);
        prost::encoding::encode_key(*field, prost::encoding::WireType::LengthDelimited, &mut outer);
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        outer
    })
}
