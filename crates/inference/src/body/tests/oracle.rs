//! The slow and obvious way: take out of a whole tree what was asked. Fuzzing has the same oracle.

use std::hash::Hasher as _;

use twox_hash::XxHash3_64;

use crate::testing::Json;
use crate::{Api, Asked};

const MESSAGE: [&str; 12] = [
    "role",
    "content",
    "reasoning",
    "reasoning_content",
    "summary",
    "name",
    "tool_call_id",
    "call_id",
    "tool_calls",
    "function_call",
    "arguments",
    "output",
];
const PART: [&str; 21] = [
    "text",
    "thinking",
    "refusal",
    "name",
    "id",
    "tool_use_id",
    "input",
    "title",
    "context",
    "content",
    "image_url",
    "input_audio",
    "audio_url",
    "video_url",
    "image",
    "source",
    "file",
    "file_id",
    "file_url",
    "file_data",
    "data",
];

/// What is asked, but for where the model stands; of a prompt that is missing, what stands before it. `None` when a
/// field has a type that must be refused.
pub(super) fn asked(api: Api, bytes_max: usize, request: &[(String, Json)]) -> Option<Asked> {
    let model = match last(request, "model") {
        Some(Json::String(model)) => Some(model.clone()),
        None | Some(Json::Null) => None,
        Some(_) => return None,
    };
    let stream = last(request, "stream") == Some(&Json::Bool(true));
    let limits: &[&str] = match api {
        Api::ChatCompletions => &["max_completion_tokens", "max_tokens"],
        Api::Responses => &["max_output_tokens"],
        Api::Embeddings => &[],
        Api::Completions | Api::Messages => &["max_tokens"],
    };
    let max_tokens = limits.iter().find_map(|key| match last(request, key) {
        Some(Json::Number(number)) => number.parse().ok(),
        _ => None,
    });

    let mut prompt = Vec::new();
    let system = match api {
        Api::Responses => Some("instructions"),
        Api::Messages => Some("system"),
        _ => None,
    };
    if let Some(tools) = present(request, "tools")
        && !matches!(api, Api::Completions | Api::Embeddings)
    {
        kept(tools, &mut prompt);
    }
    if let Some(system) = system.and_then(|key| present(request, key)) {
        prompt.extend(b"\xFC\x01");
        content(system, 1, &mut prompt);
    }
    match required(api, request) {
        None => {}
        Some(("prompt", value)) => prompts(value, &mut prompt)?,
        Some(("input", value)) if api == Api::Embeddings => prompts(value, &mut prompt)?,
        Some((_, value)) => {
            if api != Api::Embeddings {
                prompt.extend([0xFC, if system.is_some() { 2 } else { 1 }]);
            }
            match value {
                Json::Array(messages) => messages.iter().for_each(|message| item(message, &mut prompt)),
                Json::String(text) if api == Api::Responses => {
                    prompt.extend([b"\xFFuser\xFC\x01", text.as_bytes()].concat());
                }
                _ => return None,
            }
        }
    }
    prompt.truncate(bytes_max);
    Some(Asked { model, model_span: None, stream, max_tokens, prompt })
}

/// The field without which there is no prompt, by the name it has.
pub(super) fn required(api: Api, request: &[(String, Json)]) -> Option<(&str, &Json)> {
    let names: &[&str] = match api {
        Api::Completions => &["prompt"],
        Api::Embeddings => &["input", "messages"],
        Api::Responses => &["input"],
        Api::ChatCompletions | Api::Messages => &["messages"],
    };
    let (name, value) = request.iter().rev().find(|(name, _)| names.contains(&name.as_str()))?;
    (*value != Json::Null).then_some((name, value))
}

fn last<'a>(object: &'a [(String, Json)], key: &str) -> Option<&'a Json> {
    object.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
}

fn present<'a>(object: &'a [(String, Json)], key: &str) -> Option<&'a Json> {
    last(object, key).filter(|value| **value != Json::Null)
}

fn item(message: &Json, out: &mut Vec<u8>) {
    out.push(0xFF);
    let Json::Object(fields) = message else { return kept(message, out) };
    for (rank, key) in MESSAGE.iter().enumerate() {
        let Some(value) = present(fields, key) else { continue };
        if rank > 0 {
            out.extend([0xFC, rank as u8]);
        }
        match *key {
            "content" | "summary" | "output" => content(value, 2, out),
            "tool_calls" | "function_call" => kept(value, out),
            _ => text(value, out),
        }
    }
}

/// `depth`: how many records stand around the content.
fn content(value: &Json, depth: usize, out: &mut Vec<u8>) {
    let Json::Array(parts) = value else { return text(value, out) };
    let start = out.len();
    for part in parts {
        if out.len() > start {
            out.push(0xFE);
        }
        let Json::Object(fields) = part else {
            text(part, out);
            continue;
        };
        for (rank, key) in PART.iter().enumerate() {
            let Some(value) = present(fields, key) else { continue };
            if rank > 0 {
                out.extend([0xFC, rank as u8]);
            }
            match *key {
                "text" | "thinking" | "refusal" | "name" | "id" | "tool_use_id" | "title" | "context" => {
                    text(value, out);
                }
                "content" if depth < 3 => content(value, depth + 1, out),
                "content" | "input" => kept(value, out),
                _ => media(value, out),
            }
        }
    }
}

fn text(value: &Json, out: &mut Vec<u8>) {
    match value {
        Json::String(text) => out.extend(text.as_bytes()),
        other => kept(other, out),
    }
}

fn kept(value: &Json, out: &mut Vec<u8>) {
    match value {
        Json::Null => out.extend(b"null"),
        Json::Bool(value) => out.extend(value.to_string().as_bytes()),
        Json::Number(number) => out.extend(number.as_bytes()),
        Json::String(text) => out.extend([b"\xFD", text.as_bytes(), b"\xFD"].concat()),
        Json::Array(elements) => {
            out.push(b'[');
            for element in elements {
                kept(element, out);
                out.push(b',');
            }
            out.push(b']');
        }
        Json::Object(fields) => {
            out.push(b'{');
            for (key, value) in fields {
                out.extend([b"\xFD", key.as_bytes(), b"\xFD:"].concat());
                kept(value, out);
                out.push(b',');
            }
            out.push(b'}');
        }
    }
}

fn media(value: &Json, out: &mut Vec<u8>) {
    match value {
        Json::String(text) => {
            let mut hasher = XxHash3_64::new();
            hasher.write(text.as_bytes());
            out.push(0xC1);
            out.extend(format!("{:016x}", hasher.finish()).as_bytes());
        }
        Json::Array(elements) => elements.iter().for_each(|element| media(element, out)),
        Json::Object(fields) => {
            for (key, value) in fields {
                if ["url", "data", "file_data", "file_id", "content"].contains(&key.as_str()) {
                    media(value, out);
                }
            }
        }
        _ => {}
    }
}

fn prompts(value: &Json, out: &mut Vec<u8>) -> Option<()> {
    let elements = match value {
        Json::String(text) => {
            out.extend(text.as_bytes());
            return Some(());
        }
        Json::Array(elements) => elements,
        _ => return None,
    };
    for element in elements {
        let later = !out.is_empty();
        match element {
            Json::Number(number) => out.extend(token(number)),
            Json::String(text) => {
                if later {
                    out.push(0xFF);
                }
                out.extend(text.as_bytes());
            }
            Json::Array(tokens) => {
                if later {
                    out.extend([0xFF; 4]);
                }
                for element in tokens {
                    match element {
                        Json::Number(number) => out.extend(token(number)),
                        other => kept(other, out),
                    }
                }
            }
            other => kept(other, out),
        }
    }
    Some(())
}

fn token(number: &str) -> [u8; 4] {
    number.parse().unwrap_or(u32::MAX).to_le_bytes()
}
