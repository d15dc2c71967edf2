//! The APIs without streams: shapes, errors, models, and that the cache shows.

use serde_json::{Value, json};
use sim::{
    engine::Config,
    server::{ServerConfig, start_many},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    client::{get, post, send, try_post},
    fast, run,
};

fn chat(content: &str) -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8})
}

#[tokio::test]
async fn a_chat_has_the_shape_of_vllms() {
    let server = run(fast()).await;
    let answer = post(server.addr(), "/v1/chat/completions", &chat("hello")).await;
    assert_eq!((answer.status, answer.header("x-sim-server")), (200, Some("sim")));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    let choice = &body["choices"][0];
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("tiny")));
    assert_eq!(choice["message"]["content"].as_str().unwrap().len(), 32, "eight tokens of four bytes");
    assert_eq!(
        (&choice["message"]["role"], &choice["finish_reason"]),
        (&json!("assistant"), &json!("length"))
    );
    let prompt_tokens = body["usage"]["prompt_tokens"].as_u64().unwrap();
    let usage = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": 8, "total_tokens": prompt_tokens + 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    });
    assert_eq!(body["usage"], usage);
    assert!(prompt_tokens > 2);
}

#[tokio::test]
async fn an_answer_that_nobody_limits_ends_by_itself_and_ignore_eos_prevents_it() {
    let server = run(fast()).await;
    let mut ask = chat("hello");
    ask["max_tokens"] = json!(5_000);
    let body = post(server.addr(), "/v1/chat/completions", &ask).await.json();
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert!((24..=96).contains(&body["usage"]["completion_tokens"].as_u64().unwrap()));
    (ask["max_tokens"], ask["ignore_eos"]) = (json!(300), json!(true));
    let body = post(server.addr(), "/v1/chat/completions", &ask).await.json();
    assert_eq!(
        (&body["choices"][0]["finish_reason"], &body["usage"]["completion_tokens"]),
        (&json!("length"), &json!(300))
    );
}

#[tokio::test]
async fn servers_of_one_seed_say_the_same_and_models_and_seeds_differ() {
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let base = "127.0.0.1:0".parse().unwrap();
    let servers = start_many(&fast(), 2, base, &tasks, &cancel).await.unwrap();
    let other = run(ServerConfig { seed: 1, ..fast() }).await;
    let mut texts = Vec::new();
    let asks = [
        (servers[0].addr(), "tiny"),
        (servers[1].addr(), "tiny"),
        (servers[0].addr(), "lora-a"),
        (other.addr(), "tiny"),
    ];
    for (addr, model) in asks {
        let mut ask = chat("hello");
        ask["model"] = json!(model);
        texts.push(post(addr, "/v1/chat/completions", &ask).await.json()["choices"][0]["message"].clone());
    }
    assert_eq!(texts[0], texts[1]);
    assert!(texts[2] != texts[0] && texts[3] != texts[0]);
    assert_eq!((servers[0].name(), servers[1].name()), ("sim-0", "sim-1"));
    let who = get(servers[1].addr(), "/health").await;
    assert_eq!((who.status, who.header("x-sim-server")), (200, Some("sim-1")));
}

#[tokio::test]
async fn completions_take_text_texts_and_tokens_and_several_choices() {
    let server = run(fast()).await;
    let ask = async |prompt: Value, n: u32| {
        let ask = json!({"model": "tiny", "prompt": prompt, "max_tokens": 4, "n": n});
        post(server.addr(), "/v1/completions", &ask).await.json()
    };
    let one = ask(json!("abcdefgh"), 1).await;
    assert_eq!((&one["object"], &one["usage"]["prompt_tokens"]), (&json!("text_completion"), &json!(2)));
    let many = ask(json!(["abcdefgh", "ijkl"]), 2).await;
    let texts: Vec<&Value> =
        many["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!((texts.len(), texts[0]), (4, &one["choices"][0]["text"]));
    assert!(texts[0] != texts[1] && texts[0] != texts[2]);
    assert_eq!(
        (&many["usage"]["prompt_tokens"], &many["usage"]["completion_tokens"]),
        (&json!(3), &json!(16))
    );
    let tokens = [u32::from_le_bytes(*b"abcd"), u32::from_le_bytes(*b"efgh")];
    assert_eq!(ask(json!(tokens), 1).await["choices"][0]["text"], one["choices"][0]["text"]);
}

#[tokio::test]
async fn what_was_said_before_comes_from_the_cache() {
    let server = run(fast()).await;
    let question = "a question that is long enough to fill some blocks of the cache. ".repeat(8);
    let ask =
        json!({"messages": [{"role": "user", "content": question}], "max_tokens": 64, "ignore_eos": true});
    let first = post(server.addr(), "/v1/chat/completions", &ask).await.json();
    let turns = json!([
        {"role": "user", "content": question}, first["choices"][0]["message"], {"role": "user", "content": "and then?"},
    ]);
    let next = post(server.addr(), "/v1/chat/completions", &json!({"messages": turns, "max_tokens": 1}))
        .await
        .json();
    let cached = next["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let (prompt, answered) = (first["usage"]["prompt_tokens"].as_u64().unwrap(), 64);
    assert_eq!(
        cached,
        (prompt + answered - 1) / 16 * 16,
        "the question and all of the answer but its last token"
    );
    let adapter = json!({"model": "lora-a", "messages": turns, "max_tokens": 1});
    let adapter = post(server.addr(), "/v1/chat/completions", &adapter).await.json();
    assert_eq!(
        adapter["usage"]["prompt_tokens_details"]["cached_tokens"], 0,
        "an adapter has a cache of its own"
    );
}

#[tokio::test]
async fn responses_and_messages_have_the_shapes_of_their_apis() {
    let server = run(fast()).await;
    let ask = json!({"model": "tiny", "input": "hello", "instructions": "be brief", "max_output_tokens": 6});
    let response = post(server.addr(), "/v1/responses", &ask).await.json();
    assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(response["output"][0]["content"][0]["text"].as_str().unwrap().len(), 24);
    assert_eq!(response["usage"]["output_tokens"], 6);

    let ask = json!({"model": "tiny", "system": "be brief", "max_tokens": 6, "messages": [{"role": "user", "content": "hi"}]});
    let message = post(server.addr(), "/v1/messages", &ask).await.json();
    assert_eq!((&message["type"], &message["stop_reason"]), (&json!("message"), &json!("max_tokens")));
    assert_eq!(message["content"][0]["text"].as_str().unwrap().len(), 24);
    assert_eq!(message["usage"]["output_tokens"], 6);
    let missing = post(server.addr(), "/v1/messages", &json!({"messages": []})).await;
    assert_eq!((missing.status, &missing.json()["type"]), (400, &json!("error")));
}

#[tokio::test]
async fn embeddings_have_one_vector_for_each_input() {
    let server = run(fast()).await;
    let ask = json!({"model": "tiny", "input": ["abcd", "efghijkl", "abcd"]});
    let body = post(server.addr(), "/v1/embeddings", &ask).await.json();
    let vectors: Vec<&Value> =
        body["data"].as_array().unwrap().iter().map(|datum| &datum["embedding"]).collect();
    assert_eq!((vectors.len(), vectors[0].as_array().unwrap().len()), (3, 16));
    assert!(vectors[0] == vectors[2] && vectors[0] != vectors[1]);
    assert_eq!(body["usage"]["total_tokens"], 4);
}

#[tokio::test]
async fn an_unknown_model_is_vllms_404_and_none_is_the_base_model() {
    let server = run(fast()).await;
    let mut ask = chat("hello");
    ask["model"] = json!("nobody");
    let answer = post(server.addr(), "/v1/chat/completions", &ask).await;
    let expected = json!({"error": {
        "message": "The model `nobody` does not exist.", "type": "NotFoundError", "param": "model", "code": 404,
    }});
    assert_eq!((answer.status, answer.json()), (404, expected));
    ask.as_object_mut().unwrap().remove("model");
    assert_eq!(post(server.addr(), "/v1/chat/completions", &ask).await.json()["model"], "tiny");
}

#[tokio::test]
async fn what_is_no_request_is_a_400_in_vllms_shape() {
    let server = run(fast()).await;
    let nested = "[".repeat(100_000);
    for (path, body) in [
        ("/v1/chat/completions", ""),
        ("/v1/chat/completions", "{\"messages\": ["),
        ("/v1/chat/completions", "[]"),
        ("/v1/chat/completions", nested.as_str()),
        ("/v1/chat/completions", "{}"),
        ("/v1/chat/completions", r#"{"messages": [], "model": 5}"#),
        ("/v1/chat/completions", r#"{"messages": [], "max_tokens": 0}"#),
        ("/v1/chat/completions", r#"{"messages": [], "max_tokens": -3}"#),
        ("/v1/chat/completions", r#"{"messages": [], "n": 1000}"#),
        ("/v1/chat/completions", r#"{"messages": [], "max_tokens": 1e99, "ignore_eos": true}"#),
        ("/v1/completions", r#"{"prompt": []}"#),
        ("/v1/completions", r#"{"prompt": "x", "max_tokens": 4000000000, "ignore_eos": true}"#),
        ("/v1/responses", r#"{"input": 5}"#),
        ("/v1/embeddings", r#"{"input": null}"#),
        ("/sim/faults", r#"{"unknown": 1}"#),
    ] {
        let answer = try_post(server.addr(), path, body).await.unwrap();
        assert_eq!(answer.status, 400, "{path} {}", &body[..body.len().min(60)]);
        let error = &answer.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string() && error["code"] == 400, "{error}");
    }
    assert_eq!(server.load(), (0, 0));
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_refused_and_one_that_just_fits_is_not() {
    let engine = Config { max_model_len: 100, ..fast().engine };
    let server = run(ServerConfig { engine, ..fast() }).await;
    let ask = async |tokens: usize, max_tokens: u32| {
        let ask = json!({"prompt": vec![7; tokens], "max_tokens": max_tokens, "ignore_eos": true});
        post(server.addr(), "/v1/completions", &ask).await
    };
    assert_eq!(ask(90, 10).await.status, 200);
    let refused = ask(90, 11).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (400, &json!("BadRequestError")));
    assert_eq!(ask(101, 1).await.status, 400);
    let unlimited = json!({"messages": [{"role": "user", "content": "x".repeat(300)}]});
    let fitted = post(server.addr(), "/v1/chat/completions", &unlimited).await.json();
    assert_eq!(fitted["usage"]["total_tokens"], 100, "what nobody limits is limited by the context");
}

#[tokio::test]
async fn a_full_queue_is_a_503() {
    let engine = Config { max_num_queued_reqs: 1, max_num_seqs: 1, step_base_us: 1e6, ..Config::default() };
    let server = run(ServerConfig { engine, ..fast() }).await;
    let ask = json!({"prompt": ["a", "b", "c", "d"], "max_tokens": 50});
    let answer = post(server.addr(), "/v1/completions", &ask).await;
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (503, &json!("ServiceUnavailableError")));
    assert_eq!(server.load(), (0, 0), "all of its prompts or none");
}

#[tokio::test]
async fn adapters_come_and_go() {
    let server = run(fast()).await;
    let names = async || -> Vec<(String, Value)> {
        let models = get(server.addr(), "/v1/models").await.json();
        let cards = models["data"].as_array().unwrap().clone();
        cards.iter().map(|card| (card["id"].as_str().unwrap().to_owned(), card["parent"].clone())).collect()
    };
    let parent = json!("tiny");
    let expected =
        [("tiny".into(), Value::Null), ("lora-a".into(), parent.clone()), ("lora-b".into(), parent)];
    assert_eq!(names().await, expected);

    let load = json!({"lora_name": "lora-c", "lora_path": "/adapters/c"});
    let unload = json!({"lora_name": "lora-a"});
    assert_eq!(post(server.addr(), "/v1/load_lora_adapter", &load).await.status, 200);
    assert_eq!(post(server.addr(), "/v1/load_lora_adapter", &load).await.status, 400, "it is there already");
    assert_eq!(post(server.addr(), "/v1/unload_lora_adapter", &unload).await.status, 200);
    assert_eq!(post(server.addr(), "/v1/unload_lora_adapter", &unload).await.status, 404);
    let left: Vec<String> = names().await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["tiny", "lora-b", "lora-c"]);
    let mut ask = chat("hello");
    for (model, status) in [("lora-c", 200), ("lora-a", 404)] {
        ask["model"] = json!(model);
        assert_eq!(post(server.addr(), "/v1/chat/completions", &ask).await.status, status);
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_told_so() {
    let server = run(fast()).await;
    assert_eq!(get(server.addr(), "/nothing").await.json()["error"]["code"], 404);
    assert_eq!(get(server.addr(), "/v1/completions").await.status, 405);
    assert_eq!(get(server.addr(), "/version").await.json()["version"], "0.32.0");
    let tokens = post(server.addr(), "/tokenize", &json!({"prompt": "abcdefghi"})).await.json();
    assert_eq!((&tokens["count"], tokens["tokens"].as_array().unwrap().len()), (&json!(3), 3));
}

#[tokio::test]
async fn a_body_longer_than_the_limit_is_refused_before_it_is_sent() {
    let server = run(fast()).await;
    let length = sim::server::BODY_BYTES_MAX + 1;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    assert_eq!(send(server.addr(), &head).await.unwrap().status, 413);
}

#[tokio::test]
async fn requests_are_kept_as_they_arrived() {
    let server = run(fast()).await;
    let body = chat("hello").to_string();
    let head = format!(
        "POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: sim\r\nX-Odd: One\r\nx-odd: two\r\nX-Request-Id: abc-1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = send(server.addr(), &head).await.unwrap();
    assert_eq!(answer.json()["id"], "chatcmpl-abc-1");
    get(server.addr(), "/metrics").await;
    get(server.addr(), "/health").await;
    let kept = get(server.addr(), "/sim/requests").await.json();
    assert_eq!(kept.as_array().unwrap().len(), 1, "looking leaves no trace");
    let kept = &kept[0];
    assert_eq!((&kept["method"], &kept["path"]), (&json!("POST"), &json!("/v1/chat/completions?a=b")));
    assert_eq!(kept["body_bytes"], body.len());
    let xxh3 = format!("{:016x}", twox_hash::XxHash3_64::oneshot(body.as_bytes()));
    assert_eq!(kept["body_xxh3"], xxh3);
    let headers = kept["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-odd", "One"])) && headers.contains(&json!(["x-odd", "two"])));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_request_id_that_would_break_json_is_not_taken() {
    let server = run(fast()).await;
    let body = chat("hello").to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\nx-request-id: a\"b\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert!(
        send(server.addr(), &head).await.unwrap().json()["id"].as_str().unwrap().starts_with("chatcmpl-")
    );
}

#[tokio::test]
async fn many_servers_take_ports_in_a_row_or_none_at_all() {
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let before =
        std::net::SocketAddr::new(taken.local_addr().unwrap().ip(), taken.local_addr().unwrap().port() - 1);
    assert!(start_many(&fast(), 2, before, &tasks, &cancel).await.is_err());
    assert!(tasks.is_empty(), "none is left running");
    let last = "127.0.0.1:65535".parse().unwrap();
    let error = start_many(&fast(), 2, last, &tasks, &cancel).await.unwrap_err();
    assert!(matches!(error.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::AddrInUse));

    // Another program may take one of the ports in between; then it is tried elsewhere.
    for _ in 0..20 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        if let Ok(servers) = start_many(&fast(), 3, free, &tasks, &cancel).await {
            let ports: Vec<u16> = servers.iter().map(|server| server.addr().port()).collect();
            assert_eq!(ports, [free.port(), free.port() + 1, free.port() + 2]);
            return;
        }
    }
    panic!("no three free ports in a row");
}
