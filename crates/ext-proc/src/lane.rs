//! One direction of an exchange: what has come of it, and what Envoy is owed for it.
//!
//! Nothing is queued but bytes. What is owed follows from a few counts, and is put into words when it is asked for.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::message::BodyMode;
use protobuf::Segments;

/// Longest part of a body in one answer, in bytes: the protocol advises 64 KiB for the message around it.
pub const CHUNK_BYTES_MAX: usize = 62_000;
/// What holding one part of a body costs besides its bytes.
const PART_BYTES: u64 = 64;

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    mode: BodyMode,
    headers: Headers,
    /// Parts of the body that Envoy holds until they are answered.
    parts_owed: u32,
    /// Parts of the body that go out as answers, or may be changed.
    held: Held,
    /// Whether what is held goes out in place of the part that is answered next.
    replace: bool,
    /// Whether the last part is to be marked as such, and is not yet.
    mark_owed: bool,
    trailers_owed: bool,
    at_end: bool,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Headers {
    #[default]
    NotCome,
    /// Something else came first.
    Skipped,
    Owed,
    Answered,
}

/// What Envoy is owed next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// An answer to the headers.
    Headers,
    /// An answer to a part of the body, which goes on as it is.
    Part,
    /// An answer to a part of the body, in whose place these bytes go on.
    Replacement(Segments),
    /// A part of the body to send on, and whether it is the last.
    Chunk(Bytes, bool),
    /// An answer to the trailers.
    Trailers,
}

impl Lane {
    pub(crate) fn new(mode: BodyMode) -> Lane {
        Lane { mode, ..Lane::default() }
    }

    pub(crate) fn mode(&self) -> BodyMode {
        self.mode
    }

    /// Whether anything came.
    pub(crate) fn has_begun(&self) -> bool {
        self.headers != Headers::NotCome
    }

    /// Whether the headers came, and are not answered.
    pub(crate) fn headers_owed(&self) -> bool {
        self.headers == Headers::Owed
    }

    /// Whether the end of the stream has come, or trailers.
    pub(crate) fn at_end(&self) -> bool {
        self.at_end
    }

    /// Bytes of the body that came.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of memory that the body holds.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held.bytes + self.held.parts.len() as u64 * PART_BYTES
    }

    pub(crate) fn headers(&mut self, end_of_stream: bool) {
        self.headers = Headers::Owed;
        self.at_end = end_of_stream;
    }

    /// A part of the body came. Where Envoy holds it whole it is kept for whoever `may_rewrite` it.
    pub(crate) fn body(&mut self, bytes: &Bytes, end_of_stream: bool, may_rewrite: bool) {
        self.headers.pass();
        self.bytes += bytes.len() as u64;
        self.at_end = end_of_stream;
        if self.is_duplex() {
            self.mark_owed = end_of_stream;
        } else {
            self.parts_owed = self.parts_owed.saturating_add(1);
        }
        if self.is_duplex() || (may_rewrite && self.is_buffered()) {
            self.held.push(bytes.clone());
        }
    }

    pub(crate) fn trailers(&mut self) {
        self.headers.pass();
        self.trailers_owed = true;
        self.at_end = true;
    }

    /// What is held needs no keeping any more, unless it is to go out.
    pub(crate) fn settle(&mut self) {
        if !self.is_duplex() && !self.replace {
            self.held = Held::default();
        }
    }

    /// Nothing goes out any more.
    pub(crate) fn let_go(&mut self) {
        self.held = Held::default();
    }

    /// Puts `with` in the place of the bytes `span` of the body, if they are held from the body's beginning on.
    pub(crate) fn rewrite(&mut self, span: Range<usize>, with: Bytes) -> bool {
        let goes_out = self.is_duplex() || (self.is_buffered() && self.parts_owed == 1);
        let rewritten = goes_out && self.held.bytes == self.bytes && self.held.splice(span, with);
        self.replace = rewritten && !self.is_duplex();
        rewritten
    }

    /// Puts `parts` in the place of the part that came last. Those before it are answered.
    pub(crate) fn replace_part(&mut self, parts: impl IntoIterator<Item = Bytes>) {
        self.replace = self.parts_owed == 1;
        if self.replace || self.is_duplex() {
            self.held = Held::default();
            parts.into_iter().for_each(|part| self.held.push(part));
        }
    }

    /// What is owed next, where what came is `decided`.
    pub(crate) fn owed(&mut self, decided: bool) -> Option<Owed> {
        if self.headers == Headers::Owed && (decided || self.headers_go_first()) {
            self.headers = Headers::Answered;
            return Some(Owed::Headers);
        }
        if !decided {
            return None;
        }
        if self.parts_owed > 0 {
            self.parts_owed -= 1;
            if !std::mem::take(&mut self.replace) {
                return Some(Owed::Part);
            }
            return Some(Owed::Replacement(std::mem::take(&mut self.held).parts.into_iter().collect()));
        }
        if let Some(chunk) = self.held.pop(CHUNK_BYTES_MAX) {
            let last = self.mark_owed && self.held.parts.is_empty();
            self.mark_owed &= !last;
            return Some(Owed::Chunk(chunk, last));
        }
        if std::mem::take(&mut self.mark_owed) {
            return Some(Owed::Chunk(Bytes::new(), true));
        }
        std::mem::take(&mut self.trailers_owed).then_some(Owed::Trailers)
    }

    /// Whether the answer to the headers can still ask for a body not to be sent.
    pub(crate) fn body_is_to_come(&self) -> bool {
        let lockstep = self.is_buffered() || self.mode == BodyMode::Streamed;
        lockstep && self.headers == Headers::Owed && self.parts_owed == 0 && !self.at_end
    }

    /// Whether Envoy sends a body only when the headers are answered, and holds both until it is answered as well.
    pub(crate) fn headers_go_first(&self) -> bool {
        self.is_buffered() && !self.at_end
    }

    /// Whether Envoy waits for an answer, and only for so long.
    pub(crate) fn is_timed(&self) -> bool {
        !self.is_duplex() && (self.headers == Headers::Owed || self.parts_owed > 0)
    }

    fn is_buffered(&self) -> bool {
        matches!(self.mode, BodyMode::Buffered | BodyMode::BufferedPartial)
    }

    fn is_duplex(&self) -> bool {
        self.mode == BodyMode::FullDuplexStreamed
    }
}

impl Headers {
    /// Something else comes.
    fn pass(&mut self) {
        if *self == Headers::NotCome {
            *self = Headers::Skipped;
        }
    }
}

/// Parts of a body, none of them empty.
#[derive(Debug, Default)]
struct Held {
    parts: VecDeque<Bytes>,
    bytes: u64,
}

impl Held {
    fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.bytes += part.len() as u64;
            self.parts.push_back(part);
        }
    }

    /// The first part, or as much of it as `bytes_max` allows.
    fn pop(&mut self, bytes_max: usize) -> Option<Bytes> {
        let first = self.parts.front_mut()?;
        let popped =
            if first.len() > bytes_max { Some(first.split_to(bytes_max)) } else { self.parts.pop_front() };
        self.bytes -= popped.as_ref().map_or(0, Bytes::len) as u64;
        popped
    }

    /// Puts `with` in the place of the bytes `span`, if all of them are here.
    fn splice(&mut self, span: Range<usize>, with: Bytes) -> bool {
        if span.start > span.end || span.end as u64 > self.bytes {
            return false;
        }
        let mut spliced = Held::default();
        let mut with = Some(with);
        let mut start = 0;
        for part in std::mem::take(&mut self.parts) {
            let end = start + part.len();
            spliced.push(part.slice(..span.start.clamp(start, end) - start));
            if end >= span.end
                && let Some(with) = with.take()
            {
                spliced.push(with);
            }
            spliced.push(part.slice(span.end.clamp(start, end) - start..));
            start = end;
        }
        spliced.push(with.unwrap_or_default());
        *self = spliced;
        true
    }
}
