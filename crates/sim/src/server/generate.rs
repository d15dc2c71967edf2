//! One request for text: what is asked, put to the engine, said in the API's dialect, whole or as a stream.

use std::{io, pin::Pin, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{SelectAll, once, select_all, unfold},
};
use serde_json::Value;

use super::{
    Shared,
    dialect::{Chat, Completions, Dialect, Envelope, Messages, Responses, Usage, quoted},
    driver::Ticket,
    error::{ApiError, json_response},
    prompt::{self, CHOICES_MAX},
    text::Answer,
};
use crate::{
    engine::{End, Request},
    tokens::block_hashes,
};

/// The APIs that generate text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completions,
    Messages,
    Responses,
}

/// Answers one request.
pub(crate) async fn generate(shared: &Arc<Shared>, api: Api, headers: &HeaderMap, body: &[u8]) -> Response {
    let answered = match Ask::parse(shared, api, body) {
        Ok(ask) => respond(shared, api, headers, ask).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| match api {
        Api::Messages => error.anthropic(),
        _ => error.into_response(),
    })
}

/// What a client asks for.
#[derive(Debug)]
struct Ask {
    model: Model,
    prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    n: u32,
    /// The client's limit, in tokens.
    max_tokens: Option<u32>,
    ignore_eos: bool,
    stream: bool,
    include_usage: bool,
}

/// Whom a request is for.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// As it was asked for; the base model's when it was not.
    pub(crate) name: String,
    /// The adapter of that name, none for the base model.
    pub(crate) adapter: Option<Arc<str>>,
}

/// One answer on its way.
#[derive(Debug)]
struct Choice {
    ticket: Ticket,
    answer: Answer,
    output_tokens: u32,
    end: End,
    sent: u32,
}

/// The server stopped before the answer was complete.
#[derive(Debug)]
struct Stopped;

impl Ask {
    fn parse(shared: &Shared, api: Api, body: &[u8]) -> Result<Self, ApiError> {
        let body = parse_object(body)?;
        let model = shared.model(&body)?;
        let prompts = match api {
            Api::Chat => vec![prompt::chat(&body)?],
            Api::Completions => prompt::plain(&body, "prompt")?,
            Api::Messages => vec![prompt::messages(&body)?],
            Api::Responses => vec![prompt::responses(&body)?],
        };
        let n = match api {
            Api::Chat | Api::Completions => positive(&body, "n")?.unwrap_or(1),
            Api::Messages | Api::Responses => 1,
        };
        if prompts.len() as u64 * u64::from(n) > CHOICES_MAX as u64 {
            return Err(ApiError::bad_request(
                format!("at most {CHOICES_MAX} choices in one request"),
                Some("n"),
            ));
        }
        let max_tokens = match api {
            Api::Chat => positive(&body, "max_completion_tokens")?.or(positive(&body, "max_tokens")?),
            Api::Completions => positive(&body, "max_tokens")?.or(Some(16)),
            Api::Messages => Some(
                positive(&body, "max_tokens")?
                    .ok_or_else(|| ApiError::invalid("max_tokens: Field required"))?,
            ),
            Api::Responses => positive(&body, "max_output_tokens")?,
        };
        let flag = |value: Option<&Value>| value.and_then(Value::as_bool).unwrap_or(false);
        Ok(Self {
            model,
            prompts,
            n,
            max_tokens,
            ignore_eos: flag(body.get("ignore_eos")),
            stream: flag(body.get("stream")),
            include_usage: flag(body.pointer("/stream_options/include_usage")),
        })
    }

    /// Puts every prompt to the engine, all or none.
    fn submit(&self, shared: &Shared) -> Result<Vec<Choice>, ApiError> {
        let mut choices = Vec::with_capacity(self.prompts.len() * self.n as usize);
        for prompt in &self.prompts {
            for number in 0..self.n {
                let answer = Answer::new(prompt, &self.model.name, u64::from(number), shared.config.seed);
                choices.push(self.submit_one(shared, prompt, answer)?);
            }
        }
        Ok(choices)
    }

    fn submit_one(&self, shared: &Shared, prompt: &[u32], answer: Answer) -> Result<Choice, ApiError> {
        let (config, engine) = (&shared.config, &shared.engine);
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX).max(1);
        let room = engine.max_model_len.saturating_sub(prompt_tokens).max(1);
        let natural = answer.length(config.output_tokens_min, config.output_tokens_max).min(room);
        let (output_tokens, end) = match self.max_tokens {
            Some(max) if max <= natural || self.ignore_eos => (max, End::Length),
            _ => (natural, End::Stop),
        };
        let mut tokens = prompt.to_vec();
        // Whatever does not fit is refused below; its answer need not be made up first.
        tokens.extend(answer.tokens(output_tokens.min(room)));
        let adapter = self.model.adapter.clone();
        let block_hashes = block_hashes(&tokens, engine.block_size, adapter.as_deref().unwrap_or_default());
        let request = Request { id: 0, prompt_tokens, output_tokens, block_hashes, adapter, end };
        let ticket = shared.driver.submit(request)?;
        Ok(Choice { ticket, answer, output_tokens, end, sent: 0 })
    }

    fn prompt_tokens(&self) -> u32 {
        self.prompts.iter().map(|prompt| prompt.len() as u32).sum()
    }
}

async fn respond(
    shared: &Arc<Shared>,
    api: Api,
    headers: &HeaderMap,
    ask: Ask,
) -> Result<Response, ApiError> {
    let choices = ask.submit(shared)?;
    let envelope = Envelope {
        id: shared.request_id(headers),
        created: shared.unix_seconds() as u64,
        model: quoted(&ask.model.name),
        choices: choices.len(),
        include_usage: ask.include_usage,
    };
    let dialect: Box<dyn Dialect> = match api {
        Api::Chat => Box::new(Chat(envelope)),
        Api::Completions => Box::new(Completions(envelope)),
        Api::Messages => Box::new(Messages::new(envelope)),
        Api::Responses => Box::new(Responses::new(envelope)),
    };
    let usage = Usage { prompt_tokens: ask.prompt_tokens(), ..Usage::default() };
    let cut_after = shared.faults.lock().break_after_tokens;
    if ask.stream {
        Ok(Streaming::new(dialect, choices, usage, ask.n, cut_after).into_response())
    } else {
        Ok(whole(dialect.as_ref(), choices, usage, ask.n, cut_after).await)
    }
}

async fn whole(
    dialect: &dyn Dialect,
    mut choices: Vec<Choice>,
    mut usage: Usage,
    n: u32,
    cut_after: Option<u32>,
) -> Response {
    for (index, choice) in choices.iter_mut().enumerate() {
        let until = cut_after.map_or(choice.output_tokens, |cut| cut.min(choice.output_tokens));
        let progress =
            choice.ticket.progress.wait_for(|progress| progress.finished || progress.tokens > until).await;
        let Ok(progress) = progress.map(|progress| *progress) else {
            return ApiError::of_status(StatusCode::INTERNAL_SERVER_ERROR, "the engine has stopped")
                .into_response();
        };
        usage.completion_tokens += choice.output_tokens;
        // Choices of one prompt share it.
        usage.cached_tokens += if index.is_multiple_of(n as usize) { progress.cached_tokens } else { 0 };
    }
    let said: Vec<(String, End)> =
        choices.iter().map(|choice| (choice.answer.text(choice.output_tokens), choice.end)).collect();
    let text = dialect.whole(&said, usage);
    match cut_after {
        Some(cut) if cut < usage.completion_tokens => broken(&text),
        _ => json_response(StatusCode::OK, text),
    }
}

/// A response that promises all of `text` and breaks off in the middle.
fn broken(text: &str) -> Response {
    let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
    let body = Body::from_stream(once(async { Ok(half) }).chain(once(cut())));
    let length = HeaderValue::from(text.len());
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json), (header::CONTENT_LENGTH, length)], body).into_response()
}

impl Choice {
    /// Waits for the next token and says which it is and how much of the prompt was cached; `None` after the last.
    async fn next(&mut self) -> Option<Result<(u32, u32), Stopped>> {
        if self.sent == self.output_tokens {
            return None;
        }
        let sent = self.sent;
        let progress = match self.ticket.progress.wait_for(|progress| progress.tokens > sent).await {
            Ok(progress) => *progress,
            Err(_) => return Some(Err(Stopped)),
        };
        self.sent += 1;
        Some(Ok((sent, progress.cached_tokens)))
    }
}

/// A token of one of the choices.
#[derive(Debug)]
struct Said {
    choice: usize,
    text: &'static str,
    end: Option<End>,
    first: bool,
    cached_tokens: u32,
}

type Tokens = SelectAll<Pin<Box<dyn Stream<Item = Result<Said, Stopped>> + Send>>>;

/// A stream of events being written.
struct Streaming {
    dialect: Box<dyn Dialect>,
    tokens: Tokens,
    usage: Usage,
    n: u32,
    opened: bool,
    closed: bool,
    cut_after: Option<u32>,
}

impl Streaming {
    fn new(
        dialect: Box<dyn Dialect>,
        choices: Vec<Choice>,
        usage: Usage,
        n: u32,
        cut_after: Option<u32>,
    ) -> Self {
        let tokens =
            select_all(choices.into_iter().enumerate().map(|(index, choice)| tokens_of(index, choice)));
        Self { dialect, tokens, usage, n, opened: false, closed: false, cut_after }
    }

    /// The events of the next token, or those after the last.
    async fn frame(&mut self) -> Option<io::Result<Bytes>> {
        if self.closed {
            return None;
        }
        if self.cut_after.is_some_and(|cut| self.usage.completion_tokens >= cut) {
            self.closed = true;
            return Some(cut().await);
        }
        match self.tokens.next().await {
            Some(Ok(said)) => Some(Ok(self.say(&said))),
            Some(Err(Stopped)) => {
                self.closed = true;
                Some(cut().await)
            }
            None => {
                self.closed = true;
                Some(Ok(self.dialect.closing(self.usage).into()))
            }
        }
    }

    fn say(&mut self, said: &Said) -> Bytes {
        if said.first && said.choice.is_multiple_of(self.n as usize) {
            self.usage.cached_tokens += said.cached_tokens;
        }
        let opening = match std::mem::replace(&mut self.opened, true) {
            true => String::new(),
            false => self.dialect.opening(self.usage),
        };
        self.usage.completion_tokens += 1;
        (opening + &self.dialect.delta(said.choice, said.text, said.end)).into()
    }
}

impl IntoResponse for Streaming {
    fn into_response(self) -> Response {
        let frames = unfold(self, |mut streaming| async move {
            let frame = streaming.frame().await?;
            Some((frame, streaming))
        });
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        (headers, Body::from_stream(frames)).into_response()
    }
}

fn tokens_of(index: usize, choice: Choice) -> Pin<Box<dyn Stream<Item = Result<Said, Stopped>> + Send>> {
    let tokens = unfold(choice, move |mut choice| async move {
        let said = choice.next().await?.map(|(token, cached_tokens)| Said {
            choice: index,
            text: choice.answer.token(token),
            end: (token + 1 == choice.output_tokens).then_some(choice.end),
            first: token == 0,
            cached_tokens,
        });
        Some((said, choice))
    });
    Box::pin(tokens)
}

/// The error that makes the connection break, once what was sent before is on its way: without the pause the
/// connection would take its unsent bytes with it.
async fn cut() -> io::Result<Bytes> {
    tokio::task::yield_now().await;
    Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut off on purpose, or the server stops"))
}

/// A body that has to be a JSON object.
pub(crate) fn parse_object(body: &[u8]) -> Result<Value, ApiError> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("JSON decode error: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(ApiError::invalid("the body is not a JSON object")) }
}

/// A whole number above zero, if it is there and not null.
fn positive(body: &Value, field: &'static str) -> Result<Option<u32>, ApiError> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(0) => Err(ApiError::bad_request(format!("{field} must be at least 1, got 0."), Some(field))),
            Some(number) => Ok(Some(u32::try_from(number).unwrap_or(u32::MAX))),
            None => Err(ApiError::invalid(format!("`{field}` is not a whole number above zero"))),
        },
    }
}
