//! Models and adapters: which there are, loading and unloading, and what else is not generation.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Shared,
    error::{ApiError, json_response},
    generate::{Model, parse_object},
    prompt,
    text::Answer,
};
use crate::engine::{End, Request};

/// Adapters that a server has at most.
const ADAPTERS_MAX: usize = 1024;
/// Longest name of an adapter, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Numbers in an embedding.
const EMBEDDING_DIMENSIONS: u32 = 16;

/// `GET /v1/models`.
pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let created = shared.began_unix as u64;
    let card = |id: &str, root: String, parent: Option<&str>, max_model_len: Option<u32>| {
        json!({
            "id": id, "object": "model", "created": created, "owned_by": "vllm", "root": root, "parent": parent,
            "max_model_len": max_model_len, "permission": [],
        })
    };
    let base = &shared.config.model;
    let mut cards = vec![card(base, base.clone(), None, Some(shared.engine.max_model_len))];
    let adapters = shared.adapters.lock().clone();
    cards.extend(adapters.iter().map(|name| card(name, format!("/adapters/{name}"), Some(base), None)));
    json_response(StatusCode::OK, json!({"object": "list", "data": cards}).to_string())
}

/// `POST /v1/load_lora_adapter` with `lora_name` and `lora_path`.
pub(crate) async fn load_adapter(
    State(shared): State<Arc<Shared>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let body = parse_object(&body)?;
    let name = text(&body, "lora_name")?;
    text(&body, "lora_path")?;
    let mut adapters = shared.adapters.lock();
    if name == shared.config.model || adapters.iter().any(|adapter| **adapter == *name) {
        let message = format!("The lora adapter '{name}' has already been loaded.");
        return Err(ApiError::bad_request(message, None));
    }
    if adapters.len() == ADAPTERS_MAX || name.len() > NAME_BYTES_MAX {
        let message = format!("at most {ADAPTERS_MAX} adapters with names of {NAME_BYTES_MAX} bytes");
        return Err(ApiError::bad_request(message, None));
    }
    adapters.push(Arc::from(name));
    Ok(format!("Success: LoRA adapter '{name}' added successfully.").into_response())
}

/// `POST /v1/unload_lora_adapter` with `lora_name`. Requests that use it go on.
pub(crate) async fn unload_adapter(
    State(shared): State<Arc<Shared>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let body = parse_object(&body)?;
    let name = text(&body, "lora_name")?;
    let mut adapters = shared.adapters.lock();
    let Some(at) = adapters.iter().position(|adapter| **adapter == *name) else {
        return Err(ApiError::unknown_model(name));
    };
    adapters.remove(at);
    Ok(format!("Success: LoRA adapter '{name}' removed successfully.").into_response())
}

/// `POST /v1/embeddings`.
pub(crate) async fn embed(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let body = parse_object(&body)?;
    let model = shared.model(&body)?;
    let prompts = prompt::plain(&body, "input")?;
    let block_size = shared.engine.block_size;
    let adapter_name = model.adapter.as_deref().unwrap_or_default();
    let mut tickets = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        tickets.push(shared.driver.submit(Request {
            id: 0,
            prompt_tokens: prompt.len() as u32,
            output_tokens: 0,
            block_hashes: crate::tokens::block_hashes(prompt, block_size, adapter_name),
            adapter: model.adapter.clone(),
            end: End::Stop,
        })?);
    }
    for ticket in &mut tickets {
        let finished = ticket.progress.wait_for(|progress| progress.finished).await;
        finished
            .map_err(|_| ApiError::of_status(StatusCode::INTERNAL_SERVER_ERROR, "the engine has stopped"))?;
    }
    let datum = |(index, prompt): (usize, &Vec<u32>)| {
        let answer = Answer::new(prompt, &model.name, 0, shared.config.seed);
        json!({"index": index, "object": "embedding", "embedding": answer.embedding(EMBEDDING_DIMENSIONS)})
    };
    let data: Vec<Value> = prompts.iter().enumerate().map(datum).collect();
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let body = json!({
        "id": "embd-sim", "object": "list", "created": shared.unix_seconds() as u64, "model": model.name,
        "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

/// `POST /tokenize` with `prompt` or `messages`.
pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let body = parse_object(&body)?;
    shared.model(&body)?;
    let tokens = match body.get("prompt") {
        Some(_) => prompt::plain(&body, "prompt")?.concat(),
        None => prompt::chat(&body)?,
    };
    let max_model_len = shared.engine.max_model_len;
    let body =
        json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens, "token_strs": null});
    Ok(json_response(StatusCode::OK, body.to_string()))
}

impl Shared {
    /// Whom the request is for: without `model`, as with vLLM, the base model.
    pub(crate) fn model(&self, body: &Value) -> Result<Model, ApiError> {
        let base = &self.config.model;
        let name = match body.get("model") {
            None | Some(Value::Null) => base,
            Some(Value::String(name)) if name.is_empty() => base,
            Some(Value::String(name)) => name,
            Some(_) => return Err(ApiError::invalid("`model` is not a string")),
        };
        if name == base {
            return Ok(Model { name: name.clone(), adapter: None });
        }
        let adapters = self.adapters.lock();
        let adapter = adapters.iter().find(|adapter| ***adapter == **name).cloned();
        adapter.map_or_else(
            || Err(ApiError::unknown_model(name)),
            |adapter| Ok(Model { name: name.clone(), adapter: Some(adapter) }),
        )
    }
}

fn text<'a>(body: &'a Value, field: &'static str) -> Result<&'a str, ApiError> {
    let text = body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| {
        ApiError::bad_request("Both 'lora_name' and 'lora_path' must be provided.", Some(field))
    })
}
