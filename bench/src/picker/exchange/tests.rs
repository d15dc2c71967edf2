//! The exchange against scripted servers: a sound one passes in every mode, and each fault is seen for what it is.

use bench::ext_proc::{Request as Asked, headers_answer, pick_answer, streamed_answer};
use tokio::task::JoinSet;

use super::*;
use crate::picker::prompts::Sharing;

/// What a server answers to a message: framed messages, and `None` where it ends the stream.
type Script = fn(&Asked) -> Option<Vec<Bytes>>;

const PICK: &str = "10.0.0.7:8000,10.0.0.8:8000";
const BODY_BYTES: usize = 100_000;

fn plan(request: BodyMode, response: BodyMode, checks: Checks) -> Plan {
    let shape = Shape {
        model: "tiny".to_owned(),
        body_bytes: BODY_BYTES,
        mode: request,
        chunk_bytes: 16_384,
        partial_bytes: 65_536,
    };
    let phase = ResponsePhase { headers: true, chunks: 3, mode_override: true };
    Plan::new(&shape, Prompts::new(&shape, Sharing::Different, 1), response, phase, checks)
}

/// One exchange with a server that follows the script.
async fn run(plan: &Plan, script: Script) -> Result<Outcome, Fault> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.expect("a handshake");
        let mut streams = JoinSet::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            streams.spawn(async move {
                let mut send = respond.send_response(Response::new(()), false).expect("headers");
                let (mut body, mut deframer) = (request.into_body(), Deframer::default());
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).expect("what came");
                    deframer.push(data);
                    while let Ok(Some(message)) = deframer.message() {
                        let Some(answers) = script(&Asked::parse(&message).expect("a message")) else {
                            break;
                        };
                        // A client that found a fault is gone.
                        answers.into_iter().for_each(|answer| drop(send.send_data(answer, false)));
                    }
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                let _ = send.send_trailers(trailers);
            });
        }
    });
    let (sender, connection) = h2::client::handshake(ours).await.expect("a handshake");
    tasks.spawn(async move { drop(connection.await) });
    exchange(sender, plan, 0, None).await
}

fn picks(kind: AnswerKind) -> Bytes {
    framed(&pick_answer(kind, PICK))
}

fn passes(kind: AnswerKind) -> Bytes {
    framed(&headers_answer(kind))
}

fn echo(kind: AnswerKind, body: &[u8], end: bool) -> Bytes {
    let (before, behind) = streamed_answer(kind, body.len(), end);
    [&before, body, behind].concat().into()
}

/// FULL_DUPLEX_STREAMED both ways, as it must be; the body is cut otherwise than it came.
fn sound(asked: &Asked) -> Vec<Bytes> {
    let cut = |kind| {
        let (front, back) = asked.body.split_at(asked.body.len() / 3);
        vec![echo(kind, front, false), echo(kind, back, asked.end_of_stream)]
    };
    match asked.kind {
        RequestKind::RequestHeaders => vec![picks(AnswerKind::RequestHeaders)],
        RequestKind::RequestBody => cut(AnswerKind::RequestBody),
        RequestKind::ResponseHeaders => vec![passes(AnswerKind::ResponseHeaders)],
        RequestKind::ResponseBody => cut(AnswerKind::ResponseBody),
        _ => Vec::new(),
    }
}

/// One answer to each message, with the pick at the body.
fn lockstep(asked: &Asked) -> Vec<Bytes> {
    match asked.kind {
        RequestKind::RequestHeaders => vec![passes(AnswerKind::RequestHeaders)],
        RequestKind::RequestBody => vec![picks(AnswerKind::RequestBody)],
        RequestKind::ResponseHeaders => vec![passes(AnswerKind::ResponseHeaders)],
        _ => vec![passes(AnswerKind::ResponseBody)],
    }
}

async fn duplex_fault(script: Script) -> String {
    let plan = plan(BodyMode::FullDuplexStreamed, BodyMode::FullDuplexStreamed, Checks::default());
    run(&plan, script).await.map_or_else(|fault| fault.to_string(), |outcome| format!("{outcome:?}"))
}

#[tokio::test]
async fn sound_servers_pass_in_every_mode() {
    use BodyMode::{Buffered, BufferedPartial, FullDuplexStreamed, None as Unseen, Streamed};
    let hold = Checks { hold_end: true, ..Checks::default() };
    for response in [Unseen, FullDuplexStreamed] {
        let outcome = run(&plan(FullDuplexStreamed, response, hold), |asked| Some(sound(asked))).await;
        let outcome = outcome.expect("a sound exchange");
        assert_eq!(outcome.picked.as_deref(), Ok(PICK));
        assert!(outcome.early && outcome.pick_at <= outcome.done_at && !outcome.body_changed);
    }
    for (request, response) in [(Buffered, Unseen), (BufferedPartial, Streamed), (Streamed, Streamed)] {
        let outcome = run(&plan(request, response, hold), |asked| Some(lockstep(asked))).await;
        assert_eq!(outcome.expect("a sound exchange").picked.as_deref(), Ok(PICK));
    }
}

#[tokio::test]
async fn a_picker_that_waits_for_the_whole_body_is_not_early() {
    let hold = Checks { hold_end: true, ..Checks::default() };
    let late: Script = |asked| {
        let mut answers = sound(asked);
        match asked.kind {
            // Everything in the answer to the end: the headers, then a body of other words.
            RequestKind::RequestBody if asked.end_of_stream => {
                answers = vec![picks(AnswerKind::RequestHeaders), echo(AnswerKind::RequestBody, b"{}", true)];
            }
            RequestKind::RequestHeaders | RequestKind::RequestBody => answers.clear(),
            _ => {}
        }
        Some(answers)
    };
    let tolerant = Checks { body_may_change: true, ..hold };
    let modes = (BodyMode::FullDuplexStreamed, BodyMode::None);
    let outcome = run(&plan(modes.0, modes.1, tolerant), late).await.expect("a sound exchange");
    assert!(!outcome.early && outcome.body_changed);
    assert!(matches!(run(&plan(modes.0, modes.1, hold), late).await, Err(Fault::BodyChanged)));
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let refuses: Script = |asked| match asked.kind {
        RequestKind::RequestHeaders => Some(vec![framed(b"\x3a\x05\x0a\x03\x08\xad\x03")]),
        _ => Some(Vec::new()),
    };
    for mode in [BodyMode::FullDuplexStreamed, BodyMode::BufferedPartial] {
        let outcome = run(&plan(mode, BodyMode::None, Checks::default()), refuses).await;
        assert_eq!(outcome.expect("a sound exchange").picked, Err(429));
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_was_sent_is_a_fault() {
    let changed = duplex_fault(|asked| match asked.kind {
        RequestKind::RequestBody => {
            let mut body = asked.body.to_vec();
            body.iter_mut().take(1).for_each(|byte| *byte ^= 1);
            Some(vec![echo(AnswerKind::RequestBody, &body, asked.end_of_stream)])
        }
        _ => Some(sound(asked)),
    });
    assert_eq!(changed.await, Fault::BodyChanged.to_string());
    let short = duplex_fault(|asked| match asked.kind {
        RequestKind::RequestBody => Some(vec![echo(AnswerKind::RequestBody, &[], asked.end_of_stream)]),
        _ => Some(sound(asked)),
    });
    assert_eq!(short.await, Fault::End.to_string());
}

#[tokio::test]
async fn an_end_or_an_answer_too_many_is_a_fault() {
    let twice = duplex_fault(|asked| {
        let mut answers = sound(asked);
        if asked.kind == RequestKind::RequestBody && asked.end_of_stream {
            answers.push(echo(AnswerKind::RequestBody, &[], true));
        }
        Some(answers)
    });
    let due = AnswerKind::ResponseHeaders;
    assert_eq!(twice.await, Fault::Unexpected { due, got: AnswerKind::RequestBody }.to_string());
    let at_last = duplex_fault(|asked| {
        let mut answers = sound(asked);
        if asked.kind == RequestKind::ResponseBody && asked.end_of_stream {
            answers.push(passes(AnswerKind::ResponseTrailers));
        }
        Some(answers)
    });
    assert_eq!(at_last.await, Fault::TooMany(AnswerKind::ResponseTrailers).to_string());
}

#[tokio::test]
async fn header_and_metadata_must_both_name_the_pick() {
    let header_only = duplex_fault(|asked| match asked.kind {
        RequestKind::RequestHeaders => {
            let answer = pick_answer(AnswerKind::RequestHeaders, PICK);
            // The metadata stands last: its tag, and a length of one byte.
            let metadata =
                answer.len() - answer.iter().rev().position(|byte| *byte == 0x42).expect("metadata") - 1;
            Some(vec![framed(&answer[..metadata])])
        }
        _ => Some(sound(asked)),
    });
    assert_eq!(header_only.await, Fault::Disagree.to_string());
    let none = duplex_fault(|asked| match asked.kind {
        RequestKind::RequestHeaders => Some(vec![passes(AnswerKind::RequestHeaders)]),
        _ => Some(sound(asked)),
    });
    assert_eq!(none.await, Fault::NoPick.to_string());
}

#[tokio::test]
async fn a_mutation_of_another_mode_is_a_fault() {
    let streams: Script = |asked| match asked.kind {
        RequestKind::RequestBody => Some(vec![echo(AnswerKind::RequestBody, &asked.body, true)]),
        _ => Some(lockstep(asked)),
    };
    let outcome = run(&plan(BodyMode::Buffered, BodyMode::None, Checks::default()), streams).await;
    assert!(matches!(outcome, Err(Fault::Mutation)), "{outcome:?}");
}

#[tokio::test]
async fn a_mode_override_ends_the_response_at_its_headers() {
    let declines: Script = |asked| match asked.kind {
        // mode_override with nothing in it: response_body_mode NONE.
        RequestKind::ResponseHeaders => {
            Some(vec![framed(&[&headers_answer(AnswerKind::ResponseHeaders)[..], b"\x4a\x00"].concat())])
        }
        RequestKind::ResponseBody => None,
        _ => Some(sound(asked)),
    };
    let plan = plan(BodyMode::FullDuplexStreamed, BodyMode::Streamed, Checks::default());
    assert!(run(&plan, declines).await.is_ok());
}
