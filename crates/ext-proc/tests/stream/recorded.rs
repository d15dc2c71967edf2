//! What Envoy 1.40 said, recorded message by message (one in hex a line): a streamed chat completion, in two modes.

use bytes::Bytes;

use crate::envoy::{PICK, Step, Stream};

/// The messages of a recording.
fn messages(recording: &str) -> impl Iterator<Item = Bytes> {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    recording.lines().map(move |line| line.as_bytes().chunks(2).map(byte).collect())
}

/// Event and answers of each message, in brief. The decision is made when it is due.
fn replay(recording: &str) -> Vec<String> {
    let mut stream = Stream::untold();
    let mut lines = Vec::new();
    for message in messages(recording) {
        let event = stream.hears(&message);
        if event.ends_with("over") {
            stream.step(Step::Pick);
        }
        lines.push(brief(&event));
        lines.extend(stream.answers().iter().map(|answer| format!("-> {}", brief(answer))));
    }
    assert_eq!((stream.machine.held_bytes(), stream.machine.close()), (0, None));
    lines
}

/// A line with the pick named, and of long texts the end.
fn brief(line: &str) -> String {
    let line = line.replace(PICK, "PICK").replace(r"\n", "").replace('\\', "");
    match (line.find('"'), line.rfind('"')) {
        (Some(start), Some(end)) if end - start > 20 => {
            format!("{}…{}", &line[..start], &line[end - 11..end]) + &line[end + 1..]
        }
        _ => line,
    }
}

#[test]
fn buffered_partial_and_an_answer_that_is_streamed() {
    let lines = replay(include_str!("recordings/buffered-partial.hex"));
    assert_eq!(
        lines,
        [
            "POST /v1/chat/completions of 1024: comes",
            "-> request headers",
            r#"…ream":true}: over"#,
            "-> request body PICK",
            "200 EventStream by 127.0.0.1:18999",
            "-> answer headers",
            r#"answer … word0"}}]}"#,
            "-> answer body",
            r#"answer … word1"}}]}"#,
            "-> answer body",
            r#"answer … word2"}}]}"#,
            "-> answer body",
            r#"answer … word3"}}]}"#,
            "-> answer body",
            r#"answer … word4"}}]}"#,
            "-> answer body",
            r#"answer "", last"#,
            "-> answer body",
        ]
    );
}

#[test]
fn full_duplex_both_ways() {
    let lines = replay(include_str!("recordings/full-duplex-streamed.hex"));
    assert_eq!(
        lines,
        [
            "POST /v1/chat/completions of 1024: comes",
            r#"…ream":true}: comes"#,
            r#""": over"#,
            "-> request headers PICK",
            r#"-> request body …ream":true}, end"#,
            "200 EventStream by 127.0.0.1:18999",
            "-> answer headers",
            r#"answer … word0"}}]}"#,
            r#"-> answer body … word0"}}]}"#,
            r#"answer … word1"}}]}"#,
            r#"-> answer body … word1"}}]}"#,
            r#"answer … word2"}}]}"#,
            r#"-> answer body … word2"}}]}"#,
            r#"answer … word3"}}]}"#,
            r#"-> answer body … word3"}}]}"#,
            r#"answer … word4"}}]}"#,
            r#"-> answer body … word4"}}]}"#,
            r#"answer "", last"#,
            r#"-> answer body "", end"#,
        ]
    );
}
