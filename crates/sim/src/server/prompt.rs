//! What the model would see: the tokens of a request's prompt, for each of the APIs.
//!
//! Tools stand before messages, as chat templates put them; every header and every part is a segment of its own.

use serde_json::Value;

use super::error::ApiError;
use crate::tokens::tokenize;

/// Prompts and choices that one request may ask for, multiplied.
pub(crate) const CHOICES_MAX: usize = 256;

/// The prompt of `/v1/chat/completions`.
pub(crate) fn chat(body: &Value) -> Result<Vec<u32>, ApiError> {
    let mut tokens = Vec::new();
    tools(body, &mut tokens);
    for message in required_array(body, "messages")? {
        turn(message, "user", &mut tokens)?;
    }
    Ok(opened(tokens))
}

/// The prompt of `/v1/messages`.
pub(crate) fn messages(body: &Value) -> Result<Vec<u32>, ApiError> {
    let mut tokens = Vec::new();
    tools(body, &mut tokens);
    if let Some(system) = body.get("system") {
        header("system", &mut tokens);
        content(system, &mut tokens)?;
    }
    for message in required_array(body, "messages")? {
        turn(message, "user", &mut tokens)?;
    }
    Ok(opened(tokens))
}

/// The prompt of `/v1/responses`.
pub(crate) fn responses(body: &Value) -> Result<Vec<u32>, ApiError> {
    let mut tokens = Vec::new();
    tools(body, &mut tokens);
    if let Some(instructions) = body.get("instructions") {
        header("system", &mut tokens);
        content(instructions, &mut tokens)?;
    }
    match body.get("input") {
        Some(Value::String(text)) => {
            header("user", &mut tokens);
            tokenize(text.as_bytes(), &mut tokens);
        }
        Some(Value::Array(items)) => items.iter().try_for_each(|item| turn(item, "tool", &mut tokens))?,
        _ => return Err(missing("input")),
    }
    Ok(opened(tokens))
}

/// The prompts of `/v1/completions` (`field` is `prompt`) and `/v1/embeddings` (`input`): text, texts, tokens, or
/// lists of tokens.
pub(crate) fn plain(body: &Value, field: &'static str) -> Result<Vec<Vec<u32>>, ApiError> {
    match body.get(field) {
        Some(Value::String(text)) => Ok(vec![text_tokens(text)]),
        Some(Value::Array(items)) if items.len() > CHOICES_MAX && !items[0].is_number() => {
            Err(ApiError::bad_request(format!("at most {CHOICES_MAX} prompts in one request"), Some(field)))
        }
        Some(Value::Array(items)) => match items.first() {
            None => Err(ApiError::bad_request(format!("`{field}` is empty"), Some(field))),
            Some(Value::Number(_)) => Ok(vec![token_ids(items, field)?]),
            Some(_) => items.iter().map(|item| one_plain(item, field)).collect(),
        },
        _ => Err(missing(field)),
    }
}

fn one_plain(item: &Value, field: &'static str) -> Result<Vec<u32>, ApiError> {
    match item {
        Value::String(text) => Ok(text_tokens(text)),
        Value::Array(ids) => token_ids(ids, field),
        _ => Err(ApiError::invalid(format!("`{field}` is neither text nor tokens"))),
    }
}

fn token_ids(ids: &[Value], field: &'static str) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
    ids.ok_or_else(|| ApiError::invalid(format!("`{field}` holds something that is not a token id")))
}

fn text_tokens(text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    tokenize(text.as_bytes(), &mut tokens);
    tokens
}

fn tools(body: &Value, tokens: &mut Vec<u32>) {
    let tools = body.get("tools").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for tool in tools {
        header("tool", tokens);
        tokenize(tool.to_string().as_bytes(), tokens);
    }
}

/// One message, or another item of a conversation (a tool's result) by the role `otherwise`.
fn turn(message: &Value, otherwise: &str, tokens: &mut Vec<u32>) -> Result<(), ApiError> {
    if !message.is_object() {
        return Err(ApiError::invalid("a message is not an object"));
    }
    header(message.get("role").and_then(Value::as_str).unwrap_or(otherwise), tokens);
    for field in ["content", "output", "arguments"] {
        message.get(field).map_or(Ok(()), |value| content(value, tokens))?;
    }
    if let Some(calls) = message.get("tool_calls") {
        tokenize(calls.to_string().as_bytes(), tokens);
    }
    tokenize(b"<|im_end|>\n", tokens);
    Ok(())
}

/// Text, or a list of parts; a part that is not text (an image) stands for itself by its JSON.
fn content(value: &Value, tokens: &mut Vec<u32>) -> Result<(), ApiError> {
    match value {
        Value::Null => {}
        Value::String(text) => tokenize(text.as_bytes(), tokens),
        Value::Array(parts) => {
            for part in parts {
                match part.get("text").and_then(Value::as_str).or(part.as_str()) {
                    Some(text) => tokenize(text.as_bytes(), tokens),
                    None => tokenize(part.to_string().as_bytes(), tokens),
                }
            }
        }
        _ => return Err(ApiError::invalid("content is neither text nor a list of parts")),
    }
    Ok(())
}

fn header(role: &str, tokens: &mut Vec<u32>) {
    tokenize(format!("<|im_start|>{role}\n").as_bytes(), tokens);
}

/// The prompt with the header that the answer follows.
fn opened(mut tokens: Vec<u32>) -> Vec<u32> {
    header("assistant", &mut tokens);
    tokens
}

fn required_array<'a>(body: &'a Value, field: &'static str) -> Result<&'a [Value], ApiError> {
    body.get(field).and_then(Value::as_array).map(Vec::as_slice).ok_or_else(|| missing(field))
}

fn missing(field: &str) -> ApiError {
    ApiError::invalid(format!("[{{'type': 'missing', 'loc': ('body', '{field}'), 'msg': 'Field required'}}]"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_conversation_that_goes_on_begins_with_the_tokens_it_had() {
        let first = chat(&json!({"messages": [{"role": "user", "content": "hello"}]})).unwrap();
        let next = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": "the sun "},
            {"role": "user", "content": "and?"},
        ]});
        let next = chat(&next).unwrap();
        assert_eq!(next[..first.len()], first);
        let mut answer = Vec::new();
        tokenize(b"the sun ", &mut answer);
        assert_eq!(next[first.len()..][..2], answer);
    }

    #[test]
    fn tools_stand_before_messages_wherever_they_are_in_the_body() {
        let with =
            chat(&json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "t"}]})).unwrap();
        let without = chat(&json!({"messages": [{"role": "user", "content": "x"}]})).unwrap();
        assert!(with.ends_with(&without) && with.len() > without.len());
    }

    #[test]
    fn prompts_come_as_text_texts_tokens_and_lists_of_tokens() {
        let prompts = |prompt: Value| plain(&json!({ "prompt": prompt }), "prompt").unwrap();
        assert_eq!(prompts(json!("abcdefgh")).len(), 1);
        assert_eq!(prompts(json!(["abcd", "efgh"])), [text_tokens("abcd"), text_tokens("efgh")]);
        assert_eq!(prompts(json!([1, 2, 3])), [[1, 2, 3]]);
        assert_eq!(prompts(json!([[1], [2]])), [[1], [2]]);
        assert_eq!(prompts(json!(vec![7; 1000]))[0].len(), 1000);
    }

    #[test]
    fn nonsense_is_refused() {
        for body in [json!({}), json!({"messages": "x"}), json!({"messages": [1]})] {
            assert!(chat(&body).is_err() && messages(&body).is_err(), "{body}");
        }
        assert!(chat(&json!({"messages": [{"role": "user", "content": 5}]})).is_err());
        assert!(responses(&json!({"input": 5})).is_err());
        for prompt in
            [json!([]), json!(null), json!([1, "x"]), json!([[1], 2]), json!([-1]), json!(vec!["x"; 257])]
        {
            assert!(plain(&json!({ "prompt": prompt }), "prompt").is_err(), "{prompt}");
        }
    }
}
