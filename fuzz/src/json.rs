//! JSON as `serde_json` reads it, each value with its place, keys in order, duplicates kept.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Spanned {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    String(String),
    Array(Vec<Spanned>),
    Object(Vec<Field>),
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) key: String,
    pub(crate) key_start: usize,
    pub(crate) value: Spanned,
}

/// What `serde_json` says of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Whole,
    /// It could go on to be JSON.
    Begun,
    Broken,
}

pub(crate) fn judge(text: &[u8]) -> Verdict {
    match serde_json::from_slice::<Checked>(&mended(text)) {
        Ok(Checked) => Verdict::Whole,
        Err(error) if error.is_eof() => Verdict::Begun,
        Err(_) => Verdict::Broken,
    }
}

/// The tree, if `serde_json` takes the text.
pub(crate) fn parse(text: &[u8]) -> Option<Spanned> {
    let text = mended(text);
    serde_json::from_slice::<Checked>(&text).ok()?;
    let text = std::str::from_utf8(&text).expect("serde_json checked it");
    let raw: &RawValue = serde_json::from_str(text).expect("it was taken before");
    Some(spanned(raw.get(), text))
}

/// The text with each lone surrogate escape replaced by that of U+FFFD, which is what we read: serde_json refuses them.
fn mended(text: &[u8]) -> Vec<u8> {
    let mut mended = text.to_vec();
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        let digits = std::str::from_utf8(digits).ok()?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u16::from_str_radix(digits, 16).expect("four digits"))
    };
    let mut at = 0;
    while let Some(plain) = text.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == b'\\')) {
        at += plain;
        at += match unit(at) {
            Some(0xD800..0xDC00) if matches!(unit(at + 6), Some(0xDC00..0xE000)) => 12,
            Some(0xD800..0xE000) => {
                mended[at..at + 6].copy_from_slice(b"\\ufffd");
                6
            }
            _ => 2,
        };
    }
    mended
}

/// `raw` is a part of `text`.
fn spanned(raw: &str, text: &str) -> Spanned {
    let start = raw.as_ptr() as usize - text.as_ptr() as usize;
    let value = match raw.as_bytes()[0] {
        b'n' => Value::Null,
        b't' | b'f' => Value::Bool(raw == "true"),
        b'"' => Value::String(serde_json::from_str(raw).expect("a string")),
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(raw).expect("an array");
            Value::Array(elements.into_iter().map(|raw| spanned(raw.get(), text)).collect())
        }
        b'{' => {
            let Entries(entries) = serde_json::from_str(raw).expect("an object");
            let mut from = start;
            let field = |(key, raw): (String, &RawValue)| {
                let value = spanned(raw.get(), text);
                // Between two values stand blanks, a comma, and the key.
                let key_start = from + text[from..].find('"').expect("a key");
                from = value.end;
                Field { key, key_start, value }
            };
            Value::Object(entries.into_iter().map(field).collect())
        }
        _ => Value::Number(raw.to_owned()),
    };
    Spanned { start, end: start + raw.len(), value }
}

/// Any value, checked with all inside and within `serde_json`'s own limit on nesting.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self, A::Error> {
        while array.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    /// Numbers that are not small and whole come here too: that is how `serde_json` gives them as they are written.
    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// The fields of an object in order.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = object.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Entry).map(Entries)
    }
}
