use proptest::prelude::*;

use super::*;

/// What a splitter gives out for these chunks, chunk by chunk, and what it keeps.
fn split(chunks: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut splitter = EventSplitter::new();
    let given =
        chunks.iter().map(|chunk| splitter.push(Bytes::copy_from_slice(chunk)).collect::<Vec<_>>().concat());
    let given = given.collect();
    (given, splitter.finish().map_or(Vec::new(), Vec::from))
}

/// The slow and obvious way: the length of the longest prefix that ends behind a blank line.
fn whole_events(stream: &[u8]) -> usize {
    let mut lines_end = Vec::new();
    let (mut at, mut start) = (0, 0);
    while at < stream.len() {
        let terminator = match &stream[at..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => 0,
        };
        at += terminator.max(1);
        if terminator > 0 {
            lines_end.push((at, at - terminator == start));
            start = at;
        }
    }
    lines_end.into_iter().rev().find(|(_, blank)| *blank).map_or(0, |(end, _)| end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn gives_exactly_the_whole_events(pieces in prop::collection::vec("[\r\nab]{0,6}", 0..8)) {
        let mut splitter = EventSplitter::new();
        let (mut shown, mut given) = (Vec::new(), Vec::new());
        for piece in &pieces {
            shown.extend(piece.as_bytes());
            for bytes in splitter.push(Bytes::copy_from_slice(piece.as_bytes())) {
                prop_assert!(!bytes.is_empty());
                given.extend(bytes);
            }
            prop_assert_eq!(given.len(), whole_events(&shown), "{:?}", pieces);
            prop_assert!(!splitter.is_inside_event());
        }
        given.extend(splitter.finish().unwrap_or_default());
        prop_assert_eq!(given, shown, "nothing is lost");
    }
}

#[test]
fn whole_events_pass_without_a_copy_and_the_rest_waits() {
    let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\ndata: 3");
    let mut splitter = EventSplitter::new();
    let given: Vec<_> = splitter.push(chunk.clone()).collect();
    assert_eq!(given, [&chunk[..18]]);
    assert_eq!(given[0].as_ptr(), chunk.as_ptr());
    assert_eq!(splitter.finish().as_deref(), Some(b"data: 3".as_slice()));
}

#[test]
fn an_event_that_comes_in_bits_is_given_whole() {
    let (given, kept) = split(&[b"da", b"ta: 1\r", b"\n\r", b"\ndata", b": 2\n", b"\n"]);
    assert_eq!(given, [b"".as_slice(), b"", b"data: 1\r\n\r", b"\n", b"", b"data: 2\n\n"]);
    assert_eq!(kept, b"");
}

#[test]
fn an_event_that_is_too_long_passes_as_it_comes() {
    let mut splitter = EventSplitter::new();
    let mut push =
        |len: usize| splitter.push(Bytes::from(vec![b'x'; len])).map(|bytes| bytes.len()).sum::<usize>();
    assert_eq!(push(TAIL_BYTES_MAX), 0);
    assert_eq!(push(1), TAIL_BYTES_MAX + 1);
    assert_eq!(push(5), 5);
    assert!(splitter.is_inside_event());
    let given: Vec<_> = splitter.push(Bytes::from_static(b"\n\ndata")).collect();
    assert_eq!(given, [b"\n\n".as_slice()]);
    assert!(!splitter.is_inside_event());
    assert_eq!(splitter.finish().as_deref(), Some(b"data".as_slice()));
}

#[test]
fn error_events_are_json_in_the_shape_of_their_api() {
    let message = "it \"broke\":\n\\ é \u{1}";
    for (api, head, pointer) in [
        (Api::ChatCompletions, "data: ", "/error/message"),
        (Api::Completions, "data: ", "/error/message"),
        (Api::Messages, "event: error\ndata: ", "/error/message"),
        (Api::Responses, "event: error\ndata: ", "/message"),
    ] {
        let event = error_event(api, "upstream_broke", message);
        let event = std::str::from_utf8(&event).unwrap();
        let data = event.strip_prefix(head).unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains(['\n', '\r']));
        let json: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(json.pointer(pointer).unwrap(), message);
        assert!(data.contains("\"upstream_broke\""));
    }
}
