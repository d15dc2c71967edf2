//! What we say to Envoy: `envoy.service.ext_proc.v3.ProcessingResponse`, as far as a picker has need of it.
//!
//! Protobuf lets fields stand in any order. Here those that hold a body come last on every level, so that an answer is
//! what we wrote and then, uncopied, the body.

use std::time::Duration;

use bytes::Bytes;

use crate::message::BodyMode;
use protobuf::{Segments, Writer};

/// Which way a part goes: each kind of answer has a number for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The request, from the client to a model server.
    Request,
    /// Its answer.
    Response,
}

/// Changes of headers, written: `HeaderMutation`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges(Vec<u8>);

/// What an answer changes besides a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Headers to set and to remove.
    pub headers: HeaderChanges,
    /// Whether Envoy is to choose the route again.
    pub clear_route_cache: bool,
    /// `dynamic_metadata`, written: a `Struct`.
    pub metadata: Vec<u8>,
    /// How the rest is to be sent, where Envoy allows to say so. Heeded in answers to headers alone.
    pub mode: Option<ModeOverride>,
}

/// What becomes of the part of a body that is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BodyChange {
    /// It goes on as it is.
    #[default]
    Keep,
    /// These bytes go on in its place, in a body mode in which Envoy holds it.
    Replace(Segments),
    /// These bytes go on, in a body mode in which Envoy holds nothing.
    Stream {
        /// The bytes.
        bytes: Bytes,
        /// Whether they are the last, and no trailers follow.
        end_of_stream: bool,
    },
}

/// `ProcessingMode`, for what is not sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeOverride {
    /// How the request's body is to come.
    pub request_body: BodyMode,
    /// How the answer's body is to come.
    pub response_body: BodyMode,
    /// Whether the answer's head is to come also where the filter is configured not to send it.
    pub response_head: bool,
}

/// An answer to the client that Envoy gives at once, without a model server.
#[derive(Clone, Debug)]
pub struct Immediate<'a> {
    /// The HTTP status, 200 to 599.
    pub status: u16,
    /// Names in lower case, and values. Envoy makes the content `text/plain` where no `content-type` is here.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: Bytes,
    /// Why, for Envoy's log: a word.
    pub details: &'a str,
}

const REQUEST_HEADERS: u32 = 1;
const RESPONSE_HEADERS: u32 = 2;
const REQUEST_BODY: u32 = 3;
const RESPONSE_BODY: u32 = 4;
const REQUEST_TRAILERS: u32 = 5;
const RESPONSE_TRAILERS: u32 = 6;
const IMMEDIATE_RESPONSE: u32 = 7;
const DYNAMIC_METADATA: u32 = 8;
const MODE_OVERRIDE: u32 = 9;
/// `HeadersResponse.response`, `BodyResponse.response`.
const COMMON: u32 = 1;
/// Most answers say this and little more.
const ANSWER_BYTES: usize = 256;

/// The answer to headers.
#[must_use]
pub fn headers(direction: Direction, changes: &Changes) -> Segments {
    let field = match direction {
        Direction::Request => REQUEST_HEADERS,
        Direction::Response => RESPONSE_HEADERS,
    };
    common(field, changes, BodyChange::Keep)
}

/// The answer to a part of a body.
#[must_use]
pub fn body(direction: Direction, changes: &Changes, body: BodyChange) -> Segments {
    let field = match direction {
        Direction::Request => REQUEST_BODY,
        Direction::Response => RESPONSE_BODY,
    };
    common(field, changes, body)
}

/// The answer to trailers. Of the changes only the metadata can be told any more.
#[must_use]
pub fn trailers(direction: Direction, changes: &Changes) -> Segments {
    let mut writer = Writer::with_capacity(changes.metadata.len() + 8);
    changes.write_metadata(&mut writer);
    let field = match direction {
        Direction::Request => REQUEST_TRAILERS,
        Direction::Response => RESPONSE_TRAILERS,
    };
    writer.message(field, |_| {});
    one(writer)
}

/// The answer that ends everything.
#[must_use]
pub fn immediate(immediate: &Immediate<'_>) -> Segments {
    const STATUS: u32 = 1;
    const STATUS_CODE: u32 = 1;
    const HEADERS: u32 = 2;
    const BODY: u32 = 3;
    const DETAILS: u32 = 5;
    let mut headers = HeaderChanges::default();
    for (name, value) in immediate.headers {
        headers.set(name, value);
    }
    let mut writer = Writer::with_capacity(ANSWER_BYTES);
    writer.message(IMMEDIATE_RESPONSE, |writer| {
        writer.message(STATUS, |writer| writer.varint(STATUS_CODE, immediate.status.into()));
        if !headers.is_empty() {
            writer.bytes(HEADERS, &headers.0);
        }
        writer.bytes(DETAILS, immediate.details);
        writer.beside(BODY, immediate.body.len());
    });
    let mut segments = one(writer);
    segments.push(immediate.body.clone());
    segments
}

/// The most that an Envoy's `max_message_timeout` may be. It passes over who asks for more than that, and would wait no longer than for
/// anyone else.
const MORE_TIME_MAX: Duration = Duration::from_secs(3600);

/// Asks for more time to answer the message that came last. Envoy heeds it once for each, up to its
/// `max_message_timeout`.
#[must_use]
pub fn more_time(time: Duration) -> Segments {
    const OVERRIDE_MESSAGE_TIMEOUT: u32 = 10;
    const SECONDS: u32 = 1;
    const NANOS: u32 = 2;
    let time = time.min(MORE_TIME_MAX);
    let mut writer = Writer::with_capacity(16);
    writer.message(OVERRIDE_MESSAGE_TIMEOUT, |writer| {
        writer.varint(SECONDS, time.as_secs());
        writer.varint(NANOS, time.subsec_nanos().into());
    });
    one(writer)
}

/// A `Struct` of one namespace that holds strings: what `dynamic_metadata` is.
#[must_use]
pub fn metadata<'a>(namespace: &str, strings: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    const FIELDS: u32 = 1;
    const KEY: u32 = 1;
    const VALUE: u32 = 2;
    const STRING_VALUE: u32 = 3;
    const STRUCT_VALUE: u32 = 5;
    let mut writer = Writer::with_capacity(ANSWER_BYTES);
    writer.message(FIELDS, |writer| {
        writer.bytes(KEY, namespace);
        writer.message(VALUE, |writer| {
            writer.message(STRUCT_VALUE, |writer| {
                for (key, string) in strings {
                    writer.message(FIELDS, |writer| {
                        writer.bytes(KEY, key);
                        writer.message(VALUE, |writer| writer.bytes(STRING_VALUE, string));
                    });
                }
            });
        });
    });
    writer.into_bytes()
}

/// An answer with a `CommonResponse`.
fn common(field: u32, changes: &Changes, body: BodyChange) -> Segments {
    if *changes == Changes::default() && body == BodyChange::Keep {
        return one_of(go_on(field));
    }
    let mut writer = Writer::with_capacity(ANSWER_BYTES);
    changes.write_metadata(&mut writer);
    if let Some(mode) = changes.mode {
        writer.message(MODE_OVERRIDE, |writer| mode.write(writer));
    }
    writer.message(field, |writer| {
        writer.message(COMMON, |writer| {
            changes.write(writer);
            body.write(writer);
        });
    });
    let mut segments = one(writer);
    match body {
        BodyChange::Keep => {}
        BodyChange::Replace(bytes) => segments.extend(bytes),
        BodyChange::Stream { bytes, .. } => segments.push(bytes),
    }
    segments
}

/// An empty answer: go on.
fn go_on(field: u32) -> Bytes {
    Bytes::from_static(match field {
        REQUEST_HEADERS => &[0x0a, 0],
        RESPONSE_HEADERS => &[0x12, 0],
        REQUEST_BODY => &[0x1a, 0],
        _ => &[0x22, 0],
    })
}

fn one(writer: Writer) -> Segments {
    one_of(writer.into_bytes().into())
}

fn one_of(bytes: Bytes) -> Segments {
    let mut segments = Segments::new();
    segments.push(bytes);
    segments
}

impl HeaderChanges {
    /// Sets `name` to `value` alone, whatever was there.
    pub fn set(&mut self, name: &str, value: &str) {
        const SET_HEADERS: u32 = 1;
        const HEADER: u32 = 1;
        const APPEND_ACTION: u32 = 3;
        const OVERWRITE_IF_EXISTS_OR_ADD: u64 = 2;
        const KEY: u32 = 1;
        const RAW_VALUE: u32 = 3;
        let mut writer = Writer::continuing(std::mem::take(&mut self.0));
        writer.message(SET_HEADERS, |writer| {
            writer.message(HEADER, |writer| {
                writer.bytes(KEY, name);
                writer.bytes(RAW_VALUE, value);
            });
            writer.varint(APPEND_ACTION, OVERWRITE_IF_EXISTS_OR_ADD);
        });
        self.0 = writer.into_bytes();
    }

    /// Removes `name`. What is set as well stays: Envoy removes first.
    pub fn remove(&mut self, name: &str) {
        const REMOVE_HEADERS: u32 = 2;
        let mut writer = Writer::continuing(std::mem::take(&mut self.0));
        writer.bytes(REMOVE_HEADERS, name);
        self.0 = writer.into_bytes();
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Changes {
    fn write_metadata(&self, writer: &mut Writer) {
        if !self.metadata.is_empty() {
            writer.bytes(DYNAMIC_METADATA, &self.metadata);
        }
    }

    fn write(&self, writer: &mut Writer) {
        const HEADER_MUTATION: u32 = 2;
        const CLEAR_ROUTE_CACHE: u32 = 5;
        if !self.headers.is_empty() {
            writer.bytes(HEADER_MUTATION, &self.headers.0);
        }
        writer.bool(CLEAR_ROUTE_CACHE, self.clear_route_cache);
    }
}

impl BodyChange {
    fn write(&self, writer: &mut Writer) {
        const BODY_MUTATION: u32 = 3;
        const BODY: u32 = 1;
        const STREAMED_RESPONSE: u32 = 3;
        const STREAMED_BODY: u32 = 1;
        const END_OF_STREAM: u32 = 2;
        match self {
            BodyChange::Keep => {}
            BodyChange::Replace(bytes) => writer.message(BODY_MUTATION, |writer| {
                writer.beside(BODY, bytes.iter().map(Bytes::len).sum());
            }),
            BodyChange::Stream { bytes, end_of_stream } => writer.message(BODY_MUTATION, |writer| {
                writer.message(STREAMED_RESPONSE, |writer| {
                    writer.bool(END_OF_STREAM, *end_of_stream);
                    writer.beside(STREAMED_BODY, bytes.len());
                });
            }),
        }
    }
}

impl ModeOverride {
    fn write(self, writer: &mut Writer) {
        const RESPONSE_HEADER_MODE: u32 = 2;
        const REQUEST_BODY_MODE: u32 = 3;
        const RESPONSE_BODY_MODE: u32 = 4;
        const REQUEST_TRAILER_MODE: u32 = 5;
        const RESPONSE_TRAILER_MODE: u32 = 6;
        const SEND: u64 = 1;
        if self.response_head {
            writer.varint(RESPONSE_HEADER_MODE, SEND);
        }
        for (mode, body_field, trailer_field) in [
            (self.request_body, REQUEST_BODY_MODE, REQUEST_TRAILER_MODE),
            (self.response_body, RESPONSE_BODY_MODE, RESPONSE_TRAILER_MODE),
        ] {
            writer.varint(body_field, mode.number().into());
            // Without its trailers the end of a body in parts is not told.
            if matches!(mode, BodyMode::Streamed | BodyMode::FullDuplexStreamed) {
                writer.varint(trailer_field, SEND);
            }
        }
    }
}
