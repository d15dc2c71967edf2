//! Faults to order, and the end of a server.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{
    Running,
    client::{get, post, post_text, read_until, try_post},
    fast, run, slow,
};

const ASK: &str = r#"{"prompt": "abcd", "max_tokens": 10, "ignore_eos": true}"#;
const STREAMED: &str = r#"{"prompt": "abcd", "max_tokens": 10, "ignore_eos": true, "stream": true}"#;

async fn order(server: &Running, faults: Value) {
    assert_eq!(post(server.addr(), "/sim/faults", &faults).await.status, 200);
}

#[tokio::test]
async fn refused_requests_get_no_byte_and_the_fault_can_be_lifted() {
    let server = run(fast()).await;
    order(&server, json!({"refuse": true})).await;
    assert!(try_post(server.addr(), "/v1/completions", ASK).await.is_err());
    order(&server, json!({})).await;
    assert_eq!(try_post(server.addr(), "/v1/completions", ASK).await.unwrap().status, 200);
}

#[tokio::test]
async fn hanging_requests_are_read_and_not_answered() {
    let server = run(fast()).await;
    order(&server, json!({"hang": true})).await;
    let answer = timeout(Duration::from_millis(200), try_post(server.addr(), "/v1/completions", ASK));
    assert!(answer.await.is_err());
    assert_eq!(server.requests().len(), 1);
    assert_eq!(get(server.addr(), "/metrics").await.status, 200, "metrics have faults of their own");
}

#[tokio::test]
async fn a_status_takes_the_place_of_the_answer() {
    let server = run(fast()).await;
    order(&server, json!({"status": 503})).await;
    let answer = try_post(server.addr(), "/v1/completions", ASK).await.unwrap();
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!(503)));
    assert_eq!(answer.header("x-sim-server"), Some("sim"));
    assert_eq!(post(server.addr(), "/sim/faults", &json!({"status": 200})).await.status, 400);
    assert_eq!(get(server.addr(), "/sim/faults").await.json()["status"], 503, "nothing changed");
}

#[tokio::test]
async fn a_delay_comes_before_the_first_byte() {
    let server = run(fast()).await;
    order(&server, json!({"first_byte_delay_ms": 150})).await;
    let began = Instant::now();
    assert_eq!(try_post(server.addr(), "/v1/completions", ASK).await.unwrap().status, 200);
    assert!(began.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn answers_break_off_after_so_many_tokens() {
    let server = run(fast()).await;
    order(&server, json!({"break_after_tokens": 3})).await;
    let answer = try_post(server.addr(), "/v1/completions", STREAMED).await.unwrap();
    assert_eq!((answer.status, answer.complete), (200, false));
    assert_eq!(answer.events().len(), 3);
    let answer = try_post(server.addr(), "/v1/completions", ASK).await.unwrap();
    assert!(!answer.complete && !answer.body.is_empty());
    assert_eq!(server.load(), (0, 0), "what was broken off does not run on");

    order(&server, json!({"break_after_tokens": 10})).await;
    assert!(try_post(server.addr(), "/v1/completions", ASK).await.unwrap().complete, "it has no more");
}

#[tokio::test]
async fn over_http_2_faults_reset_the_stream_and_spare_the_connection() {
    let server = run(fast()).await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let ask = || {
        let request = hyper::Request::post(format!("http://{}/v1/completions", server.addr()));
        client.request(request.body(Full::from(STREAMED)).unwrap())
    };
    order(&server, json!({"refuse": true})).await;
    assert!(ask().await.is_err());
    order(&server, json!({"break_after_tokens": 3})).await;
    let mut body = ask().await.unwrap().into_body();
    let mut tokens = 0;
    let error = loop {
        match body.frame().await.expect("the stream never ends properly") {
            Ok(_) => tokens += 1,
            Err(error) => break error,
        }
    };
    assert!(tokens <= 3 && format!("{error:?}").contains("Reset"), "{tokens} tokens, then {error:?}");
}

#[tokio::test]
async fn the_metrics_page_does_what_was_ordered() {
    let server = run(fast()).await;
    let page = async |fault: &str| {
        order(&server, json!({"metrics": fault})).await;
        get(server.addr(), "/metrics").await
    };
    let running =
        |value: &str| format!("vllm:num_requests_running{{engine=\"0\",model_name=\"tiny\"}} {value}\n");
    for (fault, value) in [("ok", "0.0"), ("nan", "NaN"), ("negative", "-1.0"), ("huge", "1e+30")] {
        let answer = page(fault).await;
        assert!(answer.status == 200 && answer.body.contains(&running(value)), "{fault}");
    }
    assert_eq!(page("error").await.status, 500);
    assert!(page("html").await.body.contains("<html>"));
    let empty = page("empty").await;
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    let big = page("big").await;
    assert!(big.complete && big.body.len() > 100 * 1024 * 1024 && big.body.contains(&running("0.0")));
    order(&server, json!({"metrics": "hang"})).await;
    assert!(timeout(Duration::from_millis(200), get(server.addr(), "/metrics")).await.is_err());
    assert_eq!(get(server.addr(), "/health").await.status, 200);
}

#[tokio::test]
async fn a_slow_metrics_page_trickles() {
    let server = run(fast()).await;
    order(&server, json!({"metrics": "slow"})).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: sim\r\n\r\n").await.unwrap();
    let began = Instant::now();
    read_until(&mut stream, "\r\n\r\n").await;
    let mut read = 0;
    while read < 4 * 256 {
        read += stream.read(&mut [0; 4096]).await.unwrap();
    }
    assert!(began.elapsed() >= Duration::from_millis(300), "256 bytes in 100 ms");
}

#[tokio::test]
async fn a_stopped_server_closes_its_port_breaks_its_streams_and_leaves_no_task() {
    let server = run(slow()).await;
    let ask =
        json!({"prompt": "abcd", "max_tokens": 100_000, "ignore_eos": true, "stream": true}).to_string();
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(post_text("/v1/completions", &ask).as_bytes()).await.unwrap();
    read_until(&mut stream, "data: ").await;
    server.stop();
    server.tasks.close();
    timeout(Duration::from_secs(5), server.tasks.wait()).await.expect("every task ends");
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.expect("the stream ends");
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    assert!(TcpStream::connect(server.addr()).await.is_err());
}
