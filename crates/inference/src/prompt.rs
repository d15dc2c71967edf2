//! The canonical text of a prompt: the same bytes for the same prompt however its JSON was written, in the order
//! in which the model server sees it.
//!
//! A prompt is a tree of *records* (the request itself, a message, a part of a message). The fields of a record
//! come in any order and stand in the text by rank; of fields with one rank the last wins. Conversations that
//! share leading messages share a prefix of the text. What is no text is marked by bytes that never occur in
//! UTF-8, so no client can forge a mark:
//!
//! | bytes | stand before |
//! |---|---|
//! | [`FIELD`] and the rank | a field; rank 0 has no mark, so that a bare prompt is its own text |
//! | [`ITEM`] | a message; the second and later prompts of a batch |
//! | [`PART`] | the second and later parts of a content |
//! | [`QUOTE`] | and after: strings and keys of what is kept as JSON; each value there ends in `,` |
//! | [`DIGEST`] | 16 hexadecimal digits of XXH3-64 in place of an image, sound or file |
//!
//! Tokens stand as 32 bits each, little endian; `FF FF FF FF` is before the second and later prompts.
//!
//! Invariants: what is kept is bounded (see [`Prompt::append`]), and every answer of this module depends on the
//! appended bytes alone, not on how they were cut into calls.

use smallvec::SmallVec;

pub(crate) const ITEM: u8 = 0xFF;
pub(crate) const PART: u8 = 0xFE;
pub(crate) const QUOTE: u8 = 0xFD;
pub(crate) const DIGEST: u8 = 0xC1;
const FIELD: u8 = 0xFC;

/// The prompt as it grows.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// Fields in the order in which they came; a closed record is in order and cut to its room.
    text: Vec<u8>,
    bytes_max: usize,
    /// How many bytes the open field can still add to the first `bytes_max` of the final text.
    room: usize,
    /// The open records, outermost first: the request itself, always there, and those in its open field.
    records: SmallVec<[Record; 4]>,
    /// The fields of all open records, in the order in which they came.
    fields: SmallVec<[Field; 12]>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    ranks: u8,
    text_start: usize,
    fields_start: usize,
    /// Room where the record begins.
    room: usize,
}

/// A field ends where the next one of its record begins.
#[derive(Debug, Clone, Copy)]
struct Field {
    rank: u8,
    open: bool,
    text_start: usize,
}

impl Prompt {
    /// A prompt of which the first `bytes_max` bytes are wanted. The fields of the request have the ranks
    /// `0..ranks`; the last is the one without which there is no prompt.
    pub(crate) fn new(ranks: u8, bytes_max: usize) -> Self {
        let request = Record { ranks, text_start: 0, fields_start: 0, room: bytes_max };
        Self {
            text: Vec::new(),
            bytes_max,
            room: 0,
            records: SmallVec::from_slice(&[request]),
            fields: SmallVec::new(),
        }
    }

    /// Appends to the open field as much as can still matter: in all, at most `bytes_max` for each field of each
    /// open record.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(self.room);
        if self.text.capacity() == 0 && kept > 0 {
            self.text.reserve(self.bytes_max.min(16 * 1024));
        }
        self.text.extend_from_slice(&bytes[..kept]);
        self.room -= kept;
    }

    /// Whether nothing more is kept of the open field.
    pub(crate) fn is_full(&self) -> bool {
        self.room == 0
    }

    /// Whether nothing but its mark stands in the open field.
    pub(crate) fn field_is_empty(&self) -> bool {
        self.fields
            .last()
            .is_none_or(|field| self.text.len() <= field.text_start + if field.rank > 0 { 2 } else { 0 })
    }

    /// Begins a record inside the open field; its fields have the ranks `0..ranks`.
    pub(crate) fn open_record(&mut self, ranks: u8) {
        let (text_start, fields_start) = (self.text.len(), self.fields.len());
        self.records.push(Record { ranks, text_start, fields_start, room: self.room });
        self.room = 0;
    }

    /// Ends the innermost record: puts its fields in order and gives the room that is left to the field around it.
    pub(crate) fn close_record(&mut self) {
        if let Some(record) = self.records.pop() {
            self.sort_fields(record);
            self.fields.truncate(record.fields_start);
            self.text.truncate(record.text_start + record.room);
            self.room = record.room - (self.text.len() - record.text_start);
        }
    }

    /// How many records are open, the request itself included.
    pub(crate) fn depth(&self) -> usize {
        self.records.len()
    }

    /// Begins a field of the innermost record, in place of an earlier one of that rank.
    pub(crate) fn open_field(&mut self, rank: u8) {
        self.remove_field(rank);
        // Fields of lower ranks take some of the room, but may yet be replaced by shorter ones.
        self.room = self.records.last().map_or(0, |record| record.room);
        self.fields.push(Field { rank, open: true, text_start: self.text.len() });
        if rank > 0 {
            self.append(&[FIELD, rank]);
        }
    }

    /// Ends the open field of the innermost record.
    pub(crate) fn close_field(&mut self) {
        if let Some(field) = self.fields.last_mut() {
            field.open = false;
        }
        self.room = 0;
    }

    /// Takes back a field of the innermost record, as if it had never come.
    pub(crate) fn remove_field(&mut self, rank: u8) {
        let Some(index) = self.innermost_range().find(|&index| self.fields[index].rank == rank) else {
            return;
        };
        let (start, len) = (self.fields[index].text_start, self.field_len(index));
        self.text.drain(start..start + len);
        self.fields.remove(index);
        for field in &mut self.fields[index..] {
            field.text_start -= len;
        }
    }

    /// Whether the field without which there is no prompt has come.
    pub(crate) fn is_present(&self) -> bool {
        let request = self.records[0];
        self.fields_of(0).any(|(field, _)| field.rank + 1 == request.ranks)
    }

    /// Whether nothing that may still come can change the first `bytes_max` bytes of the final text. With
    /// `absent_is_absent` what has not come by now is taken never to come, but for the one field that must.
    pub(crate) fn is_settled(&self, absent_is_absent: bool) -> bool {
        if self.text.len() < self.bytes_max && self.fields_of(0).any(|(field, _)| field.open) {
            return false;
        }
        let mut wanted = self.bytes_max;
        for (depth, record) in self.records.iter().enumerate() {
            let mut goes_on_inside = false;
            for rank in 0..record.ranks {
                if wanted == 0 {
                    return true;
                }
                let required = depth == 0 && rank + 1 == record.ranks;
                match self.fields_of(depth).find(|(field, _)| field.rank == rank) {
                    None if absent_is_absent && !required => {}
                    None => return false,
                    Some((field, len)) => {
                        wanted = wanted.saturating_sub(len);
                        if field.open {
                            goes_on_inside = true;
                            break;
                        }
                    }
                }
            }
            if wanted == 0 {
                return true;
            }
            if !goes_on_inside {
                return depth == 0;
            }
        }
        false
    }

    /// The first `bytes_max` bytes of the text, with what is open taken as it stands.
    pub(crate) fn into_text(mut self) -> Vec<u8> {
        while !self.records.is_empty() {
            self.close_record();
        }
        self.text
    }

    /// Sorts the fields of the record at the end of the text by rank, in place.
    fn sort_fields(&mut self, record: Record) {
        for index in record.fields_start + 1..self.fields.len() {
            let (field, end) = (self.fields[index], self.fields[index].text_start + self.field_len(index));
            let before = (record.fields_start..index).find(|&other| self.fields[other].rank > field.rank);
            let Some(target) = before else { continue };
            let (start, len) = (self.fields[target].text_start, end - field.text_start);
            self.text[start..end].rotate_right(len);
            self.fields[target..=index].rotate_right(1);
            self.fields[target].text_start = start;
            for moved in &mut self.fields[target + 1..=index] {
                moved.text_start += len;
            }
        }
    }

    fn innermost_range(&self) -> std::ops::Range<usize> {
        self.records.last().map_or(0, |record| record.fields_start)..self.fields.len()
    }

    /// The fields of the record at `depth` and their lengths, without records that are open inside.
    fn fields_of(&self, depth: usize) -> impl Iterator<Item = (Field, usize)> {
        let end = self.records.get(depth + 1).map_or(self.fields.len(), |inner| inner.fields_start);
        (self.records[depth].fields_start..end).map(|index| (self.fields[index], self.field_len(index)))
    }

    /// Length of a field's text, without a record that is open inside.
    fn field_len(&self, index: usize) -> usize {
        let next_field = self.fields.get(index + 1).map(|next| next.text_start);
        // The first record that begins behind this field may be open inside it.
        let inner =
            self.records.iter().find(|record| record.fields_start == index + 1).map(|inner| inner.text_start);
        let end = inner.or(next_field).unwrap_or(self.text.len());
        end - self.fields[index].text_start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of two ranks in the request's only field, its fields in the order given.
    fn one_record(bytes_max: usize, fields: &[(u8, &str)]) -> Vec<u8> {
        let mut prompt = Prompt::new(1, bytes_max);
        prompt.open_field(0);
        prompt.open_record(2);
        for &(rank, text) in fields {
            prompt.open_field(rank);
            prompt.append(text.as_bytes());
            prompt.close_field();
        }
        prompt.close_record();
        prompt.append(b"!");
        prompt.close_field();
        prompt.into_text()
    }

    #[test]
    fn fields_stand_by_rank_whatever_their_order() {
        assert_eq!(one_record(99, &[(0, "user"), (1, "hi")]), b"user\xFC\x01hi!");
        assert_eq!(one_record(99, &[(1, "hi"), (0, "user")]), b"user\xFC\x01hi!");
    }

    #[test]
    fn the_last_of_one_rank_wins() {
        assert_eq!(one_record(99, &[(0, "bot"), (1, "hi"), (0, "user")]), b"user\xFC\x01hi!");
        assert_eq!(one_record(99, &[(1, "ho"), (1, "hi")]), b"\xFC\x01hi!");
    }

    #[test]
    fn the_cut_falls_on_the_same_byte_whatever_the_order() {
        for bytes_max in 0..11 {
            let whole = &b"user\xFC\x01hi!"[..bytes_max.min(9)];
            assert_eq!(one_record(bytes_max, &[(0, "user"), (1, "hi")]), whole, "{bytes_max}");
            assert_eq!(one_record(bytes_max, &[(1, "hi"), (0, "user")]), whole, "{bytes_max}");
        }
    }

    #[test]
    fn a_field_that_may_still_come_first_keeps_the_prompt_open() {
        let mut prompt = Prompt::new(2, 5);
        prompt.open_field(1);
        prompt.append(b"abcdef");
        assert!(prompt.is_full() && !prompt.is_settled(false) && prompt.is_settled(true));
        prompt.close_field();
        prompt.open_field(0);
        assert!(!prompt.is_settled(true), "the first field has begun and may grow");
        prompt.append(b"x");
        prompt.close_field();
        assert!(prompt.is_settled(false));
        assert_eq!(prompt.into_text(), b"x\xFC\x01ab");
    }

    #[test]
    fn an_open_record_between_its_fields_keeps_the_prompt_open() {
        let mut prompt = Prompt::new(2, 4);
        prompt.open_field(1);
        prompt.append(b"abcdef");
        prompt.close_field();
        prompt.open_field(0);
        prompt.open_record(1);
        assert!(!prompt.is_settled(true));
        prompt.close_record();
        prompt.close_field();
        assert!(prompt.is_settled(true));
    }

    #[test]
    fn a_prompt_without_its_required_field_never_settles() {
        let mut prompt = Prompt::new(2, 5);
        prompt.open_field(0);
        prompt.append(b"abc");
        prompt.close_field();
        assert!(!prompt.is_settled(true) && !prompt.is_present());
        prompt.open_field(1);
        assert!(prompt.is_settled(true), "the mark fills it");
    }
}
