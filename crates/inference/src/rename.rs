//! The model's name in an answer, put back to what the client asked for.
//!
//! The name is the first string under `model`, at the top of a document or in its `response` (OpenAI Responses) or
//! `message` (Anthropic), once for each document: the answer, or each line of data of an event stream.
//!
//! Invariants
//! - Nothing but that string is changed, and only where it is the name that was asked of the model server.
//! - What is held back is a string that may yet become that name, never longer than its longest spelling.
//! - What goes out in all depends on what came in all, never on how it was cut.

use bytes::{Bytes, BytesMut};

use crate::AnswerKind;
use crate::json::{Event, Key, Lexer};
use crate::sse::{DataLines, Piece, escaped};

/// The renaming in one answer.
#[derive(Debug)]
pub struct AnswerRename {
    /// What the model server calls the model.
    from: Vec<u8>,
    /// What the client calls it, as JSON.
    to: Bytes,
    lines: Option<DataLines>,
    document: Document,
    /// The begin of a string that may be the name, from the chunks before.
    held: BytesMut,
}

/// Where in one JSON document.
#[derive(Debug)]
struct Document {
    lexer: Lexer,
    key: Key,
    in_key: bool,
    /// Arrays and objects open.
    depth: usize,
    /// Whether the object open at depth 2 is one of those that hold a model.
    wrapped: bool,
    name: Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// It has not come.
    Due,
    /// Its string is open: so many bytes of the name were there.
    Open(usize),
    /// It came, or the document is broken.
    Over,
}

/// What became of the string that may be the name.
enum Told {
    /// It begins; its quote was the last byte read.
    Begins,
    /// It was the name.
    IsName,
    /// It is another.
    IsOther,
}

impl AnswerRename {
    /// Puts `to` where an answer of that kind says `from`.
    #[must_use]
    pub fn new(kind: AnswerKind, from: &str, to: &str) -> Self {
        Self {
            from: from.as_bytes().to_vec(),
            to: json_string(to),
            lines: (kind == AnswerKind::EventStream).then(DataLines::new),
            document: Document::new(),
            held: BytesMut::new(),
        }
    }

    /// Reads the next chunk, cut anywhere, and gives what may be passed on by now to `out`, in order, none of it
    /// empty.
    pub fn push(&mut self, chunk: &Bytes, mut out: impl FnMut(Bytes)) {
        let mut cut = Cut { chunk, given: 0, held: &mut self.held, out: &mut out };
        let Some(lines) = &mut self.lines else {
            self.document.read(chunk, 0, &self.from, &self.to, &mut cut);
            return cut.finish(self.document.name);
        };
        let mut rest = &chunk[..];
        while let Some(piece) = lines.next(&mut rest) {
            match piece {
                Piece::Begin => self.document = Document::new(),
                Piece::Data(data) => {
                    let at = chunk.len() - rest.len() - data.len();
                    self.document.read(data, at, &self.from, &self.to, &mut cut);
                }
                Piece::End => {
                    if matches!(self.document.name, Name::Open(_)) {
                        cut.is_other();
                    }
                    self.document.name = Name::Over;
                }
            }
        }
        cut.finish(self.document.name);
    }

    /// The answer is at its end: what was held back of it.
    #[must_use]
    pub fn finish(self) -> Option<Bytes> {
        (!self.held.is_empty()).then(|| self.held.freeze())
    }
}

/// What is given of a chunk.
struct Cut<'a, F> {
    chunk: &'a Bytes,
    /// So much of it was given, or is not to be.
    given: usize,
    held: &'a mut BytesMut,
    out: &'a mut F,
}

impl<F: FnMut(Bytes)> Cut<'_, F> {
    /// Gives the chunk up to `at`.
    fn give(&mut self, at: usize) {
        if at > self.given {
            (self.out)(self.chunk.slice(self.given..at));
            self.given = at;
        }
    }

    /// What was held goes out as it came.
    fn is_other(&mut self) {
        if !self.held.is_empty() {
            (self.out)(self.held.split().freeze());
        }
    }

    /// What was held, and the chunk up to `end`, is the name.
    fn is_name(&mut self, end: usize, to: &Bytes) {
        self.held.clear();
        (self.out)(to.clone());
        self.given = end;
    }

    /// Nothing more of the chunk is read: it is given, or held if a name may have begun.
    fn finish(mut self, name: Name) {
        if matches!(name, Name::Open(_)) {
            self.held.extend_from_slice(&self.chunk[self.given..]);
        } else {
            self.give(self.chunk.len());
        }
    }
}

impl Document {
    fn new() -> Self {
        Self {
            lexer: Lexer::new(),
            key: Key::default(),
            in_key: false,
            depth: 0,
            wrapped: false,
            name: Name::Due,
        }
    }

    /// Reads `data`, which stands in the chunk at `at`.
    fn read<F: FnMut(Bytes)>(
        &mut self,
        data: &[u8],
        at: usize,
        from: &[u8],
        to: &Bytes,
        cut: &mut Cut<'_, F>,
    ) {
        let mut input = data;
        while self.name != Name::Over {
            let wanted = self.in_key || self.name != Name::Due;
            let told = match &self.lexer.next(&mut input, wanted) {
                Ok(Some(event)) => self.on(event, from),
                Ok(None) => return,
                Err(_) => {
                    let open = matches!(self.name, Name::Open(_));
                    self.name = Name::Over;
                    open.then_some(Told::IsOther)
                }
            };
            let here = at + data.len() - input.len();
            match told {
                None => {}
                Some(Told::Begins) => cut.give(here - 1),
                Some(Told::IsName) => cut.is_name(here, to),
                Some(Told::IsOther) => cut.is_other(),
            }
        }
    }

    fn on(&mut self, event: &Event<'_>, from: &[u8]) -> Option<Told> {
        if let Name::Open(matched) = self.name {
            let mut utf8 = [0; 4];
            let text = match *event {
                Event::Text(text) => text,
                Event::Char(char) => char.encode_utf8(&mut utf8).as_bytes(),
                _ => {
                    self.name = Name::Over;
                    return Some(if matched == from.len() { Told::IsName } else { Told::IsOther });
                }
            };
            if from[matched..].starts_with(text) {
                self.name = Name::Open(matched + text.len());
                return None;
            }
            self.name = Name::Over;
            return Some(Told::IsOther);
        }
        match *event {
            Event::KeyStart => {
                self.in_key = self.depth == 1 || (self.depth == 2 && self.wrapped);
                self.key.clear();
            }
            Event::KeyEnd => self.in_key = false,
            Event::Text(text) => self.key.push(text),
            Event::Char(char) => self.key.push(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Event::ObjectStart => {
                self.wrapped |= self.depth == 1 && matches!(self.key.as_bytes(), b"response" | b"message");
                self.depth += 1;
            }
            Event::ArrayStart => self.depth += 1,
            Event::ObjectEnd | Event::ArrayEnd => {
                self.depth -= 1;
                self.wrapped &= self.depth >= 2;
            }
            Event::StringStart => {
                let here = self.depth == 1 || (self.depth == 2 && self.wrapped);
                if here && self.key.as_bytes() == b"model" {
                    self.name = Name::Open(0);
                    return Some(Told::Begins);
                }
            }
            _ => {}
        }
        None
    }
}

/// `text` as a string of JSON, with its quotes.
#[must_use]
pub fn json_string(text: &str) -> Bytes {
    Bytes::from(format!("\"{}\"", escaped(text)))
}

#[cfg(test)]
mod tests;
