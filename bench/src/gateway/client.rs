//! The clients: HTTP/1.1 by hand over kept connections, as cheap as can be, and HTTP/2 by hyper.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::backend::header;

const PATH: &str = "/v1/chat/completions";
/// What a request begins with and shares with others, at most.
const SHARED_BYTES_MAX: usize = 4096;
const SERIAL_DIGITS: usize = 16;

/// Requests of one shape: each has a serial number in its prompt, after the half (at most 4 KB) that all share.
#[derive(Clone)]
pub(crate) struct Shape {
    head: String,
    body: String,
    serial_at: usize,
    path: String,
    numbers: Arc<AtomicU64>,
}

impl Shape {
    /// Chat requests whose body has `body_bytes`; `query` says what the model server is to do.
    pub(crate) fn new(body_bytes: usize, query: &str) -> Shape {
        let stream = !query.is_empty();
        let begin = format!(
            r#"{{"model":"tiny","stream":{stream},"max_tokens":16,"messages":[{{"role":"user","content":""#
        );
        let end = r#""}]}"#;
        let text = prose(body_bytes.saturating_sub(begin.len() + end.len() + SERIAL_DIGITS));
        // Not between a backslash and what it escapes.
        let mut shared = (text.len() / 2).min(SHARED_BYTES_MAX);
        while text.as_bytes()[shared - 1] == b'\\' {
            shared -= 1;
        }
        let serial_at = begin.len() + shared;
        let body = format!("{begin}{}{:0SERIAL_DIGITS$}{}{end}", &text[..shared], 0, &text[shared..]);
        let path = if query.is_empty() { PATH.to_owned() } else { format!("{PATH}?{query}") };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nauthorization: Bearer none\r\n\
             user-agent: bench\r\naccept: */*\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        // A prompt is new in every run of the process.
        let first = Instant::now().elapsed().subsec_nanos().into();
        Shape { head, body, serial_at, path, numbers: Arc::new(AtomicU64::new(first)) }
    }

    /// A request of HTTP/1.1, bytes on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.head.len() + self.body.len());
        bytes.extend_from_slice(self.head.as_bytes());
        bytes.extend_from_slice(self.body.as_bytes());
        bytes
    }

    /// Gives the request another number.
    pub(crate) fn renumber(&self, request: &mut [u8]) {
        let at = request.len() - self.body.len() + self.serial_at;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        // Digits that differ early: no two prompts share the block they stand in.
        let digits = format!("{:016x}", crate::trace::mix(number));
        request[at..at + SERIAL_DIGITS].copy_from_slice(digits.as_bytes());
    }
}

/// Words, now and then with what JSON escapes.
fn prose(bytes: usize) -> String {
    const WORDS: [&str; 16] = [
        "track", "signal", "the", "points", "of", "a", "railway", "train", "which", "and", "lever", "set",
        "route", "to", "station", "yard",
    ];
    let mut text = String::with_capacity(bytes + 16);
    let mut number = 0;
    while text.len() < bytes {
        number += 1;
        let chance = crate::trace::mix(number);
        text.push_str(WORDS[chance as usize % WORDS.len()]);
        text.push_str(if (chance >> 8).is_multiple_of(12) { ".\\n" } else { " " });
    }
    // Spaces end what would be cut in the middle of an escape.
    text.truncate(bytes.saturating_sub(3));
    if text.ends_with('\\') {
        text.pop();
    }
    while text.len() < bytes {
        text.push(' ');
    }
    text
}

/// How requests ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// With status 200 and a whole answer.
    pub(crate) served: u64,
    /// Otherwise.
    pub(crate) failed: u64,
    /// From the first byte sent to the last received, in microseconds; of those served.
    pub(crate) micros: Vec<u32>,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Counts) {
        self.served += other.served;
        self.failed += other.failed;
        self.micros.extend(other.micros);
    }

    /// The latency, in milliseconds, that this share of those served stays below; 0 where none was served.
    pub(crate) fn percentile_ms(&mut self, share: f64) -> f64 {
        self.micros.sort_unstable();
        let last = self.micros.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.micros.get(at).map_or(0.0, |micros| f64::from(*micros) / 1e3)
    }
}

/// Asks over `connections` for so long, each again as soon as it has its answer.
pub(crate) async fn closed_loop(to: SocketAddr, shape: &Shape, connections: usize, run: Duration) -> Counts {
    let until = Instant::now() + run;
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let shape = shape.clone();
        clients.spawn(async move { ask_again_and_again(to, &shape, until).await });
    }
    sum(clients).await
}

async fn sum(mut clients: JoinSet<Counts>) -> Counts {
    let mut counts = Counts::default();
    while let Some(client) = clients.join_next().await {
        counts.add(client.unwrap_or_default());
    }
    counts
}

async fn ask_again_and_again(to: SocketAddr, shape: &Shape, until: Instant) -> Counts {
    let mut counts = Counts::default();
    let mut kept = None;
    let mut request = shape.bytes();
    let mut buffer = Vec::with_capacity(64 << 10);
    while Instant::now() < until {
        shape.renumber(&mut request);
        let begin = Instant::now();
        let asked = async {
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => connect(to).await?,
            };
            ask(&mut stream, &request, &mut buffer).await?;
            anyhow::Ok(stream)
        };
        match asked.await {
            Ok(stream) => {
                counts.served += 1;
                counts.micros.push(begin.elapsed().as_micros() as u32);
                kept = Some(stream);
            }
            Err(_) => counts.failed += 1,
        }
    }
    counts
}

pub(crate) async fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request and reads the whole answer.
///
/// # Errors
/// Another status than 200, or an answer that is not whole.
pub(crate) async fn ask(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> anyhow::Result<()> {
    stream.write_all(request).await?;
    buffer.clear();
    let mut whole = None;
    loop {
        ensure!(stream.read_buf(buffer).await? > 0, "the connection ended before the answer");
        let end = match whole {
            Some(end) => end,
            None => match end_of(buffer)? {
                Some(end) => *whole.insert(end),
                None => continue,
            },
        };
        match end {
            End::At(bytes) if buffer.len() >= bytes => return Ok(()),
            End::LastChunk if buffer.ends_with(b"0\r\n\r\n") => return Ok(()),
            _ => {}
        }
    }
}

/// Where an answer ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// After so many bytes, head included.
    At(usize),
    /// After the last chunk.
    LastChunk,
}

/// Where the answer that begins in `buffer` ends; `None` while its head is not whole.
///
/// # Errors
/// Another status than 200, or a head that says no length.
pub(super) fn end_of(buffer: &[u8]) -> anyhow::Result<Option<End>> {
    let Some(head_bytes) = memmem::find(buffer, b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..head_bytes])?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{}", head.lines().next().unwrap_or_default());
    if let Some(length) = header(head, "content-length") {
        return Ok(Some(End::At(head_bytes + length.parse::<usize>()?)));
    }
    match header(head, "transfer-encoding") {
        Some(_) => Ok(Some(End::LastChunk)),
        None => bail!("an answer without a length"),
    }
}

/// [`closed_loop`] over HTTP/2: `streams` at once on each of `connections`.
pub(crate) async fn closed_loop_http2(
    to: SocketAddr,
    shape: &Shape,
    connections: usize,
    streams: usize,
    run: Duration,
) -> anyhow::Result<Counts> {
    let until = Instant::now() + run;
    let (mut clients, mut drivers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..connections {
        let io = TokioIo::new(connect(to).await?);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.context("HTTP/2")?;
        drivers.spawn(connection);
        for _ in 0..streams {
            let (mut sender, shape) = (sender.clone(), shape.clone());
            clients.spawn(async move {
                let mut counts = Counts::default();
                let mut body = shape.body.clone().into_bytes();
                while Instant::now() < until {
                    shape.renumber(&mut body);
                    let begin = Instant::now();
                    match ask_http2(&mut sender, &shape, &body).await {
                        Ok(()) => {
                            counts.served += 1;
                            counts.micros.push(begin.elapsed().as_micros() as u32);
                        }
                        Err(_) => counts.failed += 1,
                    }
                }
                counts
            });
        }
    }
    Ok(sum(clients).await)
}

async fn ask_http2(
    sender: &mut hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    shape: &Shape,
    body: &[u8],
) -> anyhow::Result<()> {
    let request = http::Request::post(format!("http://bench{}", shape.path))
        .header("content-type", "application/json")
        .header("authorization", "Bearer none")
        .header("user-agent", "bench")
        .body(Full::new(Bytes::copy_from_slice(body)))?;
    let answer = sender.send_request(request).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    answer.into_body().collect().await?;
    Ok(())
}
