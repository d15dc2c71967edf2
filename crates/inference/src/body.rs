//! One pass over a request body as it arrives: what was asked, as soon as it can be known.
//!
//! Invariants:
//! - What comes out depends on the bytes of the body alone, never on how they were cut into chunks: every decision
//!   falls on a byte.
//! - Memory is bounded by [`Need::prompt_bytes_max`] and constants, whatever the body holds.
//! - A duplicate key counts as in Python's `json`: the last wins, of those seen before *enough*. Only inside what
//!   is kept as JSON (tools and tool calls) all stand as they come.

use std::fmt;
use std::hash::Hasher as _;
use std::ops::Range;

use twox_hash::XxHash3_64;

use crate::Api;
use crate::json::{Event, Key, Lexer, Literal, NotJson};
use crate::prompt::{self, Prompt};

mod shape;

use shape::{Kind, Shape, Slot};

/// Body bytes after which a field that has not come is taken to be absent, if the decision can do without it.
///
/// One cannot know before its end whether a body still holds `tools` (which stand before the messages) or a
/// `model`. Bodies up to this size are read to their end if need be; of longer ones what is here by then counts.
pub const LOOKAHEAD_BYTES: usize = 32 * 1024;

/// Longest model name taken, in bytes of UTF-8.
pub const MODEL_BYTES_MAX: usize = 1024;

/// Parts inside parts (a tool's result holds parts of its own) are understood down to this many records.
const RECORDS_MAX: usize = 4;

/// What the policy in force must know before a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Leading bytes of the canonical prompt: blocks times block size, or 0 where no prompt is looked at.
    pub prompt_bytes_max: usize,
    /// Whether the decision needs the model's name.
    pub model_required: bool,
}

/// Whether more of the body would tell more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The next chunk, or the end of the body, is needed.
    More,
    /// Everything needed is known; the rest of the body need not be shown.
    Enough,
}

/// What a request asks for, as far as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The model's name.
    pub model: Option<String>,
    /// Where the model's name stands in the body, with its quotes: the bytes to replace to rename it.
    pub model_span: Option<Range<usize>>,
    /// Whether the answer is to be streamed; false when it is not said before *enough*, or is no boolean.
    pub stream: bool,
    /// Upper limit of the tokens to generate, if said before *enough* as a whole number.
    pub max_tokens: Option<u64>,
    /// The first bytes of the canonical prompt, at most [`Need::prompt_bytes_max`]. Only good for comparison with
    /// others: equal prompts give equal bytes, conversations that begin alike give bytes that begin alike. Mostly
    /// UTF-8 text, with marks that are not; a prompt of tokens has 4 bytes a token.
    pub prompt: Vec<u8>,
}

/// Why a body is refused (400). The texts are short, made for clients, and quote nothing of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The grammar of JSON is broken.
    #[error("the request body is not valid JSON: {0}")]
    NotJson(#[from] NotJson),
    /// JSON, but no object.
    #[error("the request body must be a JSON object")]
    NotAnObject,
    /// The model's name is of another type.
    #[error("`model` must be a string (byte {at})")]
    ModelNotAString {
        /// Offset of the first byte of the value.
        at: usize,
    },
    /// The model's name has more than [`MODEL_BYTES_MAX`] bytes.
    #[error("`model` is longer than {MODEL_BYTES_MAX} bytes")]
    ModelTooLong,
    /// The prompt has a type that no model server takes.
    #[error("`{field}` must be {expected} (byte {at})")]
    NotAPrompt {
        /// The field that holds the prompt.
        field: &'static str,
        /// The types it may have.
        expected: &'static str,
        /// Offset of the first byte of the value.
        at: usize,
    },
    /// The body has no prompt, or `null`.
    #[error("`{field}` is missing")]
    MissingPrompt {
        /// The field that should hold the prompt.
        field: &'static str,
    },
    /// The body has no model, and one is required.
    #[error("`model` is missing")]
    MissingModel,
}

/// The scan of one body.
pub struct BodyScan {
    lexer: Lexer,
    reader: Reader,
    /// Set once nothing can change any more.
    outcome: Option<Result<(), Malformed>>,
}

/// What the events of a body mean.
struct Reader {
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
    model: String,
    model_start: usize,
    max_completion_tokens: Option<u64>,
    prompt: Prompt,
    lookahead_over: bool,
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

impl BodyScan {
    /// A scan of a body of `api` from its first byte.
    #[must_use]
    pub fn new(api: Api, need: Need) -> Self {
        Self { lexer: Lexer::new(), reader: Reader::new(api, need), outcome: None }
    }

    /// Reads the next chunk, cut anywhere. After *enough* and after an error nothing more is read, and the same is
    /// said again.
    ///
    /// # Errors
    /// What is wrong with the body as far as it has been read.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Progress, Malformed> {
        if self.outcome.is_none() {
            self.outcome = self.scan(chunk).transpose();
        }
        match &self.outcome {
            None => Ok(Progress::More),
            Some(outcome) => outcome.clone().map(|()| Progress::Enough),
        }
    }

    /// The body has ended: what has not come is absent.
    ///
    /// # Errors
    /// What is wrong with the body, or what it lacks; never after *enough*.
    pub fn finish(&mut self) -> Result<(), Malformed> {
        let (lexer, reader) = (&self.lexer, &self.reader);
        self.outcome
            .get_or_insert_with(|| {
                lexer.finish()?;
                reader.check_complete()
            })
            .clone()
    }

    /// What was asked, as far as it is known by now.
    #[must_use]
    pub fn into_asked(self) -> Asked {
        let Reader { mut asked, prompt, max_completion_tokens, .. } = self.reader;
        asked.max_tokens = max_completion_tokens.or(asked.max_tokens);
        asked.prompt = prompt.into_text();
        asked
    }

    /// `Some` when it is enough.
    fn scan(&mut self, chunk: &[u8]) -> Result<Option<()>, Malformed> {
        let near = LOOKAHEAD_BYTES.saturating_sub(self.lexer.offset()).min(chunk.len());
        let (near, far) = chunk.split_at(near);
        if self.read(near)?.is_some() {
            return Ok(Some(()));
        }
        if !self.reader.lookahead_over && self.lexer.offset() == LOOKAHEAD_BYTES {
            self.reader.lookahead_over = true;
            if self.reader.is_enough() {
                return Ok(Some(()));
            }
        }
        self.read(far)
    }

    fn read(&mut self, mut input: &[u8]) -> Result<Option<()>, Malformed> {
        while let Some(event) = self.lexer.next(&mut input)? {
            let may_settle = self.reader.on(event, self.lexer.offset())?;
            if may_settle && self.reader.is_enough() {
                return Ok(Some(()));
            }
        }
        Ok(None)
    }
}

impl fmt::Debug for BodyScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyScan")
            .field("lexer", &self.lexer)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

impl Reader {
    fn new(api: Api, need: Need) -> Self {
        Self {
            api,
            need,
            open: Vec::with_capacity(8),
            keyed: Some(shape::REQUEST),
            key: Key::default(),
            scalar: shape::REQUEST,
            into: Into::Nothing,
            digest: None,
            model: String::new(),
            model_start: 0,
            max_completion_tokens: None,
            prompt: Prompt::new(shape::sections(api), need.prompt_bytes_max),
            lookahead_over: false,
            asked: Asked::default(),
        }
    }

    fn is_enough(&self) -> bool {
        let model_known = self.asked.model.is_some();
        model_known && self.prompt.is_settled(false)
            || self.lookahead_over
                && (model_known || !self.need.model_required)
                && self.prompt.is_settled(true)
    }

    fn check_complete(&self) -> Result<(), Malformed> {
        if !self.prompt.is_present() {
            return Err(Malformed::MissingPrompt { field: self.api.prompt_field() });
        }
        if self.need.model_required && self.asked.model.is_none() {
            return Err(Malformed::MissingModel);
        }
        Ok(())
    }

    /// Takes in an event that ends before byte `at`; says whether it may have made it enough.
    fn on(&mut self, event: Event<'_>, at: usize) -> Result<bool, Malformed> {
        match event {
            Event::KeyStart => self.begin_key(),
            Event::KeyEnd => self.end_key(),
            Event::StringStart => self.begin_string(at)?,
            Event::Text(text) => return self.text(text),
            Event::Char(char) => return self.text(char.encode_utf8(&mut [0; 4])),
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
        Ok(true)
    }

    fn begin_key(&mut self) {
        self.key.clear();
        self.into = Into::Key;
        if self.container() == Kind::Json {
            self.into = Into::Prompt;
            self.prompt.append(&[prompt::QUOTE]);
        }
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

    fn text(&mut self, text: &str) -> Result<bool, Malformed> {
        match self.into {
            Into::Nothing => {}
            Into::Key => self.key.push(text),
            Into::Digest => {
                if let Some(digest) = &mut self.digest {
                    digest.write(text.as_bytes());
                }
            }
            Into::Model if self.model.len() + text.len() > MODEL_BYTES_MAX => {
                return Err(Malformed::ModelTooLong);
            }
            Into::Model => self.model.push_str(text),
            Into::Prompt => {
                self.prompt.append(text.as_bytes());
                return Ok(self.prompt.is_full());
            }
        }
        Ok(false)
    }

    fn begin_string(&mut self, at: usize) -> Result<(), Malformed> {
        self.scalar = self.begin(Shape::String, at)?;
        self.into = match self.scalar.kind {
            Kind::Model => {
                (self.asked.model, self.asked.model_span) = (None, None);
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
                self.prompt.append(&[prompt::ITEM]);
                self.prompt.append(b"user\xF5");
                Into::Prompt
            }
            Kind::Content | Kind::Part | Kind::Prompts | Kind::Prompt | Kind::Text => Into::Prompt,
            _ => Into::Nothing,
        };
        Ok(())
    }

    fn end_string(&mut self, at: usize) {
        match self.into {
            Into::Model => {
                self.asked.model = Some(std::mem::take(&mut self.model));
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
            // A field that is null is a field that is absent.
            _ if slot.rank.is_some() && literal == Literal::Null => {}
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
        if let Some(ranks) = shape::ranks(kind) {
            self.prompt.open_record(ranks);
        }
        Ok(())
    }

    fn close(&mut self, bracket: u8) {
        let Some((slot, kind)) = self.open.pop() else { return };
        if kind == Kind::Json {
            self.prompt.append(&[bracket]);
        }
        if shape::ranks(kind).is_some() {
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
            (Kind::Stream, _) => self.asked.stream = false,
            (Kind::MaxTokens, _) => self.asked.max_tokens = None,
            (Kind::MaxCompletionTokens, _) => self.max_completion_tokens = None,
            (Kind::Message, _) => self.prompt.append(&[prompt::ITEM]),
            (Kind::Part, _) if !self.prompt.field_is_empty() => self.prompt.append(&[prompt::PART]),
            (Kind::Prompt, Shape::String) if !self.prompt.field_is_empty() => {
                self.prompt.append(&[prompt::ITEM])
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
            (Kind::Request, Shape::Object) | (Kind::Model, Shape::String) => true,
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

#[cfg(test)]
mod tests;
