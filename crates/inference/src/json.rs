//! A JSON lexer that is fed chunk by chunk and gives events back one by one.
//!
//! It checks the whole grammar (RFC 8259) and decodes strings, and holds nothing but its position: no tree, no
//! recursion, no buffer beyond one cut character. Invariants:
//! - Where a body is cut into chunks changes neither the events (`Text` pieces joined) nor the error and its offset.
//! - Everything before a fault is given as events before the fault is.
//! - Differences from `serde_json`: a lone surrogate escape reads as U+FFFD (as servers in Python accept it), and
//!   a number has no largest value.

mod number;
mod plain;

use number::Number;

/// How many arrays and objects may be open at once: the limit of `serde_json`.
pub const DEPTH_MAX: u8 = 127;

/// What is wrong with a text that is not JSON. Offsets count bytes from the start of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotJson {
    /// Another token was due.
    #[error("expected {expected} at byte {at}")]
    Unexpected {
        /// What may stand there.
        expected: &'static str,
        /// Offset of the offending byte.
        at: usize,
    },
    /// The body ended too early.
    #[error("the body ends at byte {at} where {expected} is due")]
    Truncated {
        /// What may stand there.
        expected: &'static str,
        /// Length of the body.
        at: usize,
    },
    /// A byte below 0x20 stands in a string as it is.
    #[error("control character in a string at byte {at}: write it as an escape")]
    ControlCharacter {
        /// Offset of the character.
        at: usize,
    },
    /// A backslash before something that cannot be escaped, or `\u` without four hexadecimal digits.
    #[error("bad escape in a string at byte {at}")]
    BadEscape {
        /// Offset of the byte after which the escape cannot go on.
        at: usize,
    },
    /// A string is not UTF-8.
    #[error("invalid UTF-8 in a string at byte {at}")]
    NotUtf8 {
        /// Offset of the first byte of the faulty sequence.
        at: usize,
    },
    /// More arrays and objects inside each other than [`DEPTH_MAX`].
    #[error("more than {DEPTH_MAX} arrays and objects inside each other at byte {at}")]
    TooDeep {
        /// Offset of the bracket that is one too many.
        at: usize,
    },
    /// The body begins with the first byte of a byte order mark.
    #[error("the body begins with a byte order mark: send plain UTF-8")]
    ByteOrderMark,
}

/// What the lexer has read. Pieces of one string or number may be any in number, none included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Event<'a> {
    ObjectStart,
    ObjectEnd,
    ArrayStart,
    ArrayEnd,
    KeyStart,
    KeyEnd,
    StringStart,
    StringEnd,
    /// A piece of the open key or string, decoded: whole characters in UTF-8.
    Text(&'a [u8]),
    /// A piece of the open key or string that stood as an escape or was cut by the end of a chunk.
    Char(char),
    NumberStart,
    /// A piece of the open number, as it is written.
    Digits(&'a [u8]),
    /// The value is there when the number is a whole one, written without sign, point and exponent, and fits.
    NumberEnd(Option<u64>),
    Literal(Literal),
}

/// A value that is a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Literal {
    True,
    False,
    Null,
}

impl Literal {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::False => "false",
            Self::Null => "null",
        }
    }
}

/// The open key, as long as it can be one that is looked for.
#[derive(Debug, Default)]
pub(crate) struct Key {
    /// Room for `cache_read_input_tokens`, the longest.
    bytes: [u8; 24],
    len: usize,
}

/// The lexer: see the module's description.
#[derive(Debug)]
pub(crate) struct Lexer {
    state: State,
    /// Bytes consumed.
    offset: usize,
    depth: u8,
    /// Bit `d` is set when the container open at depth `d + 1` is an object.
    objects: u128,
    /// Whether the open string is a key.
    in_key: bool,
    /// A high surrogate that waits for its low one; 0 for none.
    high_surrogate: u16,
    /// A character that the end of a chunk has cut.
    cut: [u8; 4],
    cut_len: u8,
    /// The open number, while it is whole.
    integer: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Value,
    FirstElement,
    FirstKey,
    Key,
    Colon,
    Next,
    Done,
    Text,
    Escape,
    Hex { digits: u8, unit: u16 },
    Number(Number),
    Word { literal: Literal, matched: u8 },
}

type Step<'a> = Result<Option<Event<'a>>, NotJson>;

impl Lexer {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Value,
            offset: 0,
            depth: 0,
            objects: 0,
            in_key: false,
            high_surrogate: 0,
            cut: [0; 4],
            cut_len: 0,
            integer: None,
        }
    }

    /// Bytes consumed: the offset just behind the last event.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Takes the next event off the front of `input`; `None` when all of it is consumed. Text that is not wanted is
    /// checked like any other, but not given.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8], text_wanted: bool) -> Step<'a> {
        while let Some(&byte) = input.first() {
            let event = match self.state {
                State::Text => self.text(input)?,
                State::Escape => self.escape(byte, input)?,
                State::Hex { digits, unit } => self.hex(digits, unit, byte, input)?,
                State::Number(number) => self.number(number, input)?,
                State::Word { literal, matched } => self.word(literal, matched, byte, input)?,
                _ if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') => {
                    self.take(input, 1);
                    None
                }
                state => self.structure(state, byte, input)?,
            };
            match event {
                None => {}
                Some(Event::Text(_) | Event::Char(_)) if !text_wanted => {}
                Some(_) => return Ok(event),
            }
        }
        Ok(None)
    }

    /// The body has ended: checks that the JSON has too.
    pub(crate) fn finish(&self) -> Result<(), NotJson> {
        match self.state {
            State::Done => Ok(()),
            State::Number(number) if self.depth == 0 && number.may_end() => Ok(()),
            state => Err(NotJson::Truncated { expected: self.expected(state), at: self.offset }),
        }
    }

    fn structure<'a>(&mut self, state: State, byte: u8, input: &mut &'a [u8]) -> Step<'a> {
        let event = match (state, byte) {
            (State::FirstKey | State::Key, b'"') => {
                (self.state, self.in_key) = (State::Text, true);
                Some(Event::KeyStart)
            }
            (State::Colon, b':') => {
                self.state = State::Value;
                None
            }
            (State::Next, b',') => {
                self.state = if self.in_object() { State::Key } else { State::Value };
                None
            }
            (State::FirstKey | State::Next, b'}') if self.in_object() => Some(self.close(Event::ObjectEnd)),
            (State::FirstElement | State::Next, b']') if !self.in_object() => {
                Some(self.close(Event::ArrayEnd))
            }
            (State::Value | State::FirstElement, _) => return self.value(state, byte, input),
            _ => return Err(self.unexpected(state)),
        };
        self.take(input, 1);
        Ok(event)
    }

    fn value<'a>(&mut self, state: State, byte: u8, input: &mut &'a [u8]) -> Step<'a> {
        let event = match byte {
            b'"' => {
                (self.state, self.in_key) = (State::Text, false);
                Event::StringStart
            }
            b'{' => self.open(true)?,
            b'[' => self.open(false)?,
            b'-' | b'0'..=b'9' => {
                (self.state, self.integer) = (State::Number(Number::Start), Some(0));
                return Ok(Some(Event::NumberStart));
            }
            b't' => return Ok(self.begin_word(Literal::True)),
            b'f' => return Ok(self.begin_word(Literal::False)),
            b'n' => return Ok(self.begin_word(Literal::Null)),
            0xEF if self.offset == 0 => return Err(NotJson::ByteOrderMark),
            _ => return Err(self.unexpected(state)),
        };
        self.take(input, 1);
        Ok(Some(event))
    }

    fn open(&mut self, object: bool) -> Result<Event<'static>, NotJson> {
        if self.depth == DEPTH_MAX {
            return Err(NotJson::TooDeep { at: self.offset });
        }
        self.objects = self.objects & !(1 << self.depth) | u128::from(object) << self.depth;
        self.depth += 1;
        self.state = if object { State::FirstKey } else { State::FirstElement };
        Ok(if object { Event::ObjectStart } else { Event::ArrayStart })
    }

    fn close(&mut self, event: Event<'static>) -> Event<'static> {
        self.depth -= 1;
        self.after_value();
        event
    }

    fn after_value(&mut self) {
        self.state = if self.depth == 0 { State::Done } else { State::Next };
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.objects >> (self.depth - 1) & 1 == 1
    }

    /// Inside a string, not inside an escape.
    fn text<'a>(&mut self, input: &mut &'a [u8]) -> Step<'a> {
        if self.cut_len > 0 {
            return self.rest_of_cut(input);
        }
        if self.high_surrogate != 0 && input[0] != b'\\' {
            return Ok(Some(self.lone_surrogate()));
        }
        let plain = plain::ascii_len(input);
        if plain > 0 {
            return Ok(Some(Event::Text(self.take(input, plain))));
        }
        match input[0] {
            b'"' => {
                self.take(input, 1);
                if self.in_key {
                    self.state = State::Colon;
                    return Ok(Some(Event::KeyEnd));
                }
                self.after_value();
                Ok(Some(Event::StringEnd))
            }
            b'\\' => {
                self.take(input, 1);
                self.state = State::Escape;
                Ok(None)
            }
            0..0x20 => Err(NotJson::ControlCharacter { at: self.offset }),
            _ => self.beyond_ascii(input),
        }
    }

    /// Inside a string, at a byte that is no ASCII.
    fn beyond_ascii<'a>(&mut self, input: &mut &'a [u8]) -> Step<'a> {
        let run = &input[..plain::any_len(input)];
        let (valid, cut) = match std::str::from_utf8(run) {
            Ok(_) => (run.len(), false),
            Err(fault) => (fault.valid_up_to(), fault.error_len().is_none() && run.len() == input.len()),
        };
        if valid > 0 {
            return Ok(Some(Event::Text(self.take(input, valid))));
        }
        if !cut {
            return Err(NotJson::NotUtf8 { at: self.offset });
        }
        self.cut[..run.len()].copy_from_slice(run);
        self.cut_len = run.len() as u8;
        self.take(input, run.len());
        Ok(None)
    }

    /// Goes on with a character that the end of the chunk before has cut.
    fn rest_of_cut<'a>(&mut self, input: &mut &'a [u8]) -> Step<'a> {
        let len = usize::from(self.cut_len);
        self.cut[len] = input[0];
        match std::str::from_utf8(&self.cut[..=len]) {
            Ok(text) => {
                let event = text.chars().next().map(Event::Char);
                self.cut_len = 0;
                self.take(input, 1);
                Ok(event)
            }
            Err(fault) if fault.error_len().is_none() => {
                self.cut_len += 1;
                self.take(input, 1);
                Ok(None)
            }
            Err(_) => Err(NotJson::NotUtf8 { at: self.offset - len }),
        }
    }

    fn escape<'a>(&mut self, byte: u8, input: &mut &'a [u8]) -> Step<'a> {
        if self.high_surrogate != 0 && byte != b'u' {
            return Ok(Some(self.lone_surrogate()));
        }
        let char = match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.take(input, 1);
                self.state = State::Hex { digits: 0, unit: 0 };
                return Ok(None);
            }
            _ => return Err(NotJson::BadEscape { at: self.offset }),
        };
        self.take(input, 1);
        self.state = State::Text;
        Ok(Some(Event::Char(char)))
    }

    /// Inside `\uXXXX`, `digits` of which are read.
    fn hex<'a>(&mut self, digits: u8, unit: u16, byte: u8, input: &mut &'a [u8]) -> Step<'a> {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return Err(NotJson::BadEscape { at: self.offset });
        };
        let unit = unit << 4 | digit as u16;
        if digits < 3 {
            self.take(input, 1);
            self.state = State::Hex { digits: digits + 1, unit };
            return Ok(None);
        }
        let low = matches!(unit, 0xDC00..=0xDFFF);
        if self.high_surrogate != 0 && !low {
            // The fourth digit is left in place and read again.
            return Ok(Some(self.lone_surrogate()));
        }
        self.take(input, 1);
        self.state = State::Text;
        if matches!(unit, 0xD800..=0xDBFF) {
            self.high_surrogate = unit;
            return Ok(None);
        }
        let code = match self.high_surrogate {
            0 => u32::from(unit),
            high => 0x1_0000 + (u32::from(high - 0xD800) << 10) + u32::from(unit - 0xDC00),
        };
        self.high_surrogate = 0;
        Ok(Some(Event::Char(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))))
    }

    fn lone_surrogate(&mut self) -> Event<'static> {
        self.high_surrogate = 0;
        Event::Char(char::REPLACEMENT_CHARACTER)
    }

    fn number<'a>(&mut self, mut number: Number, input: &mut &'a [u8]) -> Step<'a> {
        let mut len = 0;
        while let Some(next) = input.get(len).and_then(|&byte| number.after(byte)) {
            let digit = input[len].wrapping_sub(b'0');
            self.integer = self
                .integer
                .filter(|_| digit < 10)
                .and_then(|whole| whole.checked_mul(10)?.checked_add(u64::from(digit)));
            number = next;
            len += 1;
        }
        self.state = State::Number(number);
        if len > 0 {
            return Ok(Some(Event::Digits(self.take(input, len))));
        }
        if !number.may_end() {
            return Err(self.unexpected(self.state));
        }
        self.after_value();
        Ok(Some(Event::NumberEnd(self.integer)))
    }

    fn begin_word<'a>(&mut self, literal: Literal) -> Option<Event<'a>> {
        self.state = State::Word { literal, matched: 0 };
        None
    }

    fn word<'a>(&mut self, literal: Literal, matched: u8, byte: u8, input: &mut &'a [u8]) -> Step<'a> {
        let word = literal.word().as_bytes();
        if word[usize::from(matched)] != byte {
            return Err(self.unexpected(self.state));
        }
        self.take(input, 1);
        let matched = matched + 1;
        if usize::from(matched) < word.len() {
            self.state = State::Word { literal, matched };
            return Ok(None);
        }
        self.after_value();
        Ok(Some(Event::Literal(literal)))
    }

    fn take<'a>(&mut self, input: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, rest) = input.split_at(len);
        *input = rest;
        self.offset += len;
        taken
    }

    fn unexpected(&self, state: State) -> NotJson {
        NotJson::Unexpected { expected: self.expected(state), at: self.offset }
    }

    fn expected(&self, state: State) -> &'static str {
        match state {
            State::Value => "a value",
            State::FirstElement => "a value or ']'",
            State::FirstKey => "a key or '}'",
            State::Key => "a key after ','",
            State::Colon => "':' after a key",
            State::Next if self.in_object() => "',' or '}'",
            State::Next => "',' or ']'",
            State::Done => "nothing more after the JSON value",
            State::Text | State::Escape | State::Hex { .. } => "the end of a string",
            State::Number(_) => "a digit",
            State::Word { literal, .. } => match literal {
                Literal::True => "'true'",
                Literal::False => "'false'",
                Literal::Null => "'null'",
            },
        }
    }
}

impl Key {
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn push(&mut self, text: &[u8]) {
        let end = self.len + text.len();
        if let Some(free) = self.bytes.get_mut(self.len..end) {
            free.copy_from_slice(text);
        }
        self.len = end;
    }

    /// The key; empty when it is longer than any that is looked for.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
