//! HTTP/1.1 read a second time, independently of the gateway's own reading: what clients, servers and taps understand of
//! the bytes they get. Strict: what it does not take from the gateway is a fault of the gateway.

use std::mem;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Requests,
    Answers,
}

/// A message's start line and fields (names in lower case).
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
}

/// What a reader understood.
#[derive(Debug)]
pub(crate) enum Event {
    Head(Head),
    Body(Vec<u8>),
    /// The message is whole.
    End,
}

/// Reads messages one after the other.
#[derive(Debug)]
pub(crate) struct Reader {
    role: Role,
    unread: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Counted(usize),
    ChunkSize,
    Chunk(usize),
    ChunkEnd,
    Trailers,
    UntilClose,
}

impl Head {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The number that `name` holds.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        self.field(name)?.parse().ok()
    }

    /// An answer's status.
    pub(crate) fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    fn is_interim(&self) -> bool {
        (100..200).contains(&self.status())
    }

    fn parse(text: &str) -> Result<Head, String> {
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        if line.split(' ').count() < 2 {
            return Err(format!("no start line: {line:?}"));
        }
        let field = |line: &str| {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let fields = lines.map(field).collect::<Result<_, String>>()?;
        Ok(Head { line, fields })
    }

    fn body(&self, role: Role) -> Result<State, String> {
        let chunked = self.field("transfer-encoding").is_some_and(|coding| coding == "chunked");
        let lengths = self.fields.iter().filter(|(name, _)| name == "content-length").count();
        match (chunked, lengths) {
            (true, 0) => Ok(State::ChunkSize),
            (false, 1) => {
                Ok(State::Counted(self.number("content-length").ok_or("a length that is no number")?))
            }
            (false, 0) if role == Role::Answers && self.status() != 204 => Ok(State::UntilClose),
            (false, 0) => Ok(State::Counted(0)),
            _ => Err(format!("a body with two meanings: {self:?}")),
        }
    }
}

impl Reader {
    pub(crate) fn new(role: Role) -> Reader {
        Reader { role, unread: Vec::new(), state: State::Head }
    }

    /// Whether no message is begun.
    pub(crate) fn is_between(&self) -> bool {
        self.state == State::Head && self.unread.is_empty()
    }

    /// Takes more bytes; tells what they mean. An interim answer is a head alone.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        self.unread.extend_from_slice(bytes);
        let mut events = Vec::new();
        while self.step(&mut events)? {}
        Ok(events)
    }

    /// No more bytes come. True when the last message is whole by that, or there is none.
    pub(crate) fn close(&mut self) -> bool {
        let whole = self.state == State::UntilClose || self.is_between();
        self.state = State::Head;
        whole
    }

    fn step(&mut self, events: &mut Vec<Event>) -> Result<bool, String> {
        match self.state {
            State::Head => {
                let Some(text) = self.take_until("\r\n\r\n")? else { return Ok(false) };
                let head = Head::parse(&text)?;
                let interim = self.role == Role::Answers && head.is_interim();
                let body = if interim { State::Head } else { head.body(self.role)? };
                events.push(Event::Head(head));
                self.become_or_end(body, interim, events);
            }
            State::ChunkSize => {
                let Some(text) = self.take_until("\r\n")? else { return Ok(false) };
                let bytes = usize::from_str_radix(&text, 16).map_err(|_| format!("a chunk of {text:?}"))?;
                self.state = if bytes == 0 { State::Trailers } else { State::Chunk(bytes) };
            }
            State::ChunkEnd => {
                let Some(text) = self.take_until("\r\n")? else { return Ok(false) };
                if !text.is_empty() {
                    return Err(format!("a chunk longer than it said: {text:?}"));
                }
                self.state = State::ChunkSize;
            }
            State::Trailers => {
                let Some(text) = self.take_until("\r\n")? else { return Ok(false) };
                if text.is_empty() {
                    self.state = State::Head;
                    events.push(Event::End);
                }
            }
            State::Counted(left) | State::Chunk(left) => {
                let part: Vec<u8> = self.unread.drain(..left.min(self.unread.len())).collect();
                if part.is_empty() {
                    return Ok(false);
                }
                let left = left - part.len();
                events.push(Event::Body(part));
                match self.state {
                    State::Counted(_) => self.become_or_end(State::Counted(left), false, events),
                    _ => self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) },
                }
            }
            State::UntilClose => {
                if self.unread.is_empty() {
                    return Ok(false);
                }
                events.push(Event::Body(mem::take(&mut self.unread)));
            }
        }
        Ok(true)
    }

    fn become_or_end(&mut self, state: State, interim: bool, events: &mut Vec<Event>) {
        let ended = state == State::Counted(0);
        self.state = if ended { State::Head } else { state };
        if ended && !interim {
            events.push(Event::End);
        }
    }

    fn take_until(&mut self, end: &str) -> Result<Option<String>, String> {
        let Some(at) = self.unread.windows(end.len()).position(|window| window == end.as_bytes()) else {
            return Ok(None);
        };
        let text: Vec<u8> = self.unread.drain(..at + end.len()).take(at).collect();
        String::from_utf8(text).map(Some).map_err(|error| format!("not UTF-8: {error}"))
    }
}

/// A body as chunks of at most `bytes` each, and the last one.
pub(crate) fn chunked(body: &[u8], bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in body.chunks(bytes.max(1)) {
        out.extend(format!("{:x}\r\n", part.len()).into_bytes());
        out.extend(part);
        out.extend(b"\r\n");
    }
    out.extend(b"0\r\n\r\n");
    out
}
