//! Every ordering of messages, decisions and closes, sensible or not, against what must hold in all of them.

use bytes::Bytes;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyResponse, HttpTrailers, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use ext_proc::{CHUNK_BYTES_MAX, Event, Left, Machine, Pick, Rest};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::envoy::{PICKED, REFUSAL, Request, decode, head, part};
use prost::Message as _;

/// What happens on a stream.
#[derive(Clone, Copy, Debug)]
enum Op {
    Headers {
        answer: bool,
        end: bool,
    },
    Body {
        answer: bool,
        bytes: usize,
        end: bool,
    },
    Trailers {
        answer: bool,
    },
    Pick,
    Refuse,
    /// Answers are taken.
    Pull,
}

/// What is known from outside about one direction.
#[derive(Debug, Default)]
struct Seen {
    /// How bodies come; `None` where it is not told.
    mode: Option<BodySendMode>,
    headers: u32,
    parts: u32,
    trailers: u32,
    bytes: Vec<u8>,
    at_end: bool,
    end_by_body: bool,
    headers_answered: u32,
    parts_answered: u32,
    trailers_answered: u32,
    bytes_out: Vec<u8>,
    end_marked: u32,
}

/// A stream and what is known of it from outside.
#[derive(Debug, Default)]
struct Play {
    machine: Machine,
    config: Option<ProtocolConfiguration>,
    request: Seen,
    answer: Seen,
    began: bool,
    decided: bool,
    due: bool,
    ended: u32,
    over: bool,
    refused: bool,
    refusals_heard: u32,
    picks: u32,
    picks_heard: u32,
    came: u64,
}

impl Seen {
    fn is_duplex(&self) -> bool {
        self.mode == Some(BodySendMode::FullDuplexStreamed)
    }

    fn is_buffered(&self) -> bool {
        matches!(self.mode, Some(BodySendMode::Buffered | BodySendMode::BufferedPartial))
    }

    /// A body answer came.
    fn body_answered(&mut self, body: BodyResponse) {
        assert!(self.headers_answered == self.headers, "headers first");
        assert_eq!(self.trailers_answered, 0, "trailers last");
        let mutation = body.response.and_then(|common| common.body_mutation).and_then(|body| body.mutation);
        if !self.is_duplex() {
            assert_eq!(mutation, None, "nothing was rewritten");
            self.parts_answered += 1;
            return;
        }
        let Some(Mutation::StreamedResponse(stream)) = mutation else { panic!("no stream: {mutation:?}") };
        assert!(stream.body.len() <= CHUNK_BYTES_MAX);
        assert!(stream.end_of_stream || !stream.body.is_empty(), "a part that says nothing");
        assert_eq!(self.end_marked, 0, "nothing behind the end");
        self.bytes_out.extend(&stream.body);
        self.end_marked += u32::from(stream.end_of_stream);
    }

    /// No more was answered than came, and in order.
    fn check(&self) {
        assert!(self.headers_answered <= self.headers.min(1));
        assert!(self.trailers_answered <= self.trailers.min(1));
        assert!(self.bytes.starts_with(&self.bytes_out), "other bytes than came");
        if self.is_duplex() {
            assert!(self.end_marked <= u32::from(self.end_by_body));
            assert!(self.end_marked == 0 || self.bytes == self.bytes_out, "the end before the last byte");
        } else {
            assert!(self.parts_answered <= self.parts);
        }
    }

    /// All that came is answered.
    fn check_done(&self) {
        assert_eq!(self.headers_answered, self.headers);
        assert_eq!(self.trailers_answered, self.trailers);
        if self.is_duplex() {
            assert_eq!((&self.bytes_out, self.end_marked), (&self.bytes, u32::from(self.end_by_body)));
        } else {
            assert_eq!(self.parts_answered, self.parts);
        }
    }
}

impl Play {
    fn new(config: Option<(BodySendMode, BodySendMode)>) -> Play {
        let mut play = Play::default();
        if let Some((request, answer)) = config {
            (play.request.mode, play.answer.mode) = (Some(request), Some(answer));
            play.config = Some(ProtocolConfiguration {
                request_body_mode: request.into(),
                response_body_mode: answer.into(),
                ..ProtocolConfiguration::default()
            });
        }
        play
    }

    fn op(&mut self, op: Op) {
        match op {
            Op::Pick => {
                let awaited = self.began && !self.decided && self.ended == 0 && !self.over;
                self.picks += u32::from(awaited);
                self.decided |= awaited;
                self.machine.routed(&Pick { destinations: PICKED, metadata: &[], rewrite: None });
            }
            Op::Refuse => {
                if self.came > 0 && !self.over {
                    self.refused = true;
                    self.ended += u32::from(self.began && self.ended == 0);
                    self.over = true;
                }
                self.machine.refused(&REFUSAL);
            }
            Op::Pull => self.pull(),
            Op::Headers { answer, end } => self.says(answer, |_| {
                let headers = head(&[(":status", "200"), (":path", "/v1/completions")], end);
                if answer { Request::ResponseHeaders(headers) } else { Request::RequestHeaders(headers) }
            }),
            Op::Body { answer, bytes, end } => self.says(answer, |seen| {
                // No two bytes near each other are alike.
                let letters = (b'a'..=b'z').cycle().skip(seen.bytes.len() % 26).take(bytes);
                let body = part(&String::from_utf8(letters.collect()).expect("letters"), end);
                if answer { Request::ResponseBody(body) } else { Request::RequestBody(body) }
            }),
            Op::Trailers { answer } => self.says(answer, |_| {
                let trailers = HttpTrailers::default();
                if answer { Request::ResponseTrailers(trailers) } else { Request::RequestTrailers(trailers) }
            }),
        }
        let most = (self.request.bytes.len() + self.answer.bytes.len()) as u64 + 64 * self.came;
        assert!(self.machine.held_bytes() <= most);
        assert!(self.ended <= 1, "ended twice");
    }

    fn says(&mut self, answer: bool, part: impl FnOnce(&Seen) -> Request) {
        let part = part(if answer { &self.answer } else { &self.request });
        let protocol_config = self.config.take();
        let message = ProcessingRequest {
            request: Some(part.clone()),
            protocol_config,
            ..ProcessingRequest::default()
        };
        let event = self.machine.receive(&Bytes::from(message.encode_to_vec()));
        self.came += 1;
        if self.over {
            assert!(matches!(event, Ok(Event::Nothing)), "said when all was over: {event:?}");
            return;
        }
        if self.is_wrong(&part) {
            assert!(event.is_err(), "{part:?} taken");
            self.over = true;
            return;
        }
        self.note(&part);
        self.told(answer, &event.expect("nothing is wrong with it"));
    }

    fn is_wrong(&self, part: &Request) -> bool {
        match part {
            Request::RequestHeaders(_) => self.request.headers > 0,
            Request::ResponseHeaders(_) => self.answer.headers + self.answer.parts + self.answer.trailers > 0,
            Request::RequestBody(_) | Request::RequestTrailers(_) => self.request.headers == 0,
            Request::ResponseBody(_) | Request::ResponseTrailers(_) => false,
        }
    }

    /// What comes before the end of its direction is owed an answer.
    fn note(&mut self, part: &Request) {
        match part {
            Request::RequestHeaders(headers) => {
                (self.request.headers, self.request.at_end) = (1, headers.end_of_stream);
            }
            Request::ResponseHeaders(headers) => {
                (self.answer.headers, self.answer.at_end) = (1, headers.end_of_stream);
            }
            Request::RequestBody(body) | Request::ResponseBody(body) => {
                let answer = matches!(part, Request::ResponseBody(_));
                let seen = if answer { &mut self.answer } else { &mut self.request };
                if !seen.at_end {
                    seen.parts += 1;
                    seen.bytes.extend(&body.body);
                    seen.at_end = body.end_of_stream;
                    seen.end_by_body = body.end_of_stream;
                }
            }
            Request::RequestTrailers(_) | Request::ResponseTrailers(_) => {
                let answer = matches!(part, Request::ResponseTrailers(_));
                let seen = if answer { &mut self.answer } else { &mut self.request };
                if !seen.at_end {
                    (seen.trailers, seen.at_end) = (1, true);
                }
            }
        }
    }

    fn told(&mut self, answer: bool, event: &Event) {
        let goes_on = self.began && self.ended == 0;
        match event {
            Event::Nothing => {}
            Event::Request { rest, .. } => {
                assert!(!self.began && !answer);
                self.began = true;
                self.due = *rest != Rest::Comes;
            }
            Event::RequestBody { rest, .. } => {
                assert!(goes_on && !answer && !self.decided && !self.due, "nobody waits for it");
                self.due = *rest != Rest::Comes;
            }
            Event::Answer { last, .. } | Event::AnswerBody { last, .. } => {
                assert!(goes_on && answer);
                self.ended += u32::from(*last);
            }
        }
    }

    fn pull(&mut self) {
        while let Some(answer) = self.machine.next_answer() {
            let decoded = decode(&answer);
            assert_eq!(self.refusals_heard, 0, "something behind the refusal");
            self.hear_pick(&decoded);
            match decoded.response.expect("an answer to something") {
                Response::RequestHeaders(_) => {
                    let undecided = !self.decided && self.ended == 0;
                    assert!(!undecided || self.request.is_buffered(), "answered before the decision");
                    assert_eq!(self.request.parts_answered, 0, "headers first");
                    self.request.headers_answered += 1;
                }
                Response::ResponseHeaders(_) => self.answer.headers_answered += 1,
                Response::RequestBody(body) => self.request.body_answered(body),
                Response::ResponseBody(body) => self.answer.body_answered(body),
                Response::RequestTrailers(_) => self.request.trailers_answered += 1,
                Response::ResponseTrailers(_) => self.answer.trailers_answered += 1,
                Response::ImmediateResponse(_) => self.refusals_heard += 1,
                other => panic!("nobody says this: {other:?}"),
            }
        }
        self.request.check();
        self.answer.check();
        let undecided = self.began && !self.decided && self.ended == 0;
        if !self.over && !undecided {
            self.request.check_done();
            self.answer.check_done();
            assert_eq!(self.machine.held_bytes(), 0);
        }
        assert_eq!(self.refusals_heard, u32::from(self.refused));
    }

    /// The pick goes with the first answer on the request's way that leaves after it, and with no other.
    fn hear_pick(&mut self, answer: &ProcessingResponse) {
        let request = matches!(
            answer.response,
            Some(Response::RequestHeaders(_) | Response::RequestBody(_) | Response::RequestTrailers(_))
        );
        let due = request && self.picks_heard < self.picks;
        assert_eq!(answer.dynamic_metadata.is_some(), due, "{answer:?}");
        self.picks_heard += u32::from(due);
    }

    fn close(mut self) {
        let left = self.machine.close();
        assert_eq!(left.is_some(), self.began && self.ended == 0, "{left:?}");
        assert_eq!(left == Some(Left::Undecided), left.is_some() && !self.decided);
        assert_eq!((self.machine.close(), self.machine.held_bytes()), (None, 0));
        assert!(self.machine.next_answer().is_none());
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let bytes = prop_oneof![8 => 0usize..6, 1 => Just(CHUNK_BYTES_MAX), 1 => Just(CHUNK_BYTES_MAX + 1)];
    let body = (any::<bool>(), bytes, proptest::bool::weighted(0.3));
    let any_op = prop_oneof![
        2 => (any::<bool>(), proptest::bool::weighted(0.2)).prop_map(|(answer, end)| Op::Headers { answer, end }),
        5 => body.prop_map(|(answer, bytes, end)| Op::Body { answer, bytes, end }),
        1 => any::<bool>().prop_map(|answer| Op::Trailers { answer }),
        2 => Just(Op::Pick),
        4 => Just(Op::Pull),
    ];
    let refused = prop_oneof![30 => Just(None), 1 => Just(Some(Op::Refuse))];
    let op = (any_op, refused).prop_map(|(op, refused)| refused.unwrap_or(op));
    // Most begin as streams do.
    let begin = prop_oneof![
        8 => proptest::bool::weighted(0.1).prop_map(|end| Some(Op::Headers { answer: false, end })),
        1 => Just(None),
    ];
    (begin, vec(op, 0..20)).prop_map(|(begin, ops)| begin.into_iter().chain(ops).collect())
}

fn modes() -> impl Strategy<Value = Option<(BodySendMode, BodySendMode)>> {
    use BodySendMode::{Buffered, BufferedPartial, FullDuplexStreamed, None as NoBody, Streamed};
    let mode = || select(vec![NoBody, Streamed, Buffered, BufferedPartial, FullDuplexStreamed]);
    prop_oneof![12 => (mode(), mode()).prop_map(Some), 1 => Just(None)]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_must_hold_holds_in_every_ordering(modes in modes(), ops in ops(), eager in any::<bool>()) {
        let mut play = Play::new(modes);
        for op in ops {
            play.op(op);
            if eager {
                play.op(Op::Pull);
            }
        }
        play.op(Op::Pull);
        play.close();
    }
}
