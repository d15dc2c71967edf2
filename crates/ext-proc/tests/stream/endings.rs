//! How requests end, whoever ends them, and what is owed behind an end.

use bytes::Bytes;
use ext_proc::{Event, Left};

use crate::envoy::*;

#[test]
fn what_comes_behind_an_end_is_swallowed() {
    let headers = with_pick("request headers");
    Stream::new(FullDuplexStreamed, FullDuplexStreamed).plays(&[
        (post(), CHAT, &[]),
        (body_end("ab"), r#""ab": over"#, &[]),
        (body_end(""), "", &[]),
        (Step::Pick, "", &[&headers, r#"request body "ab", end"#]),
        (body_end(""), "", &[]),
        (body("more"), "", &[]),
        (trailers(), "", &[]),
        (answer(), "200 EventStream", &["answer headers"]),
        (answer_body_end("x"), r#"answer "x", last"#, &[r#"answer body "x", end"#]),
        (answer_body_end("x"), "", &[]),
        (answer_trailers(), "", &[]),
    ]);
}

#[test]
fn a_refusal_is_the_last_word_whenever_it_comes() {
    let before: [&[Step]; 5] = [
        &[post()],
        &[post(), body("ab")],
        &[post(), body("ab"), Step::Pick],
        &[post(), body_end("ab"), Step::Pick, answer()],
        &[post(), body_end("ab"), Step::Pick, answer(), answer_body_end("x")],
    ];
    for steps in before {
        let mut stream = Stream::new(FullDuplexStreamed, FullDuplexStreamed);
        for step in steps {
            stream.step(step.clone());
        }
        stream.plays(&[
            (Step::Refuse, "", &[REFUSED]),
            (body("cd"), "", &[]),
            (Step::Pick, "", &[]),
            (Step::Refuse, "", &[]),
            (post(), "", &[]),
            (answer(), "", &[]),
        ]);
        assert_eq!((stream.machine.held_bytes(), stream.machine.close()), (0, None));
    }
}

#[test]
fn a_stream_that_closes_tells_once_where_the_request_stood() {
    use Left::{MidAnswer, Unanswered, Undecided, Unwatched};
    let cases: [(_, &[Step], Option<Left>); 11] = [
        (FullDuplexStreamed, &[], None),
        (FullDuplexStreamed, &[post()], Some(Undecided)),
        (FullDuplexStreamed, &[post(), body_end("ab")], Some(Undecided)),
        (FullDuplexStreamed, &[post(), body("ab"), Step::Pick], Some(Unanswered)),
        (FullDuplexStreamed, &[get(), Step::Pick], Some(Unanswered)),
        (NoBody, &[get(), Step::Pick, answer()], Some(Unwatched)),
        (Streamed, &[get(), Step::Pick, answer()], Some(MidAnswer)),
        (Streamed, &[get(), Step::Pick, answer(), answer_body("x")], Some(MidAnswer)),
        (BufferedPartial, &[get(), Step::Pick, answer(), answer_body("x")], Some(Unwatched)),
        (Streamed, &[get(), Step::Pick, answer(), answer_body("x"), answer_trailers()], None),
        (Streamed, &[get(), Step::Refuse], None),
    ];
    for (mode, steps, left) in cases {
        let mut stream = Stream::new(mode, mode);
        for step in steps {
            stream.step(step.clone());
        }
        assert_eq!(stream.machine.close(), left, "{mode:?} {steps:?}");
        assert_eq!((stream.machine.close(), stream.machine.held_bytes()), (None, 0));
        stream.plays(&[(post(), "", &[]), (body("ab"), "", &[]), (Step::Refuse, "", &[])]);
    }
}

#[test]
fn an_answer_of_another_filter_is_answered_though_no_request_came() {
    let mut stream = Stream::new(FullDuplexStreamed, FullDuplexStreamed);
    stream.plays(&[
        (answer_of("text/plain", false), "", &["answer headers"]),
        (answer_body_end("denied"), "", &[r#"answer body "denied", end"#]),
    ]);
    assert_eq!(stream.machine.close(), None);
}

#[test]
fn an_answer_of_envoys_own_ends_a_request_that_waits() {
    let mut stream = Stream::new(FullDuplexStreamed, FullDuplexStreamed);
    stream.plays(&[
        (post(), CHAT, &[]),
        (body("ab"), r#""ab": comes"#, &[]),
        (answer_of("text/plain", false), "200", &["answer headers"]),
        (
            answer_body_end("timeout"),
            r#"answer "timeout", last"#,
            &["request headers", r#"request body "ab""#, r#"answer body "timeout", end"#],
        ),
        (Step::Pick, "", &[]),
        (body_end("cd"), "", &[r#"request body "cd", end"#]),
    ]);
    assert_eq!((stream.machine.close(), stream.machine.held_bytes()), (None, 0));
}

#[test]
fn an_answer_that_comes_early_does_not_stop_the_upload() {
    let headers = with_pick("request headers");
    Stream::new(FullDuplexStreamed, NoBody).plays(&[
        (post(), CHAT, &[]),
        (body("ab"), r#""ab": comes"#, &[]),
        (Step::Pick, "", &[&headers, r#"request body "ab""#]),
        (answer_of("application/json", true), "200 Json, last", &["answer headers"]),
        (body_end("cd"), "", &[r#"request body "cd", end"#]),
    ]);
}

#[test]
fn held_bytes_are_told_and_let_go() {
    let held = |stream: &Stream| stream.machine.held_bytes();
    let mut stream = Stream::new(FullDuplexStreamed, NoBody);
    stream.step(post());
    assert_eq!(held(&stream), 0);
    stream.step(body(&"x".repeat(1000)));
    stream.step(body("x"));
    assert_eq!(held(&stream), 1001 + 2 * 64);
    stream.step(Step::Pick);
    stream.answers();
    assert_eq!(held(&stream), 0);
    stream.machine.close();
    assert_eq!(stream.machine.request_bytes(), 1001);

    let mut stream = Stream::new(BufferedPartial, NoBody);
    stream.step(post());
    stream.answers();
    stream.step(body("0123456789"));
    assert_eq!(held(&stream), 10 + 64, "it may be rewritten");
    stream.step(Step::Pick);
    assert_eq!(held(&stream), 0, "it is not");
}

#[test]
fn who_breaks_the_protocol_is_told_so_and_heard_no_more() {
    let cases: [(&[Step], &str); 5] = [
        (&[body("ab")], "broken: a request's body came without its headers: set request_header_mode to SEND"),
        (&[trailers()], "broken: a request's body came without its headers: set request_header_mode to SEND"),
        (&[post(), post()], "broken: headers came twice, or behind their body"),
        (&[post(), Step::Pick, answer(), answer()], "broken: headers came twice, or behind their body"),
        (&[answer(), answer()], "broken: headers came twice, or behind their body"),
    ];
    for (steps, broken) in cases {
        let mut stream = Stream::new(FullDuplexStreamed, NoBody);
        let events: Vec<_> = steps.iter().map(|step| stream.step(step.clone())).collect();
        assert_eq!(events.last().unwrap(), broken);
        stream.plays(&[(body("ab"), "", &[]), (Step::Pick, "", &[]), (Step::Refuse, "", &[])]);
    }
    let mut stream = Stream::new(FullDuplexStreamed, NoBody);
    stream.next.protocol_config.as_mut().unwrap().response_body_mode = 5;
    assert_eq!(
        stream.step(post()),
        "broken: body mode 5 is not spoken here; FULL_DUPLEX_STREAMED (4) is, and BUFFERED_PARTIAL (3)"
    );
    let left = |steps: &[Step]| {
        let mut stream = Stream::new(FullDuplexStreamed, FullDuplexStreamed);
        steps.iter().for_each(|step| drop(stream.step(step.clone())));
        stream.machine.close()
    };
    assert_eq!(left(&[post(), post()]), Some(Left::Undecided), "a broken stream ends its request, too");
    assert_eq!(left(&[post(), Step::Pick, answer(), answer()]), Some(Left::MidAnswer));
}

#[test]
fn messages_about_nothing_known_are_passed_over() {
    let mut stream = Stream::new(FullDuplexStreamed, NoBody);
    stream.step(post());
    let nothing = stream.machine.receive(&Bytes::new());
    assert!(matches!(nothing, Ok(Event::Nothing)));
    // client_window_update, and a field that does not exist yet.
    let window = stream.machine.receive(&Bytes::from_static(b"\x6a\x02\x08\x01\xfa\x01\x01x"));
    assert!(matches!(window, Ok(Event::Nothing)));
    assert_eq!(stream.answers(), [""; 0]);
}

#[test]
fn an_observed_stream_is_neither_answered_nor_told() {
    let mut stream = Stream::new(Streamed, Streamed);
    stream.next.observability_mode = true;
    stream.plays(&[
        (post(), "", &[]),
        (body_end("ab"), "", &[]),
        (Step::Pick, "", &[]),
        (Step::Refuse, "", &[]),
        (answer(), "", &[]),
        (answer_body_end("x"), "", &[]),
    ]);
    assert_eq!(stream.machine.close(), None);
}
