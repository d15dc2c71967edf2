//! A server on loopback that answers as it is told, raw bytes and all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// What is answered to a path.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// 200 with this body.
    Page(String),
    /// The same, and the connection is closed without a word about it.
    PageThenClose(String),
    /// Bytes as they are, then nothing more.
    Raw(String),
    /// 200, and a body that never ends.
    Endless,
    /// Nothing for ever.
    Hang,
    /// The answer of `Page`, a byte each 20 ms.
    Trickle(String),
}

/// Serves until dropped.
pub(super) struct Server {
    pub(super) port: u16,
    state: Arc<State>,
    _stop: DropGuard,
}

#[derive(Default)]
struct State {
    answers: Mutex<HashMap<String, Answer>>,
    requests: Mutex<HashMap<String, usize>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    body_bytes: AtomicUsize,
}

impl Server {
    pub(super) async fn start(answers: &[(&str, Answer)]) -> Self {
        Self::start_with(answers, None).await
    }

    pub(super) async fn start_with(answers: &[(&str, Answer)], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (state, stop, tracker) =
            (Arc::new(State::default()), CancellationToken::new(), TaskTracker::new());
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            state: Arc::clone(&state),
            _stop: stop.clone().drop_guard(),
        };
        for (path, answer) in answers {
            server.answer(path, answer.clone());
        }
        let connections = tracker.clone();
        let ended = stop.clone();
        let accept = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, tls) = (Arc::clone(&state), tls.clone());
                state.connections.fetch_add(1, Ordering::SeqCst);
                state.open.fetch_add(1, Ordering::SeqCst);
                let serve = async move {
                    let served = match tls {
                        None => serve(stream, &state).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &state).await,
                            Err(error) => Err(error),
                        },
                    };
                    state.open.fetch_sub(1, Ordering::SeqCst);
                    served
                };
                connections.spawn(ended.clone().run_until_cancelled_owned(serve));
            }
        };
        tracker.spawn(stop.run_until_cancelled_owned(accept));
        server
    }

    pub(super) fn answer(&self, path: &str, answer: Answer) {
        self.state.answers.lock().insert(path.to_owned(), answer);
    }

    pub(super) fn requests(&self, path: &str) -> usize {
        self.state.requests.lock().get(path).copied().unwrap_or(0)
    }

    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Connections that the client has not closed.
    pub(super) fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Bytes written of endless bodies.
    pub(super) fn body_bytes(&self) -> usize {
        self.state.body_bytes.load(Ordering::SeqCst)
    }
}

pub(super) fn with_length(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) -> std::io::Result<()> {
    while let Some(path) = read_request(&mut stream).await? {
        *state.requests.lock().entry(path.clone()).or_default() += 1;
        let answer = state.answers.lock().get(&path).cloned();
        match answer {
            None => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?,
            Some(Answer::Page(body)) => stream.write_all(with_length(&body).as_bytes()).await?,
            Some(Answer::PageThenClose(body)) => {
                stream.write_all(with_length(&body).as_bytes()).await?;
                return stream.shutdown().await;
            }
            Some(Answer::Raw(bytes)) => {
                stream.write_all(bytes.as_bytes()).await?;
                return stream.shutdown().await;
            }
            Some(Answer::Endless) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                let lines = "vllm:num_requests_waiting 0\n".repeat(1000);
                loop {
                    stream.write_all(lines.as_bytes()).await?;
                    state.body_bytes.fetch_add(lines.len(), Ordering::SeqCst);
                }
            }
            Some(Answer::Hang) => drop(stream.read(&mut [0]).await?),
            Some(Answer::Trickle(body)) => {
                for byte in with_length(&body).into_bytes() {
                    stream.write_all(&[byte]).await?;
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
        }
    }
    Ok(())
}

/// The path of the next request; none once the client is done.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("GET ") && head.to_ascii_lowercase().contains("\r\nhost: "), "{head}");
    Ok(head.split(' ').nth(1).map(str::to_owned))
}
