//! What Envoy says: `envoy.service.ext_proc.v3.ProcessingRequest`, read as far as a picker needs it.
//!
//! A body is a slice of the message that it came in, and so are headers and metadata, which are looked into only when
//! they are asked for. Fields that are not named here are skipped, attributes and flow control among them.

use bytes::Bytes;

use protobuf::{self, Fields, Malformed};

/// One message from Envoy.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// What it is about; `None` where it is about nothing that is known here.
    pub part: Option<Part>,
    /// What other filters know of the request.
    pub metadata: Metadata,
    /// Whether Envoy only shows what passes by and wants no answer.
    pub observed: bool,
    /// What the filter is configured to send: in the first message of a stream, from Envoy 1.32 on.
    pub protocol: Option<Protocol>,
}

/// A part of a request or of its answer.
#[derive(Clone, Debug)]
pub enum Part {
    /// The head of the request.
    RequestHeaders(Headers),
    /// A part of the request's body.
    RequestBody(Body),
    /// The request's trailers, which are not looked at.
    RequestTrailers,
    /// The head of the answer.
    ResponseHeaders(Headers),
    /// A part of the answer's body.
    ResponseBody(Body),
    /// The answer's trailers, which are not looked at.
    ResponseTrailers,
}

/// `HttpHeaders`.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// The fields, pseudo-headers first.
    pub map: HeaderMap,
    /// Whether no body follows.
    pub end_of_stream: bool,
}

/// `HttpBody`, but for what belongs to the body mode `GRPC`.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// The bytes, where they lie in the message.
    pub bytes: Bytes,
    /// Whether nothing follows, no trailers either.
    pub end_of_stream: bool,
}

/// `HeaderMap`, as it came: names in lower case, and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMap(Bytes);

/// `Metadata`, as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Bytes);

/// A string of metadata, or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataValue(Bytes);

/// `ProtocolConfiguration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// How the request's body comes.
    pub request_body: BodyMode,
    /// How the answer's body comes.
    pub response_body: BodyMode,
}

/// How a body comes, and how it is to be answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyMode {
    /// Not at all.
    #[default]
    None,
    /// In parts; each is held by Envoy until it is answered.
    Streamed,
    /// Whole, in one message.
    Buffered,
    /// Whole, or as much of its beginning as Envoy holds, in one message.
    BufferedPartial,
    /// In parts, which Envoy forgets: what it is to send on comes back as answers, at any time.
    FullDuplexStreamed,
    /// Another one, by its number.
    Other(u32),
}

impl Message {
    /// Reads a `ProcessingRequest`.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(message: &Bytes) -> Result<Message, Malformed> {
        const METADATA_CONTEXT: u32 = 8;
        const OBSERVABILITY_MODE: u32 = 10;
        const PROTOCOL_CONFIG: u32 = 11;
        let (mut part, mut metadata, mut protocol) = (None, None, None);
        let mut observed = false;
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.read()? {
            match field {
                Part::FIRST..=Part::LAST => Part::put(&mut part, field, value.bytes(field)?)?,
                METADATA_CONTEXT => protobuf::put(&mut metadata, value.bytes(field)?, field)?,
                OBSERVABILITY_MODE => observed = value.bool(field)?,
                PROTOCOL_CONFIG => protobuf::put(&mut protocol, value.bytes(field)?, field)?,
                _ => {}
            }
        }
        Ok(Message {
            part: part.map(|(field, part)| Part::decode(field, message, part)).transpose()?,
            metadata: metadata.map(|bytes| Metadata(message.slice_ref(bytes))).unwrap_or_default(),
            observed,
            protocol: protocol.map(Protocol::decode).transpose()?,
        })
    }
}

impl Part {
    const REQUEST_HEADERS: u32 = 2;
    const RESPONSE_HEADERS: u32 = 3;
    const REQUEST_BODY: u32 = 4;
    const RESPONSE_BODY: u32 = 5;
    const REQUEST_TRAILERS: u32 = 6;
    const RESPONSE_TRAILERS: u32 = 7;
    const FIRST: u32 = Part::REQUEST_HEADERS;
    const LAST: u32 = Part::RESPONSE_TRAILERS;

    /// Of several kinds of part the last counts.
    fn put<'a>(place: &mut Option<(u32, &'a [u8])>, field: u32, part: &'a [u8]) -> Result<(), Malformed> {
        match place.replace((field, part)) {
            Some((same, _)) if same == field => Err(Malformed::Twice { field }),
            _ => Ok(()),
        }
    }

    fn decode(field: u32, message: &Bytes, part: &[u8]) -> Result<Part, Malformed> {
        Ok(match field {
            Part::REQUEST_HEADERS => Part::RequestHeaders(Headers::decode(message, part)?),
            Part::RESPONSE_HEADERS => Part::ResponseHeaders(Headers::decode(message, part)?),
            Part::REQUEST_BODY => Part::RequestBody(Body::decode(message, part)?),
            Part::RESPONSE_BODY => Part::ResponseBody(Body::decode(message, part)?),
            Part::REQUEST_TRAILERS => Part::RequestTrailers,
            _ => Part::ResponseTrailers,
        })
    }
}

impl Headers {
    fn decode(message: &Bytes, part: &[u8]) -> Result<Headers, Malformed> {
        const HEADERS: u32 = 1;
        const END_OF_STREAM: u32 = 3;
        let (mut map, mut end_of_stream) = (None, false);
        let mut fields = Fields::of(part);
        while let Some((field, value)) = fields.read()? {
            match field {
                HEADERS => protobuf::put(&mut map, value.bytes(field)?, field)?,
                END_OF_STREAM => end_of_stream = value.bool(field)?,
                _ => {}
            }
        }
        let map = map.map(|bytes| HeaderMap(message.slice_ref(bytes))).unwrap_or_default();
        Ok(Headers { map, end_of_stream })
    }
}

impl Body {
    fn decode(message: &Bytes, part: &[u8]) -> Result<Body, Malformed> {
        const BODY: u32 = 1;
        const END_OF_STREAM: u32 = 2;
        let mut body = Body::default();
        let mut fields = Fields::of(part);
        while let Some((field, value)) = fields.read()? {
            match field {
                BODY => body.bytes = message.slice_ref(value.bytes(field)?),
                END_OF_STREAM => body.end_of_stream = value.bool(field)?,
                _ => {}
            }
        }
        Ok(body)
    }
}

impl HeaderMap {
    /// Calls `each` with name and value of every header, in their order.
    ///
    /// # Errors
    /// When the map is malformed.
    pub fn for_each<'a>(&'a self, mut each: impl FnMut(&'a [u8], &'a [u8])) -> Result<(), Malformed> {
        const HEADERS: u32 = 1;
        let mut fields = Fields::of(&self.0);
        while let Some((field, value)) = fields.read()? {
            if field == HEADERS {
                let (name, value) = header(value.bytes(field)?)?;
                each(name, value);
            }
        }
        Ok(())
    }

    /// The first value of the header `name`, given in lower case.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let mut found = None;
        // What is malformed is refused when the head is read.
        let _ = self.for_each(|other, value| {
            if found.is_none() && other == name.as_bytes() {
                found = Some(value);
            }
        });
        found
    }

    /// `value`, which came from [`HeaderMap::for_each`], for itself.
    pub(crate) fn slice(&self, value: &[u8]) -> Bytes {
        self.0.slice_ref(value)
    }
}

/// Name and value of a `HeaderValue`. Envoy writes values raw; whoever else, as it likes.
fn header(header: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    const KEY: u32 = 1;
    const VALUE: u32 = 2;
    const RAW_VALUE: u32 = 3;
    let (mut name, mut text, mut raw) = (&[][..], &[][..], &[][..]);
    let mut fields = Fields::of(header);
    while let Some((field, found)) = fields.read()? {
        match field {
            KEY => name = found.bytes(field)?,
            VALUE => text = found.bytes(field)?,
            RAW_VALUE => raw = found.bytes(field)?,
            _ => {}
        }
    }
    Ok((name, if raw.is_empty() { text } else { raw }))
}

impl Metadata {
    /// The `Metadata` that `message` is.
    #[must_use]
    pub fn of(message: Bytes) -> Metadata {
        Metadata(message)
    }

    /// What stands under `key` in `namespace` of the untyped metadata.
    ///
    /// # Errors
    /// When the metadata is malformed on the way there.
    pub fn value(&self, namespace: &str, key: &str) -> Result<Option<MetadataValue>, Malformed> {
        const FILTER_METADATA: u32 = 1;
        const STRUCT_FIELDS: u32 = 1;
        let Some(fields) = protobuf::map_value(&self.0, FILTER_METADATA, namespace.as_bytes())? else {
            return Ok(None);
        };
        let value = protobuf::map_value(fields, STRUCT_FIELDS, key.as_bytes())?;
        // An empty value lies nowhere.
        Ok(value.map(|value| MetadataValue(self.0.slice_ref(value))))
    }
}

impl MetadataValue {
    const STRING: u32 = 3;
    const LIST: u32 = 6;
    /// The other kinds of a `google.protobuf.Value`: null, number, bool, struct.
    const NULL: u32 = 1;
    const NUMBER: u32 = 2;
    const BOOL: u32 = 4;
    const STRUCT: u32 = 5;

    /// Calls `each` with the string, or with each string of the list. What is no string is nothing.
    ///
    /// # Errors
    /// When the value is malformed.
    pub fn for_each_string(&self, mut each: impl FnMut(&[u8])) -> Result<(), Malformed> {
        const VALUES: u32 = 1;
        match kind(&self.0)? {
            Some((Self::STRING, string)) => each(string),
            Some((Self::LIST, list)) => {
                let mut fields = Fields::of(list);
                while let Some((field, value)) = fields.read()? {
                    if field == VALUES
                        && let Some((Self::STRING, string)) = kind(value.bytes(field)?)?
                    {
                        each(string);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Which kind a value has, and what stands there if it is a string or a message. Of several the last counts.
fn kind(value: &[u8]) -> Result<Option<(u32, &[u8])>, Malformed> {
    let mut kind = None;
    let mut fields = Fields::of(value);
    while let Some((field, found)) = fields.read()? {
        match field {
            MetadataValue::STRING => kind = Some((field, found.bytes(field)?)),
            MetadataValue::LIST | MetadataValue::STRUCT => match kind.replace((field, found.bytes(field)?)) {
                Some((same, _)) if same == field => return Err(Malformed::Twice { field }),
                _ => {}
            },
            MetadataValue::NULL | MetadataValue::NUMBER | MetadataValue::BOOL => kind = Some((field, &[])),
            _ => {}
        }
    }
    Ok(kind)
}

impl Protocol {
    fn decode(part: &[u8]) -> Result<Protocol, Malformed> {
        const REQUEST_BODY_MODE: u32 = 1;
        const RESPONSE_BODY_MODE: u32 = 2;
        let mut protocol = Protocol::default();
        let mut fields = Fields::of(part);
        while let Some((field, value)) = fields.read()? {
            match field {
                REQUEST_BODY_MODE => protocol.request_body = BodyMode::of(value.varint(field)?),
                RESPONSE_BODY_MODE => protocol.response_body = BodyMode::of(value.varint(field)?),
                _ => {}
            }
        }
        Ok(protocol)
    }
}

impl BodyMode {
    fn of(number: u64) -> BodyMode {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "enums have 32 bits; protobuf drops what is more"
        )]
        match number as u32 {
            0 => BodyMode::None,
            1 => BodyMode::Streamed,
            2 => BodyMode::Buffered,
            3 => BodyMode::BufferedPartial,
            4 => BodyMode::FullDuplexStreamed,
            other => BodyMode::Other(other),
        }
    }

    /// The number of `ProcessingMode.BodySendMode`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            BodyMode::None => 0,
            BodyMode::Streamed => 1,
            BodyMode::Buffered => 2,
            BodyMode::BufferedPartial => 3,
            BodyMode::FullDuplexStreamed => 4,
            BodyMode::Other(number) => number,
        }
    }
}
