//! What stands where in a request body of each API, as tables: from the place around a value to what the value means.

use crate::Api;
use crate::json::Literal;
use crate::prompt::RANKS_MAX;

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

pub(super) const REQUEST: Slot = plain(Kind::Request);

/// How many fields of a request make up its prompt, [`Api::prompt_field`] being the last.
pub(super) const fn sections(api: Api) -> u8 {
    match api {
        Api::Completions | Api::Embeddings => 1,
        Api::ChatCompletions => 2,
        Api::Responses | Api::Messages => 3,
    }
}

/// How many ranks the fields of a record of this kind have; `None` for what is no record.
pub(super) const fn ranks(kind: Kind) -> Option<u8> {
    match kind {
        Kind::Message | Kind::Part => Some(RANKS_MAX),
        _ => None,
    }
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
    plain(match array {
        Kind::Messages => Kind::Message,
        Kind::Content => Kind::Part,
        Kind::Prompts => Kind::Prompt,
        Kind::Prompt => Kind::Token,
        Kind::Media => Kind::Media,
        Kind::Json => Kind::Json,
        _ => Kind::Skip,
    })
}

/// What the value of a key in an object means.
pub(super) fn field(api: Api, object: Kind, key: &[u8]) -> Slot {
    match object {
        Kind::Request => request_field(api, key),
        Kind::Message => message_field(key),
        Kind::Part => part_field(key),
        Kind::Media => match key {
            b"url" | b"data" | b"file_data" | b"file_id" | b"file_url" | b"content" => plain(Kind::Media),
            _ => plain(Kind::Skip),
        },
        Kind::Json => plain(Kind::Json),
        _ => plain(Kind::Skip),
    }
}

fn request_field(api: Api, key: &[u8]) -> Slot {
    match (api, key) {
        (_, b"model") => plain(Kind::Model),
        (_, b"stream") => plain(Kind::Stream),
        (Api::ChatCompletions, b"max_completion_tokens") => plain(Kind::MaxCompletionTokens),
        (Api::ChatCompletions | Api::Completions | Api::Messages, b"max_tokens") => plain(Kind::MaxTokens),
        (Api::Responses, b"max_output_tokens") => plain(Kind::MaxTokens),

        (Api::ChatCompletions | Api::Responses | Api::Messages, b"tools") => ranked(0, Kind::Json),
        (Api::Responses, b"instructions") | (Api::Messages, b"system") => ranked(1, Kind::Content),
        (Api::ChatCompletions, b"messages") => ranked(1, Kind::Messages),
        (Api::Responses, b"input") | (Api::Messages, b"messages") => ranked(2, Kind::Messages),
        (Api::Completions, b"prompt") | (Api::Embeddings, b"input") => ranked(0, Kind::Prompts),
        // vLLM: embeddings of a conversation.
        (Api::Embeddings, b"messages") => ranked(0, Kind::Messages),
        _ => plain(Kind::Skip),
    }
}

/// A message of any API, or an item of a Responses input.
fn message_field(key: &[u8]) -> Slot {
    match key {
        b"role" => ranked(0, Kind::Text),
        b"content" => ranked(1, Kind::Content),
        b"reasoning_content" | b"reasoning" | b"summary" => ranked(2, Kind::Text),
        b"name" => ranked(3, Kind::Text),
        b"tool_call_id" | b"call_id" => ranked(4, Kind::Text),
        b"tool_calls" | b"function_call" => ranked(5, Kind::Json),
        b"arguments" => ranked(6, Kind::Text),
        b"output" => ranked(7, Kind::Content),
        _ => plain(Kind::Skip),
    }
}

/// A part of a content. What only steers the server's cache (`cache_control`) or is implied (`type`) is no text.
fn part_field(key: &[u8]) -> Slot {
    match key {
        b"text" | b"thinking" | b"refusal" => ranked(0, Kind::Text),
        b"image_url" | b"input_audio" | b"audio_url" | b"video_url" | b"image" | b"file" | b"source"
        | b"file_data" | b"file_id" | b"file_url" | b"data" => ranked(1, Kind::Media),
        b"name" => ranked(2, Kind::Text),
        b"id" | b"tool_use_id" => ranked(3, Kind::Text),
        b"input" => ranked(4, Kind::Json),
        b"content" => ranked(5, Kind::Content),
        b"title" => ranked(6, Kind::Text),
        b"context" => ranked(7, Kind::Text),
        _ => plain(Kind::Skip),
    }
}

const fn plain(kind: Kind) -> Slot {
    Slot { kind, rank: None }
}

const fn ranked(rank: u8, kind: Kind) -> Slot {
    Slot { kind, rank: Some(rank) }
}
