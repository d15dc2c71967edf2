//! Streams: what they look like, when they come, and what becomes of the request when nobody reads them.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    client::{get, post, post_text, read_until},
    eventually, fast, run, slow,
};

fn parsed(events: &[&str]) -> Vec<Value> {
    events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap_or_else(|error| panic!("{error}: {event}")))
        .collect()
}

/// The text of all deltas below `pointer`.
fn joined(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

#[tokio::test]
async fn a_chat_streams_role_then_tokens_then_usage_then_done() {
    let server = run(fast()).await;
    let mut ask = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3});
    let whole = post(server.addr(), "/v1/chat/completions", &ask).await.json();
    ask["stream"] = json!(true);
    ask["stream_options"] = json!({"include_usage": true});
    let answer = post(server.addr(), "/v1/chat/completions", &ask).await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let (done, chunks) = answer.events().split_last().map(|(last, rest)| (*last, parsed(rest))).unwrap();
    assert_eq!((done, chunks.len()), ("[DONE]", 5));
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"])
    );
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(joined(&chunks, "/choices/0/delta/content"), whole["choices"][0]["message"]["content"]);
    let reasons: Vec<&Value> =
        chunks[..4].iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons, [&Value::Null, &Value::Null, &Value::Null, &json!("length")]);
    assert_eq!(chunks[4]["choices"], json!([]));
    assert_eq!(chunks[4]["usage"]["completion_tokens"], 3);

    ask["stream_options"] = Value::Null;
    let answer = post(server.addr(), "/v1/chat/completions", &ask).await;
    assert!(!answer.body.contains("usage"), "only for those who ask: {}", answer.body);
}

#[tokio::test]
async fn several_choices_share_a_stream_and_each_is_complete() {
    let server = run(fast()).await;
    let mut ask = json!({"prompt": ["abcd", "efgh"], "n": 2, "max_tokens": 5});
    let whole = post(server.addr(), "/v1/completions", &ask).await.json();
    ask["stream"] = json!(true);
    let answer = post(server.addr(), "/v1/completions", &ask).await;
    let events = answer.events();
    let chunks = parsed(&events[..events.len() - 1]);
    for index in 0..4 {
        let of_choice = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index);
        let text: String = of_choice.map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(text, whole["choices"][index]["text"]);
    }
}

#[tokio::test]
async fn messages_and_responses_stream_the_events_of_their_apis() {
    let server = run(fast()).await;
    let ask = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": true});
    let answer = post(server.addr(), "/v1/messages", &ask).await;
    let events = parsed(&answer.events());
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        types,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert!(answer.body.starts_with("event: message_start\ndata: "));
    assert_eq!(events[5]["usage"]["output_tokens"], 2);

    let mut ask = json!({"input": "hi", "max_output_tokens": 2});
    let whole = post(server.addr(), "/v1/responses", &ask).await.json();
    ask["stream"] = json!(true);
    let events = parsed(&post(server.addr(), "/v1/responses", &ask).await.events());
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    assert_eq!(
        (&events[0]["type"], &events[9]["type"]),
        (&json!("response.created"), &json!("response.incomplete"))
    );
    assert_eq!(events[9]["response"]["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(joined(&events, "/delta"), whole["output"][0]["content"][0]["text"]);
}

#[tokio::test]
async fn tokens_come_while_the_request_runs() {
    let server = run(slow()).await;
    let ask = json!({"prompt": "abcd", "max_tokens": 60, "ignore_eos": true, "stream": true}).to_string();
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(post_text("/v1/completions", &ask).as_bytes()).await.unwrap();
    let first = read_until(&mut stream, "data: ").await;
    assert!(!first.contains("[DONE]"));
    assert_eq!(server.load(), (1, 0), "it still runs");
    read_until(&mut stream, "data: [DONE]\n\n").await;
    assert_eq!(server.load(), (0, 0));
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let server = run(slow()).await;
    for streamed in [true, false] {
        let ask = json!({"prompt": "abcd", "max_tokens": 100_000, "ignore_eos": true, "stream": streamed})
            .to_string();
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(post_text("/v1/completions", &ask).as_bytes()).await.unwrap();
        eventually("the request in the engine", || server.load() == (1, 0)).await;
        drop(stream);
        eventually("the engine idle", || server.load() == (0, 0)).await;
    }
    let page = get(server.addr(), "/metrics").await.body;
    assert!(
        page.contains(
            r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 2.0"#
        )
    );
}

#[tokio::test]
async fn http_2_in_clear_text_is_spoken_on_the_same_port_and_a_reset_stream_cancels() {
    let server = run(slow()).await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let ask = |body: Value| {
        let request = hyper::Request::post(format!("http://{}/v1/completions", server.addr()));
        client.request(request.body(Full::from(body.to_string())).unwrap())
    };
    let answer = ask(json!({"prompt": "abcd", "max_tokens": 2, "stream": true})).await.unwrap();
    assert_eq!(
        (answer.version(), answer.headers()["x-sim-server"].to_str().unwrap()),
        (hyper::Version::HTTP_2, "sim")
    );
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));

    let endless = json!({"prompt": "abcd", "max_tokens": 100_000, "ignore_eos": true, "stream": true});
    let answer = ask(endless).await.unwrap();
    eventually("the request in the engine", || server.load() == (1, 0)).await;
    drop(answer);
    eventually("the engine idle", || server.load() == (0, 0)).await;
}
