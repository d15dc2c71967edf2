//! One request after the other: what each API's bodies mean, when it is enough, and what is refused.

use super::*;

/// The canonical prompt of a whole body.
fn prompt(api: Api, body: &str) -> Vec<u8> {
    scan(api, Need { model_required: false, ..ALL }, [body.as_bytes()]).unwrap().prompt
}

fn chat(body: &str) -> Vec<u8> {
    prompt(Api::ChatCompletions, body)
}

/// What the error says, the same in one piece and byte by byte.
fn refusal(api: Api, body: &str) -> String {
    let fault = scan(api, ALL, [body.as_bytes()]).unwrap_err();
    assert_eq!(scan(api, ALL, body.as_bytes().chunks(1)).unwrap_err(), fault);
    fault.to_string()
}

#[test]
fn a_chat_request_tells_all_it_asks_for() {
    let body = r#"{"stream": true, "max_tokens": 7, "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "model": "qwen"}"#;
    let asked = scan(Api::ChatCompletions, ALL, [body.as_bytes()]).unwrap();
    assert_eq!(asked.model.as_deref(), Some("qwen"));
    assert_eq!(&body[asked.model_span.unwrap()], "\"qwen\"");
    assert_eq!((asked.stream, asked.max_tokens), (true, Some(7)));
    assert_eq!(asked.prompt, b"\xFC\x01\xFFsystem\xFC\x01Be brief.\xFFuser\xFC\x01Hi");
}

#[test]
fn a_prompt_is_the_same_however_it_is_written() {
    let plain = chat(r#"{"messages":[{"role":"user","content":"AB😀"}]}"#);
    for body in [
        r#"{ "messages" : [ { "role" : "user" , "content" : "AB😀" } ] }"#,
        r#"{"messages":[{"content":"AB😀","role":"user"}]}"#,
        r#"{"messages":[{"role":"user","content":"\u0041B\ud83d\ude00"}]}"#,
        r#"{"mess\u0061ges":[{"role":"user","content":[{"type":"text","text":"AB😀"}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"text":"AB😀","type":"text","cache_control":{"type":"ephemeral"}}]}]}"#,
        r#"{"messages":[{"role":"user","content":"AB😀","tool_calls":null,"name":null}],"tools":null}"#,
        r#"{"messages":[{"role":"x","content":"y"}],"messages":[{"role":"user","content":"AB😀"}]}"#,
        r#"{"messages":[{"role":"bot","content":"y","role":"user","content":"AB😀"}]}"#,
    ] {
        assert_eq!(chat(body), plain, "{body}");
    }
}

#[test]
fn different_prompts_differ() {
    let bodies = [
        r#"{"messages":[{"role":"user","content":"ab"}]}"#,
        r#"{"messages":[{"role":"usera","content":"b"}]}"#,
        r#"{"messages":[{"role":"user","content":"a"},{"content":"b"}]}"#,
        r#"{"messages":[{"role":"user","content":["a","b"]}]}"#,
        r#"{"messages":[{"role":"user","content":"ab","name":"c"}]}"#,
        r#"{"messages":[{"role":"user","content":"ab","tool_call_id":"c"}]}"#,
        r#"{"messages":[{"role":"user","content":"ab"}],"tools":[]}"#,
        r#"{"messages":[{"role":"user","content":"ab"}],"tools":[[1,2]]}"#,
        r#"{"messages":[{"role":"user","content":"ab"}],"tools":[[12]]}"#,
        r#"{"messages":[{"role":"user","content":"ab"}],"tools":[["1,2"]]}"#,
        r#"{"messages":[{"role":"user","content":[{"image_url":{"url":"a"}}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"image_url":{"url":"b"}}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"input_audio":{"data":"a"}}]}]}"#,
    ];
    let prompts: std::collections::HashSet<_> = bodies.iter().map(|body| chat(body)).collect();
    assert_eq!(prompts.len(), bodies.len());
}

#[test]
fn a_longer_conversation_begins_with_the_shorter_one() {
    let messages = [
        r#"{"role":"user","content":"What is the weather?"}"#,
        r#"{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
        r#"{"role":"tool","tool_call_id":"1","content":"sunny"}"#,
        r#"{"content":[{"type":"text","text":"Fine."},{"type":"image_url","image_url":{"url":"data:,x"}}],"role":"user"}"#,
    ];
    let conversations: Vec<_> = (1..=messages.len())
        .map(|count| {
            chat(&format!(r#"{{"messages":[{}],"tools":[{{"name":"f"}}]}}"#, messages[..count].join(",")))
        })
        .collect();
    for pair in conversations.windows(2) {
        assert!(pair[1].starts_with(&pair[0]) && pair[1].len() > pair[0].len());
    }
}

#[test]
fn tools_stand_first_wherever_they_come() {
    let (messages, tools) =
        (r#""messages":[{"role":"user","content":"Hi"}]"#, r#""tools": [{"name": "a b", "n": 1}]"#);
    let first = chat(&format!("{{{tools},{messages}}}"));
    assert_eq!(chat(&format!("{{{messages},{tools}}}")), first);
    assert_eq!(first, b"[{\xFDname\xFD:\xFDa b\xFD,\xFDn\xFD:1,},]\xFC\x01\xFFuser\xFC\x01Hi");
}

#[test]
fn an_image_takes_a_few_bytes_and_tells_images_apart() {
    let of = |data: &str| {
        chat(&format!(
            r#"{{"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}","detail":"low"}}}},{{"type":"text","text":"What is it?"}}]}}]}}"#
        ))
    };
    let (one, other) = (of(&"A".repeat(1 << 20)), of(&"B".repeat(1 << 20)));
    assert!(one.len() < 50 && one.ends_with(b"\xFEWhat is it?"));
    assert_ne!(one, other);
}

#[test]
fn completions_take_strings_tokens_and_batches() {
    let of = |prompt_json: &str| prompt(Api::Completions, &format!(r#"{{"prompt":{prompt_json}}}"#));
    assert_eq!(of(r#""Once upon""#), b"Once upon");
    assert_eq!(of(r#"["Once upon"]"#), b"Once upon");
    assert_eq!(of(r#"["Once", "upon"]"#), b"Once\xFFupon");
    assert_eq!(of("[1, 256, 70000]"), [1, 0, 0, 0, 0, 1, 0, 0, 0x70, 0x11, 1, 0]);
    assert_eq!(of("[[1], [2]]"), [1, 0, 0, 0, 255, 255, 255, 255, 2, 0, 0, 0]);
    assert_eq!(of("[-1, 1.5, 4294967296]"), [0xFF; 12], "what is no token is told from all that are");
    assert_eq!(of("[]"), b"");
    let tokens = (0..100).map(|token| token.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(of(&format!("[{tokens}]")).len(), 400, "16 tokens to a block of 64 bytes");
}

#[test]
fn embeddings_take_inputs_as_completions_take_prompts_or_messages() {
    assert_eq!(prompt(Api::Embeddings, r#"{"input":["a","b"],"model":"e"}"#), b"a\xFFb");
    assert_eq!(
        prompt(Api::Embeddings, r#"{"messages":[{"role":"user","content":"a"}]}"#),
        b"\xFFuser\xFC\x01a"
    );
}

#[test]
fn responses_take_a_string_as_a_message_of_the_user() {
    let of = |input: &str| {
        prompt(
            Api::Responses,
            &format!(r#"{{"input":{input},"instructions":"Be brief.","max_output_tokens":5}}"#),
        )
    };
    let whole = of(r#""Hi""#);
    assert_eq!(whole, b"\xFC\x01Be brief.\xFC\x02\xFFuser\xFC\x01Hi");
    assert_eq!(of(r#"[{"role":"user","content":"Hi"}]"#), whole);
    assert_eq!(
        of(r#"[{"type":"message","role":"user","content":[{"type":"input_text","text":"Hi"}]}]"#),
        whole
    );
    let call = of(
        r#"[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"42"}]"#,
    );
    assert!(
        call.ends_with(b"\xFF\xFC\x05f\xFC\x07c\xFC\x0A{}\xFF\xFC\x07c\xFC\x0B42"),
        "{}",
        call.escape_ascii()
    );
}

#[test]
fn anthropic_messages_stand_behind_tools_and_system() {
    let body = r#"{"max_tokens":9,"messages":[
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"42","cache_control":{}}]}]}],
        "system":[{"type":"text","text":"Be brief."}],"tools":[{"name":"f"}],"model":"claude"}"#;
    let asked = scan(Api::Messages, ALL, [body.as_bytes()]).unwrap();
    let wanted = b"[{\xFDname\xFD:\xFDf\xFD,},]\xFC\x01Be brief.\xFC\x02\xFFuser\xFC\x01\xFC\x05t\xFC\x0942";
    assert_eq!(asked.prompt, wanted, "{}", asked.prompt.escape_ascii());
    assert_eq!(asked.max_tokens, Some(9));
}

#[test]
fn max_completion_tokens_beats_max_tokens_in_any_order() {
    for (limits, wanted) in [
        (r#""max_tokens":1"#, Some(1)),
        (r#""max_tokens":1,"max_completion_tokens":2"#, Some(2)),
        (r#""max_completion_tokens":2,"max_tokens":1"#, Some(2)),
        (r#""max_completion_tokens":null,"max_tokens":1"#, Some(1)),
        (r#""max_tokens":1,"max_tokens":null"#, None),
        (r#""max_tokens":-1"#, None),
        (r#""max_tokens":1.5"#, None),
        (r#""max_tokens":99999999999999999999"#, None),
    ] {
        let body = format!(r#"{{{limits},"messages":[],"model":"m"}}"#);
        let asked = scan(Api::ChatCompletions, ALL, [body.as_bytes()]).unwrap();
        assert_eq!(asked.max_tokens, wanted, "{limits}");
    }
}

#[test]
fn it_is_enough_on_the_byte_that_fills_the_prompt() {
    let need = Need { prompt_bytes_max: 10, model_required: true, stream_wanted: false };
    let body = br#"{"model":"m","tools":null,"prompt":"0123456789abc"}"#;
    assert_eq!(enough_at(Api::Completions, need, body), Some(body.len() - 5));
    let body = br#"{"model":"m","tools":[],"messages":[{"role":"user","content":"Hello"}]}"#;
    let filled = body.windows(5).position(|window| window == b"user\"").unwrap() + 4;
    assert_eq!(
        enough_at(Api::ChatCompletions, need, body),
        Some(filled + 13),
        "[] FC 01 FF user FC, at the quote before Hello"
    );
}

#[test]
fn it_is_enough_when_all_of_a_short_prompt_and_the_model_are_known() {
    let body = br#"{"prompt":"Hi","model":"m","n":1}"#;
    assert_eq!(enough_at(Api::Completions, ALL, body), Some(body.len() - 7));
    let body = br#"{"tools":[],"messages":[],"model":"m","n":1}"#;
    assert_eq!(enough_at(Api::ChatCompletions, ALL, body), Some(body.len() - 7));
    let body = br#"{"messages":[],"model":"m","n":1}"#;
    assert_eq!(enough_at(Api::ChatCompletions, ALL, body), None, "tools may still come");
}

#[test]
fn without_a_prompt_to_look_at_the_model_is_enough() {
    let need = Need { prompt_bytes_max: 0, model_required: false, stream_wanted: false };
    let body = br#"{"model":"m","messages":[]}"#;
    assert_eq!(enough_at(Api::ChatCompletions, need, body), Some(12));
}

#[test]
fn what_is_optional_is_waited_for_up_to_the_lookahead() {
    let long = format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}],"model":"m"}}"#,
        "x".repeat(2 * LOOKAHEAD_BYTES)
    );
    let optional = Need { prompt_bytes_max: 100, model_required: false, stream_wanted: false };
    assert_eq!(enough_at(Api::ChatCompletions, optional, long.as_bytes()), Some(LOOKAHEAD_BYTES));
    let required = Need { model_required: true, ..optional };
    assert_eq!(enough_at(Api::ChatCompletions, required, long.as_bytes()), Some(long.len() - 1));
    let more_wanted =
        Need { prompt_bytes_max: LOOKAHEAD_BYTES + 9, model_required: false, stream_wanted: false };
    let begin = long.find('x').unwrap();
    let filled = begin + more_wanted.prompt_bytes_max - b"\xFC\x01\xFFuser\xFC\x01".len();
    assert_eq!(enough_at(Api::ChatCompletions, more_wanted, long.as_bytes()), Some(filled));
}

#[test]
fn tools_that_begin_within_the_lookahead_are_waited_for() {
    let tools = format!(r#"["{}"]"#, "t".repeat(2 * LOOKAHEAD_BYTES));
    let body =
        format!(r#"{{"messages":[{{"role":"user","content":"{}"}}],"tools":{tools}}}"#, "x".repeat(1000));
    let need = Need { prompt_bytes_max: LOOKAHEAD_BYTES + 900, model_required: false, stream_wanted: false };
    let asked = scan(Api::ChatCompletions, need, [body.as_bytes()]).unwrap();
    assert!(asked.prompt.starts_with(b"[\xFDttt") && asked.prompt.ends_with(b"ttt"));
    assert_eq!(asked.prompt.len(), need.prompt_bytes_max);
}

#[test]
fn a_huge_body_leaves_little_behind() {
    let need = Need { prompt_bytes_max: 8192, model_required: true, stream_wanted: false };
    let mut scan = BodyScan::new(Api::ChatCompletions, need);
    scan.push(br#"{"messages":[{"role":"user","content":""#).unwrap();
    for _ in 0..1000 {
        assert_eq!(scan.push(&[b'x'; 16 * 1024]), Ok(Progress::More));
    }
    scan.push(br#""}],"model":"m"}"#).unwrap();
    assert_eq!(scan.finish(), Ok(()));
    let asked = scan.into_asked();
    assert_eq!((asked.prompt.len(), asked.model.as_deref()), (8192, Some("m")));
    assert!(asked.prompt.capacity() <= 16 * 1024, "{}", asked.prompt.capacity());
}

#[test]
fn many_messages_leave_no_more_behind_than_one() {
    let need = Need { prompt_bytes_max: 8192, model_required: true, stream_wanted: false };
    let mut scan = BodyScan::new(Api::ChatCompletions, need);
    scan.push(br#"{"tools":["t"],"messages":[{}"#).unwrap();
    for _ in 0..20_000 {
        // Fields out of order and duplicates, whose places must be freed.
        let message = br#",{"content":[{"type":"text","text":"Hi"}],"name":"n","role":"user","name":"m"}"#;
        assert_eq!(scan.push(message), Ok(Progress::More));
    }
    let asked = scan.into_asked();
    assert_eq!(asked.prompt.len(), 8192);
    assert!(asked.prompt.capacity() <= 16 * 1024, "{}", asked.prompt.capacity());
}

#[test]
fn parts_are_understood_down_to_parts_of_a_part() {
    let nested = chat(r#"{"messages":[{"content":[{"content":[{"content":[{"text":"x"}]}]}]}]}"#);
    let kept = b"[{\xFDtext\xFD:\xFDx\xFD,},]";
    assert_eq!(
        nested,
        [b"\xFC\x01\xFF\xFC\x01\xFC\x09\xFC\x09".as_slice(), kept].concat(),
        "{}",
        nested.escape_ascii()
    );
}

#[test]
fn after_enough_and_after_an_error_nothing_is_read() {
    let mut scan = BodyScan::new(Api::Completions, ALL);
    assert_eq!(scan.push(br#"{"model":"m","prompt":"p""#), Ok(Progress::Enough));
    assert_eq!(scan.push(b"}}}"), Ok(Progress::Enough));
    assert_eq!(scan.finish(), Ok(()));

    let mut scan = BodyScan::new(Api::Completions, ALL);
    let fault = scan.push(b"{x").unwrap_err();
    assert_eq!(scan.push(b"{}"), Err(fault.clone()));
    assert_eq!(scan.finish(), Err(fault));
}

#[test]
fn refusals_say_what_is_wrong_and_where() {
    let chat = Api::ChatCompletions;
    for (api, body, message) in [
        (chat, "", "the request body is not valid JSON: the body ends at byte 0 where a value is due"),
        (chat, "[]", "the request body must be a JSON object"),
        (chat, "12", "the request body must be a JSON object"),
        (chat, "null", "the request body must be a JSON object"),
        (chat, r#"{"model":"m"}"#, "`messages` is missing"),
        (chat, r#"{"messages":null,"model":"m"}"#, "`messages` is missing"),
        (chat, r#"{"messages":[]}"#, "`model` is missing"),
        (chat, r#"{"messages":[],"model":12}"#, "`model` must be a string (byte 23)"),
        (chat, r#"{"messages":[],"model":null}"#, "`model` is missing"),
        (chat, r#"{"messages":[],"model":{}}"#, "`model` must be a string (byte 23)"),
        (chat, r#"{"messages":"Hi"}"#, "`messages` must be an array (byte 12)"),
        (chat, r#"{"messages":{}}"#, "`messages` must be an array (byte 12)"),
        (Api::Completions, r#"{"model":"m"}"#, "`prompt` is missing"),
        (Api::Completions, r#"{"prompt":5}"#, "`prompt` must be a string or an array (byte 10)"),
        (Api::Embeddings, r#"{"input":true}"#, "`input` must be a string or an array (byte 9)"),
        (Api::Embeddings, r#"{"messages":1}"#, "`messages` must be an array (byte 12)"),
        (Api::Responses, r#"{"input":1}"#, "`input` must be a string or an array (byte 9)"),
        (Api::Messages, r#"{"model":"m"}"#, "`messages` is missing"),
        (
            chat,
            r#"{"messages":[]} {}"#,
            "the request body is not valid JSON: expected nothing more after the JSON value at byte 16",
        ),
    ] {
        assert_eq!(refusal(api, body), message, "{body}");
    }
    let long = |len| format!(r#"{{"model":"{}","prompt":""}}"#, "m".repeat(len));
    assert_eq!(refusal(Api::Completions, &long(MODEL_BYTES_MAX + 1)), "`model` is longer than 1024 bytes");
    assert!(scan(Api::Completions, ALL, [long(MODEL_BYTES_MAX).as_bytes()]).is_ok());
}

#[test]
fn whether_to_stream_is_looked_for_within_the_lookahead() {
    let need = Need { prompt_bytes_max: 0, model_required: false, stream_wanted: true };
    let body = r#"{"model":"m","messages":[],"stream":true"#;
    let mut scan = BodyScan::new(Api::ChatCompletions, need);
    assert_eq!(scan.push(&body.as_bytes()[..20]), Ok(Progress::More));
    assert_eq!(scan.push(&body.as_bytes()[20..]), Ok(Progress::Enough));
    assert!(scan.into_asked().stream);
    let long = format!(r#"{{"model":"m","messages":["{}"#, "x".repeat(LOOKAHEAD_BYTES));
    let mut scan = BodyScan::new(Api::ChatCompletions, need);
    assert_eq!(scan.push(long.as_bytes()), Ok(Progress::Enough));
}
