use bytes::Bytes;
use proptest::prelude::*;

use super::{AnswerRename, json_string};
use crate::AnswerKind::{self, EventStream, Json};

/// What goes out when `text` comes in chunks of these lengths, over and over.
fn renamed_in(kind: AnswerKind, text: &str, lengths: &[usize]) -> String {
    let mut rename = AnswerRename::new(kind, "adapter-v2", "food");
    let mut out = Vec::new();
    let mut rest = Bytes::copy_from_slice(text.as_bytes());
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let chunk = rest.split_to((*length).clamp(1, rest.len()));
        rename.push(&chunk, |part| {
            assert!(!part.is_empty());
            out.extend_from_slice(&part);
        });
    }
    out.extend(rename.finish().unwrap_or_default());
    String::from_utf8(out).unwrap()
}

/// The same, however it is cut.
fn renamed(kind: AnswerKind, text: &str) -> String {
    let whole = renamed_in(kind, text, &[text.len()]);
    for length in 1..text.len() {
        assert_eq!(renamed_in(kind, text, &[length]), whole, "in chunks of {length}");
    }
    whole
}

#[test]
fn the_name_is_put_back_and_nothing_else() {
    for (before, after) in [
        (r#"{"id":"a","model":"adapter-v2","choices":[]}"#, r#"{"id":"a","model":"food","choices":[]}"#),
        (r#"{ "model" : "adapter-v2" , "x" : 1 }"#, r#"{ "model" : "food" , "x" : 1 }"#),
        (r#"{"model":"adapter\u002dv2"}"#, r#"{"model":"food"}"#),
        (r#"{"m\u006fdel":"adapter-v2"}"#, r#"{"m\u006fdel":"food"}"#),
        (r#"{"response":{"model":"adapter-v2"}}"#, r#"{"response":{"model":"food"}}"#),
        (
            r#"{"type":"message_start","message":{"model":"adapter-v2"}}"#,
            r#"{"type":"message_start","message":{"model":"food"}}"#,
        ),
    ] {
        assert_eq!(renamed(Json, before), after);
    }
}

#[test]
fn what_is_not_the_name_stays() {
    for same in [
        r#"{"model":"adapter-v1"}"#,
        r#"{"model":"adapter-v22"}"#,
        r#"{"model":"adapter-v"}"#,
        r#"{"model":null,"x":"adapter-v2"}"#,
        r#"{"choices":[{"model":"adapter-v2"}]}"#,
        r#"{"choices":{"model":"adapter-v2"}}"#,
        r#"{"message":[{"model":"adapter-v2"}]}"#,
        r#"{"message":{"x":{"model":"adapter-v2"}}}"#,
        r#"["model","adapter-v2"]"#,
        r#"[{"model":"adapter-v2"}]"#,
        r#""adapter-v2""#,
        r#"{"content":"\"model\":\"adapter-v2\""}"#,
        r#"{"model":"adapter"#,
        r#"{"model":"adapter-v2"#,
        "{\"model\":\"adapter\u{1}-v2\"}",
        "not json",
        "",
    ] {
        assert_eq!(renamed(Json, same), same);
    }
}

#[test]
fn the_first_name_of_a_document_counts() {
    let twice = r#"{"model":"adapter-v2","message":{"model":"adapter-v2"}}"#;
    assert_eq!(renamed(Json, twice), r#"{"model":"food","message":{"model":"adapter-v2"}}"#);
}

#[test]
fn every_event_of_a_stream_has_its_name() {
    let before = ": hello\n\ndata: {\"model\":\"adapter-v2\",\"a\":1}\n\nevent: x\r\ndata:{\"a\":1,\"model\":\"adapter-v2\"}\r\n\r\ndata: [DONE]\n\n";
    let after = ": hello\n\ndata: {\"model\":\"food\",\"a\":1}\n\nevent: x\r\ndata:{\"a\":1,\"model\":\"food\"}\r\n\r\ndata: [DONE]\n\n";
    assert_eq!(renamed(EventStream, before), after);
}

#[test]
fn a_line_that_ends_in_the_middle_of_a_name_is_let_go() {
    let broken = "data: {\"model\":\"adapter\n\n: long comment\n\ndata: {\"model\":\"adapter-v2\"}\n\n";
    assert_eq!(renamed(EventStream, broken), broken.replace("\"adapter-v2\"", "\"food\""));
    let mut rename = AnswerRename::new(EventStream, "adapter-v2", "food");
    let mut given = 0;
    let line = Bytes::from_static(b"data: {\"model\":\"adapter\n");
    rename.push(&line, |part| given += part.len());
    assert_eq!(given, line.len(), "nothing is held behind the line's end");
}

#[test]
fn what_is_held_is_a_begin_of_the_name() {
    let mut rename = AnswerRename::new(Json, "adapter-v2", "food");
    let mut given = 0;
    let begin = br#"{"model":"adapter"#;
    rename.push(&Bytes::from_static(begin), |part| given += part.len());
    assert_eq!(given, br#"{"model":"#.len());
    rename.push(&Bytes::from_static(b"-v1 and much more"), |part| given += part.len());
    assert_eq!(given, begin.len() + b"-v1 and much more".len());
}

#[test]
fn a_name_is_written_as_json() {
    assert_eq!(json_string("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#.as_bytes());
}

proptest! {
    #[test]
    fn cuts_change_nothing(
        events in prop::collection::vec(
            prop_oneof![
                Just("data: {\"model\":\"adapter-v2\"}\n\n"), Just("data: {\"a\":[{\"model\":\"adapter-v2\"}],\"model\":\"adapter-v2\"}\r\n\r\n"),
                Just("data: {\"model\":\"adapter-v2"), Just("\n"), Just("\r"), Just("data: {\"message\":{\"model\":\"adapt"), Just("er-v2\"}}"),
                Just(": x\n"), Just("data:"), Just("{\"model\":"), Just("\"adapter-v2\""), Just("}"), Just("\\u0061"), Just("é"),
            ],
            0..12,
        ),
        lengths in prop::collection::vec(1_usize..30, 1..6),
    ) {
        let text = events.concat();
        for kind in [Json, EventStream] {
            prop_assert_eq!(renamed_in(kind, &text, &lengths), renamed_in(kind, &text, &[text.len().max(1)]));
        }
    }

    #[test]
    fn a_document_is_what_serde_makes_of_it(text in r#"\{("(model|message|x)":("adapter-v2"|"adapter"|1|\{"model":"adapter-v2"\}|\["model"\]),){0,4}"z":0\}"#) {
        let mut value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        // A key given twice is one in the map: such texts say nothing here.
        prop_assume!(value.len() == text.matches("\":").count() - text.matches("{\"model\"").count() + usize::from(text.starts_with("{\"model\"")));
        let inner = value.get("message").and_then(|message| message.get("model")).is_some();
        let both = inner && value.get("model").is_some_and(serde_json::Value::is_string);
        prop_assume!(!both);
        if value.get("model").and_then(|model| model.as_str()) == Some("adapter-v2") {
            value["model"] = "food".into();
        } else if inner && value["message"]["model"] == "adapter-v2" {
            value["message"]["model"] = "food".into();
        }
        let out: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&renamed_in(Json, &text, &[7])).unwrap();
        prop_assert_eq!(out, value);
    }
}
