//! The shapes of answers: one request's tokens as each API's JSON, whole or as events of a stream.
//!
//! The JSON is written out rather than derived, so that it can be held against what a real server sends: the order of
//! keys, the nulls, everything.

mod chat;
mod completions;
mod messages;
mod responses;

pub(crate) use self::{chat::Chat, completions::Completions, messages::Messages, responses::Responses};
use crate::engine::End;

/// One API's way to say things.
pub(crate) trait Dialect: Send + Sync {
    /// What comes before the first token.
    fn opening(&mut self, usage: Usage) -> String;
    /// One token of one choice; `end` with the last.
    fn delta(&mut self, choice: usize, text: &str, end: Option<End>) -> String;
    /// What comes after the last token of the last choice.
    fn closing(&mut self, usage: Usage) -> String;
    /// The whole answer at once, without a stream.
    fn whole(&self, choices: &[(String, End)], usage: Usage) -> String;
}

/// What every answer carries.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    /// Without the prefix that each API gives it; letters, digits and `-_.` only.
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Name of the model as a JSON string, quotes included.
    pub(crate) model: String,
    /// Answers there will be.
    pub(crate) choices: usize,
    /// Whether a stream ends with its usage although nobody has to ask for it elsewhere.
    pub(crate) include_usage: bool,
}

/// Tokens in and out, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: u32,
    /// Those of them that came from the cache.
    pub(crate) cached_tokens: u32,
    /// Tokens of all answers.
    pub(crate) completion_tokens: u32,
}

impl Usage {
    /// As OpenAI's older APIs and vLLM write it.
    fn openai(self) -> String {
        let Self { prompt_tokens, cached_tokens, completion_tokens } = self;
        let total = prompt_tokens + completion_tokens;
        format!(
            r#"{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{completion_tokens},"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}"#
        )
    }
}

/// An event without a name.
fn data(json: &str) -> String {
    format!("data: {json}\n\n")
}

/// An event with one.
fn event(name: &str, json: &str) -> String {
    format!("event: {name}\ndata: {json}\n\n")
}

/// A JSON string, quotes included.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `"stop"`, `"length"` or `null`.
fn finish_reason(end: Option<End>) -> &'static str {
    match end {
        None => "null",
        Some(End::Stop) => r#""stop""#,
        Some(End::Length) => r#""length""#,
    }
}
