//! `/v1/completions`.

use super::{Dialect, Envelope, Usage, data, finish_reason, quoted};
use crate::engine::End;

/// Completions as vLLM writes them.
#[derive(Debug)]
pub(crate) struct Completions(pub(crate) Envelope);

impl Completions {
    fn chunk(&self, choices: &str, usage: &str) -> String {
        let Envelope { id, created, model, .. } = &self.0;
        data(&format!(
            r#"{{"id":"cmpl-{id}","object":"text_completion","created":{created},"model":{model},"choices":[{choices}],"usage":{usage}}}"#
        ))
    }
}

impl Dialect for Completions {
    fn opening(&mut self, _usage: Usage) -> String {
        String::new()
    }

    fn delta(&mut self, choice: usize, text: &str, end: Option<End>) -> String {
        let (text, reason) = (quoted(text), finish_reason(end));
        let choice = format!(
            r#"{{"index":{choice},"text":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}"#
        );
        self.chunk(&choice, "null")
    }

    fn closing(&mut self, usage: Usage) -> String {
        let usage = if self.0.include_usage { self.chunk("", &usage.openai()) } else { String::new() };
        usage + &data("[DONE]")
    }

    fn whole(&self, choices: &[(String, End)], usage: Usage) -> String {
        let choice = |(index, (text, end)): (usize, &(String, End))| {
            let (text, reason) = (quoted(text), finish_reason(Some(*end)));
            format!(
                r#"{{"index":{index},"text":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null}}"#
            )
        };
        let choices: Vec<String> = choices.iter().enumerate().map(choice).collect();
        let Envelope { id, created, model, .. } = &self.0;
        let (choices, usage) = (choices.join(","), usage.openai());
        format!(
            r#"{{"id":"cmpl-{id}","object":"text_completion","created":{created},"model":{model},"choices":[{choices}],"service_tier":null,"system_fingerprint":null,"usage":{usage},"kv_transfer_params":null}}"#
        )
    }
}
