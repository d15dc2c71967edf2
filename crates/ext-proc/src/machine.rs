//! One stream of Envoy's, as a machine: messages go in, events for whoever decides and answers for Envoy come out.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::answer::{self, BodyChange, Changes, Direction, Immediate, ModeOverride};
use crate::head::{AnswerHead, DESTINATION, Head, NAMESPACE};
use crate::lane::{Lane, Owed};
use crate::message::{self, BodyMode, Headers, Message, Metadata, Part, Protocol};
use protobuf::{Malformed, Segments};

/// One HTTP request on its way through Envoy.
///
/// ```text
/// loop { receive(message) ─> Event ── decided? ──> routed(pick) or refused(reply)
///        next_answer() ─> to Envoy, until there is none }
/// close() ─> where the request stood, if it had no end
/// ```
#[derive(Debug, Default)]
pub struct Machine {
    speech: Speech,
    life: Life,
    /// What the filter is configured to send, as far as it was told and we have not asked for something else.
    protocol: Option<Protocol>,
    request: Lane,
    response: Lane,
    /// What the next answer on the way says besides.
    request_changes: Changes,
    response_changes: Changes,
    last_words: Option<Segments>,
    /// A word that answers nothing and goes first.
    aside: Option<Segments>,
    content_length: Option<u64>,
    /// Whether the end of the answer's body will be seen here.
    answer_shown: bool,
}

/// What a message means to whoever decides.
#[derive(Clone, Debug)]
pub enum Event {
    /// Nothing.
    Nothing,
    /// A request begins.
    Request {
        /// Its head.
        head: Head,
        /// What there is still to come before the decision.
        rest: Rest,
    },
    /// A part of the request's body, to decide by.
    RequestBody {
        /// The bytes; none only where this is the end.
        bytes: Bytes,
        /// What there is still to come before the decision.
        rest: Rest,
    },
    /// The answer begins.
    Answer {
        /// Its head.
        head: AnswerHead,
        /// Whether this is all of it.
        last: bool,
    },
    /// A part of the answer's body passes by.
    AnswerBody {
        /// The bytes; none where trailers are the end.
        bytes: Bytes,
        /// Whether these are the last.
        last: bool,
    },
}

/// How much of a request's body is still to come before its decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// More comes: one may decide now or wait for it.
    Comes,
    /// None: the body is at its end, and the decision is due.
    Over,
    /// There may be more, but it will not be shown: the decision is due.
    Unseen,
}

/// A decision: where the request goes.
#[derive(Clone, Debug)]
pub struct Pick<'a> {
    /// The text of header and metadata: `host:port`, or an ordered list with commas.
    pub destinations: &'a str,
    /// More strings for the metadata beside it, by their keys.
    pub metadata: &'a [(&'a str, &'a str)],
    /// What of the body is to be replaced.
    pub rewrite: Option<Rewrite>,
}

/// A change of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The bytes that go, by their offsets in the body; of the part that was told by [`Event::RequestBody`].
    pub span: Range<usize>,
    /// What comes in their place.
    pub with: Bytes,
}

/// Where a request stood when its stream closed before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing was decided.
    Undecided,
    /// It was on its way; no answer was seen.
    Unanswered,
    /// Its answer had begun, and its end is not shown here: the usual end where answers' bodies are not sent.
    Unwatched,
    /// In the middle of its answer.
    MidAnswer,
}

/// Envoy, or whoever claims to be, does not keep to the protocol. The stream is to be ended with an error; Envoy then
/// does with the request what its failure mode says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A message that cannot be read.
    #[error("a message is no ProcessingRequest: {0}")]
    Malformed(#[from] Malformed),
    /// A request of which the head was never sent.
    #[error("a request's body came without its headers: set request_header_mode to SEND")]
    NoHeaders,
    /// Headers where none can be.
    #[error("headers came twice, or behind their body")]
    HeadersOutOfPlace,
    /// A way to send bodies that is not spoken here.
    #[error("body mode {number} is not spoken here; FULL_DUPLEX_STREAMED (4) is, and BUFFERED_PARTIAL (3)")]
    BodyMode {
        /// Its number in `ProcessingMode.BodySendMode`.
        number: u32,
    },
}

/// Whether Envoy is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Speech {
    /// No message has come.
    #[default]
    NotBegun,
    Speaking,
    /// What comes is not read any more.
    Over,
}

/// What has become of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    NotBegun,
    /// To be decided, now or with more of the body.
    Open,
    /// To be decided now.
    Due,
    Routed,
    Answering,
    Ended,
}

impl Life {
    fn is_undecided(self) -> bool {
        matches!(self, Life::Open | Life::Due)
    }

    fn is_going_on(self) -> bool {
        !matches!(self, Life::NotBegun | Life::Ended)
    }
}

impl Machine {
    /// A stream of which nothing has come.
    #[must_use]
    pub fn new() -> Machine {
        Machine::default()
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// When the protocol is broken. Nothing is read or answered from then on.
    pub fn receive(&mut self, message: &Bytes) -> Result<Event, Broken> {
        if self.speech == Speech::Over {
            return Ok(Event::Nothing);
        }
        let taken = Message::decode(message).map_err(Broken::from).and_then(|message| self.take(message));
        if taken.is_err() {
            self.fall_silent();
        }
        taken
    }

    /// The request goes where `pick` says. Without effect where no decision is awaited.
    pub fn routed(&mut self, pick: &Pick<'_>) {
        if self.speech != Speech::Speaking || !self.life.is_undecided() {
            return;
        }
        self.life = Life::Routed;
        if self.request.body_is_to_come()
            && let Some(protocol) = &mut self.protocol
        {
            // Nobody needs the body any more. Where Envoy does not let us say so, it comes and is answered.
            protocol.request_body = BodyMode::None;
            let mode = self.request_changes.mode.get_or_insert((*protocol).into());
            mode.request_body = BodyMode::None;
        }
        if let Some(Rewrite { span, with }) = pick.rewrite.clone() {
            self.rewrite(span, with);
        }
        let changes = &mut self.request_changes;
        changes.headers.set(DESTINATION, pick.destinations);
        changes.clear_route_cache = true;
        let strings = [(DESTINATION, pick.destinations)];
        changes.metadata = answer::metadata(NAMESPACE, strings.iter().chain(pick.metadata).copied());
        self.request.settle();
    }

    /// Puts strings into the metadata before the decision, by their keys; whether that is possible: where Envoy waits for an answer to the head
    /// before it sends the body. After [`Event::Request`] and before the next answer of ours.
    pub fn name(&mut self, strings: &[(&str, &str)]) -> bool {
        let possible = self.life == Life::Open && self.request.headers_go_first();
        if possible {
            self.request_changes.metadata = answer::metadata(NAMESPACE, strings.iter().copied());
        }
        possible
    }

    /// The decision takes longer than Envoy may be configured to wait: up to `time` from now. Without effect where no
    /// decision is awaited, or Envoy waits for as long as it takes.
    pub fn ask_for_time(&mut self, time: Duration) {
        let awaited = self.speech == Speech::Speaking && self.life.is_undecided();
        if awaited && self.request.is_timed() {
            self.aside = Some(answer::more_time(time));
        }
    }

    /// The request is answered by `reply` in place of a model server; everything else is over. Without effect where
    /// Envoy is not spoken to.
    pub fn refused(&mut self, reply: &Immediate<'_>) {
        if self.speech == Speech::Speaking {
            self.fall_silent();
            self.life = Life::Ended;
            self.last_words = Some(answer::immediate(reply));
        }
    }

    /// The answer's head is to be shown whatever is configured, where Envoy allows to say so; after [`Event::Request`] and
    /// before the next answer of ours.
    pub fn show_answer(&mut self) {
        // Who sends bodies sends heads. Whether heads are sent without is not told, so it is said anyway.
        if let Some(protocol) = self.protocol.filter(|asked| asked.response_body == BodyMode::None)
            && self.request.headers_owed()
        {
            self.request_changes.mode = Some(ModeOverride { response_head: true, ..protocol.into() });
        }
    }

    /// The parts of the answer are to be replaced as they come, after [`Event::Answer`] and before the next answer of
    /// ours. Asks for them where they are not configured to come; where Envoy does not allow that they do not come.
    pub fn rewrite_answer(&mut self) {
        if !self.response.headers_owed() || self.response.at_end() {
            return;
        }
        self.response_changes.headers.remove("content-length");
        if let Some(protocol) = self.protocol.as_mut().filter(|asked| asked.response_body == BodyMode::None) {
            // Envoy holds the parts, and our answers are as long as what changes.
            protocol.response_body = BodyMode::Streamed;
            self.response_changes.mode = Some((*protocol).into());
        }
    }

    /// Puts `parts` in the place of the part of [`Event::AnswerBody`], before the next answer of ours.
    pub fn replace_answer_part(&mut self, parts: impl IntoIterator<Item = Bytes>) {
        self.response.replace_part(parts);
    }

    /// Sets a header of the answer, after [`Event::Answer`] and before the next answer of ours.
    pub fn set_answer_header(&mut self, name: &str, value: &str) {
        if self.response.headers_owed() {
            self.response_changes.headers.set(name, value);
        }
    }

    /// What is to be sent to Envoy next, in order; `None` until more is received or decided.
    ///
    /// What is not decided when this is called waits: in the buffered modes Envoy is told then to send the body.
    pub fn next_answer(&mut self) -> Option<Segments> {
        if self.speech != Speech::Speaking {
            return self.last_words.take();
        }
        if let Some(aside) = self.aside.take() {
            return Some(aside);
        }
        if let Some(owed) = self.request.owed(!self.life.is_undecided()) {
            return Some(spoken(Direction::Request, owed, &mut self.request_changes));
        }
        let owed = self.response.owed(true)?;
        Some(spoken(Direction::Response, owed, &mut self.response_changes))
    }

    /// The stream is closed: where the request stood, unless it never began, had its end, or was refused.
    pub fn close(&mut self) -> Option<Left> {
        self.fall_silent();
        let left = match self.life {
            Life::NotBegun | Life::Ended => None,
            Life::Open | Life::Due => Some(Left::Undecided),
            Life::Routed => Some(Left::Unanswered),
            Life::Answering if self.answer_shown => Some(Left::MidAnswer),
            Life::Answering => Some(Left::Unwatched),
        };
        self.life = Life::Ended;
        left
    }

    /// Whether the end of the request has come.
    #[must_use]
    pub fn request_is_whole(&self) -> bool {
        self.request.at_end()
    }

    /// Bytes of memory that bodies hold now.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.request.held_bytes() + self.response.held_bytes()
    }

    /// Bytes of the request's body that came so far.
    #[must_use]
    pub fn request_bytes(&self) -> u64 {
        self.request.bytes()
    }

    fn take(&mut self, message: Message) -> Result<Event, Broken> {
        if message.observed {
            // What is only shown to us goes elsewhere: to book it here would be wrong, and to answer as well.
            self.fall_silent();
            return Ok(Event::Nothing);
        }
        if self.speech == Speech::NotBegun {
            self.begin(&message)?;
        }
        match message.part {
            None => Ok(Event::Nothing),
            Some(Part::RequestHeaders(headers)) => self.request_headers(headers, &message.metadata),
            Some(Part::RequestBody(body)) => self.request_body(body),
            Some(Part::RequestTrailers) => self.request_trailers(),
            Some(Part::ResponseHeaders(headers)) => self.response_headers(&headers, &message.metadata),
            Some(Part::ResponseBody(body)) => Ok(self.response_body(body)),
            Some(Part::ResponseTrailers) => Ok(self.response_trailers()),
        }
    }

    fn begin(&mut self, message: &Message) -> Result<(), Broken> {
        self.speech = Speech::Speaking;
        self.protocol = message.protocol;
        let protocol = message.protocol.unwrap_or(UNTOLD);
        for mode in [protocol.request_body, protocol.response_body] {
            if let BodyMode::Other(number) = mode {
                return Err(Broken::BodyMode { number });
            }
        }
        self.request = Lane::new(protocol.request_body);
        self.response = Lane::new(protocol.response_body);
        self.answer_shown = message.protocol.is_some() && protocol.response_body != BodyMode::None;
        Ok(())
    }

    fn request_headers(&mut self, headers: Headers, metadata: &Metadata) -> Result<Event, Broken> {
        if self.request.has_begun() {
            return Err(Broken::HeadersOutOfPlace);
        }
        self.request.headers(headers.end_of_stream);
        let head = Head::read(headers.map, metadata, &mut self.request_changes.headers)?;
        self.content_length = head.content_length;
        let rest = match self.request.mode() {
            _ if headers.end_of_stream => Rest::Over,
            BodyMode::Buffered | BodyMode::BufferedPartial | BodyMode::FullDuplexStreamed => Rest::Comes,
            BodyMode::None | BodyMode::Streamed | BodyMode::Other(_) => Rest::Unseen,
        };
        self.life = rest.life();
        Ok(Event::Request { head, rest })
    }

    fn request_body(&mut self, body: message::Body) -> Result<Event, Broken> {
        if !self.request.has_begun() {
            return Err(Broken::NoHeaders);
        }
        if self.request.at_end() {
            return Ok(Event::Nothing);
        }
        self.request.body(&body.bytes, body.end_of_stream, self.life.is_undecided());
        if self.life != Life::Open {
            return Ok(Event::Nothing);
        }
        let rest = match self.request.mode() {
            BodyMode::FullDuplexStreamed if !body.end_of_stream => Rest::Comes,
            BodyMode::BufferedPartial if !body.end_of_stream => Rest::Unseen,
            // What is buffered whole may end with trailers, and then does not say that it is at its end.
            _ => Rest::Over,
        };
        self.life = rest.life();
        if body.bytes.is_empty() && rest == Rest::Comes {
            return Ok(Event::Nothing);
        }
        Ok(Event::RequestBody { bytes: body.bytes, rest })
    }

    fn request_trailers(&mut self) -> Result<Event, Broken> {
        if !self.request.has_begun() {
            return Err(Broken::NoHeaders);
        }
        if self.request.at_end() {
            return Ok(Event::Nothing);
        }
        self.request.trailers();
        if self.life != Life::Open {
            return Ok(Event::Nothing);
        }
        self.life = Life::Due;
        Ok(Event::RequestBody { bytes: Bytes::new(), rest: Rest::Over })
    }

    fn response_headers(&mut self, headers: &Headers, metadata: &Metadata) -> Result<Event, Broken> {
        if self.response.has_begun() {
            return Err(Broken::HeadersOutOfPlace);
        }
        self.response.headers(headers.end_of_stream);
        let head = AnswerHead::read(&headers.map, metadata)?;
        Ok(self.answer_event(headers.end_of_stream, |last| Event::Answer { head, last }))
    }

    fn response_body(&mut self, body: message::Body) -> Event {
        if self.response.at_end() {
            return Event::Nothing;
        }
        self.response.body(&body.bytes, body.end_of_stream, false);
        self.answer_shown = self.response.mode() != BodyMode::BufferedPartial;
        self.answer_event(body.end_of_stream, |last| Event::AnswerBody { bytes: body.bytes, last })
    }

    fn response_trailers(&mut self) -> Event {
        if self.response.at_end() {
            return Event::Nothing;
        }
        self.response.trailers();
        self.answer_event(true, |last| Event::AnswerBody { bytes: Bytes::new(), last })
    }

    /// An event of a request that goes on, and ends with its `last`. An answer may be Envoy's own: then the request
    /// may not have begun, or not be decided.
    fn answer_event(&mut self, last: bool, event: impl FnOnce(bool) -> Event) -> Event {
        if !self.life.is_going_on() {
            return Event::Nothing;
        }
        if last {
            self.life = Life::Ended;
            self.request.settle();
        } else if self.life == Life::Routed {
            self.life = Life::Answering;
        }
        event(last)
    }

    fn rewrite(&mut self, span: Range<usize>, with: Bytes) {
        let (gone, come) = (span.len() as u64, with.len() as u64);
        if !self.request.rewrite(span, with) {
            return;
        }
        // The answer is to be one that can be read.
        self.request_changes.headers.remove("accept-encoding");
        if let Some(length) =
            self.content_length.and_then(|length| length.checked_sub(gone)?.checked_add(come))
        {
            self.request_changes.headers.set("content-length", &length.to_string());
        }
    }

    /// Lets go of everything: nothing is read or answered from now on.
    fn fall_silent(&mut self) {
        self.speech = Speech::Over;
        self.last_words = None;
        self.aside = None;
        self.request.let_go();
        self.response.let_go();
    }
}

/// What Envoy before 1.32 sends, which does not say: never FULL_DUPLEX_STREAMED, which is younger. In each of the
/// other modes a pick in the answer to the headers holds, and an empty answer lets a part of a body go on.
const UNTOLD: Protocol = Protocol { request_body: BodyMode::Streamed, response_body: BodyMode::Streamed };

/// What is owed, in words. The changes go with the first answer that can tell them.
fn spoken(direction: Direction, owed: Owed, changes: &mut Changes) -> Segments {
    match owed {
        Owed::Headers => answer::headers(direction, &std::mem::take(changes)),
        Owed::Part => answer::body(direction, &std::mem::take(changes), BodyChange::Keep),
        Owed::Replacement(bytes) => {
            answer::body(direction, &std::mem::take(changes), BodyChange::Replace(bytes))
        }
        Owed::Chunk(bytes, end_of_stream) => {
            let chunk = BodyChange::Stream { bytes, end_of_stream };
            answer::body(direction, &Changes::default(), chunk)
        }
        Owed::Trailers => answer::trailers(direction, &std::mem::take(changes)),
    }
}

impl Rest {
    fn life(self) -> Life {
        match self {
            Rest::Comes => Life::Open,
            Rest::Over | Rest::Unseen => Life::Due,
        }
    }
}

impl From<Protocol> for ModeOverride {
    fn from(protocol: Protocol) -> ModeOverride {
        let Protocol { request_body, response_body } = protocol;
        ModeOverride { request_body, response_body, response_head: false }
    }
}
