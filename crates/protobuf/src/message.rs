//! A message that is taken apart, edited and put together again.
//!
//! What is not touched, fields included that nobody here has heard of, keeps its bytes and its place: a message that a newer peer
//! wrote passes without a loss.

use bytes::Bytes;

use crate::{Fields, Malformed, Value, Writer};

/// A message in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    number: u32,
    /// Key and value, as they lie.
    raw: Bytes,
    /// Where in it the value begins, of strings, bytes and messages; else its end.
    value_at: usize,
}

impl Message {
    /// Takes a message apart.
    ///
    /// # Errors
    /// When `bytes` are no message.
    pub fn parse(bytes: &Bytes) -> Result<Message, Malformed> {
        let mut reader = Fields::of(bytes);
        let mut fields = Vec::new();
        let mut at = 0;
        while let Some((number, value)) = reader.read()? {
            let end = bytes.len() - reader.rest.len();
            let value_bytes = if let Value::Bytes(value) = value { value.len() } else { 0 };
            let raw = bytes.slice(at..end);
            fields.push(Field { number, value_at: raw.len() - value_bytes, raw });
            at = end;
        }
        Ok(Message { fields })
    }

    /// Every string, bytes or message in that field.
    pub fn all(&self, number: u32) -> impl Iterator<Item = Bytes> {
        self.fields
            .iter()
            .filter(move |field| field.number == number)
            .map(|field| field.raw.slice(field.value_at..))
    }

    /// The string, bytes or message in that field; the last, as protobuf has it.
    #[must_use]
    pub fn bytes(&self, number: u32) -> Option<Bytes> {
        self.all(number).last()
    }

    /// The string in that field; empty where there is none, or where it is no text.
    #[must_use]
    pub fn text(&self, number: u32) -> String {
        self.bytes(number).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()).unwrap_or_default()
    }

    /// Whether the field is there.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.fields.iter().any(|field| field.number == number)
    }

    /// The message in that field, taken apart; an empty one where there is none.
    ///
    /// # Errors
    /// When what is there is no message.
    pub fn message(&self, number: u32) -> Result<Message, Malformed> {
        self.bytes(number).map_or_else(|| Ok(Message::default()), |bytes| Message::parse(&bytes))
    }

    /// Takes the field out.
    pub fn remove(&mut self, number: u32) {
        self.fields.retain(|field| field.number != number);
    }

    /// Puts what `write` writes at the end: one more value of a repeated field, or of one that is not there.
    pub fn push(&mut self, write: impl FnOnce(&mut Writer)) {
        // What we write ourselves can be read.
        if let Ok(Message { fields }) = Message::parse(&Writer::of(write).into()) {
            self.fields.extend(fields);
        }
    }

    /// Puts what `write` writes, which is of that field, in the place of what is there.
    pub fn set(&mut self, number: u32, write: impl FnOnce(&mut Writer)) {
        let at = self.fields.iter().position(|field| field.number == number).unwrap_or(self.fields.len());
        self.remove(number);
        if let Ok(Message { fields }) = Message::parse(&Writer::of(write).into()) {
            self.fields.splice(at..at, fields);
        }
    }

    /// Edits the message in that field; an empty one where there is none.
    ///
    /// # Errors
    /// When what is there is no message, or as `edit` says.
    pub fn edit<E: From<Malformed>>(
        &mut self,
        number: u32,
        edit: impl FnOnce(&mut Message) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut message = self.message(number)?;
        edit(&mut message)?;
        self.set(number, |writer| writer.bytes(number, message.to_bytes()));
        Ok(())
    }

    /// Edits every message in that field, in order; those that `edit` says it left alone keep their bytes.
    ///
    /// # Errors
    /// When what is there is no message, or as `edit` says.
    pub fn edit_all<E: From<Malformed>>(
        &mut self,
        number: u32,
        mut edit: impl FnMut(&mut Message) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut edited = false;
        for field in self.fields.iter_mut().filter(|field| field.number == number) {
            let mut message = Message::parse(&field.raw.slice(field.value_at..))?;
            if edit(&mut message)? {
                let value = message.to_bytes();
                let raw = Writer::of(|writer| writer.bytes(number, &value));
                *field = Field { number, value_at: raw.len() - value.len(), raw: raw.into() };
                edited = true;
            }
        }
        Ok(edited)
    }

    /// The value under that key of a map whose entries stand in that field.
    ///
    /// # Errors
    /// When an entry is malformed.
    pub fn map_value(&self, number: u32, key: &str) -> Result<Option<Bytes>, Malformed> {
        for entry in self.all(number) {
            let entry = Message::parse(&entry)?;
            if entry.bytes(MAP_KEY).is_some_and(|found| found == key.as_bytes()) {
                return Ok(Some(entry.bytes(MAP_VALUE).unwrap_or_default()));
            }
        }
        Ok(None)
    }

    /// Puts the value under that key of a map; none takes it out.
    ///
    /// # Errors
    /// When an entry is malformed.
    pub fn set_map_value(&mut self, number: u32, key: &str, value: Option<&[u8]>) -> Result<(), Malformed> {
        let mut kept = Vec::with_capacity(self.fields.len());
        for field in self.fields.drain(..) {
            let is_it = field.number == number
                && Message::parse(&field.raw.slice(field.value_at..))?
                    .bytes(MAP_KEY)
                    .is_some_and(|found| found == key.as_bytes());
            if !is_it {
                kept.push(field);
            }
        }
        self.fields = kept;
        if let Some(value) = value {
            self.push(|writer| writer.map_entry(number, key, value));
        }
        Ok(())
    }

    /// The message put together.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.fields.iter().map(|field| field.raw.len()).sum());
        self.fields.iter().for_each(|field| bytes.extend_from_slice(&field.raw));
        bytes
    }
}

const MAP_KEY: u32 = 1;
const MAP_VALUE: u32 = 2;

impl Writer {
    /// An entry of a map from strings.
    pub fn map_entry(&mut self, field: u32, key: &str, value: &[u8]) {
        self.message(field, |entry| {
            entry.bytes(MAP_KEY, key);
            entry.bytes(MAP_VALUE, value);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(write: impl FnOnce(&mut Writer)) -> Message {
        Message::parse(&Writer::of(write).into()).unwrap()
    }

    #[test]
    fn what_is_set_takes_the_place_of_what_was() {
        let mut it = message(|it| {
            it.bytes(1, "name");
            it.bytes(2, "old");
            it.varint(9, 7);
            it.bytes(2, "older");
        });
        assert_eq!(
            (it.text(1), it.text(2), it.text(3), it.has(9)),
            ("name".into(), "older".into(), String::new(), true)
        );
        it.set(2, |it| it.bytes(2, "new"));
        it.set(4, |it| it.varint(4, 1));
        let expected = Writer::of(|it| {
            it.bytes(1, "name");
            it.bytes(2, "new");
            it.varint(9, 7);
            it.varint(4, 1);
        });
        assert_eq!(it.to_bytes(), expected);
    }

    #[test]
    fn messages_inside_are_edited_where_they_lie() {
        let mut it = message(|it| {
            it.message(1, |inner| inner.bytes(1, "a"));
            it.message(1, |inner| inner.bytes(1, "b"));
            it.bytes(2, "rest");
        });
        let edited = it.edit_all::<Malformed>(1, |inner| {
            let is_b = inner.text(1) == "b";
            if is_b {
                inner.push(|inner| inner.bytes(7, "more"));
            }
            Ok(is_b)
        });
        assert_eq!(edited, Ok(true));
        it.edit::<Malformed>(3, |new| {
            new.push(|new| new.varint(1, 5));
            Ok(())
        })
        .unwrap();
        let expected = Writer::of(|it| {
            it.message(1, |inner| inner.bytes(1, "a"));
            it.message(1, |inner| {
                inner.bytes(1, "b");
                inner.bytes(7, "more");
            });
            it.bytes(2, "rest");
            it.message(3, |new| new.varint(1, 5));
        });
        assert_eq!(it.to_bytes(), expected);
    }

    #[test]
    fn maps_have_one_value_for_a_key() {
        let mut it = message(|it| {
            it.map_entry(5, "a", b"1");
            it.map_entry(5, "b", b"2");
        });
        it.set_map_value(5, "a", Some(b"3")).unwrap();
        assert_eq!(it.map_value(5, "a").unwrap().as_deref(), Some(&b"3"[..]));
        it.set_map_value(5, "b", None).unwrap();
        assert_eq!(it.map_value(5, "b").unwrap(), None);
        assert_eq!(it.all(5).count(), 1);
    }

    proptest! {
        /// Whatever can be read is put together as it was.
        #[test]
        fn what_is_not_touched_stays(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let bytes = Bytes::from(bytes);
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert_eq!(message.to_bytes(), bytes);
            }
        }
    }
}
