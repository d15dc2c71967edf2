//! Protobuf by hand (<https://protobuf.dev/programming-guides/encoding/>): fields of a message read where they lie,
//! and messages written around bytes that are never copied.
//!
//! Invariants
//! - Reading allocates nothing, recurses nowhere and goes over each byte once for each level of messages around it.
//! - Every length is checked against what is there before it is used.
//! - Stricter than protobuf in two points that no serializer has need of: an embedded message must come in one piece
//!   (protobuf would merge two), and groups are refused.

mod message;

use bytes::Bytes;
use smallvec::SmallVec;

pub use message::Message;

/// One message as it goes out: what we wrote, and slices of what came in.
pub type Segments = SmallVec<[Bytes; 2]>;

/// What stands in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Integers, enums, booleans.
    Varint(u64),
    /// Fixed integers and floats of 64 bits, as they lie.
    Fixed64([u8; 8]),
    /// Strings, bytes, embedded messages.
    Bytes(&'a [u8]),
    /// Fixed integers and floats of 32 bits, as they lie.
    Fixed32([u8; 4]),
}

/// Why bytes are not the message that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message ends inside a field's key.
    #[error("a message ends inside a field's key")]
    KeyTruncated,
    /// No field has this number.
    #[error("a field's key is {key}, which no field can have")]
    NotAKey {
        /// The key as it was read.
        key: u64,
    },
    /// The message ends inside the field.
    #[error("a message ends inside its field {field}")]
    Truncated {
        /// The field's number.
        field: u32,
    },
    /// More bytes than 64 bits need.
    #[error("an integer of field {field} is longer than 64 bits")]
    VarintTooLong {
        /// The field's number; 0 where it is the key itself.
        field: u32,
    },
    /// Groups, which nobody writes any more, or wire types that do not exist.
    #[error("field {field} has wire type {wire_type}, which is not read here")]
    WireType {
        /// The field's number.
        field: u32,
        /// The type as it was read.
        wire_type: u8,
    },
    /// The field is there with a type that is not its own.
    #[error("field {field} has another type than it should")]
    OtherType {
        /// The field's number.
        field: u32,
    },
    /// An embedded message in several pieces.
    #[error("field {field} is there twice, and is not merged here")]
    Twice {
        /// The field's number.
        field: u32,
    },
}

/// The fields of a message, in the order in which they lie.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// Writes a message. What goes out last may stay beside it, uncopied.
#[derive(Debug, Default)]
pub struct Writer {
    written: Vec<u8>,
    /// Bytes that will follow what is written.
    beside: usize,
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;
/// Ten times seven bits hold 64.
const VARINT_BYTES_MAX: usize = 10;
const FIELD_MAX: u64 = (1 << 29) - 1;

impl<'a> Fields<'a> {
    /// The fields of `message`.
    #[must_use]
    pub fn of(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message }
    }

    /// The next field's number and what stands in it; `None` at the end of the message.
    ///
    /// # Errors
    /// When what follows is no field. Nothing can be read behind it.
    pub fn read(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint(0).map_err(|malformed| match malformed {
            Malformed::Truncated { .. } => Malformed::KeyTruncated,
            other => other,
        })?;
        let (field, wire_type) = (key >> 3, (key & 7) as u8);
        let field = match u32::try_from(field) {
            Ok(number @ 1..) if field <= FIELD_MAX => number,
            _ => return Err(Malformed::NotAKey { key }),
        };
        let value = match wire_type {
            VARINT => Value::Varint(self.varint(field)?),
            FIXED64 => Value::Fixed64(self.fixed(field)?),
            BYTES => {
                let length = self.varint(field)?;
                Value::Bytes(self.take(length, field)?)
            }
            FIXED32 => Value::Fixed32(self.fixed(field)?),
            wire_type => return Err(Malformed::WireType { field, wire_type }),
        };
        Ok(Some((field, value)))
    }

    fn varint(&mut self, field: u32) -> Result<u64, Malformed> {
        let mut value = 0;
        for (at, &byte) in self.rest.iter().take(VARINT_BYTES_MAX).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                if at + 1 == VARINT_BYTES_MAX && byte > 1 {
                    return Err(Malformed::VarintTooLong { field });
                }
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        if self.rest.len() < VARINT_BYTES_MAX {
            return Err(Malformed::Truncated { field });
        }
        Err(Malformed::VarintTooLong { field })
    }

    fn take(&mut self, length: u64, field: u32) -> Result<&'a [u8], Malformed> {
        let taken = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = taken.ok_or(Malformed::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self, field: u32) -> Result<[u8; N], Malformed> {
        let (&taken, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Value<'a> {
    /// A string, bytes, or an embedded message.
    ///
    /// # Errors
    /// When `field` is of another type.
    pub fn bytes(self, field: u32) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed::OtherType { field }),
        }
    }

    /// An integer or an enum.
    ///
    /// # Errors
    /// When `field` is of another type.
    pub fn varint(self, field: u32) -> Result<u64, Malformed> {
        match self {
            Value::Varint(value) => Ok(value),
            _ => Err(Malformed::OtherType { field }),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// When `field` is of another type.
    pub fn bool(self, field: u32) -> Result<bool, Malformed> {
        Ok(self.varint(field)? != 0)
    }
}

/// Puts an embedded message into its place.
///
/// # Errors
/// When something is there already.
pub fn put<T>(place: &mut Option<T>, message: T, field: u32) -> Result<(), Malformed> {
    match place.replace(message) {
        None => Ok(()),
        Some(_) => Err(Malformed::Twice { field }),
    }
}

/// The value under `key` in a map whose entries stand in `field` of `message`; the last, where there are several.
///
/// # Errors
/// When the message, or an entry on the way, is malformed.
pub fn map_value<'a>(message: &'a [u8], field: u32, key: &[u8]) -> Result<Option<&'a [u8]>, Malformed> {
    let mut found = None;
    let mut fields = Fields::of(message);
    while let Some((number, value)) = fields.read()? {
        if number == field {
            let (name, value) = map_entry(value.bytes(number)?)?;
            if name == key {
                found = Some(value);
            }
        }
    }
    Ok(found)
}

/// Key and value of a map's entry, both strings or messages.
fn map_entry(entry: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    const KEY: u32 = 1;
    const VALUE: u32 = 2;
    let (mut key, mut value) = (&[][..], None);
    let mut fields = Fields::of(entry);
    while let Some((field, found)) = fields.read()? {
        match field {
            KEY => key = found.bytes(field)?,
            VALUE => put(&mut value, found.bytes(field)?, field)?,
            _ => {}
        }
    }
    Ok((key, value.unwrap_or_default()))
}

impl Writer {
    /// An empty message, for which `capacity` bytes are taken.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Writer {
        Writer { written: Vec::with_capacity(capacity), beside: 0 }
    }

    /// Writes on behind fields that are `written`.
    #[must_use]
    pub fn continuing(written: Vec<u8>) -> Writer {
        Writer { written, beside: 0 }
    }

    /// What `write` writes.
    #[must_use]
    pub fn of(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer);
        writer.into_bytes()
    }

    /// An integer or an enum.
    pub fn varint(&mut self, field: u32, value: u64) {
        self.key(field, VARINT);
        self.raw_varint(value);
    }

    /// A boolean. What is false is the default and not written.
    pub fn bool(&mut self, field: u32, value: bool) {
        if value {
            self.varint(field, 1);
        }
    }

    /// A string or bytes, copied.
    pub fn bytes(&mut self, field: u32, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        self.key(field, BYTES);
        self.raw_varint(value.len() as u64);
        self.written.extend_from_slice(value);
    }

    /// An embedded message, which `write` writes.
    pub fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer)) {
        self.key(field, BYTES);
        let (start, beside) = (self.written.len(), self.beside);
        write(self);
        let length = self.written.len() - start + self.beside - beside;
        // What is inside is short, or stands beside: moving it costs less than to count it before.
        let end = self.written.len();
        self.raw_varint(length as u64);
        let length_bytes = self.written.len() - end;
        self.written[start..].rotate_right(length_bytes);
    }

    /// Bytes of `length` that will follow what is written: the last field of this message, and of all around it.
    pub fn beside(&mut self, field: u32, length: usize) {
        self.key(field, BYTES);
        self.raw_varint(length as u64);
        self.beside += length;
    }

    /// What is written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.written
    }

    fn key(&mut self, field: u32, wire_type: u8) {
        self.raw_varint(u64::from(field) << 3 | u64::from(wire_type));
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            #[expect(clippy::cast_possible_truncation, reason = "the low seven bits are meant")]
            self.written.push(value as u8 | 0x80);
            value >>= 7;
        }
        #[expect(clippy::cast_possible_truncation, reason = "less than 0x80")]
        self.written.push(value as u8);
    }
}
