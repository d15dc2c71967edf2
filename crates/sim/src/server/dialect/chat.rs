//! `/v1/chat/completions`.

use super::{Dialect, Envelope, Usage, data, finish_reason, quoted};
use crate::engine::End;

/// Chat completions as vLLM writes them.
#[derive(Debug)]
pub(crate) struct Chat(pub(crate) Envelope);

impl Chat {
    fn chunk(&self, rest: &str) -> String {
        let Envelope { id, created, model, .. } = &self.0;
        data(&format!(
            r#"{{"id":"chatcmpl-{id}","object":"chat.completion.chunk","created":{created},"model":{model},{rest}}}"#
        ))
    }
}

impl Dialect for Chat {
    fn opening(&mut self, _usage: Usage) -> String {
        let role = |choice| {
            self.chunk(&format!(
                r#""choices":[{{"index":{choice},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}],"prompt_token_ids":null"#
            ))
        };
        (0..self.0.choices).map(role).collect()
    }

    fn delta(&mut self, choice: usize, text: &str, end: Option<End>) -> String {
        let (text, reason) = (quoted(text), finish_reason(end));
        let stop = if end.is_some() { r#","stop_reason":null"# } else { "" };
        self.chunk(&format!(
            r#""choices":[{{"index":{choice},"delta":{{"content":{text}}},"logprobs":null,"finish_reason":{reason}{stop},"token_ids":null}}]"#
        ))
    }

    fn closing(&mut self, usage: Usage) -> String {
        let usage = match self.0.include_usage {
            true => self.chunk(&format!(r#""choices":[],"usage":{}"#, usage.openai())),
            false => String::new(),
        };
        usage + &data("[DONE]")
    }

    fn whole(&self, choices: &[(String, End)], usage: Usage) -> String {
        let choice = |(index, (text, end)): (usize, &(String, End))| {
            let (text, reason) = (quoted(text), finish_reason(Some(*end)));
            format!(
                r#"{{"index":{index},"message":{{"role":"assistant","content":{text},"refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning":null}},"logprobs":null,"finish_reason":{reason},"stop_reason":null,"token_ids":null}}"#
            )
        };
        let choices: Vec<String> = choices.iter().enumerate().map(choice).collect();
        let Envelope { id, created, model, .. } = &self.0;
        let (choices, usage) = (choices.join(","), usage.openai());
        format!(
            r#"{{"id":"chatcmpl-{id}","object":"chat.completion","created":{created},"model":{model},"choices":[{choices}],"service_tier":null,"system_fingerprint":null,"usage":{usage},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}}"#
        )
    }
}
