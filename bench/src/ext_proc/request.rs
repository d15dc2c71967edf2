//! Envoy's messages: made as Envoy lays them, and read by the empty servers.

use bytes::Bytes;

use super::wire::{Fields, Malformed, Value, put_bytes, put_entry, put_number, struct_of_strings};
use super::{BodyMode, DESTINATION, LB_NAMESPACE, SERVED};

// Fields of ProcessingRequest.
const METADATA_CONTEXT: u64 = 8;
const PROTOCOL_CONFIG: u64 = 11;

/// Which message of the exchange it is; the numbers are the fields of `ProcessingRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// The request's headers.
    RequestHeaders = 2,
    /// The response's headers.
    ResponseHeaders = 3,
    /// A piece of the request's body.
    RequestBody = 4,
    /// A piece of the response's body.
    ResponseBody = 5,
    /// The request's trailers.
    RequestTrailers = 6,
    /// The response's trailers.
    ResponseTrailers = 7,
}

/// The modes that the first message tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyModes {
    /// How the request's body comes.
    pub request: BodyMode,
    /// How the response's body comes.
    pub response: BodyMode,
}

/// What an empty server must know of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which message it is.
    pub kind: RequestKind,
    /// A body's bytes, not copied.
    pub body: Bytes,
    /// Whether headers or body are the last of their direction.
    pub end_of_stream: bool,
    /// In the first message only.
    pub modes: Option<BodyModes>,
}

impl Request {
    /// Reads one message.
    ///
    /// # Errors
    /// Bytes that are no protobuf, or no message of the kinds above.
    pub fn parse(message: &Bytes) -> Result<Request, Malformed> {
        let (mut request, mut modes) = (None, None);
        for field in Fields(message) {
            match field? {
                (number @ 2..=7, Value::Bytes(inner)) => request = Some((kind(number)?, inner)),
                (PROTOCOL_CONFIG, Value::Bytes(inner)) => modes = Some(read_modes(inner)?),
                _ => {}
            }
        }
        let (kind, inner) = request.ok_or(Malformed("request: no message in it"))?;
        let (mut body, mut end_of_stream) = (Bytes::new(), false);
        let is_body = matches!(kind, RequestKind::RequestBody | RequestKind::ResponseBody);
        for field in Fields(inner) {
            match field? {
                (1, Value::Bytes(bytes)) if is_body => body = message.slice_ref(bytes),
                (2, Value::Number(end)) if is_body => end_of_stream = end != 0,
                (3, Value::Number(end)) if !is_body => end_of_stream = end != 0,
                _ => {}
            }
        }
        Ok(Request { kind, body, end_of_stream, modes })
    }
}

fn kind(number: u64) -> Result<RequestKind, Malformed> {
    use RequestKind as Kind;
    [
        Kind::RequestHeaders,
        Kind::ResponseHeaders,
        Kind::RequestBody,
        Kind::ResponseBody,
        Kind::RequestTrailers,
        Kind::ResponseTrailers,
    ]
    .into_iter()
    .find(|kind| *kind as u64 == number)
    .ok_or(Malformed("request: a kind that is not known"))
}

fn read_modes(config: &[u8]) -> Result<BodyModes, Malformed> {
    let mut modes = [0, 0];
    for field in Fields(config) {
        if let (number @ 1..=2, Value::Number(mode)) = field? {
            modes[number as usize - 1] = mode;
        }
    }
    let [request, response] = modes.map(|mode| BodyMode::from_number(mode).ok_or(Malformed("body mode")));
    Ok(BodyModes { request: request?, response: response? })
}

/// The first message: the headers of a request in the order given (Envoy gives `:authority`, `:path`, `:method` and
/// `:scheme` first), of which more is to come.
pub fn request_headers(headers: &[(&str, &str)], modes: BodyModes) -> Vec<u8> {
    let mut message = headers_message(RequestKind::RequestHeaders, headers, &[]);
    let mut config = Vec::new();
    for (field, mode) in [(1, modes.request), (2, modes.response)] {
        // Proto3 leaves out what is zero.
        if mode != BodyMode::None {
            put_number(&mut config, field, mode as u64);
        }
    }
    put_bytes(&mut message, PROTOCOL_CONFIG, &config);
    message
}

/// The headers of a response, with the metadata of [`served_metadata`].
pub fn response_headers(headers: &[(&str, &str)], metadata: &[u8]) -> Vec<u8> {
    headers_message(RequestKind::ResponseHeaders, headers, metadata)
}

fn headers_message(kind: RequestKind, headers: &[(&str, &str)], metadata: &[u8]) -> Vec<u8> {
    let mut map = Vec::new();
    for (name, value) in headers {
        let mut header = Vec::new();
        put_bytes(&mut header, 1, name.as_bytes());
        // Field 2 is the value as text; Envoy sends field 3, raw bytes.
        put_bytes(&mut header, 3, value.as_bytes());
        put_bytes(&mut map, 1, &header);
    }
    let (mut inner, mut message) = (Vec::new(), Vec::new());
    put_bytes(&mut inner, 1, &map);
    put_bytes(&mut message, kind as u64, &inner);
    put_bytes(&mut message, METADATA_CONTEXT, metadata);
    message
}

/// A piece of a body, and where in the message it begins. The metadata is empty in the request's phase, and that of
/// [`served_metadata`] in the response's.
pub fn body_message(
    kind: RequestKind,
    body: &[u8],
    end_of_stream: bool,
    metadata: &[u8],
) -> (Vec<u8>, usize) {
    let mut inner = Vec::with_capacity(body.len() + 16);
    if !body.is_empty() {
        put_bytes(&mut inner, 1, body);
    }
    let behind_body = if end_of_stream { 2 } else { 0 };
    if end_of_stream {
        put_number(&mut inner, 2, 1);
    }
    let mut message = Vec::with_capacity(inner.len() + metadata.len() + 16);
    put_bytes(&mut message, kind as u64, &inner);
    let body_at = message.len() - behind_body - body.len();
    put_bytes(&mut message, METADATA_CONTEXT, metadata);
    (message, body_at)
}

/// What Envoy's load balancer knows in the response's phase: what was picked, and who of it served.
pub fn served_metadata(picked: &str, served: &str) -> Vec<u8> {
    let mut metadata = Vec::new();
    put_entry(&mut metadata, 1, LB_NAMESPACE, &struct_of_strings(&[(DESTINATION, picked), (SERVED, served)]));
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUPLEX: &str = include_str!("../../data/envoy-1.40/full-duplex-streamed.hex");
    const PARTIAL: &str = include_str!("../../data/envoy-1.40/buffered-partial.hex");

    fn recorded(hex: &str) -> Vec<Bytes> {
        let byte = |pair: &[u8]| {
            u8::from_str_radix(str::from_utf8(pair).expect("text"), 16).expect("two hexadecimal digits")
        };
        hex.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect::<Vec<_>>().into()).collect()
    }

    fn envoys_headers<'a>(authority: &'a str, id: &'a str) -> [(&'a str, &'a str); 10] {
        [
            (":authority", authority),
            (":path", "/v1/chat/completions"),
            (":method", "POST"),
            (":scheme", "http"),
            ("user-agent", "curl/7.88.1"),
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("content-length", "1024"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", id),
        ]
    }

    /// The value of `x-request-id` differs in every recording.
    fn id_in(message: &[u8]) -> String {
        let text = String::from_utf8_lossy(message);
        let at = text.find("x-request-id").expect("an id") + "x-request-id".len() + 2;
        text[at..at + 36].to_owned()
    }

    #[test]
    fn the_first_message_is_envoys_to_the_byte() {
        let cases = [
            (DUPLEX, "127.0.0.1:18911", BodyMode::FullDuplexStreamed, BodyMode::FullDuplexStreamed),
            (PARTIAL, "127.0.0.1:18914", BodyMode::BufferedPartial, BodyMode::Streamed),
        ];
        for (recording, authority, request, response) in cases {
            let envoys = &recorded(recording)[0];
            let id = id_in(envoys);
            let modes = BodyModes { request, response };
            assert_eq!(request_headers(&envoys_headers(authority, &id), modes), **envoys);
            assert_eq!(Request::parse(envoys).map(|request| request.modes), Ok(Some(modes)));
        }
    }

    #[test]
    fn bodies_are_envoys_to_the_byte() {
        let (duplex, partial) = (recorded(DUPLEX), recorded(PARTIAL));
        let served = served_metadata("127.0.0.1:18999", "127.0.0.1:18999");
        let all = [(&duplex[1], false), (&duplex[2], true), (&partial[1], true)]
            .map(|(message, end)| (message, RequestKind::RequestBody, end, &[][..]))
            .into_iter()
            .chain(
                duplex[4..9].iter().map(|message| (message, RequestKind::ResponseBody, false, &served[..])),
            )
            .chain([(&duplex[9], RequestKind::ResponseBody, true, &served[..])]);
        for (envoys, kind, end_of_stream, metadata) in all {
            let read = Request::parse(envoys).expect("a message of Envoy");
            assert_eq!((read.kind, read.end_of_stream), (kind, end_of_stream));
            let (ours, body_at) = body_message(kind, &read.body, end_of_stream, metadata);
            assert_eq!(ours, **envoys);
            assert_eq!(ours[body_at..body_at + read.body.len()], read.body);
        }
        let whole: Vec<u8> =
            [&partial[1]].iter().flat_map(|m| Request::parse(m).expect("a body").body).collect();
        assert_eq!(whole.len(), 1024);
    }

    #[test]
    fn response_headers_are_envoys_to_the_byte() {
        let envoys = &recorded(DUPLEX)[3];
        let text = String::from_utf8_lossy(envoys);
        let date = &text[text.find("Mon, ").expect("a date")..][..29];
        let took = &text[text.find("service-time").expect("a time") + "service-time".len() + 2..][..1];
        let headers = [
            (":status", "200"),
            ("server", "BaseHTTP/0.6 Python/3.11.7"),
            ("date", date),
            ("content-type", "text/event-stream"),
            ("transfer-encoding", "chunked"),
            ("x-envoy-upstream-service-time", took),
        ];
        let served = served_metadata("127.0.0.1:18999", "127.0.0.1:18999");
        assert_eq!(response_headers(&headers, &served), **envoys);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bytes in [&b""[..], b"\x42\x00", b"\x12", b"\x5a\x02\x08\x63\x12\x00"] {
            assert!(Request::parse(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }
}
