//! Each body mode, message by message: what Envoy says, what it means to whoever decides, what Envoy hears.

use std::time::Duration;

use bytes::Bytes;
use ext_proc::{CHUNK_BYTES_MAX, Left, Machine, Pick, Rewrite};

use crate::envoy::*;

const CHAT_UNSEEN: &str = "POST /v1/chat/completions of 10: unseen";

#[test]
fn full_duplex_answers_the_headers_when_it_is_decided_and_passes_on_what_it_held() {
    let headers = with_pick("request headers");
    let mut stream = Stream::new(FullDuplexStreamed, FullDuplexStreamed);
    stream.plays(&[
        (post(), CHAT, &[]),
        (body("ab"), r#""ab": comes"#, &[]),
        (body("cd"), r#""cd": comes"#, &[]),
        (Step::Pick, "", &[&headers, r#"request body "ab""#, r#"request body "cd""#]),
        (body("ef"), "", &[r#"request body "ef""#]),
        (body_end("gh"), "", &[r#"request body "gh", end"#]),
        (answer(), "200 EventStream", &["answer headers"]),
        (answer_body("one"), r#"answer "one""#, &[r#"answer body "one""#]),
        (answer_body_end("two"), r#"answer "two", last"#, &[r#"answer body "two", end"#]),
    ]);
    assert_eq!(stream.machine.close(), None, "it had its end");
}

#[test]
fn full_duplex_decides_by_the_whole_body_where_that_is_needed() {
    let headers = with_pick("request headers");
    Stream::new(FullDuplexStreamed, NoBody).plays(&[
        (post(), CHAT, &[]),
        (body("ab"), r#""ab": comes"#, &[]),
        (body_end("cd"), r#""cd": over"#, &[]),
        (Step::Pick, "", &[&headers, r#"request body "ab""#, r#"request body "cd", end"#]),
        (answer(), "200 EventStream", &["answer headers"]),
    ]);
}

#[test]
fn full_duplex_decides_on_the_headers_where_no_body_is_read() {
    let headers = with_pick("request headers");
    let mut stream = Stream::new(FullDuplexStreamed, NoBody);
    assert_eq!(stream.step(post()), CHAT);
    stream.plays(&[
        (Step::Pick, "", &[&headers]),
        (body("ab"), "", &[r#"request body "ab""#]),
        (body_end(""), "", &[r#"request body "", end"#]),
    ]);
}

#[test]
fn full_duplex_tells_an_end_that_came_without_bytes() {
    let headers = with_pick("request headers");
    Stream::new(FullDuplexStreamed, NoBody).plays(&[
        (post(), CHAT, &[]),
        (body("ab"), r#""ab": comes"#, &[]),
        (body(""), "", &[]),
        (body_end(""), r#""": over"#, &[]),
        (Step::Pick, "", &[&headers, r#"request body "ab", end"#]),
    ]);
}

#[test]
fn full_duplex_ends_with_trailers_where_they_come() {
    let headers = with_pick("request headers");
    Stream::new(FullDuplexStreamed, FullDuplexStreamed).plays(&[
        (post(), CHAT, &[]),
        (body("ab"), r#""ab": comes"#, &[]),
        (trailers(), r#""": over"#, &[]),
        (Step::Pick, "", &[&headers, r#"request body "ab""#, "request trailers"]),
        (answer(), "200 EventStream", &["answer headers"]),
        (answer_body("x"), r#"answer "x""#, &[r#"answer body "x""#]),
        (answer_trailers(), r#"answer "", last"#, &["answer trailers"]),
    ]);
}

#[test]
fn full_duplex_cuts_long_parts_and_marks_the_end_on_the_last() {
    let long = "x".repeat(2 * CHUNK_BYTES_MAX + 7);
    let mut stream = Stream::new(FullDuplexStreamed, NoBody);
    stream.step(post());
    stream.step(Step::Pick);
    assert_eq!(stream.answers().len(), 1);
    stream.step(body_end(&long));
    let answers = stream.answers();
    let piece = |length, end| format!("request body {:?}{end}", "x".repeat(length));
    assert_eq!(answers, [piece(CHUNK_BYTES_MAX, ""), piece(CHUNK_BYTES_MAX, ""), piece(7, ", end")]);
}

#[test]
fn what_goes_out_is_what_came_in_and_no_copy() {
    let mut stream = Stream::new(FullDuplexStreamed, FullDuplexStreamed);
    stream.step(post());
    let came = message(Request::RequestBody(part(&"x".repeat(1000), true)), None);
    stream.hears(&came);
    stream.step(Step::Pick);
    stream.machine.next_answer().unwrap();
    let segments = stream.machine.next_answer().unwrap();
    assert_eq!(segments.len(), 2);
    assert!(came.as_ptr_range().contains(&segments[1].as_ptr()), "the body is a slice of the message");
}

#[test]
fn a_buffered_body_is_asked_for_and_answered_with_the_pick() {
    let with_pick = with_pick("request body");
    for (mode, last) in [(Buffered, body_end("abcdefghij")), (BufferedPartial, body_end("abcdefghij"))] {
        Stream::new(mode, NoBody).plays(&[
            (post(), CHAT, &["request headers"]),
            (last, r#""abcdefghij": over"#, &[]),
            (Step::Pick, "", &[&with_pick]),
            (answer(), "200 EventStream", &["answer headers"]),
        ]);
    }
}

#[test]
fn of_a_partly_buffered_body_the_rest_is_not_waited_for() {
    let with_pick = with_pick("request body");
    Stream::new(BufferedPartial, NoBody).plays(&[
        (post(), CHAT, &["request headers"]),
        (body("abcde"), r#""abcde": unseen"#, &[]),
        (Step::Pick, "", &[&with_pick]),
        (trailers(), "", &["request trailers"]),
    ]);
}

#[test]
fn a_buffered_body_with_trailers_is_whole_though_it_does_not_say_so() {
    let with_pick = with_pick("request body");
    Stream::new(Buffered, NoBody).plays(&[
        (post(), CHAT, &["request headers"]),
        (body("abcde"), r#""abcde": over"#, &[]),
        (Step::Pick, "", &[&with_pick]),
        (trailers(), "", &["request trailers"]),
    ]);
}

#[test]
fn a_buffered_request_of_trailers_alone_has_the_pick_in_metadata() {
    let metadata = format!("request trailers {}", PICK.split_once("reroute ").unwrap().1);
    for mode in [Buffered, BufferedPartial] {
        Stream::new(mode, NoBody).plays(&[
            (post(), CHAT, &["request headers"]),
            (trailers(), r#""": over"#, &[]),
            (Step::Pick, "", &[&metadata]),
        ]);
    }
}

#[test]
fn a_body_that_is_not_needed_is_not_asked_for_and_is_answered_where_it_comes() {
    let headers = format!("{} send(None, Streamed+trailers)", with_pick("request headers"));
    for mode in [Buffered, BufferedPartial, Streamed] {
        let mut stream = Stream::new(mode, Streamed);
        stream.step(post());
        stream.plays(&[(Step::Pick, "", &[&headers]), (body_end("abcde"), "", &["request body"])]);
    }
}

#[test]
fn streamed_and_unsent_bodies_leave_only_the_headers_to_decide_by() {
    let headers = with_pick("request headers");
    Stream::new(NoBody, NoBody).plays(&[
        (post(), CHAT_UNSEEN, &[]),
        (Step::Pick, "", &[&headers]),
        (answer(), "200 EventStream", &["answer headers"]),
    ]);
    let streamed = format!("{headers} send(None, Streamed+trailers)");
    Stream::new(Streamed, Streamed).plays(&[
        (post(), CHAT_UNSEEN, &[]),
        (Step::Pick, "", &[&streamed]),
        (body("ab"), "", &["request body"]),
        (body_end("cd"), "", &["request body"]),
        (answer(), "200 EventStream", &["answer headers"]),
        (answer_body("x"), r#"answer "x""#, &["answer body"]),
        (answer_body_end(""), r#"answer "", last"#, &["answer body"]),
    ]);
}

#[test]
fn parts_that_do_not_wait_for_the_headers_are_answered_behind_them() {
    // They are here already: to ask not to be sent them is too late.
    let headers = with_pick("request headers");
    Stream::new(Streamed, NoBody).plays(&[
        (post(), CHAT_UNSEEN, &[]),
        (body("ab"), "", &[]),
        (body("cd"), "", &[]),
        (Step::Pick, "", &[&headers, "request body", "request body"]),
        (body_end("ef"), "", &["request body"]),
    ]);
}

#[test]
fn a_request_without_a_body_is_decided_at_once_in_every_mode() {
    let headers = with_pick("request headers");
    for mode in [NoBody, Streamed, Buffered, BufferedPartial, FullDuplexStreamed] {
        let mut stream = Stream::new(mode, NoBody);
        stream.plays(&[
            (get(), "GET /v1/models: over", &[]),
            (Step::Pick, "", &[&headers]),
            (answer_of("application/json", true), "200 Json, last", &["answer headers"]),
        ]);
        assert_eq!(stream.machine.close(), None);
    }
}

#[test]
fn an_envoy_that_does_not_tell_its_modes_gets_the_pick_with_the_headers() {
    let headers = with_pick("request headers");
    Stream::untold().plays(&[
        (post(), CHAT_UNSEEN, &[]),
        (Step::Pick, "", &[&headers]),
        (body("ab"), "", &["request body"]),
        (body_end("cd"), "", &["request body"]),
        (trailers(), "", &[]),
        (answer(), "200 EventStream", &["answer headers"]),
        (answer_body("x"), r#"answer "x""#, &["answer body"]),
        (answer_body_end(""), r#"answer "", last"#, &["answer body"]),
    ]);
}

#[test]
fn an_answers_head_is_asked_for_where_the_answer_may_not_be_shown() {
    let cases = [
        (BufferedPartial, NoBody, "request headers send(BufferedPartial, head+None)"),
        (BufferedPartial, Streamed, "request headers"),
    ];
    for (request, response, answered) in cases {
        let mut stream = Stream::new(request, response);
        stream.step(post());
        stream.machine.show_answer();
        assert_eq!(stream.answers(), [answered]);
        stream.machine.show_answer();
        stream.step(body_end("abcdefghij"));
        stream.step(Step::Pick);
        assert_eq!(stream.answers(), [with_pick("request body")], "too late");
    }
}

#[test]
fn an_answers_body_is_asked_for_where_it_is_to_be_changed() {
    let cases = [
        (NoBody, "answer headers -content-length send(None, Streamed+trailers)"),
        (Streamed, "answer headers -content-length"),
        (Buffered, "answer headers -content-length"),
        (FullDuplexStreamed, "answer headers -content-length"),
    ];
    for (mode, answered) in cases {
        let mut stream = Stream::new(NoBody, mode);
        stream.step(get());
        stream.step(Step::Pick);
        stream.answers();
        stream.step(answer());
        stream.machine.rewrite_answer();
        assert_eq!(stream.answers(), [answered], "{mode:?}");
        stream.machine.rewrite_answer();
        assert_eq!(stream.answers(), [""; 0], "too late");
    }
}

#[test]
fn the_parts_of_an_answer_are_replaced() {
    let part = |bytes: &'static str| Bytes::from_static(bytes.as_bytes());
    let cases = [
        (Streamed, [r#"answer body replaced by """#, r#"answer body replaced by "abc""#, "answer body"]),
        (FullDuplexStreamed, ["", r#"answer body "ab" | answer body "c""#, r#"answer body "z", end"#]),
    ];
    for (mode, answered) in cases {
        let mut stream = Stream::new(NoBody, mode);
        stream.step(get());
        stream.step(Step::Pick);
        stream.answers();
        stream.step(answer());
        stream.machine.rewrite_answer();
        stream.answers();
        stream.step(answer_body("x"));
        stream.machine.replace_answer_part([]);
        assert_eq!(stream.answers().join(" | "), answered[0], "{mode:?}: nothing is held back for");
        stream.step(answer_body("y"));
        stream.machine.replace_answer_part([part("ab"), part("c")]);
        assert_eq!(stream.answers().join(" | "), answered[1], "{mode:?}");
        stream.step(answer_body_end("z"));
        assert_eq!(stream.answers().join(" | "), answered[2], "{mode:?}: what is not replaced stays");
    }
}

#[test]
fn a_body_that_was_asked_for_counts_as_shown_once_it_comes() {
    for (parts, left) in [(&[][..], Left::Unwatched), (&[answer_body("x")][..], Left::MidAnswer)] {
        let mut stream = Stream::new(NoBody, NoBody);
        stream.step(get());
        stream.step(Step::Pick);
        stream.step(answer());
        stream.machine.rewrite_answer();
        stream.answers();
        for part in parts {
            stream.plays(&[(part.clone(), r#"answer "x""#, &["answer body"])]);
        }
        assert_eq!(stream.machine.close(), Some(left));
    }
}

/// Picks with bytes 4 to 6 of the body replaced.
fn rewrite(machine: &mut Machine, with: &'static str) {
    let rewrite = Some(Rewrite { span: 4..7, with: Bytes::from_static(with.as_bytes()) });
    machine.routed(&Pick { destinations: PICKED, metadata: &[], rewrite });
}

#[test]
fn a_rewritten_body_has_its_length_told_and_nothing_else_changed() {
    let length = |length: &str| {
        let pick = PICK.replacen("+x", &format!("+content-length={length} +x"), 1);
        pick.replacen(" reroute", " -accept-encoding reroute", 1)
    };
    let mut stream = Stream::new(FullDuplexStreamed, NoBody);
    stream.plays(&[(post(), CHAT, &[]), (body("01234"), r#""01234": comes"#, &[])]);
    stream.plays(&[(body("56789"), r#""56789": comes"#, &[])]);
    rewrite(&mut stream.machine, "abcde");
    let headers = format!("request headers {}", length("12"));
    let pieces = [r#"request body "0123""#, r#"request body "abcde""#, r#"request body "789""#];
    assert_eq!(stream.answers(), [&[headers.as_str()][..], &pieces].concat());
    stream.plays(&[(body_end("x"), "", &[r#"request body "x", end"#])]);

    for mode in [Buffered, BufferedPartial] {
        let mut stream = Stream::new(mode, NoBody);
        stream.plays(&[
            (post(), CHAT, &["request headers"]),
            (body_end("0123456789"), r#""0123456789": over"#, &[]),
        ]);
        rewrite(&mut stream.machine, "a");
        let (set, metadata) = PICK.split_once(" reroute ").unwrap();
        let set = set.replacen("+x", "+content-length=8 +x", 1) + " -accept-encoding";
        assert_eq!(
            stream.answers(),
            [format!("request body {set} reroute replaced by \"0123a789\" {metadata}")]
        );
    }
}

#[test]
fn what_was_not_shown_is_not_rewritten() {
    let headers = with_pick("request headers");
    let mut stream = Stream::new(FullDuplexStreamed, NoBody);
    stream.plays(&[(post(), CHAT, &[]), (body("012345"), r#""012345": comes"#, &[])]);
    rewrite(&mut stream.machine, "abc");
    assert_eq!(stream.answers(), [&headers, r#"request body "012345""#]);
}

#[test]
fn more_time_is_asked_for_where_envoy_waits_only_for_so_long() {
    let wait = ["wait 30.500000000 s"];
    for (mode, said) in [
        (NoBody, &wait[..]),
        (Streamed, &wait),
        (Buffered, &wait),
        (BufferedPartial, &wait),
        (FullDuplexStreamed, &[]),
    ] {
        let mut stream = Stream::new(mode, NoBody);
        stream.step(post());
        stream.answers();
        stream.step(body_end("{}"));
        stream.machine.ask_for_time(Duration::from_millis(30_500));
        assert_eq!(stream.answers(), said, "{mode:?}");
        stream.step(Step::Pick);
        stream.answers();
        stream.machine.ask_for_time(Duration::from_secs(1));
        assert_eq!(stream.answers(), [""; 0], "{mode:?}: nothing is awaited any more");
    }
}

#[test]
fn no_more_time_is_asked_for_than_envoy_may_give() {
    let mut stream = Stream::new(BufferedPartial, NoBody);
    stream.step(post());
    stream.answers();
    stream.step(body_end("{}"));
    stream.machine.ask_for_time(Duration::from_secs(86_400));
    assert_eq!(stream.answers(), ["wait 3600.000000000 s"]);
}

#[test]
fn a_name_goes_with_the_answer_to_the_head_where_envoy_waits_for_one() {
    let named = "request headers envoy.lb{number=7}";
    let pick = with_pick("request body");
    for (mode, body) in [(BufferedPartial, body("ab")), (Buffered, body_end("ab"))] {
        let mut stream = Stream::new(mode, NoBody);
        assert_eq!(stream.step(post()), CHAT);
        assert!(stream.machine.name(&[("number", "7")]));
        assert_eq!(stream.answers(), [named]);
        assert!(!stream.step(body).is_empty());
        assert_eq!(stream.step(Step::Pick), "");
        assert_eq!(stream.answers(), [&*pick]);
    }
    // Elsewhere the head is answered with the pick.
    for mode in [NoBody, Streamed, FullDuplexStreamed] {
        let mut stream = Stream::new(mode, NoBody);
        assert!(stream.step(post()).starts_with("POST"));
        assert!(!stream.machine.name(&[("number", "7")]));
        assert_eq!(stream.step(Step::Pick), "");
        assert!(!stream.answers()[0].contains("number"));
    }
}
