//! What the events of a request body mean: from JSON to [`Asked`] and the canonical prompt.

use std::hash::Hasher as _;

use twox_hash::XxHash3_64;

use super::shape::{self, Kind, Shape, Slot};
use super::{Asked, MODEL_BYTES_MAX, Malformed, Need};
use crate::Api;
use crate::json::{Event, Key, Literal};
use crate::prompt::{self, Prompt};

/// Parts inside parts (a tool's result holds parts of its own) are understood down to this many records.
const RECORDS_MAX: usize = 4;

/// What the events of a body mean.
pub(super) struct Reader {
    api: Api,
    need: Need,
    /// The kinds of the open arrays and objects, and their own slots.
    open: Vec<(Slot, Kind)>,
    /// What the value of the key just read means, or the request as a whole.
    keyed: Option<Slot>,
    key: Key,
    /// The slot of the open string or number.
    scalar: Slot,
    /// Where the text of the open string goes.
    into: Into,
    digest: Option<XxHash3_64>,
    /// The open model name, in whole characters.
    model: Vec<u8>,
    model_start: usize,
    max_completion_tokens: Option<u64>,
    prompt: Prompt,
    lookahead_over: bool,
    stream_known: bool,
    asked: Asked,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Into {
    Nothing,
    Key,
    Model,
    Prompt,
    Digest,
}

impl Reader {
    pub(super) fn new(api: Api, need: Need) -> Self {
        Self {
            api,
            need,
            open: Vec::with_capacity(8),
            keyed: Some(shape::REQUEST),
            key: Key::default(),
            scalar: shape::REQUEST,
            into: Into::Nothing,
            digest: None,
            model: Vec::new(),
            model_start: 0,
            max_completion_tokens: None,
            prompt: Prompt::new(shape::ranks(api, Kind::Request), need.prompt_bytes_max),
            lookahead_over: false,
            stream_known: false,
            asked: Asked::default(),
        }
    }

    pub(super) fn is_enough(&self) -> bool {
        let model_known = self.names_model();
        let stream_known = self.stream_known || !self.need.stream_wanted;
        model_known && stream_known && self.prompt.is_settled(false)
            || self.lookahead_over
                && (model_known || !self.need.model_required)
                && self.prompt.is_settled(true)
    }

    pub(super) fn check_complete(&self) -> Result<(), Malformed> {
        if !self.prompt.is_present() {
            return Err(Malformed::MissingPrompt { field: self.api.prompt_field() });
        }
        if self.need.model_required && !self.names_model() {
            return Err(Malformed::MissingModel);
        }
        Ok(())
    }

    pub(super) fn names_model(&self) -> bool {
        self.asked.model.is_some()
    }

    /// From here on, what has not come is taken to be absent.
    pub(super) fn end_lookahead(&mut self) {
        self.lookahead_over = true;
    }

    pub(super) fn into_asked(self) -> Asked {
        let max_tokens = self.max_completion_tokens.or(self.asked.max_tokens);
        Asked { max_tokens, prompt: self.prompt.into_text(), ..self.asked }
    }

    /// Whether the text of the open string matters.
    pub(super) fn wants_text(&self) -> bool {
        match self.into {
            Into::Nothing => false,
            Into::Prompt => !self.prompt.is_full(),
            Into::Key | Into::Model | Into::Digest => true,
        }
    }

    /// Takes in an event that ends before byte `at`.
    pub(super) fn on(&mut self, event: &Event<'_>, at: usize) -> Result<(), Malformed> {
        match *event {
            Event::KeyStart => self.begin_key(),
            Event::KeyEnd => self.end_key(),
            Event::StringStart => self.begin_string(at)?,
            Event::Text(text) => self.text(text)?,
            Event::Char(char) => self.text(char.encode_utf8(&mut [0; 4]).as_bytes())?,
            Event::StringEnd => self.end_string(at),
            Event::NumberStart => self.scalar = self.begin(Shape::Number, at)?,
            Event::Digits(digits) => {
                if self.scalar.kind.keeps_json() {
                    self.prompt.append(digits);
                }
            }
            Event::NumberEnd(integer) => self.end_number(integer),
            Event::Literal(literal) => self.literal(literal, at)?,
            Event::ObjectStart => self.open(Shape::Object, at)?,
            Event::ArrayStart => self.open(Shape::Array, at)?,
            Event::ObjectEnd => self.close(b'}'),
            Event::ArrayEnd => self.close(b']'),
        }
        Ok(())
    }

    fn begin_key(&mut self) {
        self.key.clear();
        self.into = match self.container() {
            Kind::Skip => Into::Nothing,
            Kind::Json => {
                self.prompt.append(&[prompt::QUOTE]);
                Into::Prompt
            }
            _ => Into::Key,
        };
    }

    fn end_key(&mut self) {
        let container = self.container();
        if container == Kind::Json {
            self.prompt.append(&[prompt::QUOTE, b':']);
        }
        let mut slot = shape::field(self.api, container, self.key.as_bytes());
        if slot.kind == Kind::Content && self.prompt.depth() >= RECORDS_MAX {
            slot.kind = Kind::Json;
        }
        self.keyed = Some(slot);
    }

    fn text(&mut self, text: &[u8]) -> Result<(), Malformed> {
        match self.into {
            Into::Nothing => {}
            Into::Key => self.key.push(text),
            Into::Digest => {
                if let Some(digest) = &mut self.digest {
                    digest.write(text);
                }
            }
            Into::Model if self.model.len() + text.len() > MODEL_BYTES_MAX => {
                return Err(Malformed::ModelTooLong);
            }
            Into::Model => self.model.extend_from_slice(text),
            Into::Prompt => self.prompt.append(text),
        }
        Ok(())
    }

    fn begin_string(&mut self, at: usize) -> Result<(), Malformed> {
        self.scalar = self.begin(Shape::String, at)?;
        self.into = match self.scalar.kind {
            Kind::Model => {
                self.model.clear();
                self.model_start = at - 1;
                Into::Model
            }
            Kind::Media if !self.prompt.is_full() => {
                self.digest = Some(XxHash3_64::new());
                Into::Digest
            }
            Kind::Json | Kind::Message | Kind::Token => {
                self.prompt.append(&[prompt::QUOTE]);
                Into::Prompt
            }
            Kind::Messages => {
                self.begin_message_of_user();
                Into::Prompt
            }
            Kind::Content | Kind::Part | Kind::Prompts | Kind::Prompt | Kind::Text => Into::Prompt,
            _ => Into::Nothing,
        };
        Ok(())
    }

    /// A bare string in place of messages stands as the one message that the server makes of it.
    fn begin_message_of_user(&mut self) {
        self.prompt.append(&[prompt::ITEM]);
        self.prompt.open_record(shape::ranks(self.api, Kind::Message));
        self.prompt.open_field(shape::ROLE);
        self.prompt.append(b"user");
        self.prompt.close_field();
        self.prompt.open_field(shape::CONTENT);
    }

    fn end_string(&mut self, at: usize) {
        match self.into {
            Into::Model => {
                // Made of whole characters: never invalid.
                self.asked.model = String::from_utf8(std::mem::take(&mut self.model)).ok();
                self.asked.model_span = Some(self.model_start..at);
            }
            Into::Digest => {
                if let Some(digest) = self.digest.take() {
                    self.prompt.append(&[prompt::DIGEST]);
                    self.prompt.append(format!("{:016x}", digest.finish()).as_bytes());
                }
            }
            Into::Prompt if matches!(self.scalar.kind, Kind::Json | Kind::Message | Kind::Token) => {
                self.prompt.append(&[prompt::QUOTE]);
            }
            Into::Prompt if self.scalar.kind == Kind::Messages => {
                self.prompt.close_field();
                self.prompt.close_record();
            }
            _ => {}
        }
        self.end(self.scalar);
    }

    fn end_number(&mut self, integer: Option<u64>) {
        match self.scalar.kind {
            Kind::MaxTokens => self.asked.max_tokens = integer,
            Kind::MaxCompletionTokens => self.max_completion_tokens = integer,
            Kind::Prompt | Kind::Token => {
                // What is no token ID is refused by the model server.
                let token = integer.and_then(|integer| u32::try_from(integer).ok()).unwrap_or(u32::MAX);
                self.prompt.append(&token.to_le_bytes());
            }
            _ => {}
        }
        self.end(self.scalar);
    }

    fn literal(&mut self, literal: Literal, at: usize) -> Result<(), Malformed> {
        let slot = self.begin(Shape::Literal(literal), at)?;
        match slot.kind {
            Kind::Stream => self.asked.stream = literal == Literal::True,
            // A field that is null was not opened: it counts as absent.
            _ if slot.rank.is_some() && literal == Literal::Null => return Ok(()),
            Kind::Prompt | Kind::Token => self.prompt.append(literal.word().as_bytes()),
            kind if kind.keeps_json() => self.prompt.append(literal.word().as_bytes()),
            _ => {}
        }
        self.end(slot);
        Ok(())
    }

    fn open(&mut self, shape: Shape, at: usize) -> Result<(), Malformed> {
        let slot = self.begin(shape, at)?;
        let kind = shape::opened(slot.kind, shape);
        self.open.push((slot, kind));
        if kind == Kind::Json {
            self.prompt.append(if shape == Shape::Object { b"{" } else { b"[" });
        }
        if matches!(kind, Kind::Message | Kind::Part) {
            self.prompt.open_record(shape::ranks(self.api, kind));
        }
        Ok(())
    }

    fn close(&mut self, bracket: u8) {
        let Some((slot, kind)) = self.open.pop() else { return };
        if kind == Kind::Json {
            self.prompt.append(&[bracket]);
        }
        if matches!(kind, Kind::Message | Kind::Part) {
            self.prompt.close_record();
        }
        self.end(slot);
    }

    /// A value begins: finds what it means, checks its type and sets the marks before it.
    fn begin(&mut self, shape: Shape, at: usize) -> Result<Slot, Malformed> {
        let slot = self.keyed.take().unwrap_or_else(|| shape::element(self.container()));
        self.check_type(slot.kind, shape, at)?;
        match slot.rank {
            Some(rank) if shape == Shape::Literal(Literal::Null) => self.prompt.remove_field(rank),
            Some(rank) => self.prompt.open_field(rank),
            None => {}
        }
        match (slot.kind, shape) {
            (Kind::Stream, _) => (self.asked.stream, self.stream_known) = (false, true),
            (Kind::Model, Shape::Literal(_)) => (self.asked.model, self.asked.model_span) = (None, None),
            (Kind::MaxTokens, _) => self.asked.max_tokens = None,
            (Kind::MaxCompletionTokens, _) => self.max_completion_tokens = None,
            (Kind::Message, _) => self.prompt.append(&[prompt::ITEM]),
            (Kind::Part, _) if !self.prompt.field_is_empty() => self.prompt.append(&[prompt::PART]),
            (Kind::Prompt, Shape::String) if !self.prompt.field_is_empty() => {
                self.prompt.append(&[prompt::ITEM]);
            }
            (Kind::Prompt, Shape::Array) if !self.prompt.field_is_empty() => {
                self.prompt.append(&u32::MAX.to_le_bytes());
            }
            _ => {}
        }
        Ok(slot)
    }

    /// A value has ended.
    fn end(&mut self, slot: Slot) {
        if slot.rank.is_some() {
            self.prompt.close_field();
        } else if slot.kind == Kind::Json {
            self.prompt.append(b",");
        }
    }

    fn check_type(&self, kind: Kind, shape: Shape, at: usize) -> Result<(), Malformed> {
        let at = at - shape.width();
        let string_taken = kind == Kind::Prompts || self.api == Api::Responses;
        let fits = match (kind, shape) {
            (Kind::Request, Shape::Object) => true,
            (Kind::Model, Shape::String | Shape::Literal(Literal::Null)) => true,
            (Kind::Request, _) => return Err(Malformed::NotAnObject),
            (Kind::Model, _) => return Err(Malformed::ModelNotAString { at }),
            (Kind::Messages | Kind::Prompts, Shape::Array | Shape::Literal(Literal::Null)) => true,
            (Kind::Messages | Kind::Prompts, Shape::String) => string_taken,
            (Kind::Messages | Kind::Prompts, _) => false,
            _ => true,
        };
        if fits {
            return Ok(());
        }
        let embeds_messages = kind == Kind::Messages && self.api == Api::Embeddings;
        let field = if embeds_messages { "messages" } else { self.api.prompt_field() };
        let expected = if string_taken { "a string or an array" } else { "an array" };
        Err(Malformed::NotAPrompt { field, expected, at })
    }

    /// The kind of the innermost open array or object.
    fn container(&self) -> Kind {
        self.open.last().map_or(Kind::Skip, |&(_, kind)| kind)
    }
}

impl Kind {
    /// Whether numbers and words stand in the prompt as they are written.
    fn keeps_json(self) -> bool {
        matches!(self, Self::Json | Self::Text | Self::Content | Self::Part | Self::Message)
    }
}
