//! A request for one model that is sent on as one for another, and its answer, which is to read as the client asked.

use std::ops::Range;

use bytes::Bytes;
use inference::{AnswerKind, AnswerRename};

/// The change of a model's name.
#[derive(Clone, Debug)]
pub struct Rename {
    model: String,
    target: String,
    span: Range<usize>,
}

impl Rename {
    pub(crate) fn new(model: &str, target: &str, span: Range<usize>) -> Rename {
        Rename { model: model.to_owned(), target: target.to_owned(), span }
    }

    /// The model to ask for.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The bytes of the request's body that go, by their offsets.
    #[must_use]
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The bytes that come in their place.
    #[must_use]
    pub fn replacement(&self) -> Bytes {
        inference::json_string(&self.target)
    }

    /// Gives an answer of that kind the name that the client asked for.
    #[must_use]
    pub fn answer(&self, kind: AnswerKind) -> AnswerRename {
        AnswerRename::new(kind, &self.target, &self.model)
    }
}
