//! The model servers behind the gateways: HTTP/1.1 by hand and constant answers, so that they cost little beside what is
//! measured. They run in a process of their own.
//!
//! What a request's query asks for: nothing, one whole JSON answer; `chunks=N`, that many events of a stream, each
//! written by itself [`CHUNK_EVERY`] after the one before; `hold`, one event and then silence until the client goes away.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::TaskTracker;

use crate::report::line;

/// Between two events of a stream: long enough that a gateway meets each by itself.
pub(crate) const CHUNK_EVERY: Duration = Duration::from_millis(2);
const READ_BYTES: usize = 64 << 10;

/// As captured from a real vLLM 0.32 under load.
const METRICS: &str = include_str!("../../../tests/data/vllm-0.32-metrics.txt");
const MODELS: &str = r#"{"object":"list","data":[{"id":"tiny","object":"model","created":1,"owned_by":"vllm","root":"tiny"}]}"#;
const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"The one on the left."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"total_tokens":256,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":128}}}"#;
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" left\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// Serves one address for each of `latencies_ms` (milliseconds to the answer, comma separated), tells them on stdout
/// in that order, and ends with stdin.
pub(crate) fn run(latencies_ms: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tracker = TaskTracker::new();
    let served = runtime.block_on(async {
        let mut addresses = Vec::new();
        for latency_ms in latencies_ms.split(',') {
            let latency = Duration::from_millis(latency_ms.parse().context("a latency in milliseconds")?);
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?.to_string());
            let connections = tracker.clone();
            tracker.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    // A connection ends as its client likes: nothing to tell.
                    connections.spawn(async move { serve(stream, latency).await.ok() });
                }
            });
        }
        anyhow::Ok(addresses.join(","))
    })?;
    line(&served)?;
    std::io::stdout().flush()?;
    runtime.block_on(async {
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await
    })??;
    Ok(())
}

/// Answers request after request.
async fn serve(mut stream: TcpStream, latency: Duration) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let whole = |content_type: &str, body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = whole("application/json", ANSWER);
    let mut buffer = Vec::with_capacity(READ_BYTES);
    while let Some(request) = read_request(&mut stream, &mut buffer).await? {
        match request {
            Request::Metrics => {
                stream.write_all(whole("text/plain; version=0.0.4", METRICS).as_bytes()).await?;
            }
            Request::Models => stream.write_all(whole("application/json", MODELS).as_bytes()).await?,
            Request::Whole => {
                if !latency.is_zero() {
                    sleep(latency).await;
                }
                stream.write_all(answer.as_bytes()).await?;
            }
            Request::Chunks(count) => stream_events(&mut stream, count).await?,
            Request::Hold => {
                stream.write_all(format!("{STREAM_HEAD}{}", chunk(EVENT)).as_bytes()).await?;
                while stream.read(&mut [0; 16]).await? > 0 {}
            }
        }
    }
    Ok(())
}

async fn stream_events(stream: &mut TcpStream, count: usize) -> anyhow::Result<()> {
    let event = chunk(EVENT);
    stream.write_all(STREAM_HEAD.as_bytes()).await?;
    let mut turns = interval(CHUNK_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 1..count {
        turns.tick().await;
        stream.write_all(event.as_bytes()).await?;
    }
    turns.tick().await;
    stream.write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes()).await?;
    Ok(())
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

enum Request {
    Metrics,
    Models,
    Whole,
    Chunks(usize),
    Hold,
}

/// Reads one request with its body; `None` at the connection's end. Clients here never send the next request before
/// they have the answer.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<Option<Request>> {
    buffer.clear();
    let head_bytes = loop {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        if let Some(end) = memmem::find(buffer, b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = std::str::from_utf8(&buffer[..head_bytes])?;
    let request = asked(head);
    match header(head, "content-length") {
        Some(length) => {
            let mut missing = (head_bytes + length.parse::<usize>()?).saturating_sub(buffer.len());
            while missing > 0 {
                buffer.clear();
                match stream.read_buf(buffer).await? {
                    0 => return Ok(None),
                    read => missing = missing.saturating_sub(read),
                }
            }
        }
        None if header(head, "transfer-encoding").is_some() => {
            while !buffer.ends_with(b"0\r\n\r\n") {
                if stream.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
            }
        }
        None => {}
    }
    Ok(Some(request))
}

fn asked(head: &str) -> Request {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    if target.starts_with("/metrics") {
        Request::Metrics
    } else if target.starts_with("/v1/models") {
        Request::Models
    } else if query == "hold" {
        Request::Hold
    } else if let Some(count) = query.strip_prefix("chunks=") {
        Request::Chunks(count.parse().unwrap_or(1))
    } else {
        Request::Whole
    }
}

/// The value of a header; `name` in lower case.
pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").skip(1).find_map(|row| {
        let (there, value) = row.split_once(':')?;
        there.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
