//! The gateway's ends of all connections, with what goes through read along: who asked, what was answered, what was sent
//! on, and in which order.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use gateway::{ClientStream, Dial, Listen, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use turmoil::net::{TcpListener, TcpStream};

use crate::history::{History, Written};
use crate::http1::{Event, Head, Reader, Role};
use crate::plan::ENDPOINT_PORT;

/// Where the gateway and the servers listen.
pub(crate) const PORT: u16 = 80;
/// The most that one segment carries.
const SEGMENT_BYTES: usize = 4096;
/// A server that takes nothing for so long is given up: what the kernel does by `TCP_USER_TIMEOUT`.
const UNTAKEN_MAX: Duration = Duration::from_secs(2);

/// A listener for the gateway.
pub(crate) struct Tapped {
    pub(crate) listener: TcpListener,
    pub(crate) history: History,
}

/// A stream of the gateway's.
pub(crate) struct Tap {
    stream: TcpStream,
    history: History,
    side: Side,
    /// A broken connection takes nothing any more.
    broken: bool,
    untaken: Option<Pin<Box<Sleep>>>,
}

enum Side {
    Client {
        door: usize,
        asked: Option<Reader>,
        answered: Option<Reader>,
    },
    /// HTTP/2 is left to its servers.
    Server {
        asked: Option<Reader>,
    },
}

/// Connections to the servers, each by its port.
pub(crate) fn dial(history: &History) -> Dial {
    let history = history.clone();
    Arc::new(move |uri| {
        let history = history.clone();
        Box::pin(async move {
            let server = uri.port_u16().unwrap_or_default() - ENDPOINT_PORT;
            let stream = TcpStream::connect((format!("server-{server}"), PORT)).await?;
            history.lock().upstream_open += 1;
            let side = Side::Server { asked: Some(Reader::new(Role::Requests)) };
            Ok(Box::new(Tap { stream, history, side, broken: false, untaken: None }) as Box<dyn Stream>)
        })
    })
}

impl ClientStream for Tap {
    fn socket(&self) -> Option<&tokio::net::TcpStream> {
        None
    }
}

impl Listen for Tapped {
    type Stream = Tap;

    async fn accept(&mut self) -> io::Result<(Tap, SocketAddr)> {
        let (stream, peer) = self.listener.accept().await?;
        let history = self.history.clone();
        let side = Side::Client {
            door: history.door_opened(),
            asked: Some(Reader::new(Role::Requests)),
            answered: Some(Reader::new(Role::Answers)),
        };
        Ok((Tap { stream, history, side, broken: false, untaken: None }, peer))
    }
}

impl Tap {
    fn heard(&mut self, bytes: &[u8]) {
        let Side::Client { door, asked, answered } = &mut self.side else { return };
        let Some(reader) = asked else { return };
        if reader.is_between() && bytes.starts_with(b"PRI") {
            // HTTP/2 is left to its clients.
            (*asked, *answered) = (None, None);
            return;
        }
        let Ok(events) = reader.push(bytes) else {
            // What a client garbles is read no further.
            *asked = None;
            return;
        };
        for event in events {
            if let Event::Head(head) = event {
                let tag = tag(&head);
                self.history.lock().doors[*door].heads.push(tag);
            }
        }
    }

    fn said(&mut self, bytes: &[u8]) {
        let read = match &mut self.side {
            Side::Client { answered: None, .. } => Ok(()),
            Side::Client { door, answered: Some(reader), .. } => {
                reader.push(bytes).map(|events| note_answers(&self.history, *door, events))
            }
            Side::Server { asked } if bytes.starts_with(b"PRI") => {
                *asked = None;
                Ok(())
            }
            Side::Server { asked: None } => Ok(()),
            Side::Server { asked: Some(reader) } => reader.push(bytes).map(|events| {
                for event in events {
                    if let Event::Head(head) = event {
                        self.history.sends_on(&tag(&head));
                    }
                }
            }),
        };
        if let Err(what) = read {
            self.history.violated(format!("the gateway wrote what is no HTTP: {what}"));
        }
    }

    /// Resolves when the other side has taken nothing for too long.
    fn poll_untaken(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Side::Server { .. } = self.side else { return Poll::Pending };
        let timer = self.untaken.get_or_insert_with(|| Box::pin(sleep(UNTAKEN_MAX)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

fn tag(head: &Head) -> String {
    head.field("x-request-id").unwrap_or("none").to_owned()
}

fn note_answers(history: &History, door: usize, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Head(head) if head.status() < 200 => {}
            Event::Head(head) => {
                let written = Written {
                    tag: head.field("x-request-id").map(str::to_owned),
                    status: head.status(),
                    reason: head.field("x-pointsman-reason").map(str::to_owned),
                    whole: false,
                };
                history.lock().doors[door].answers.push(written);
            }
            Event::Body(bytes) => {
                let tag = history.lock().doors[door].answers.last().and_then(|answer| answer.tag.clone());
                history.passes_on(&tag.unwrap_or_default(), bytes.len());
            }
            Event::End => {
                if let Some(answer) = history.lock().doors[door].answers.last_mut() {
                    answer.whole = true;
                }
            }
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let mut record = self.history.lock();
        match self.side {
            Side::Client { door, .. } => record.doors[door].closed = true,
            Side::Server { .. } => record.upstream_open -= 1,
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.broken |= read.is_err();
        let new = buffer.filled()[before..].to_vec();
        self.heard(&new);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let segment = &bytes[..bytes.len().min(SEGMENT_BYTES)];
        match Pin::new(&mut self.stream).poll_write(context, segment) {
            Poll::Ready(written) => {
                self.untaken = None;
                if let Ok(count) = written {
                    self.said(&segment[..count]);
                }
                Poll::Ready(written)
            }
            Poll::Pending => self.poll_untaken(context).map(Err),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
