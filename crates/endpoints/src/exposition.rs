//! Prometheus text, line by line as it arrives.
//!
//! Invariants: a line is looked at once; only the lines that the caller wants are taken apart; nothing is kept but the
//! beginning of a line that the next chunk ends, and that is bounded.

use std::borrow::Cow;

use memchr::{memchr, memchr3};

/// The longest line accepted, in bytes.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// One sample line, taken apart as far as its labels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample<'a> {
    /// The labels.
    pub(crate) labels: Labels<'a>,
    /// The value; any float, NaN and infinities included.
    pub(crate) value: f64,
}

/// The labels of one line, checked: iterating cannot fail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Labels<'a>(&'a str);

/// Cuts a page into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// A line's beginning, whose end has not come yet.
    carry: Vec<u8>,
}

/// Why a page cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A line has no end within the bound.
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// The page ends within a wanted line: what looks like its value may be the half of one.
    #[error("the page ends before the line does")]
    Unended,
    /// A wanted line is no sample.
    #[error("line is not of the form name{{labels}} value [timestamp]")]
    Malformed,
}

impl Lines {
    /// Calls `line` with each line that ends in `chunk`, without its line feed.
    ///
    /// # Errors
    /// [`LineError::TooLong`], or the first error of `line`; the page is then of no further use.
    pub(crate) fn feed<E: From<LineError>>(
        &mut self,
        chunk: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = chunk;
        while let Some(end) = memchr(b'\n', rest) {
            let (head, tail) = rest.split_at(end);
            if self.carry.is_empty() {
                check_length(head.len())?;
                line(head)?;
            } else {
                self.keep(head)?;
                line(&self.carry)?;
                self.carry.clear();
            }
            rest = tail.get(1..).unwrap_or_default();
        }
        self.keep(rest)?;
        Ok(())
    }

    /// What follows the last line feed: nothing, unless the page was cut short.
    pub(crate) fn unended(&self) -> &[u8] {
        &self.carry
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), LineError> {
        check_length(self.carry.len() + part.len())?;
        self.carry.extend_from_slice(part);
        Ok(())
    }
}

impl<'a> Sample<'a> {
    /// Takes apart what follows the name on a sample line: `{labels} value [timestamp] [# exemplar]`.
    ///
    /// # Errors
    /// [`LineError::Malformed`].
    pub(crate) fn parse(after_name: &'a [u8]) -> Result<Self, LineError> {
        let text = std::str::from_utf8(after_name).map_err(|_| LineError::Malformed)?;
        let text = text.trim_start_matches(BLANK);
        let (labels, text) = match text.strip_prefix('{') {
            Some(text) => Labels::split_off(text).ok_or(LineError::Malformed)?,
            None => (Labels(""), text),
        };
        let value = value_of(text).ok_or(LineError::Malformed)?;
        Ok(Self { labels, value })
    }
}

impl<'a> Labels<'a> {
    /// The value of the label called `name`.
    #[must_use]
    pub(crate) fn value(&self, name: &str) -> Option<Cow<'a, str>> {
        self.iter().find(|(label, _)| *label == name).map(|(_, value)| value)
    }

    /// Names and values, in the order of the line.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || match next_label(rest)? {
            Label::Pair { name, value, rest: after } => {
                rest = after;
                Some((name, unescaped(value)))
            }
            Label::End { .. } => None,
        })
    }

    /// Splits `labels} rest` into the two; none if a label is malformed or the brace is missing.
    fn split_off(text: &'a str) -> Option<(Self, &'a str)> {
        let mut rest = text;
        loop {
            match next_label(rest)? {
                Label::Pair { rest: after, .. } => rest = after,
                Label::End { rest: after } => return Some((Self(text), after)),
            }
        }
    }
}

/// The name at the beginning of a line and what follows it; none for a comment, an empty line or anything else.
#[must_use]
pub(crate) fn split_name(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_start();
    if line.first().is_none_or(|&first| first == b'#') {
        return None;
    }
    let end = memchr3(b'{', b' ', b'\t', line)?;
    Some(line.split_at(end))
}

const BLANK: [char; 2] = [' ', '\t'];

enum Label<'a> {
    /// `value` is still escaped.
    Pair {
        name: &'a str,
        value: &'a str,
        rest: &'a str,
    },
    End {
        rest: &'a str,
    },
}

/// Takes `name="value"` and a comma, or the closing brace.
fn next_label(text: &str) -> Option<Label<'_>> {
    let text = text.trim_start_matches(BLANK);
    if let Some(rest) = text.strip_prefix('}') {
        return Some(Label::End { rest });
    }
    let (name, text) = text.split_once('=')?;
    let name = name.trim_end_matches(BLANK);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_name) {
        return None;
    }
    let text = text.trim_start_matches(BLANK).strip_prefix('"')?;
    let (value, text) = text.split_at(closing_quote(text)?);
    let rest = text.strip_prefix('"')?.trim_start_matches(BLANK);
    let rest = match rest.strip_prefix(',') {
        Some(rest) => rest,
        None if rest.starts_with('}') => rest,
        None => return None,
    };
    Some(Label::Pair { name, value, rest })
}

/// Where the quote that ends a label's value stands.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// Undoes `\\`, `\"` and `\n`; any other backslash stands for itself.
fn unescaped(value: &str) -> Cow<'_, str> {
    if memchr(b'\\', value.as_bytes()).is_none() {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        match (char, chars.as_str().as_bytes().first()) {
            ('\\', Some(b'n')) => text.push('\n'),
            ('\\', Some(b'\\')) => text.push('\\'),
            ('\\', Some(b'"')) => text.push('"'),
            _ => {
                text.push(char);
                continue;
            }
        }
        chars.next();
    }
    Cow::Owned(text)
}

/// The float that `text` begins with, if only a timestamp or an exemplar follows it.
fn value_of(text: &str) -> Option<f64> {
    let mut words = text.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let Some(word) = words.next() else { return Some(value) };
    let after_time = if word.starts_with('#') {
        Some(word)
    } else {
        word.parse::<f64>().ok()?;
        words.next()
    };
    after_time.is_none_or(|word| word.starts_with('#')).then_some(value)
}

fn check_length(bytes: usize) -> Result<(), LineError> {
    if bytes > LINE_BYTES_MAX { Err(LineError::TooLong) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
