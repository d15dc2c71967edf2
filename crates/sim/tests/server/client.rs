//! A client of a few lines, so that what is on the wire can be seen byte by byte.

use std::{io, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An answer, as far as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether the body came to its end.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }

    /// The data of the events of a stream.
    pub(crate) fn events(&self) -> Vec<&str> {
        assert!(self.body.ends_with("\n\n"), "an event is cut off: {}", self.body);
        self.body
            .trim_end()
            .split("\n\n")
            .map(|event| {
                event.lines().find_map(|line| line.strip_prefix("data: ")).expect("every event has data")
            })
            .collect()
    }
}

pub(crate) async fn get(addr: SocketAddr, path: &str) -> Answer {
    send(addr, &format!("GET {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n")).await.unwrap()
}

pub(crate) async fn post(addr: SocketAddr, path: &str, body: &Value) -> Answer {
    try_post(addr, path, &body.to_string()).await.unwrap()
}

pub(crate) async fn try_post(addr: SocketAddr, path: &str, body: &str) -> io::Result<Answer> {
    send(addr, &post_text(path, body)).await
}

pub(crate) fn post_text(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Sends one request and reads until the connection closes.
pub(crate) async fn send(addr: SocketAddr, request: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    // A connection that is reset has ended as well.
    let _ = stream.read_to_end(&mut bytes).await;
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").expect("a header has a value"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: String::new(), complete: false };
    let body = &bytes[end + 4..];
    let (body, complete) = match answer.header("content-length") {
        Some(length) => (body.to_vec(), body.len() == length.parse::<usize>().unwrap()),
        None => unchunked(body),
    };
    (answer.body, answer.complete) = (String::from_utf8(body).unwrap(), complete);
    Some(answer)
}

/// The content of a chunked body, and whether its last chunk came.
fn unchunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(line) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        let chunk = &rest[line + 2..];
        if size == 0 || chunk.len() < size + 2 {
            return (body, size == 0);
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &chunk[size + 2..];
    }
    (body, false)
}

/// Reads from an open connection until `text` has come.
pub(crate) async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains(text) {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.unwrap();
        assert!(count > 0, "the connection ended before `{text}`: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..count]);
    }
    String::from_utf8(bytes).unwrap()
}
