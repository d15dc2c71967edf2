//! Any messages on a stream of Envoy's, with any decisions between them.

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{BodyResponse, ProcessingRequest, ProcessingResponse};
use ext_proc::message::{Headers, Message, Part};
use ext_proc::{CHUNK_BYTES_MAX, Event, Immediate, Machine, Pick, Rest, Rewrite};
use prost::Message as _;

const PICKED: &str = "10.0.0.1:8000,[fd00::2]:8000";
const METADATA: [(&str, &str); 1] = [("x-pointsman-request", "1")];
const REFUSAL: Immediate<'_> = Immediate {
    status: 429,
    headers: &[("x-pointsman-reason", "queue_full")],
    body: Bytes::from_static(b"{}"),
    details: "queue_full",
};
/// What a message may make a stream hold besides its bytes.
const HELD_BYTES_A_MESSAGE: u64 = 64;

/// One way of a stream, as it is seen from outside.
#[derive(Default)]
struct Way {
    bytes_in: Vec<u8>,
    bytes_out: Vec<u8>,
    ends_out: u32,
}

impl Way {
    fn body_answered(&mut self, body: BodyResponse) {
        let mutation = body.response.and_then(|common| common.body_mutation).and_then(|body| body.mutation);
        if let Some(Mutation::StreamedResponse(stream)) = mutation {
            assert!(stream.body.len() <= CHUNK_BYTES_MAX, "a part that Envoy does not take");
            assert_eq!(self.ends_out, 0, "something behind the end");
            self.bytes_out.extend(&stream.body);
            self.ends_out += u32::from(stream.end_of_stream);
        }
    }
}

#[derive(Default)]
struct Play {
    machine: Machine,
    came_bytes: u64,
    request: Way,
    answer: Way,
    /// Some of what was taken is not as Envoy writes it, so that one does not know what it holds.
    odd: bool,
    renamed: bool,
    began: bool,
    decided: bool,
    ended: u32,
    broken: bool,
    refused: bool,
    /// Whether Envoy is spoken to, once a message has told: not any more after one that it only lets us watch.
    spoken_to: Option<bool>,
}

/// Runs a stream: a letter says what happens, and of a message two bytes its length. `p` picks, `w` picks and rewrites, `r` refuses,
/// `t` asks for time, `a` rewrites the answer; anything else is a message. Answers are taken after each, but after capitals.
pub(crate) fn check(mut data: &[u8]) {
    let mut play = Play::default();
    while let Some((&what, rest)) = data.split_first() {
        data = rest;
        match what.to_ascii_lowercase() {
            b'p' => play.pick(None),
            b'w' => play.pick(Some(Rewrite { span: 1..2, with: Bytes::from_static(b"new") })),
            b'r' => play.refuse(),
            b't' => play.machine.ask_for_time(std::time::Duration::from_secs(3)),
            b'a' => {
                play.renamed = true;
                play.machine.rewrite_answer();
            }
            _ => {
                let Some((length, rest)) = data.split_first_chunk() else { break };
                let (message, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
                data = rest;
                play.says(&Bytes::copy_from_slice(message));
            }
        }
        assert!(play.machine.held_bytes() <= play.came_bytes, "more is held than came");
        assert!(play.ended <= 1, "ended twice");
        if !what.is_ascii_uppercase() {
            play.hear();
        }
    }
    play.hear();
    let left = play.machine.close();
    assert_eq!(left.is_some(), play.began && play.ended == 0, "{left:?}");
    assert_eq!((play.machine.close(), play.machine.held_bytes()), (None, 0));
    assert!(play.machine.next_answer().is_none(), "something behind the close");
}

impl Play {
    fn says(&mut self, bytes: &Bytes) {
        self.came_bytes += bytes.len() as u64 + HELD_BYTES_A_MESSAGE;
        let theirs = ProcessingRequest::decode(bytes.as_ref()).ok();
        // Written as Envoy writes it, and nothing in it that is not known.
        let theirs = theirs.filter(|message| message.encode_to_vec() == bytes[..]);
        let ours = Message::decode(bytes);
        if let Some(theirs) = &theirs {
            same(ours.as_ref().expect("it is as Envoy writes it"), theirs);
        }
        let over = self.broken || self.refused;
        if let Ok(ours) = &ours {
            self.spoken_to = Some(self.spoken_to.unwrap_or(true) && !ours.observed);
        }
        let event = self.machine.receive(bytes);
        if over {
            assert!(matches!(event, Ok(Event::Nothing)), "said when all was over: {event:?}");
            return;
        }
        let Ok(event) = event else {
            self.broken = true;
            return;
        };
        match theirs.and_then(|message| message.request) {
            Some(Request::RequestBody(body)) => self.request.bytes_in.extend(body.body),
            Some(Request::ResponseBody(body)) => self.answer.bytes_in.extend(body.body),
            Some(_) => {}
            None => self.odd = true,
        }
        let goes_on = self.began && self.ended == 0;
        match event {
            Event::Nothing => {}
            Event::Request { .. } => {
                assert!(!self.began, "began twice");
                self.began = true;
            }
            Event::RequestBody { bytes, rest } => {
                assert!(goes_on && !self.decided, "nobody waits for it");
                assert!(!bytes.is_empty() || rest != Rest::Comes, "a part that says nothing");
            }
            Event::Answer { last, .. } | Event::AnswerBody { last, .. } => {
                assert!(goes_on, "an answer to nothing");
                self.ended += u32::from(last);
            }
        }
    }

    fn pick(&mut self, rewrite: Option<Rewrite>) {
        let long_enough =
            rewrite.as_ref().is_none_or(|it| it.span.end as u64 <= self.machine.request_bytes());
        let rewrite = rewrite.filter(|_| long_enough);
        self.renamed |= rewrite.is_some();
        self.decided |= self.began && self.ended == 0;
        self.machine.routed(&Pick { destinations: PICKED, metadata: &METADATA, rewrite });
    }

    fn refuse(&mut self) {
        if self.spoken_to == Some(true) && !self.broken && !self.refused {
            self.refused = true;
            self.ended += u32::from(self.began && self.ended == 0);
        }
        self.machine.refused(&REFUSAL);
    }

    fn hear(&mut self) {
        while let Some(answer) = self.machine.next_answer() {
            assert_eq!(self.spoken_to, Some(true), "an answer to one who only lets us watch");
            let answer =
                ProcessingResponse::decode(&*answer.concat()).expect("an answer that Envoy can read");
            match answer.response {
                Some(Response::RequestBody(body)) => self.request.body_answered(body),
                Some(Response::ResponseBody(body)) => self.answer.body_answered(body),
                Some(_) => {}
                None => assert!(answer.override_message_timeout.is_some(), "an answer that says nothing"),
            }
        }
        if !self.odd && !self.renamed {
            for way in [&self.request, &self.answer] {
                assert!(way.bytes_in.starts_with(&way.bytes_out), "other bytes than came");
            }
        }
    }
}

/// Both readings say the same.
fn same(ours: &Message, theirs: &ProcessingRequest) {
    assert_eq!(ours.observed, theirs.observability_mode);
    let headers = |ours: &Headers, theirs: &envoy_types::pb::envoy::service::ext_proc::v3::HttpHeaders| {
        assert_eq!(ours.end_of_stream, theirs.end_of_stream);
        let mut list = Vec::new();
        ours.map
            .for_each(|name, value| list.push((name.to_vec(), value.to_vec())))
            .expect("it is as Envoy writes it");
        let theirs = theirs.headers.iter().flat_map(|map| &map.headers);
        let theirs: Vec<_> = theirs
            .map(|header| {
                let value =
                    if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
                (header.key.as_bytes().to_vec(), value.to_vec())
            })
            .collect();
        assert_eq!(list, theirs);
    };
    match (&ours.part, &theirs.request) {
        (None, None)
        | (Some(Part::RequestTrailers), Some(Request::RequestTrailers(_)))
        | (Some(Part::ResponseTrailers), Some(Request::ResponseTrailers(_))) => {}
        (Some(Part::RequestHeaders(ours)), Some(Request::RequestHeaders(theirs)))
        | (Some(Part::ResponseHeaders(ours)), Some(Request::ResponseHeaders(theirs))) => {
            headers(ours, theirs)
        }
        (Some(Part::RequestBody(ours)), Some(Request::RequestBody(theirs)))
        | (Some(Part::ResponseBody(ours)), Some(Request::ResponseBody(theirs))) => {
            assert_eq!((&ours.bytes[..], ours.end_of_stream), (&theirs.body[..], theirs.end_of_stream));
        }
        (ours, theirs) => panic!("{ours:?} is {theirs:?}"),
    }
}
