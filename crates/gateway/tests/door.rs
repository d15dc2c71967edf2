//! The HTTP door against scripted model servers on loopback: what goes through, and what happens when a server
//! fails at each point.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is a failure")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use director::{Clock, Declaration, Director, Limits};
use gateway::{Gateway, REPLAY_BYTES_MAX, Timeouts};
use parking_lot::Mutex;
use pool::EndpointSpec;
use telemetry::Metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: u64 = 8 << 20;
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// What a scripted server does once a request is there.
#[derive(Clone)]
enum Act {
    /// Writes this and closes.
    Answer(String),
    /// Writes this, then holds the connection and tells when the other side has closed it.
    Hold(String),
}

/// A model server that does one thing, and remembers what it was asked.
struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    closed: mpsc::Receiver<()>,
}

impl Scripted {
    async fn start(act: Act) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (tell_closed, closed) = mpsc::channel(16);
        let remembered = Arc::clone(&asked);
        let tracker = TaskTracker::new();
        let connections = tracker.clone();
        tracker.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, act.clone(), Arc::clone(&remembered), tell_closed.clone()));
            }
        });
        Scripted { address, asked, closed }
    }

    /// Requests for inference that came, scrapes aside.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

async fn serve(mut stream: TcpStream, act: Act, asked: Arc<Mutex<Vec<String>>>, closed: mpsc::Sender<()>) {
    let request = read_request(&mut stream).await;
    if request.starts_with("GET ") {
        let _ = stream
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .await;
        return;
    }
    asked.lock().push(request);
    match act {
        Act::Answer(answer) => {
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        Act::Hold(answer) => {
            let _ = stream.write_all(answer.as_bytes()).await;
            let mut rest = [0; 1024];
            while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
            let _ = closed.send(()).await;
        }
    }
}

/// A request's head and as much of its body as `content-length` or the last chunk tells.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let whole = match length {
                Some(length) => body.len() >= length.parse().unwrap(),
                None => !head.contains("chunked") || body.ends_with("0\r\n\r\n"),
            };
            if whole {
                return text.into_owned();
            }
        }
        let mut part = [0; 65536];
        match stream.read(&mut part).await {
            Ok(count) if count > 0 => read.extend_from_slice(&part[..count]),
            _ => return String::from_utf8_lossy(&read).into_owned(),
        }
    }
}

struct Door {
    address: SocketAddr,
    director: Arc<Director>,
    metrics: Arc<Metrics>,
}

impl Door {
    async fn before(servers: &[SocketAddr]) -> Door {
        let text = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: p}\n\
            spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 8000}]}\n";
        let pool = pool::parse("p.yaml", text).unwrap().pools.remove(0);
        let spec = |address: &SocketAddr| EndpointSpec {
            name: address.to_string().into(),
            host: address.ip().to_string().into(),
            port: address.port(),
        };
        let endpoints = servers.iter().map(spec).collect();
        let metrics = Arc::new(Metrics::new("test"));
        let limits = Limits { body_bytes_max: BODY_BYTES_MAX };
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let director =
            Director::new(Arc::clone(&metrics), Clock::start(), limits, tracker.clone(), cancel.clone());
        director.declare(&Declaration { pool, named_models: HashSet::new(), endpoints });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = Gateway::new(Arc::clone(&director), Timeouts::default());
        tracker.spawn(gateway::serve(listener, gateway, cancel, Duration::ZERO));
        Door { address, director, metrics }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends raw bytes and reads the answer to its end.
    async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good an end as any.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn ask(&self, body: &str) -> String {
        self.exchange(post(body).as_bytes()).await
    }

    fn in_flight(&self) -> u32 {
        let snapshot = self.director.pool().unwrap().snapshot();
        snapshot.entries.iter().map(|entry| entry.endpoint.ledger.requests()).sum()
    }

    fn counted(&self, series: &str) -> u64 {
        let page = self.metrics.encode().unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |count| count.parse().unwrap())
    }
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: door\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A chat body of at least that many bytes.
fn chat(bytes: usize) -> String {
    format!(r#"{{"model":"m", "messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(bytes))
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_body_goes_through_byte_for_byte_and_control_headers_do_not() {
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let door = Door::before(&[server.address]).await;
    let body =
        "{ \"model\":\"m\",\t\"messages\":[{\"content\":\"caf\\u00e9 \u{1f680}\",\"role\":\"user\"}] }\n";
    let request =
        post(body).replace("host: door", "host: door\r\nx-gateway-destination-endpoint: 10.0.0.1:1");
    let answer = door.exchange(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n{}"), "{answer}");
    let asked = server.asked().remove(0);
    let (head, sent) = asked.split_once("\r\n\r\n").unwrap();
    assert_eq!(sent, body);
    assert!(!head.contains("x-gateway"), "{head}");
    assert!(head.contains("x-forwarded-for: 127.0.0.1") && head.contains("x-request-id: "), "{head}");
}

#[tokio::test]
async fn a_large_body_goes_through_whole_while_it_is_uploaded() {
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let door = Door::before(&[server.address]).await;
    let body = chat(3 * REPLAY_BYTES_MAX);
    assert!(door.ask(&body).await.starts_with("HTTP/1.1 200"));
    assert!(server.asked()[0].ends_with(&body));
}

#[tokio::test]
async fn dead_endpoints_cost_no_client_an_error() {
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let door = Door::before(&[nobody().await, nobody().await, server.address]).await;
    for _ in 0..12 {
        assert!(door.ask(&chat(10)).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(server.asked().len(), 12);
    assert_eq!(door.in_flight(), 0);
}

#[tokio::test]
async fn a_server_that_dies_between_head_and_first_byte_is_not_noticed() {
    let dying = Scripted::start(Act::Answer(STREAM_HEAD.into())).await;
    let busy =
        Scripted::start(Act::Answer("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".into())).await;
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let door = Door::before(&[dying.address, busy.address, server.address]).await;
    for _ in 0..6 {
        assert!(door.ask(&chat(10)).await.starts_with("HTTP/1.1 200"));
    }
    assert!(!dying.asked().is_empty() && !busy.asked().is_empty());
    assert!(door.counted("pointsman_retries_total{reason=\"reset\"}") > 0);
    assert!(door.counted("pointsman_retries_total{reason=\"unavailable\"}") > 0);
}

#[tokio::test]
async fn the_last_servers_own_503_is_passed_on() {
    let busy = Scripted::start(Act::Answer(
        "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nbusy".into(),
    ))
    .await;
    let door = Door::before(&[busy.address]).await;
    let answer = door.ask(&chat(10)).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 7") && answer.ends_with("busy")
    );
}

#[tokio::test]
async fn nobody_there_is_502_with_a_reason() {
    let door = Door::before(&[nobody().await]).await;
    let answer = door.ask(&chat(10)).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("x-pointsman-reason: upstream_unreachable"), "{answer}");
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_event_and_never_half_an_event() {
    let script = format!("{STREAM_HEAD}{}{}", chunk("data: {\"n\":1}\n\n"), chunk("data: {\"n\":"));
    let breaking = Scripted::start(Act::Answer(script)).await;
    let door = Door::before(&[breaking.address]).await;
    let answer = door.ask(&chat(10)).await;
    assert!(answer.contains("data: {\"n\":1}\n\n"), "{answer}");
    assert!(!answer.contains("data: {\"n\":\r"), "{answer}");
    assert!(answer.contains("data: {\"error\":{") && answer.contains("upstream_broken"), "{answer}");
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
    assert_eq!(door.counted("pointsman_requests_total{reason=\"upstream_broken\"}"), 1);
    assert_eq!(door.in_flight(), 0);
}

#[tokio::test]
async fn an_answer_that_breaks_is_seen_to_be_cut_off() {
    let script = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half\":";
    let breaking = Scripted::start(Act::Answer(script.into())).await;
    let door = Door::before(&[breaking.address]).await;
    let answer = door.ask(&chat(10)).await;
    assert!(answer.contains("content-length: 100") && answer.ends_with("{\"half\":"), "{answer}");
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_upstream_at_once() {
    for first in ["".to_owned(), format!("{STREAM_HEAD}{}", chunk("data: 1\n\n"))] {
        let streaming = !first.is_empty();
        let mut server = Scripted::start(Act::Hold(first)).await;
        let door = Door::before(&[server.address]).await;
        let mut client = door.connect().await;
        client.write_all(post(&chat(10)).as_bytes()).await.unwrap();
        if streaming {
            assert!(client.read(&mut [0; 1024]).await.unwrap() > 0);
        } else {
            while server.asked().is_empty() {
                tokio::task::yield_now().await;
            }
        }
        drop(client);
        timeout(PATIENCE, server.closed.recv()).await.expect("upstream is cancelled").unwrap();
        assert_eq!(door.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_announced_or_not() {
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let door = Door::before(&[server.address]).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: door\r\nconnection: close\r\n";
    let announced =
        door.exchange(format!("{head}content-length: {}\r\n\r\n{{", BODY_BYTES_MAX + 1).as_bytes()).await;
    assert!(announced.starts_with("HTTP/1.1 413") && announced.contains("body_too_large"), "{announced}");
    let unannounced = format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk(&chat(9 << 20)));
    let mut client = door.connect().await;
    let (mut from, mut to) = client.split();
    let mut answer = vec![0; 1024];
    let (_, read) =
        tokio::join!(to.write_all(unannounced.as_bytes()), timeout(PATIENCE, from.read(&mut answer)));
    let count = read.unwrap().unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer[..count]));
    assert_eq!(door.in_flight(), 0);
}
