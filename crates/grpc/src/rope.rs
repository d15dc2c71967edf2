//! An answer in parts: what we wrote ourselves, and slices of what came in, one after the other and never copied.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

/// Parts of one message, in order.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    parts: SmallVec<[Bytes; 3]>,
    /// The first part that is not taken whole.
    first: usize,
    length: usize,
}

impl Rope {
    /// Adds a part at the end.
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.length += part.len();
            self.parts.push(part);
        }
    }

    /// Adds the parts of `other`, none of which is taken, at the end.
    pub(crate) fn append(&mut self, other: Rope) {
        self.length += other.length;
        self.parts.extend(other.parts);
    }
}

impl From<Bytes> for Rope {
    fn from(part: Bytes) -> Rope {
        let mut rope = Rope::default();
        rope.push(part);
        rope
    }
}

impl FromIterator<Bytes> for Rope {
    fn from_iter<I: IntoIterator<Item = Bytes>>(parts: I) -> Rope {
        let mut rope = Rope::default();
        parts.into_iter().for_each(|part| rope.push(part));
        rope
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.parts.get(self.first).map_or(&[], Bytes::as_ref)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.parts[self.first..].iter();
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.length, "advanced by {count} of {} bytes", self.length);
        self.length -= count;
        while count > 0 {
            let part = &mut self.parts[self.first];
            let taken = count.min(part.len());
            part.advance(taken);
            count -= taken;
            if part.is_empty() {
                self.first += 1;
            }
        }
    }
}

/// Bytes that came in frames, and leave as messages.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    frames: VecDeque<Bytes>,
    length: usize,
}

impl Frames {
    pub(crate) fn push(&mut self, frame: Bytes) {
        if !frame.is_empty() {
            self.length += frame.len();
            self.frames.push_back(frame);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The first `N` bytes, left where they are; `None` where there are fewer.
    pub(crate) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.length < N {
            return None;
        }
        let mut bytes = self.frames.iter().flat_map(|frame| frame.iter().copied());
        Some(std::array::from_fn(|_| bytes.next().unwrap_or_default()))
    }

    /// Takes the first `count` bytes, which must be there: a slice where they came in one frame, a copy where not.
    pub(crate) fn take(&mut self, count: usize) -> Bytes {
        self.length -= count;
        let Some(first) = self.frames.front_mut() else { return Bytes::new() };
        if first.len() > count {
            return first.split_to(count);
        }
        if first.len() == count {
            return self.frames.pop_front().unwrap_or_default();
        }
        let mut whole = Vec::with_capacity(count);
        while whole.len() < count {
            let Some(mut frame) = self.frames.pop_front() else { break };
            let part = frame.split_to(frame.len().min(count - whole.len()));
            whole.extend_from_slice(&part);
            if !frame.is_empty() {
                self.frames.push_front(frame);
            }
        }
        whole.into()
    }

    /// Drops the first `count` bytes, which must be there.
    pub(crate) fn skip(&mut self, count: usize) {
        self.length -= count;
        let mut left = count;
        while left > 0 {
            let Some(frame) = self.frames.front_mut() else { break };
            let part = left.min(frame.len());
            frame.advance(part);
            left -= part;
            if frame.is_empty() {
                self.frames.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rope_reads_as_its_parts_however_it_is_advanced() {
        let parts = ["a", "", "bcd", "ef"].map(|text| Bytes::from_static(text.as_bytes()));
        for step in 1..=6 {
            let mut rope: Rope = parts.iter().cloned().collect();
            let mut read = Vec::new();
            while rope.has_remaining() {
                let taken = step.min(rope.remaining());
                let mut piece = vec![0; taken];
                rope.copy_to_slice(&mut piece);
                read.extend(piece);
            }
            assert_eq!(read, b"abcdef");
            assert_eq!(rope.chunk(), b"");
        }
    }

    #[test]
    fn frames_give_what_was_put_in_wherever_they_were_cut() {
        for cut in 0..=6 {
            let mut frames = Frames::default();
            let all = Bytes::from_static(b"abcdef");
            frames.push(all.slice(..cut));
            frames.push(all.slice(cut..));
            assert_eq!(frames.peek(), Some(*b"abcd"));
            assert_eq!(frames.peek::<7>(), None);
            frames.skip(1);
            assert_eq!(frames.take(4), "bcde");
            assert_eq!((frames.len(), frames.take(1)), (1, Bytes::from_static(b"f")));
        }
    }
}
