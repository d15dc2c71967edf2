//! `/v1/responses`. One choice.

use super::{Dialect, Envelope, Usage, event, quoted};
use crate::engine::End;

/// Responses as OpenAI describes them.
#[derive(Debug)]
pub(crate) struct Responses {
    envelope: Envelope,
    /// Number of the next event.
    sequence: u64,
    /// Everything said so far: the events at the end repeat it.
    text: String,
    end: End,
}

impl Responses {
    /// An answer that has not begun.
    pub(crate) fn new(envelope: Envelope) -> Self {
        Self { envelope, sequence: 0, text: String::new(), end: End::Stop }
    }

    fn event(&mut self, name: &str, rest: &str) -> String {
        let sequence = self.sequence;
        self.sequence += 1;
        event(name, &format!(r#"{{"type":"{name}","sequence_number":{sequence},{rest}}}"#))
    }

    fn response(&self, status: &str, output: &str, end: End, usage: Option<Usage>) -> String {
        let Envelope { id, created, model, .. } = &self.envelope;
        let incomplete = match end {
            End::Stop => "null",
            End::Length => r#"{"reason":"max_output_tokens"}"#,
        };
        let usage = usage.map_or_else(|| "null".into(), responses_usage);
        format!(
            r#"{{"id":"resp_{id}","created_at":{created},"incomplete_details":{incomplete},"instructions":null,"metadata":null,"model":{model},"object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"auto","tools":[],"top_p":1.0,"status":"{status}","usage":{usage}}}"#
        )
    }

    fn item(&self, status: &str, content: &str) -> String {
        let id = &self.envelope.id;
        format!(
            r#"{{"id":"msg_{id}","content":[{content}],"role":"assistant","status":"{status}","type":"message"}}"#
        )
    }

    /// Where in the answer the text stands.
    fn place(&self) -> String {
        format!(r#""item_id":"msg_{}","output_index":0,"content_index":0"#, self.envelope.id)
    }
}

impl Dialect for Responses {
    fn opening(&mut self, _usage: Usage) -> String {
        let response = format!(r#""response":{}"#, self.response("in_progress", "", End::Stop, None));
        let item = format!(r#""output_index":0,"item":{}"#, self.item("in_progress", ""));
        let part = format!(r#"{},"part":{}"#, self.place(), part(""));
        self.event("response.created", &response)
            + &self.event("response.in_progress", &response)
            + &self.event("response.output_item.added", &item)
            + &self.event("response.content_part.added", &part)
    }

    fn delta(&mut self, _choice: usize, text: &str, end: Option<End>) -> String {
        self.text.push_str(text);
        self.end = end.unwrap_or(self.end);
        let delta = format!(r#"{},"delta":{},"logprobs":[]"#, self.place(), quoted(text));
        self.event("response.output_text.delta", &delta)
    }

    fn closing(&mut self, usage: Usage) -> String {
        let done = format!(r#"{},"text":{},"logprobs":[]"#, self.place(), quoted(&self.text));
        let part = part(&self.text);
        let part_done = format!(r#"{},"part":{part}"#, self.place());
        let item = self.item(status(self.end), &part);
        let item_done = format!(r#""output_index":0,"item":{item}"#);
        let response = self.response(status(self.end), &item, self.end, Some(usage));
        let last = format!("response.{}", status(self.end));
        self.event("response.output_text.done", &done)
            + &self.event("response.content_part.done", &part_done)
            + &self.event("response.output_item.done", &item_done)
            + &self.event(&last, &format!(r#""response":{response}"#))
    }

    fn whole(&self, choices: &[(String, End)], usage: Usage) -> String {
        let Some((text, end)) = choices.first() else { return "{}".into() };
        let item = self.item(status(*end), &part(text));
        self.response(status(*end), &item, *end, Some(usage))
    }
}

fn status(end: End) -> &'static str {
    match end {
        End::Stop => "completed",
        End::Length => "incomplete",
    }
}

fn part(text: &str) -> String {
    format!(r#"{{"annotations":[],"text":{},"type":"output_text","logprobs":null}}"#, quoted(text))
}

fn responses_usage(usage: Usage) -> String {
    let Usage { prompt_tokens, cached_tokens, completion_tokens } = usage;
    let total = prompt_tokens + completion_tokens;
    format!(
        r#"{{"input_tokens":{prompt_tokens},"input_tokens_details":{{"cached_tokens":{cached_tokens}}},"output_tokens":{completion_tokens},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{total}}}"#
    )
}
