//! The HTTP door against scripted model servers on loopback: what goes through, and what happens when a server
//! fails at each point.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is a failure")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use director::{Clock, Declaration, Director, Limits};
use gateway::{ClientHeaders, Gateway, REPLAY_BYTES_MAX, Upstream, dial_tcp};
use parking_lot::Mutex;
use pool::{Catalog, EndpointSpec};
use telemetry::Metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: u64 = 8 << 20;
/// Shorter than a test waits, longer than what a test lets end.
const DRAIN: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(200);
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
    /// Writes the first, and the second a little later.
    Later(String, String),
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

    /// A server that answers as soon as a request's first bytes are there, and closes.
    async fn early(answer: &'static str) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        TaskTracker::new().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let (_, closed) = mpsc::channel(1);
        Scripted { address, asked: Arc::default(), closed }
    }

    /// Requests for inference that came, scrapes aside.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

async fn serve(mut stream: TcpStream, act: Act, asked: Arc<Mutex<Vec<String>>>, closed: mpsc::Sender<()>) {
    let request = read_request(&mut stream).await;
    if request.starts_with("GET /metrics ") || request.starts_with("GET /v1/models ") {
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
        Act::Later(first, second) => {
            let _ = stream.write_all(first.as_bytes()).await;
            tokio::time::sleep(2 * SHORT).await;
            let _ = stream.write_all(second.as_bytes()).await;
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
    stop: CancellationToken,
    /// Whether all requests in flight ended by themselves.
    stopped: JoinHandle<bool>,
}

impl Door {
    async fn before(servers: &[SocketAddr]) -> Door {
        Door::patient(servers, gateway::Limits::default()).await
    }

    async fn patient(servers: &[SocketAddr], bounds: gateway::Limits) -> Door {
        let text = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: p}\n\
            spec: {selector: {matchLabels: {app: x}}, targetPorts: [{number: 8000}]}\n";
        let pool = pool::parse("p.yaml", text).unwrap().pools.remove(0);
        let spec = |address: &SocketAddr| EndpointSpec {
            name: address.to_string().into(),
            host: address.ip().to_string().into(),
            port: address.port(),
            tls: false,
        };
        let endpoints = servers.iter().map(spec).collect();
        let metrics = Arc::new(Metrics::new("test"));
        let limits = Limits { body_bytes_max: BODY_BYTES_MAX, ..Limits::default() };
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let director =
            Director::new(Arc::clone(&metrics), Clock::start(), limits, 0, tracker.clone(), cancel.clone());
        director.declare(&Declaration { pool, catalog: Catalog::default(), endpoints, pods: None });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Upstream::new(&dial_tcp(bounds.connect), &tls::trusting().unwrap(), bounds.connect);
        let gateway = Gateway::new(Arc::clone(&director), upstream, bounds, ClientHeaders::Trust);
        let stop = cancel.child_token();
        let stopped = tracker.spawn(gateway::serve(listener, None, gateway, stop.clone(), DRAIN));
        Door { address, director, metrics, stop, stopped }
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

    fn ended(&self, reason: &str) -> u64 {
        self.counted(&format!("pointsman_requests_total{{reason=\"{reason}\"}}"))
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
    assert_eq!(door.ended("upstream_broken"), 1);
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

#[tokio::test]
async fn whatever_its_shape_an_answer_that_went_through_is_counted_as_served() {
    let chunked = format!("{STREAM_HEAD}{}0\r\n\r\n", chunk("data: 1\n\n"));
    let unframed = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall of it";
    let nothing = "HTTP/1.1 204 No Content\r\n\r\n";
    for (served, answer) in [OK, &chunked, unframed, nothing].into_iter().enumerate() {
        let server = Scripted::start(Act::Answer(answer.into())).await;
        let door = Door::before(&[server.address]).await;
        assert!(door.ask(&chat(10)).await.starts_with("HTTP/1.1 20"), "{served}");
        assert_eq!(
            (door.ended("served"), door.ended("client_gone"), door.in_flight()),
            (1, 0, 0),
            "{answer}"
        );
    }
    let server = Scripted::start(Act::Answer("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n".into())).await;
    let door = Door::before(&[server.address]).await;
    let answer = door.exchange(b"HEAD /health HTTP/1.1\r\nhost: door\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("content-length: 7"), "{answer}");
    assert_eq!(door.ended("served"), 1);
}

#[tokio::test]
async fn what_is_not_posted_is_not_read_as_a_request_for_inference() {
    let server = Scripted::start(Act::Answer("HTTP/1.1 204 No Content\r\n\r\n".into())).await;
    let door = Door::before(&[server.address]).await;
    let answer = door
        .exchange(b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: door\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[tokio::test]
async fn a_stream_that_does_not_begin_goes_to_the_next_endpoint_and_a_whole_answer_does_not() {
    let bounds = gateway::Limits { first_byte: SHORT, unstreamed: SHORT, ..gateway::Limits::default() };
    let hanging = Scripted::start(Act::Hold(String::new())).await;
    let door = Door::patient(&[hanging.address], bounds).await;
    let answer = door.ask(&chat(10)).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("upstream_timeout"), "{answer}");
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let door = Door::patient(&[hanging.address, server.address], bounds).await;
    let streamed = chat(10).replace("\"model\"", "\"stream\":true,\"model\"");
    for _ in 0..4 {
        assert!(door.ask(&streamed).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_client_that_uploads_slowly_is_not_the_endpoints_fault() {
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let bounds = gateway::Limits { first_byte: SHORT, unstreamed: SHORT, ..gateway::Limits::default() };
    let door = Door::patient(&[server.address], bounds).await;
    let request = post(&chat(100_000));
    let (first, rest) = request.as_bytes().split_at(60_000);
    let mut client = door.connect().await;
    client.write_all(first).await.unwrap();
    tokio::time::sleep(3 * SHORT).await;
    client.write_all(rest).await.unwrap();
    let mut answer = [0; 12];
    timeout(PATIENCE, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_body_that_was_half_sent_to_a_dying_endpoint_reaches_the_next_whole() {
    let busy = "HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbusy";
    let dying = Scripted::early(busy).await;
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let body = chat(600_000);
    for _ in 0..4 {
        let door = Door::before(&[dying.address, server.address]).await;
        assert!(door.ask(&body).await.starts_with("HTTP/1.1 200"));
    }
    assert!(server.asked().iter().all(|asked| asked.ends_with(&body)));
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn a_client_that_hangs_up_in_mid_upload_is_gone_and_not_malformed() {
    let server = Scripted::start(Act::Answer(OK.into())).await;
    let door = Door::before(&[server.address]).await;
    for sent in [300, 200_000] {
        let mut client = door.connect().await;
        client.write_all(&post(&chat(1 << 20)).as_bytes()[..sent]).await.unwrap();
        drop(client);
    }
    let gone = async {
        while door.ended("client_gone") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("both are counted");
    assert_eq!((door.ended("malformed"), door.in_flight()), (0, 0));
}

#[tokio::test]
async fn what_is_in_flight_ends_before_the_door_closes_and_idle_connections_do_not_hold_it_up() {
    let script = format!("{STREAM_HEAD}{}", chunk("data: 1\n\n"));
    let server = Scripted::start(Act::Later(script, format!("{}0\r\n\r\n", chunk("data: 2\n\n")))).await;
    let door = Door::before(&[server.address]).await;
    let _idle = door.connect().await;
    let mut client = door.connect().await;
    client.write_all(post(&chat(10)).as_bytes()).await.unwrap();
    assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
    door.stop.cancel();
    let mut rest = String::new();
    timeout(PATIENCE, client.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert!(rest.contains("data: 2"), "{rest}");
    assert!(timeout(PATIENCE, door.stopped).await.unwrap().unwrap());
    assert!(TcpStream::connect(door.address).await.is_err());
}

#[tokio::test]
async fn what_does_not_end_within_the_drain_time_is_cut_off() {
    let server = Scripted::start(Act::Hold(format!("{STREAM_HEAD}{}", chunk("data: 1\n\n")))).await;
    let door = Door::before(&[server.address]).await;
    let mut client = door.connect().await;
    client.write_all(post(&chat(10)).as_bytes()).await.unwrap();
    assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
    door.stop.cancel();
    assert!(!timeout(PATIENCE, door.stopped).await.unwrap().unwrap());
}
