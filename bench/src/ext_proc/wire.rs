//! Protobuf fields and gRPC frames.

use bytes::{Buf as _, Bytes, BytesMut};

/// Bytes before each gRPC message: a flag for compression, and the length.
const PREFIX_BYTES: usize = 5;
/// A longer message is a fault of the peer: the largest request body that is measured, and room.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Bytes that are no protobuf, or no frame that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// A field's value: of varints the number, of everything else the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The bytes of a string or message; empty for a number, as if the field were not there.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            Value::Number(_) => &[],
        }
    }

    pub(super) fn number(self) -> u64 {
        match self {
            Value::Number(number) => number,
            Value::Bytes(_) => 0,
        }
    }
}

/// The fields of a message in the order of the wire, as `(number, value)`; ends at the first fault.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Malformed("protobuf")))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// `key` with `value` as an entry of the field `field`, which is a map of strings to messages.
pub(super) fn put_entry(out: &mut Vec<u8>, field: u64, key: &str, value: &[u8]) {
    let mut entry = Vec::with_capacity(key.len() + value.len() + 8);
    put_bytes(&mut entry, 1, key.as_bytes());
    put_bytes(&mut entry, 2, value);
    put_bytes(out, field, &entry);
}

/// A `google.protobuf.Struct` that holds these strings.
pub(super) fn struct_of_strings(strings: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = Vec::new();
    for (key, text) in strings {
        let mut value = Vec::new();
        put_bytes(&mut value, 3, text.as_bytes());
        put_entry(&mut fields, 1, key, &value);
    }
    fields
}

/// A message with gRPC's prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(PREFIX_BYTES + message.len());
    frame.push(0);
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

/// Cuts a stream of bytes into gRPC messages. One that came in one piece is passed on as it lies.
#[derive(Debug, Default)]
pub struct Deframer {
    /// The piece that is being cut, while no message spans pieces.
    piece: Bytes,
    /// What has come of a message that spans pieces.
    part: BytesMut,
}

impl Deframer {
    /// More bytes of the stream.
    pub fn push(&mut self, data: Bytes) {
        if self.part.is_empty() {
            if self.piece.is_empty() {
                self.piece = data;
                return;
            }
            self.part.extend_from_slice(&std::mem::take(&mut self.piece));
        }
        self.part.extend_from_slice(&data);
    }

    /// The next whole message, without its prefix; `None` until more bytes come.
    ///
    /// # Errors
    /// A compressed message, or one of more than 64 MiB.
    pub fn message(&mut self) -> Result<Option<Bytes>, Malformed> {
        let held: &[u8] = if self.part.is_empty() { &self.piece } else { &self.part };
        let Some((&[flag, a, b, c, d], rest)) = held.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flag != 0 || length > MESSAGE_BYTES_MAX {
            return Err(Malformed("gRPC frame"));
        }
        if rest.len() < length {
            let missing = length - rest.len();
            if self.part.is_empty() {
                self.part.reserve(PREFIX_BYTES + length);
                self.part.extend_from_slice(&std::mem::take(&mut self.piece));
            } else {
                self.part.reserve(missing);
            }
            return Ok(None);
        }
        if self.part.is_empty() {
            self.piece.advance(PREFIX_BYTES);
            Ok(Some(self.piece.split_to(length)))
        } else {
            self.part.advance(PREFIX_BYTES);
            Ok(Some(self.part.split_to(length).freeze()))
        }
    }

    /// Whether a message has begun and not ended.
    pub fn is_within_message(&self) -> bool {
        !self.piece.is_empty() || !self.part.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_bytes_end_the_fields() {
        let ends_at = |bytes: &[u8]| Fields(bytes).take(9).map(|field| field.is_ok()).collect::<Vec<_>>();
        assert_eq!(ends_at(&[0x08]), [false], "a tag without its value");
        assert_eq!(ends_at(&[0x0a, 0x05, 1]), [false], "fewer bytes than announced");
        assert_eq!(ends_at(&[0xff; 20]), [false], "a varint without end");
        assert_eq!(ends_at(&[0x08, 1, 0x0b]), [true, false], "a group, which nobody sends");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [[1, 0, 0, 0, 0], [0, 255, 255, 255, 255]] {
            let mut deframer = Deframer::default();
            deframer.push(Bytes::copy_from_slice(&bytes));
            assert_eq!(deframer.message(), Err(Malformed("gRPC frame")));
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            cuts in prop::collection::vec(1_usize..30, 1..8),
        ) {
            let mut stream: Bytes = messages.iter().flat_map(|message| framed(message)).collect::<Vec<_>>().into();
            let (mut deframer, mut out, mut cuts) = (Deframer::default(), Vec::new(), cuts.into_iter().cycle());
            while !stream.is_empty() {
                let cut = cuts.next().unwrap_or(1).min(stream.len());
                deframer.push(stream.split_to(cut));
                while let Some(message) = deframer.message()? {
                    out.push(message.to_vec());
                }
            }
            prop_assert_eq!(out, messages);
            prop_assert!(!deframer.is_within_message());
        }
    }
}
