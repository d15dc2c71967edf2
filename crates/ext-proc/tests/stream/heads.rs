//! What is read of heads and said in them.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::value::Kind;
use ext_proc::{Control, Event, Head, Machine, Pick};

use crate::envoy::*;

/// The head of a request with these headers and metadata.
fn head_of(headers: &[(&str, &str)], metadata: Option<Metadata>) -> Head {
    match Machine::new().receive(&message(Request::RequestHeaders(head(headers, true)), metadata)) {
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
        assert_eq!(stream.step(Step::Says(Request::ResponseHeaders(head(headers, false)))), read);
    }
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
