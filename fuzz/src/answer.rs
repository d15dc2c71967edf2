//! Answers: [`EventSplitter`] and [`UsageScan`] against slow and obvious readings of the whole text.

use bytes::Bytes;
use inference::{AnswerKind, EventSplitter, TAIL_BYTES_MAX, Usage, UsageScan};

use crate::json::{self, Field, Value};

/// Whole events are given as soon as they are there, nothing else is but for an event that is too long, and nothing is
/// lost, doubled or kept beyond the bound.
pub(crate) fn check_events(stream: &[u8], pieces: &[&[u8]]) {
    let ends = event_ends(stream);
    let mut splitter = EventSplitter::new();
    let (mut shown, mut given) = (0, Vec::new());
    let mut is_too_long = false;
    for piece in pieces {
        shown += piece.len();
        let had = given.len();
        for bytes in splitter.push(Bytes::copy_from_slice(piece)) {
            assert!(!bytes.is_empty());
            given.extend_from_slice(&bytes);
        }
        let whole = whole_events(&ends, stream, shown);
        is_too_long = is_too_long && whole <= had || shown - whole.max(had) > TAIL_BYTES_MAX;
        assert_eq!(splitter.is_inside_event(), is_too_long);
        assert_eq!(given.len(), if is_too_long { shown } else { whole });
    }
    assert_eq!(given, stream[..given.len()]);
    let kept = splitter.finish().unwrap_or_default();
    assert!(kept.len() <= TAIL_BYTES_MAX);
    assert_eq!(kept, stream[given.len()..]);
}

/// The offsets behind blank lines; `\r\n` counts as one end of a line.
fn event_ends(stream: &[u8]) -> Vec<usize> {
    let (mut ends, mut at, mut start) = (Vec::new(), 0, 0);
    while at < stream.len() {
        let end_len = match &stream[at..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => 0,
        };
        if end_len > 0 && at == start {
            ends.push(at + end_len);
        }
        at += end_len.max(1);
        if end_len > 0 {
            start = at;
        }
    }
    ends
}

/// How many of the first `shown` bytes are whole events, as far as these bytes tell: a `\r` at their end ends a line.
fn whole_events(ends: &[usize], stream: &[u8], shown: usize) -> usize {
    let known = ends.partition_point(|&end| end <= shown);
    let half = ends.get(known).is_some_and(|&end| end == shown + 1 && stream[..end].ends_with(b"\r\n"));
    if half { shown } else { known.checked_sub(1).map_or(0, |last| ends[last]) }
}

/// Usage does not depend on the cuts, and is what trees of the documents hold.
pub(crate) fn check_usage(kind: AnswerKind, answer: &[u8], pieces: &[&[u8]]) {
    let found = scan(kind, pieces.iter().copied());
    assert_eq!(scan(kind, [answer]), found, "cuts matter");
    let step = answer.len() / 8192 + 1;
    assert_eq!(scan(kind, answer.chunks(step)), found, "cuts matter");

    let (documents, data_lines) = match kind {
        AnswerKind::Json => (vec![answer], 0),
        AnswerKind::EventStream => {
            // `\r\n` gives an empty line more, which holds nothing.
            let lines = answer.split(|&byte| byte == b'\n' || byte == b'\r');
            let data: Vec<&[u8]> = lines.filter_map(|line| line.strip_prefix(b"data:")).collect();
            let count = data.len() as u64;
            (data, count)
        }
    };
    assert_eq!(found.1, data_lines);
    let mut usage = Usage::default();
    for document in documents {
        match json::parse(document).map(|tree| tree.value) {
            Some(Value::Object(top)) => read_top(&top, &mut usage),
            Some(_) => {}
            // Of an object that breaks off or breaks down, what came before counts: a tree cannot say what that is.
            None if first_of(document) == Some(b'{') => return,
            None => {}
        }
    }
    assert_eq!(found.0, (usage != Usage::default()).then_some(usage));
}

fn scan<'a>(kind: AnswerKind, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Option<Usage>, u64) {
    let mut scan = UsageScan::new(kind);
    for piece in pieces {
        scan.push(piece);
    }
    (scan.usage(), scan.data_lines())
}

fn first_of(document: &[u8]) -> Option<u8> {
    document.iter().copied().find(|byte| !matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
}

fn read_top(top: &[Field], usage: &mut Usage) {
    for Field { key, value, .. } in top {
        match (key.as_str(), &value.value) {
            ("usage", Value::Object(fields)) => read_usage(fields, usage),
            ("response" | "message", Value::Object(inner)) => {
                for Field { key, value, .. } in inner {
                    if let ("usage", Value::Object(fields)) = (key.as_str(), &value.value) {
                        read_usage(fields, usage);
                    }
                }
            }
            _ => {}
        }
    }
}

fn read_usage(fields: &[Field], usage: &mut Usage) {
    for Field { key, value, .. } in fields {
        let field = match (key.as_str(), &value.value) {
            ("prompt_tokens" | "input_tokens", _) => &mut usage.prompt_tokens,
            ("completion_tokens" | "output_tokens", _) => &mut usage.completion_tokens,
            ("cache_read_input_tokens", _) => &mut usage.cached_tokens,
            ("prompt_tokens_details" | "input_tokens_details", Value::Object(details)) => {
                for Field { value, .. } in details.iter().filter(|field| field.key == "cached_tokens") {
                    usage.cached_tokens = tokens(&value.value).or(usage.cached_tokens);
                }
                continue;
            }
            _ => continue,
        };
        *field = tokens(&value.value).or(*field);
    }
}

fn tokens(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.parse().ok(),
        _ => None,
    }
}
