//! What is read of the heads of a request and of its answer, by the words of the endpoint picker protocol (GAIE
//! proposal 004).

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use inference::AnswerKind;

use crate::answer::HeaderChanges;
use crate::message::{HeaderMap, Metadata, MetadataValue};
use protobuf::Malformed;

/// Where a request is to go: the header that says so, and the key in metadata.
pub const DESTINATION: &str = "x-gateway-destination-endpoint";
/// Who served a request: a key in metadata.
pub const SERVED: &str = "x-gateway-destination-endpoint-served";
/// Who may be picked: a key in metadata.
pub const SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// The namespace of [`DESTINATION`] and [`SERVED`] in metadata.
pub const NAMESPACE: &str = "envoy.lb";
/// The namespace of [`SUBSET`] in metadata.
pub const SUBSET_NAMESPACE: &str = "envoy.lb.subset_hint";

/// What a client may say to the picker by a header, which no model server is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The name of an objective.
    Objective,
    /// Who asks, for fairness.
    FairnessId,
    /// The model to ask for in place of the one in the body.
    ModelRewrite,
}

/// Text that lies in a message.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Text(Bytes);

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Head {
    /// `:method`; empty where there is none.
    pub method: Text,
    /// `:path`, with its query; empty where there is none.
    pub path: Text,
    /// `content-length`, where one is announced.
    pub content_length: Option<u64>,
    /// Whether the body is text that can be scanned: neither compressed nor a form.
    pub readable: bool,
    /// Who may be picked, where that is restricted.
    pub subset: Option<Subset>,
    /// All headers.
    pub headers: HeaderMap,
}

/// The endpoints of a subset hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset(MetadataValue);

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// `:status`; 0 where there is none.
    pub status: u16,
    /// How the answer's usage can be read, if it can.
    pub kind: Option<AnswerKind>,
    /// Who served, as Envoy tells it: `host:port`.
    pub served: Option<Text>,
}

impl Control {
    /// Every control header.
    const ALL: [Control; 3] = [Control::Objective, Control::FairnessId, Control::ModelRewrite];

    /// The header, and its newer name.
    #[must_use]
    pub const fn names(self) -> [&'static str; 2] {
        match self {
            Control::Objective => ["x-gateway-inference-objective", "x-llm-d-inference-objective"],
            Control::FairnessId => ["x-gateway-inference-fairness-id", "x-llm-d-inference-fairness-id"],
            Control::ModelRewrite => ["x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"],
        }
    }
}

impl Head {
    /// Reads a request's head. What of it the model server must not see goes to `remove`.
    pub(crate) fn read(
        headers: HeaderMap,
        metadata: &Metadata,
        remove: &mut HeaderChanges,
    ) -> Result<Head, Malformed> {
        let (mut method, mut path, mut content_length) = (None, None, None);
        let mut readable = true;
        headers.for_each(|name, value| match name {
            b":method" => method = Some(value),
            b":path" => path = Some(value),
            b"content-length" => content_length = number(value),
            b"content-encoding" => readable &= value.is_empty() || value.eq_ignore_ascii_case(b"identity"),
            b"content-type" => readable &= !begins(value, b"multipart/"),
            _ => {
                if let Some(name) = reserved(name) {
                    remove.remove(name);
                }
            }
        })?;
        let text = |value: Option<&[u8]>| value.and_then(|value| Text::new(headers.slice(value)));
        Ok(Head {
            method: text(method).unwrap_or_default(),
            path: text(path).unwrap_or_default(),
            content_length,
            readable,
            subset: metadata.value(SUBSET_NAMESPACE, SUBSET)?.map(Subset),
            headers,
        })
    }

    /// What the client says by `control`, under either name.
    #[must_use]
    pub fn control(&self, control: Control) -> Option<&str> {
        let value = control.names().into_iter().find_map(|name| self.headers.value(name))?;
        str::from_utf8(value).ok()
    }
}

impl AnswerHead {
    /// Reads an answer's head.
    pub(crate) fn read(headers: &HeaderMap, metadata: &Metadata) -> Result<AnswerHead, Malformed> {
        let (mut status, mut kind, mut encoded) = (0, None, false);
        headers.for_each(|name, value| match name {
            b":status" => status = number(value).and_then(|status| u16::try_from(status).ok()).unwrap_or(0),
            b"content-encoding" => encoded = true,
            b"content-type" if begins(value, b"text/event-stream") => kind = Some(AnswerKind::EventStream),
            b"content-type" if begins(value, b"application/json") => kind = Some(AnswerKind::Json),
            _ => {}
        })?;
        let mut served = None;
        if let Some(value) = metadata.value(NAMESPACE, SERVED)? {
            value.for_each_string(|endpoint| served = Text::new(Bytes::copy_from_slice(endpoint)))?;
        }
        Ok(AnswerHead { status, kind: kind.filter(|_| !encoded), served })
    }
}

impl Subset {
    /// The endpoints, `host:port` each or a host for all its ports; none where the hint is empty or no text. A list of
    /// strings, or one string with commas.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let mut endpoints = Vec::new();
        // A hint that is malformed names nobody: it restricts, and to guess whom it meant would be to ignore it.
        let _ = self.0.for_each_string(|text| {
            let text = String::from_utf8_lossy(text);
            let named = text.split(',').map(str::trim).filter(|endpoint| !endpoint.is_empty());
            endpoints.extend(named.map(str::to_owned));
        });
        endpoints
    }
}

impl Text {
    /// `None` where the bytes are no UTF-8.
    fn new(bytes: Bytes) -> Option<Text> {
        str::from_utf8(&bytes).is_ok().then_some(Text(bytes))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // Looked at once already; safe code has to look again.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The header by its own name, if it steers the picker or Envoy and so must not come from a client.
fn reserved(name: &[u8]) -> Option<&'static str> {
    if !begins(name, b"x-gateway-") && !begins(name, b"x-llm-d-") {
        return None;
    }
    let controls = Control::ALL.into_iter().flat_map(Control::names);
    controls.chain([DESTINATION]).find(|reserved| reserved.as_bytes() == name)
}

fn begins(value: &[u8], start: &[u8]) -> bool {
    value.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start))
}

fn number(value: &[u8]) -> Option<u64> {
    str::from_utf8(value).ok()?.parse().ok()
}
