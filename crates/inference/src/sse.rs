//! Server-sent events as a relay needs them: never half an event, and a last word when the upstream breaks.
//!
//! A client that has half an event when the upstream breaks can neither use it nor be told of the error. So the
//! splitter gives whole events on and keeps the rest until it is whole, copying nothing but that rest.

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memchr2_iter};

use crate::Api;

/// Longest incomplete event that is kept back, in bytes; a longer one is passed on as it comes.
pub const TAIL_BYTES_MAX: usize = 64 * 1024;

/// Tells the data in an event stream from everything else, cut into chunks anywhere. Invariant: holds a position alone.
#[derive(Debug)]
pub(crate) struct DataLines {
    line: Line,
}

#[derive(Debug, Clone, Copy)]
enum Line {
    /// So many bytes of `data:` are read.
    Name(usize),
    /// Data.
    Data,
    /// Anything else.
    Other,
}

/// A part of an event stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A line of data begins.
    Begin,
    /// A part of its data.
    Data(&'a [u8]),
    /// It ends.
    End,
}

const DATA: &[u8] = b"data:";

impl DataLines {
    pub(crate) fn new() -> Self {
        Self { line: Line::Name(0) }
    }

    /// Takes the next piece off the front of `chunk`; `None` when all of it is consumed.
    pub(crate) fn next<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<Piece<'a>> {
        while let Some(&byte) = chunk.first() {
            match self.line {
                Line::Name(matched) => {
                    *chunk = &chunk[1..];
                    self.line = match byte {
                        b'\n' | b'\r' => Line::Name(0),
                        _ if byte != DATA[matched] => Line::Other,
                        _ if matched + 1 < DATA.len() => Line::Name(matched + 1),
                        _ => {
                            self.line = Line::Data;
                            return Some(Piece::Begin);
                        }
                    };
                }
                Line::Data | Line::Other => {
                    let is_data = matches!(self.line, Line::Data);
                    let end = memchr2(b'\n', b'\r', chunk).unwrap_or(chunk.len());
                    if end == 0 {
                        *chunk = &chunk[1..];
                        self.line = Line::Name(0);
                        if is_data {
                            return Some(Piece::End);
                        }
                        continue;
                    }
                    let (line, rest) = chunk.split_at(end);
                    *chunk = rest;
                    if is_data {
                        return Some(Piece::Data(line));
                    }
                }
            }
        }
        None
    }
}

/// Cuts an event stream at the ends of its events. Lines end in `\n`, `\r\n` or `\r`, mixed at will; an event ends
/// with a blank line.
#[derive(Debug)]
pub struct EventSplitter {
    held: BytesMut,
    /// Whether a part of the open event was passed on because it is too long.
    passing: bool,
    /// Whether no byte of the open line has come.
    line_is_empty: bool,
    /// Whether the last line was blank, so that an event has ended with it.
    was_blank: bool,
    ends_in_cr: bool,
}

impl EventSplitter {
    /// A splitter at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            held: BytesMut::new(),
            passing: false,
            line_is_empty: true,
            was_blank: false,
            ends_in_cr: false,
        }
    }

    /// Takes the next chunk and gives what may be passed on by now, in order, none of it empty.
    pub fn push(&mut self, mut chunk: Bytes) -> impl Iterator<Item = Bytes> + use<> {
        let whole = match self.last_event_end(&chunk) {
            Some(end) => {
                self.passing = false;
                [self.held.split().freeze(), chunk.split_to(end)]
            }
            None => [Bytes::new(), Bytes::new()],
        };
        let mut half = [Bytes::new(), Bytes::new()];
        if self.passing || self.held.len() + chunk.len() > TAIL_BYTES_MAX {
            self.passing = true;
            half = [self.held.split().freeze(), chunk];
        } else {
            self.held.extend_from_slice(&chunk);
        }
        whole.into_iter().chain(half).filter(|bytes| !bytes.is_empty())
    }

    /// Whether what has been given ends inside an event (longer than [`TAIL_BYTES_MAX`]): a blank line must come
    /// before anything else is sent.
    #[must_use]
    pub fn is_inside_event(&self) -> bool {
        self.passing
    }

    /// The stream has ended: the incomplete event that was kept back, if any. To be passed on when the end was a
    /// clean one, dropped when the upstream broke.
    #[must_use]
    pub fn finish(self) -> Option<Bytes> {
        (!self.held.is_empty()).then(|| self.held.freeze())
    }

    /// The offset in `chunk` just behind the last blank line.
    fn last_event_end(&mut self, chunk: &[u8]) -> Option<usize> {
        let (mut event_end, mut line_start) = (None, 0);
        for at in memchr2_iter(b'\n', b'\r', chunk) {
            let after_cr = if at == 0 { self.ends_in_cr } else { chunk[at - 1] == b'\r' };
            let second_half = chunk[at] == b'\n' && after_cr;
            if !second_half {
                self.was_blank = at == line_start && self.line_is_empty;
            }
            if self.was_blank {
                event_end = Some(at + 1);
            }
            (line_start, self.line_is_empty) = (at + 1, true);
        }
        self.line_is_empty &= line_start == chunk.len();
        self.ends_in_cr = chunk.last().map_or(self.ends_in_cr, |&byte| byte == b'\r');
        event_end
    }
}

impl Default for EventSplitter {
    fn default() -> Self {
        Self::new()
    }
}

/// The event that tells a client of `api` that its stream ends in an error. `code` is a short word that programs
/// read, `message` is for people.
#[must_use]
pub fn error_event(api: Api, code: &str, message: &str) -> Bytes {
    let (code, message) = (escaped(code), escaped(message));
    let event = match api {
        Api::Messages => format!(
            "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{code}\",\"message\":\"{message}\"}}}}\n\n"
        ),
        Api::Responses => format!(
            "event: error\ndata: {{\"type\":\"error\",\"code\":\"{code}\",\"message\":\"{message}\",\"param\":null}}\n\n"
        ),
        Api::ChatCompletions | Api::Completions | Api::Embeddings => format!(
            "data: {{\"error\":{{\"message\":\"{message}\",\"type\":\"{code}\",\"param\":null,\"code\":\"{code}\"}}}}\n\n"
        ),
    };
    Bytes::from(event)
}

/// The text as it stands inside a JSON string.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\\' => escaped.extend(['\\', char]),
            '\0'..='\x1F' => escaped.push_str(&format!("\\u{:04x}", u32::from(char))),
            _ => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
