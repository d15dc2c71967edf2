//! What the protocol costs: a whole request as Envoy 1.40 sent it, without a decision and without a network.

#![allow(missing_docs, reason = "a benchmark is no library")]
#![expect(clippy::unwrap_used, reason = "a panic is a failure")]

use bytes::Bytes;
use divan::{Bencher, black_box};
use ext_proc::{Event, Machine, Pick, Rest};

const RECORDINGS: [(&str, &str); 2] = [
    ("buffered partial, answer streamed", include_str!("../tests/stream/recordings/buffered-partial.hex")),
    ("full duplex both ways", include_str!("../tests/stream/recordings/full-duplex-streamed.hex")),
];

fn main() {
    divan::main();
}

fn messages(recording: &str) -> Vec<Bytes> {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    recording.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// Request of 1 KB and answer of five parts: 9 or 10 messages.
#[divan::bench(args = RECORDINGS.map(|(name, _)| name))]
fn request(bencher: Bencher<'_, '_>, name: &str) {
    let (_, recording) = RECORDINGS.into_iter().find(|(other, _)| *other == name).unwrap();
    let messages = messages(recording);
    bencher.bench_local(|| answer_all(black_box(&messages)));
}

/// 220 KB in parts of 16 KB, held until the last.
#[divan::bench]
fn long_request_held(bencher: Bencher<'_, '_>) {
    let mut messages = messages(RECORDINGS[1].1);
    let part = part_of(&messages[1], 16 << 10);
    messages.splice(1..2, std::iter::repeat_n(part, 14));
    bencher.bench_local(|| answer_all(black_box(&messages)));
}

/// A request's body like `message`, of `bytes`.
fn part_of(message: &Bytes, bytes: usize) -> Bytes {
    use envoy_types::pb::envoy::service::ext_proc::v3::{
        HttpBody, ProcessingRequest, processing_request::Request,
    };
    use prost::Message as _;
    let mut message = ProcessingRequest::decode(message.clone()).unwrap();
    message.request = Some(Request::RequestBody(HttpBody { body: vec![b'x'; bytes], ..HttpBody::default() }));
    message.encode_to_vec().into()
}

fn answer_all(messages: &[Bytes]) -> usize {
    let mut machine = Machine::new();
    let mut answers = 0;
    for message in messages {
        if let Ok(Event::RequestBody { rest: Rest::Over, .. }) = machine.receive(message) {
            let destinations = "10.0.0.1:8000,10.0.0.2:8000,10.0.0.3:8000";
            machine.routed(&Pick { destinations, metadata: &[], rewrite: None });
        }
        while let Some(answer) = machine.next_answer() {
            black_box(answer);
            answers += 1;
        }
    }
    machine.close();
    answers
}
