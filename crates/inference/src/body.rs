//! One pass over a request body as it arrives: what was asked, as soon as it can be known.
//!
//! Invariants:
//! - What comes out depends on the bytes of the body alone, never on how they were cut into chunks: every decision
//!   falls on a byte.
//! - Memory is bounded by [`Need::prompt_bytes_max`] and constants, whatever the body holds.
//! - A duplicate key counts as in Python's `json`: the last wins, of those seen before *enough*. Only inside what
//!   is kept as JSON (tools and tool calls) all stand as they come.

use std::fmt;
use std::ops::Range;

use crate::Api;
use crate::json::{Lexer, NotJson};

mod reader;
mod shape;

use reader::Reader;

/// Body bytes after which a field that has not come is taken to be absent, if the decision can do without it.
///
/// One cannot know before its end whether a body still holds `tools` (which stand before the messages) or a
/// `model`. Bodies up to this size are read to their end if need be; of longer ones what is here by then counts.
pub const LOOKAHEAD_BYTES: usize = 32 * 1024;

/// Longest model name taken, in bytes of UTF-8.
pub const MODEL_BYTES_MAX: usize = 1024;

/// What the policy in force must know before a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Leading bytes of the canonical prompt: blocks times block size, or 0 where no prompt is looked at.
    pub prompt_bytes_max: usize,
    /// Whether the decision needs the model's name.
    pub model_required: bool,
    /// Whether it is worth the lookahead to learn if the answer is to be streamed.
    pub stream_wanted: bool,
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

    /// Whether the model's name has been read.
    #[must_use]
    pub fn names_model(&self) -> bool {
        self.reader.names_model()
    }

    /// What was asked, as far as it is known by now.
    #[must_use]
    pub fn into_asked(self) -> Asked {
        self.reader.into_asked()
    }

    /// `Some` when it is enough.
    fn scan(&mut self, chunk: &[u8]) -> Result<Option<()>, Malformed> {
        let near = LOOKAHEAD_BYTES.saturating_sub(self.lexer.offset()).min(chunk.len());
        let (near, far) = chunk.split_at(near);
        if self.read(near)?.is_some() {
            return Ok(Some(()));
        }
        if self.lexer.offset() == LOOKAHEAD_BYTES {
            self.reader.end_lookahead();
            if self.reader.is_enough() {
                return Ok(Some(()));
            }
        }
        self.read(far)
    }

    fn read(&mut self, mut input: &[u8]) -> Result<Option<()>, Malformed> {
        loop {
            // By reference: to move the event out of the result costs a third of the whole scan.
            match &self.lexer.next(&mut input, self.reader.wants_text()) {
                Ok(Some(event)) => self.reader.on(event, self.lexer.offset())?,
                Ok(None) => return Ok(None),
                Err(fault) => return Err(fault.clone().into()),
            }
            if self.reader.is_enough() {
                return Ok(Some(()));
            }
        }
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

#[cfg(test)]
mod tests;
