//! The usage that a model server reports in its answer, found as the answer passes by.
//!
//! Invariants: what is held is a position, never a byte of the answer; words in generated text are never taken for
//! usage; an answer that is not what it claims to be gives no usage and no error.

use memchr::{memchr2, memmem};

use crate::json::{Event, Key, Lexer};
use crate::sse::{DataLines, Piece};

/// What was used, in tokens, as the server counts. Anthropic's `input_tokens` leave out what came from the cache,
/// OpenAI's prompt tokens include it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// `prompt_tokens` or `input_tokens`.
    pub prompt_tokens: Option<u64>,
    /// `completion_tokens` or `output_tokens`.
    pub completion_tokens: Option<u64>,
    /// Tokens of the prompt that came from the server's cache: `cached_tokens` or `cache_read_input_tokens`.
    pub cached_tokens: Option<u64>,
}

/// How an answer is written, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// `application/json`: one object.
    Json,
    /// `text/event-stream`: one JSON object in each `data` line.
    EventStream,
}

/// The scan of one answer.
///
/// Usage is an object under `usage`, at the top, in `response` (OpenAI Responses) or in `message` (Anthropic). Of
/// several the last wins, field by field: streams repeat or complete it.
#[derive(Debug)]
pub struct UsageScan {
    usage: Usage,
    document: Document,
    lines: Option<Lines>,
}

/// The data of an event stream.
#[derive(Debug)]
struct Lines {
    lines: DataLines,
    data_lines: u64,
    usage_key: memmem::Finder<'static>,
    escape: memmem::Finder<'static>,
}

/// One JSON document that may hold usage.
#[derive(Debug)]
struct Document {
    lexer: Lexer,
    key: Key,
    in_key: bool,
    /// The open objects on the way to usage.
    path: [Place; PATH_MAX],
    path_len: usize,
    /// Arrays and objects open below the path.
    beside: usize,
    broken: bool,
}

/// `message`, `usage`, `prompt_tokens_details` and the object around them.
const PATH_MAX: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Top,
    Wrapper,
    Usage,
    Details,
}

impl UsageScan {
    /// A scan of an answer from its first byte.
    #[must_use]
    pub fn new(kind: AnswerKind) -> Self {
        let lines = (kind == AnswerKind::EventStream).then(|| Lines {
            lines: DataLines::new(),
            data_lines: 0,
            usage_key: memmem::Finder::new(b"\"usage\""),
            escape: memmem::Finder::new(b"\\u00"),
        });
        Self { usage: Usage::default(), document: Document::new(), lines }
    }

    /// Reads the next chunk, cut anywhere.
    pub fn push(&mut self, chunk: &[u8]) {
        match &mut self.lines {
            None => self.document.read(chunk, &mut self.usage),
            Some(lines) => lines.read(chunk, &mut self.document, &mut self.usage),
        }
    }

    /// What is reported by now; `None` if nothing is.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        (self.usage != Usage::default()).then_some(self.usage)
    }

    /// How many `data` lines have begun: about one for each generated token, and a few for the protocol. 0 for
    /// [`AnswerKind::Json`].
    #[must_use]
    pub fn data_lines(&self) -> u64 {
        self.lines.as_ref().map_or(0, |lines| lines.data_lines)
    }
}

impl Lines {
    fn read(&mut self, mut chunk: &[u8], document: &mut Document, usage: &mut Usage) {
        while let Some(piece) = self.lines.next(&mut chunk) {
            match piece {
                Piece::Begin => {
                    self.data_lines += 1;
                    *document = Document::new();
                    document.broken = self.ends_without_usage(chunk);
                }
                Piece::Data(data) => document.read(data, usage),
                Piece::End => {}
            }
        }
    }

    /// Whether the line ends in this chunk and has no object under a key `usage`: then it need not be read.
    fn ends_without_usage(&self, chunk: &[u8]) -> bool {
        memchr2(b'\n', b'\r', chunk).is_some_and(|end| {
            let line = &chunk[..end];
            let is_object = |at: usize| {
                let value = line[at + b"\"usage\"".len()..].trim_ascii_start();
                value.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"{"))
            };
            // A key may be spelled in escapes: those of its letters are `\u0061` to `\u0075`.
            let is_letter = |at: usize| matches!(line.get(at + b"\\u00".len()), Some(b'6' | b'7'));
            !self.usage_key.find_iter(line).any(is_object) && !self.escape.find_iter(line).any(is_letter)
        })
    }
}

impl Document {
    fn new() -> Self {
        Self {
            lexer: Lexer::new(),
            key: Key::default(),
            in_key: false,
            path: [Place::Top; PATH_MAX],
            path_len: 0,
            beside: 0,
            broken: false,
        }
    }

    fn read(&mut self, mut input: &[u8], usage: &mut Usage) {
        while !self.broken {
            match &self.lexer.next(&mut input, self.in_key) {
                Ok(Some(event)) => self.on(event, usage),
                Ok(None) => return,
                Err(_) => self.broken = true,
            }
        }
    }

    fn on(&mut self, event: &Event<'_>, usage: &mut Usage) {
        match *event {
            Event::KeyStart => {
                self.in_key = self.beside == 0;
                self.key.clear();
            }
            Event::KeyEnd => self.in_key = false,
            Event::Text(text) => self.key.push(text),
            Event::Char(char) => self.key.push(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Event::ObjectStart => match self.inner_place() {
                Some(place) if self.beside == 0 => {
                    self.path[self.path_len] = place;
                    self.path_len += 1;
                }
                _ => self.beside += 1,
            },
            Event::ArrayStart => self.beside += 1,
            Event::ObjectEnd | Event::ArrayEnd if self.beside > 0 => self.beside -= 1,
            Event::ObjectEnd | Event::ArrayEnd => self.path_len -= 1,
            Event::NumberEnd(Some(tokens)) if self.beside == 0 => self.count(tokens, usage),
            _ => {}
        }
    }

    /// What an object is that begins here, if it is on the way to usage.
    fn inner_place(&self) -> Option<Place> {
        let Some(place) = self.place() else { return Some(Place::Top) };
        match (place, self.key.as_bytes()) {
            (Place::Top | Place::Wrapper, b"usage") => Some(Place::Usage),
            (Place::Top, b"response" | b"message") => Some(Place::Wrapper),
            (Place::Usage, b"prompt_tokens_details" | b"input_tokens_details") => Some(Place::Details),
            _ => None,
        }
    }

    fn count(&self, tokens: u64, usage: &mut Usage) {
        let field = match (self.place(), self.key.as_bytes()) {
            (Some(Place::Usage), b"prompt_tokens" | b"input_tokens") => &mut usage.prompt_tokens,
            (Some(Place::Usage), b"completion_tokens" | b"output_tokens") => &mut usage.completion_tokens,
            (Some(Place::Usage), b"cache_read_input_tokens") | (Some(Place::Details), b"cached_tokens") => {
                &mut usage.cached_tokens
            }
            _ => return,
        };
        *field = Some(tokens);
    }

    fn place(&self) -> Option<Place> {
        self.path_len.checked_sub(1).map(|last| self.path[last])
    }
}

#[cfg(test)]
mod tests;
