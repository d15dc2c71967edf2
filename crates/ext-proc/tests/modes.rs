//! Each body mode, message by message: what Envoy says, what it means to whoever decides, what Envoy hears.

#[path = "common/mod.rs"]
mod common;

use bytes::Bytes;
use common::*;
use envoy_types::pb::google::protobuf::value::Kind;
use ext_proc::{CHUNK_BYTES_MAX, Control, Event, Left, Machine, Pick, Rewrite};

const CHAT: &str = "POST /v1/chat/completions of 10: comes";
const CHAT_UNSEEN: &str = "POST /v1/chat/completions of 10: unseen";

/// An answer that carries the pick.
fn with_pick(answer: &str) -> String {
    format!("{answer} {PICK}")
}

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
        (body(""), r#""": comes"#, &[]),
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
    stream.plays(&[(post(), CHAT, &[])]);
    let came =
        prost::Message::encode_to_vec(&envoy_types::pb::envoy::service::ext_proc::v3::ProcessingRequest {
            request: Some(
                envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request::RequestBody(
                    part(&"x".repeat(1000), true),
                ),
            ),
            ..Default::default()
        });
    let came = Bytes::from(came);
    stream.machine.receive(&came).unwrap();
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
    for (mode, rest) in [(Buffered, CHAT), (BufferedPartial, CHAT), (Streamed, CHAT_UNSEEN)] {
        let mut stream = Stream::new(mode, Streamed);
        assert_eq!(stream.step(post()), rest);
        stream.plays(&[
            (
                Step::Pick,
                "",
                &[&with_pick("request headers").replace("{x", "{x").as_str()].map(|answer| {
                    let answer: &str =
                        Box::leak(format!("{answer} send(None, Streamed+trailers)").into_boxed_str());
                    answer
                }),
            ),
            (body_end("abcde"), "", &["request body"]),
        ]);
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
    let headers = with_pick("request headers");
    Stream::new(Streamed, NoBody).plays(&[
        (post(), CHAT_UNSEEN, &[]),
        (body("ab"), "", &[]),
        (body_end("cd"), "", &[]),
        (Step::Pick, "", &[&headers, "request body", "request body"]),
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
fn what_steers_is_never_a_clients_and_is_not_passed_on() {
    let own = [("x-gateway-destination-endpoint", "evil:1"), ("x-llm-d-inference-objective", "batch")];
    let removed = " -x-gateway-destination-endpoint -x-llm-d-inference-objective";
    let answered_first = format!("request headers{removed}");
    let with_body = with_pick("request body");
    Stream::new(BufferedPartial, NoBody).plays(&[
        (post_with(&own), CHAT, &[&answered_first]),
        (body_end("abcdefghij"), r#""abcdefghij": over"#, &[]),
        (Step::Pick, "", &[&with_body]),
    ]);
    // Envoy removes before it sets.
    let (set, rest) = PICK.split_once(" reroute").unwrap();
    let both = format!("request headers {set}{removed} reroute{rest}");
    Stream::new(FullDuplexStreamed, NoBody)
        .plays(&[(post_with(&own), CHAT, &[]), (Step::Pick, "", &[&both])]);
}

/// The head of a request with these headers and metadata.
fn head_of(
    headers: &[(&str, &str)],
    metadata: Option<envoy_types::pb::envoy::config::core::v3::Metadata>,
) -> ext_proc::Head {
    let message = envoy_types::pb::envoy::service::ext_proc::v3::ProcessingRequest {
        request: Some(
            envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request::RequestHeaders(head(
                headers, true,
            )),
        ),
        metadata_context: metadata,
        ..Default::default()
    };
    let message = Bytes::from(prost::Message::encode_to_vec(&message));
    match Machine::new().receive(&message) {
        Ok(Event::Request { head, .. }) => head,
        other => panic!("no request: {other:?}"),
    }
}

#[test]
fn a_head_tells_what_a_decision_needs() {
    let head = head_of(
        &[
            (":path", "/v1/completions?x=1"),
            (":method", "POST"),
            ("content-length", "1234"),
            ("x-llm-d-inference-fairness-id", "tenant"),
            ("x-gateway-model-name-rewrite", "other"),
            ("test-epp-endpoint-selection", "10.0.0.3"),
        ],
        None,
    );
    assert_eq!(
        (&*head.method, &*head.path, head.content_length),
        ("POST", "/v1/completions?x=1", Some(1234))
    );
    assert_eq!(head.control(Control::FairnessId), Some("tenant"));
    assert_eq!(head.control(Control::ModelRewrite), Some("other"));
    assert_eq!(head.control(Control::Objective), None);
    assert_eq!(head.headers.value("test-epp-endpoint-selection"), Some(&b"10.0.0.3"[..]));
    assert!(head.readable && head.subset.is_none());
    for (name, value, readable) in [
        ("content-encoding", "gzip", false),
        ("content-encoding", "Identity", true),
        ("content-type", "multipart/form-data; boundary=x", false),
        ("content-type", "application/json", true),
    ] {
        assert_eq!(head_of(&[(name, value)], None).readable, readable, "{name}: {value}");
    }
    for hostile in ["-1", "1e3", "", "99999999999999999999", "10, 10"] {
        assert_eq!(head_of(&[("content-length", hostile)], None).content_length, None, "{hostile}");
    }
}

#[test]
fn a_subset_is_a_list_or_a_text_with_commas_and_restricts_even_where_it_is_empty() {
    let subset = |kind| {
        let metadata = metadata(ext_proc::SUBSET_NAMESPACE, ext_proc::SUBSET, kind);
        head_of(&[], Some(metadata)).subset.map(|subset| subset.endpoints())
    };
    let some = |endpoints: &[&str]| Some(endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect());
    let string = |text: &str| Kind::StringValue(text.into());
    assert_eq!(subset(list(&["10.0.0.1:80", " [fd00::1]:80 "])), some(&["10.0.0.1:80", "[fd00::1]:80"]));
    assert_eq!(subset(string("10.0.0.1:80, [fd00::1]:80,")), some(&["10.0.0.1:80", "[fd00::1]:80"]));
    for nobody in
        [list(&[]), list(&[""]), string(""), string(" , "), Kind::NumberValue(1.0), Kind::NullValue(0)]
    {
        assert_eq!(subset(nobody.clone()), some(&[]), "{nobody:?}");
    }
    let elsewhere = metadata("envoy.lb", ext_proc::SUBSET, string("10.0.0.1:80"));
    assert!(head_of(&[], Some(elsewhere)).subset.is_none());
}

#[test]
fn an_answers_head_tells_how_it_reads_and_who_served() {
    let mut stream = Stream::new(NoBody, NoBody);
    stream.step(get());
    stream.step(Step::Pick);
    stream.next.metadata_context =
        Some(metadata(ext_proc::NAMESPACE, ext_proc::SERVED, Kind::StringValue("[fd00::2]:8000".into())));
    assert_eq!(stream.step(answer()), "200 EventStream by [fd00::2]:8000");
    for (headers, read) in [
        (&[(":status", "503"), ("content-type", "Application/JSON; charset=utf-8")][..], "503 Json"),
        (&[(":status", "200"), ("content-type", "text/event-stream"), ("content-encoding", "br")], "200"),
        (&[(":status", "99999")], "0"),
    ] {
        let mut stream = Stream::new(NoBody, NoBody);
        stream.step(get());
        stream.step(Step::Pick);
        use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request::ResponseHeaders;
        assert_eq!(stream.step(Step::Says(ResponseHeaders(head(headers, false)))), read);
    }
}

#[test]
fn an_answers_body_is_asked_for_or_declined_with_its_headers() {
    let cases = [
        (NoBody, true, "answer headers send(None, Streamed+trailers)"),
        (NoBody, false, "answer headers"),
        (Streamed, true, "answer headers"),
        (Streamed, false, "answer headers send(None, None)"),
        (Buffered, false, "answer headers send(None, None)"),
        (FullDuplexStreamed, false, "answer headers"),
    ];
    for (mode, show, answered) in cases {
        let mut stream = Stream::new(NoBody, mode);
        stream.step(get());
        stream.step(Step::Pick);
        stream.answers();
        stream.step(answer());
        stream.machine.show_answer_body(show);
        assert_eq!(stream.answers(), [answered], "{mode:?} {show}");
        stream.machine.show_answer_body(!show);
        assert_eq!(stream.answers(), [""; 0], "too late");
    }
}

#[test]
fn a_body_that_was_asked_for_counts_as_shown_once_it_comes() {
    for (parts, left) in [(&[][..], Left::Unwatched), (&[answer_body("x")][..], Left::MidAnswer)] {
        let mut stream = Stream::new(NoBody, NoBody);
        stream.step(get());
        stream.step(Step::Pick);
        stream.step(answer());
        stream.machine.show_answer_body(true);
        stream.answers();
        for part in parts {
            stream.plays(&[(part.clone(), r#"answer "x""#, &["answer body"])]);
        }
        assert_eq!(stream.machine.close(), Some(left));
    }
}

#[test]
fn headers_of_the_answer_and_more_metadata_are_told_as_given() {
    let mut stream = Stream::new(NoBody, NoBody);
    stream.step(get());
    stream.machine.routed(&Pick {
        destinations: "[fd00::1]:80",
        metadata: &[("x-pointsman-request", "7")],
        rewrite: None,
    });
    assert_eq!(
        stream.answers(),
        ["request headers +x-gateway-destination-endpoint=[fd00::1]:80 reroute \
          envoy.lb{x-gateway-destination-endpoint=[fd00::1]:80 x-pointsman-request=7}"]
    );
    stream.step(answer());
    stream.machine.set_answer_header("x-conformance-test-served-endpoint", "[fd00::1]:80");
    assert_eq!(stream.answers(), ["answer headers +x-conformance-test-served-endpoint=[fd00::1]:80"]);
}

/// Picks with bytes 4 to 6 of the body replaced.
fn rewrite(machine: &mut Machine, with: &'static str) {
    let rewrite = Some(Rewrite { span: 4..7, with: Bytes::from_static(with.as_bytes()) });
    machine.routed(&Pick { destinations: PICKED, metadata: &[], rewrite });
}

#[test]
fn a_rewritten_body_has_its_length_told_and_nothing_else_changed() {
    let length = |length: &str| PICK.replacen("+x", &format!("+content-length={length} +x"), 1);
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
        let set = set.replacen("+x", "+content-length=8 +x", 1);
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
    assert_eq!((held(&stream), stream.machine.request_bytes()), (0, 1001));

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
