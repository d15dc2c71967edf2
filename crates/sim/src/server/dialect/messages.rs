//! `/v1/messages`, Anthropic's API. One choice.

use super::{Dialect, Envelope, Usage, event, quoted};
use crate::engine::End;

/// Messages as Anthropic describes them.
#[derive(Debug)]
pub(crate) struct Messages {
    envelope: Envelope,
    end: End,
}

impl Messages {
    /// An answer that has not begun.
    pub(crate) fn new(envelope: Envelope) -> Self {
        Self { envelope, end: End::Stop }
    }

    fn message(&self, content: &str, stop_reason: &str, usage: &str) -> String {
        let Envelope { id, model, .. } = &self.envelope;
        format!(
            r#"{{"id":"msg_{id}","type":"message","role":"assistant","content":[{content}],"model":{model},"stop_reason":{stop_reason},"stop_sequence":null,"usage":{usage}}}"#
        )
    }
}

impl Dialect for Messages {
    fn opening(&mut self, usage: Usage) -> String {
        let message = self.message("", "null", &anthropic(usage));
        let start = event("message_start", &format!(r#"{{"type":"message_start","message":{message}}}"#));
        let block = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
        start + &event("content_block_start", block)
    }

    fn delta(&mut self, _choice: usize, text: &str, end: Option<End>) -> String {
        self.end = end.unwrap_or(self.end);
        let text = quoted(text);
        let json = format!(
            r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":{text}}}}}"#
        );
        event("content_block_delta", &json)
    }

    fn closing(&mut self, usage: Usage) -> String {
        let (reason, usage) = (stop_reason(self.end), anthropic(usage));
        let delta = format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":{reason},"stop_sequence":null}},"usage":{usage}}}"#
        );
        event("content_block_stop", r#"{"type":"content_block_stop","index":0}"#)
            + &event("message_delta", &delta)
            + &event("message_stop", r#"{"type":"message_stop"}"#)
    }

    fn whole(&self, choices: &[(String, End)], usage: Usage) -> String {
        let Some((text, end)) = choices.first() else { return "{}".into() };
        let content = format!(r#"{{"type":"text","text":{}}}"#, quoted(text));
        self.message(&content, stop_reason(*end), &anthropic(usage))
    }
}

fn stop_reason(end: End) -> &'static str {
    match end {
        End::Stop => r#""end_turn""#,
        End::Length => r#""max_tokens""#,
    }
}

/// Cached tokens are counted beside the others, not among them.
fn anthropic(usage: Usage) -> String {
    let Usage { prompt_tokens, cached_tokens, completion_tokens } = usage;
    let input = prompt_tokens - cached_tokens.min(prompt_tokens);
    format!(
        r#"{{"input_tokens":{input},"cache_creation_input_tokens":0,"cache_read_input_tokens":{cached_tokens},"output_tokens":{completion_tokens}}}"#
    )
}
