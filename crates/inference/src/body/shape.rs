//! What stands where in a request body of each API, as tables: from the place around a value to what the value means.

use crate::Api;
use crate::json::Literal;

/// What a value means, and its rank when it is a field of a record of the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slot {
    pub(super) kind: Kind,
    pub(super) rank: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request itself.
    Request,
    /// Nothing of interest, with all inside.
    Skip,
    Model,
    Stream,
    MaxTokens,
    /// As `MaxTokens`, and stronger.
    MaxCompletionTokens,
    /// An array of messages; a string is one message of the user where the API allows it.
    Messages,
    Message,
    /// What a message says: a string, or an array of parts.
    Content,
    Part,
    /// A prompt (string, array of tokens), or an array of prompts.
    Prompts,
    /// A prompt, or a token, in an array of such.
    Prompt,
    /// A token in an array of arrays of tokens.
    Token,
    /// A string of the prompt; anything else is kept as JSON.
    Text,
    /// Kept as JSON, with all inside.
    Json,
    /// An image, a sound, a file: strings are kept as digests.
    Media,
}

/// How a value begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Object,
    Array,
    String,
    Number,
    Literal(Literal),
}

impl Shape {
    /// How many bytes of the value are read when its beginning is told.
    pub(super) const fn width(self) -> usize {
        match self {
            Self::Object | Self::Array | Self::String => 1,
            Self::Number => 0,
            Self::Literal(literal) => literal.word().len(),
        }
    }
}

pub(super) const REQUEST: Slot = Slot { kind: Kind::Request, rank: None };

/// Rank of a message's role.
pub(super) const ROLE: u8 = 0;
/// Rank of what a message says.
pub(super) const CONTENT: u8 = 1;

/// The fields of a record of the prompt, in the order in which they stand there.
type Fields = &'static [(&'static str, Kind)];

/// The fields of a message of any API, and of an item of a Responses input.
const MESSAGE: Fields = &[
    ("role", Kind::Text),
    ("content", Kind::Content),
    ("reasoning", Kind::Text),
    ("reasoning_content", Kind::Text),
    ("summary", Kind::Content),
    ("name", Kind::Text),
    ("tool_call_id", Kind::Text),
    ("call_id", Kind::Text),
    ("tool_calls", Kind::Json),
    ("function_call", Kind::Json),
    ("arguments", Kind::Text),
    ("output", Kind::Content),
];

/// The fields of a part of a content. What only steers the server's cache (`cache_control`) or is implied (`type`)
/// is no text.
const PART: Fields = &[
    ("text", Kind::Text),
    ("thinking", Kind::Text),
    ("refusal", Kind::Text),
    ("name", Kind::Text),
    ("id", Kind::Text),
    ("tool_use_id", Kind::Text),
    ("input", Kind::Json),
    ("title", Kind::Text),
    ("context", Kind::Text),
    ("content", Kind::Content),
    ("image_url", Kind::Media),
    ("input_audio", Kind::Media),
    ("audio_url", Kind::Media),
    ("video_url", Kind::Media),
    ("image", Kind::Media),
    ("source", Kind::Media),
    ("file", Kind::Media),
    ("file_id", Kind::Media),
    ("file_url", Kind::Media),
    ("file_data", Kind::Media),
    ("data", Kind::Media),
];

/// The fields of a request that make up its prompt; the last is the one without which there is none.
const fn sections(api: Api) -> Fields {
    match api {
        Api::ChatCompletions => &[("tools", Kind::Json), ("messages", Kind::Messages)],
        Api::Completions => &[("prompt", Kind::Prompts)],
        Api::Embeddings => &[("input", Kind::Prompts)],
        Api::Responses => {
            &[("tools", Kind::Json), ("instructions", Kind::Content), ("input", Kind::Messages)]
        }
        Api::Messages => &[("tools", Kind::Json), ("system", Kind::Content), ("messages", Kind::Messages)],
    }
}

/// How many ranks the fields of a record have; 0 for what is no record.
pub(super) const fn ranks(api: Api, kind: Kind) -> u8 {
    let fields = match kind {
        Kind::Request => sections(api),
        Kind::Message => MESSAGE,
        Kind::Part => PART,
        _ => &[],
    };
    fields.len() as u8
}

/// What an array or object of this kind is to what stands in it.
pub(super) fn opened(kind: Kind, shape: Shape) -> Kind {
    match (kind, shape) {
        (Kind::Request | Kind::Message | Kind::Part, Shape::Object)
        | (Kind::Messages | Kind::Content | Kind::Prompts | Kind::Prompt, Shape::Array)
        | (Kind::Media | Kind::Skip, _) => kind,
        (Kind::Stream | Kind::MaxTokens | Kind::MaxCompletionTokens, _) => Kind::Skip,
        _ => Kind::Json,
    }
}

/// What an element of an array means.
pub(super) fn element(array: Kind) -> Slot {
    let kind = match array {
        Kind::Messages => Kind::Message,
        Kind::Content => Kind::Part,
        Kind::Prompts => Kind::Prompt,
        Kind::Prompt => Kind::Token,
        Kind::Media | Kind::Json => array,
        _ => Kind::Skip,
    };
    Slot { kind, rank: None }
}

/// What the value of a key in an object means.
pub(super) fn field(api: Api, object: Kind, key: &[u8]) -> Slot {
    match object {
        Kind::Request => find(sections(api), key).unwrap_or_else(|| setting(api, key)),
        Kind::Message => find(MESSAGE, key).unwrap_or(SKIP),
        Kind::Part => find(PART, key).unwrap_or(SKIP),
        Kind::Media => match key {
            b"url" | b"data" | b"file_data" | b"file_id" | b"content" => {
                Slot { kind: Kind::Media, rank: None }
            }
            _ => SKIP,
        },
        Kind::Json => Slot { kind: Kind::Json, rank: None },
        _ => SKIP,
    }
}

/// A field of a request that is no part of its prompt.
fn setting(api: Api, key: &[u8]) -> Slot {
    let kind = match (api, key) {
        (_, b"model") => Kind::Model,
        (_, b"stream") => Kind::Stream,
        (Api::ChatCompletions, b"max_completion_tokens") => Kind::MaxCompletionTokens,
        (Api::ChatCompletions | Api::Completions | Api::Messages, b"max_tokens") => Kind::MaxTokens,
        (Api::Responses, b"max_output_tokens") => Kind::MaxTokens,
        // vLLM embeds conversations too: then these stand in place of the input.
        (Api::Embeddings, b"messages") => return Slot { kind: Kind::Messages, rank: Some(0) },
        _ => Kind::Skip,
    };
    Slot { kind, rank: None }
}

const SKIP: Slot = Slot { kind: Kind::Skip, rank: None };

fn find(fields: Fields, key: &[u8]) -> Option<Slot> {
    let rank = fields.iter().position(|(name, _)| name.as_bytes() == key)?;
    Some(Slot { kind: fields[rank].1, rank: Some(rank as u8) })
}
