use proptest::prelude::*;

use super::*;
use crate::testing::{Dice, Json, json, text};

/// What is found in an answer in these pieces.
fn found<'a>(kind: AnswerKind, pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Usage> {
    let mut scan = UsageScan::new(kind);
    for piece in pieces {
        scan.push(piece);
    }
    scan.usage()
}

/// The same in one piece and byte by byte.
fn usage(kind: AnswerKind, answer: &str) -> Option<Usage> {
    let whole = found(kind, [answer.as_bytes()]);
    assert_eq!(found(kind, answer.as_bytes().chunks(1)), whole, "{answer}");
    whole
}

const fn tokens(prompt: u64, completion: u64, cached: u64) -> Usage {
    Usage { prompt_tokens: Some(prompt), completion_tokens: Some(completion), cached_tokens: Some(cached) }
}

#[test]
fn usage_of_each_api_is_found_in_json() {
    for answer in [
        r#"{"id":"x","choices":[{"usage":{"prompt_tokens":9}}],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"audio_tokens":7,"cached_tokens":3}}}"#,
        r#"{"output":[],"usage":{"input_tokens":1,"output_tokens":2,"input_tokens_details":{"cached_tokens":3},"output_tokens_details":{"reasoning_tokens":8}}}"#,
        r#"{"content":[{"text":"x"}],"usage":{"input_tokens":1,"cache_read_input_tokens":3,"output_tokens":2}}"#,
    ] {
        assert_eq!(usage(AnswerKind::Json, answer), Some(tokens(1, 2, 3)), "{answer}");
    }
    let embedding = r#"{"data":[{"embedding":[0.1,-2e-3]}],"usage":{"prompt_tokens":5,"total_tokens":5}}"#;
    let wanted = Usage { prompt_tokens: Some(5), ..Usage::default() };
    assert_eq!(usage(AnswerKind::Json, embedding), Some(wanted));
}

#[test]
fn what_only_looks_like_usage_is_none() {
    for answer in [
        "",
        "not json",
        r#"{"usage":null}"#,
        r#"{"usage":{}}"#,
        r#"{"usage":{"prompt_tokens":null,"prompt_tokens_details":null}}"#,
        r#"{"usage":{"prompt_tokens":-1,"completion_tokens":1.5}}"#,
        r#"{"usage":[{"prompt_tokens":1}]}"#,
        r#"{"choices":[{"usage":{"prompt_tokens":1}}]}"#,
        r#"{"x":{"usage":{"prompt_tokens":1}}}"#,
        r#"{"text":"\"usage\":{\"prompt_tokens\":1}"}"#,
        r#"[{"usage":{"prompt_tokens":1}}]"#,
        r#"{"usage":{"inner":{"prompt_tokens":1}}}"#,
        r#"{"usage":{"prompt_tokens":[1]}}"#,
    ] {
        assert_eq!(usage(AnswerKind::Json, answer), None, "{answer}");
        assert_eq!(usage(AnswerKind::EventStream, &format!("data: {answer}\n\n")), None, "{answer}");
    }
}

#[test]
fn usage_of_each_api_is_found_in_events() {
    let vllm = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\"}}],\"usage\":null}\n\n\
                data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\n\
                data: [DONE]\n\n";
    let responses = "event: response.created\r\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\r\n\r\n\
                     event: response.completed\r\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\": {\"input_tokens\":1,\"output_tokens\":2,\"input_tokens_details\":{\"cached_tokens\":3}}}}\r\n\r\n";
    let anthropic = ": hello\revent: message_start\rdata:{\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":1,\"cache_read_input_tokens\":3}}}\r\r\
                     event: message_delta\rdata:{\"type\":\"message_delta\",\"usage\":{\"output_tokens\":2}}\r\r";
    for stream in [vllm, responses, anthropic] {
        assert_eq!(usage(AnswerKind::EventStream, stream), Some(tokens(1, 2, 3)), "{stream}");
    }
}

#[test]
fn only_data_lines_count() {
    let stream = "data: {}\n\n: data: {}\nevent: data:\n\ndata:\n\ndatax: {\"usage\":{\"prompt_tokens\":1}}\n\ndata: 1\n\n";
    let mut scan = UsageScan::new(AnswerKind::EventStream);
    scan.push(stream.as_bytes());
    assert_eq!((scan.data_lines(), scan.usage()), (3, None));
}

/// Found by fuzzing: whether such a key was seen depended on the cuts.
#[test]
fn a_key_in_escapes_is_a_key_however_the_line_is_cut() {
    let stream = "data: {\"us\\u0061ge\":{\"prompt_\\u0074okens\":1}}\n\n";
    let wanted = Usage { prompt_tokens: Some(1), ..Usage::default() };
    assert_eq!(usage(AnswerKind::EventStream, stream), Some(wanted));
}

#[test]
fn a_huge_event_costs_no_memory_and_hides_nothing() {
    let text = "x".repeat(1 << 20);
    let stream =
        format!("data: {{\"response\":{{\"output\":\"{text}\",\"usage\":{{\"input_tokens\":4}}}}}}\n\n");
    let wanted = Usage { prompt_tokens: Some(4), ..Usage::default() };
    assert_eq!(found(AnswerKind::EventStream, stream.as_bytes().chunks(1000)), Some(wanted));
}

/// The slow and obvious way, for a tree without duplicate keys.
fn oracle(value: &serde_json::Value) -> Option<Usage> {
    let usage = [value.get("usage"), value.pointer("/response/usage"), value.pointer("/message/usage")];
    let usage: Vec<_> = usage.into_iter().flatten().filter(|usage| usage.is_object()).collect();
    let number = |pointers: &[&str]| {
        pointers.iter().find_map(|pointer| usage.iter().find_map(|usage| usage.pointer(pointer)?.as_u64()))
    };
    let usage = Usage {
        prompt_tokens: number(&["/prompt_tokens", "/input_tokens"]),
        completion_tokens: number(&["/completion_tokens", "/output_tokens"]),
        cached_tokens: number(&["/prompt_tokens_details/cached_tokens", "/cache_read_input_tokens"]),
    };
    (usage != Usage::default()).then_some(usage)
}

fn answer() -> impl Strategy<Value = Json> {
    let keys = [
        "usage",
        "prompt_tokens",
        "output_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "text",
        "message",
    ];
    let inner = json(
        prop_oneof![4 => prop::sample::select(keys.to_vec()).prop_map(str::to_owned), 1 => text()].boxed(),
    );
    let counts = (any::<Option<u32>>(), any::<Option<u32>>(), inner).prop_map(|(prompt, cached, other)| {
        let count = |count: Option<u32>| count.map_or(Json::Null, |count| Json::Number(count.to_string()));
        let details = Json::Object(vec![("x".into(), other), ("cached_tokens".into(), count(cached))]);
        Json::Object(vec![
            ("prompt_tokens_details".into(), details),
            ("other".into(), Json::String("\"usage\": {".into())),
            ("prompt_tokens".into(), count(prompt)),
        ])
    });
    let noise = json(text().prop_map(|text| text + "?").boxed());
    (noise, counts, prop::sample::select(&["usage", "response", "usages"])).prop_map(
        |(noise, counts, key)| {
            let usage = Json::Object(vec![("usage".into(), counts.clone())]);
            Json::Object(vec![
                ("noise".into(), noise),
                (key.into(), if key == "response" { usage } else { counts }),
            ])
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn finds_what_a_tree_holds_however_it_is_cut(answer in answer(), seed: u64) {
        let mut dice = Dice(seed);
        let text = answer.write(&mut dice);
        let wanted = oracle(&serde_json::from_str(&text).unwrap());
        // A data line holds no line feed.
        let line = text.replace(['\n', '\r'], " ");
        prop_assert_eq!(found(AnswerKind::Json, dice.cut(text.as_bytes())), wanted, "{}", text);
        let stream = format!("event: x\ndata: {{\"usage\":null}}\n\ndata: {line}\r\n\r\ndata: [DONE]\n\n");
        prop_assert_eq!(found(AnswerKind::EventStream, dice.cut(stream.as_bytes())), wanted, "{}", stream);
    }
}
