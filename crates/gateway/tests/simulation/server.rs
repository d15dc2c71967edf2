//! Model servers: what they may do to a request, from answering it to hanging for ever, and what they check of it.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use turmoil::net::TcpStream;
use turmoil::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::draw::Draw;
use crate::history::History;
use crate::http1::{Event, Head, Role};
use crate::plan::{Temper, filler};
use crate::tap::PORT;
use crate::wire::Wire;

/// No server waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Less than the gateway lets a model server rest in its answer.
const REST_MS_MAX: usize = 700;

/// A model server.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) number: usize,
    pub(crate) temper: Temper,
    pub(crate) http2: bool,
    pub(crate) draw: Draw,
    pub(crate) history: History,
}

/// What a server does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Answer,
    Status(u16),
    /// Answers before it has read the body; then reads on, or closes.
    Early {
        reads_on: bool,
    },
    /// Closes with the body unread: a reset where there is one.
    Drop,
    /// Reads the request and closes.
    CloseSilently,
    /// Sends the head of an answer and closes.
    HeadAlone,
    /// Closes in the middle of the answer.
    BreakOff,
    /// Rests for ever: before the answer, or in the middle of it.
    Hang {
        midway: bool,
    },
    /// Sends what is no HTTP.
    Babble,
}

/// How an answer is sent.
pub(crate) struct Shape {
    pub(crate) events: bool,
    pub(crate) framing: Framing,
    /// Parts of the body; each goes at once.
    pub(crate) parts: Vec<Vec<u8>>,
    pub(crate) pause: Duration,
    pub(crate) before: Duration,
    interim: bool,
    after: After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
    UntilClose,
}

/// What becomes of the connection after a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Keep,
    SayClose,
    /// Closes without having said so, after a while.
    Close(Duration),
    /// Closes its own direction alone.
    HalfClose,
}

/// One connection at a server.
struct Connection {
    server: Server,
    wire: Wire<OwnedReadHalf>,
    out: OwnedWriteHalf,
}

impl Server {
    /// Serves for ever.
    pub(crate) async fn run(self) -> turmoil::Result {
        let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
        let connections = TaskTracker::new();
        loop {
            let (stream, _) = listener.accept().await?;
            if self.http2 {
                connections.spawn(self.clone().serve_streams(stream));
            } else {
                connections.spawn(Connection::new(self.clone(), stream).serve());
            }
        }
    }

    pub(crate) fn act(&self, draw: &mut Draw) -> Act {
        let bad = |draw: &mut Draw| {
            draw.weighted(&[
                (2, Act::Status(503)),
                (2, Act::Status(502)),
                (2, Act::Status(500)),
                (1, Act::Status(404)),
                (1, Act::Early { reads_on: true }),
                (1, Act::Early { reads_on: false }),
                (2, Act::Drop),
                (2, Act::CloseSilently),
                (2, Act::HeadAlone),
                (4, Act::BreakOff),
                (1, Act::Hang { midway: false }),
                (2, Act::Hang { midway: true }),
                (1, Act::Babble),
            ])
        };
        match self.temper {
            Temper::Flaky if draw.in_hundred(40) => bad(draw),
            Temper::Sound | Temper::Flaky => Act::Answer,
            Temper::Bad => draw.weighted(&[(2, Act::Drop), (2, Act::Status(503)), (1, Act::CloseSilently)]),
        }
    }

    pub(crate) fn tell(&self, tag: &str, what: &str) {
        self.history.tell(&format!("server {}", self.number), format!("{tag} {what}"));
    }

    pub(crate) fn check_head(&self, tag: &str, head: &Head) {
        let record = self.history.lock();
        let sound =
            record.intents.get(tag).is_some_and(|(path, _)| head.line == format!("POST {path} HTTP/1.1"))
                && head.fields.iter().filter(|(name, _)| name == "x-request-id").count() == 1
                && !head.fields.iter().any(|(name, _)| name == "expect" || name == "connection");
        drop(record);
        if !sound {
            self.history.violated(format!("server {} got a strange head: {head:?}", self.number));
        }
    }

    /// A body must be what the tag's client means to send, up to where it ends.
    pub(crate) fn check_body(&self, tag: &str, body: &[u8], whole: bool) {
        let record = self.history.lock();
        let sound = record
            .intents
            .get(tag)
            .is_some_and(|(_, meant)| if whole { meant == body } else { meant.starts_with(body) });
        drop(record);
        if !sound {
            self.history.violated(format!("server {} got another body under {tag}", self.number));
        }
    }
}

impl Connection {
    fn new(server: Server, stream: TcpStream) -> Connection {
        let mut draw = server.draw.of(&format!("{:?}", stream.peer_addr().map(|peer| peer.port())));
        let slow = (server.temper == Temper::Flaky && draw.in_hundred(20))
            .then(|| (draw.between(500, 4000), draw.ms(1, 20)));
        let (read, out) = stream.into_split();
        Connection { server, wire: Wire::new(read, Role::Requests, slow), out }
    }

    async fn serve(mut self) {
        while let Ok(Ok(Event::Head(head))) = timeout(PATIENCE, self.wire.next()).await {
            if self.exchange(&head).await.is_none() {
                return;
            }
        }
    }

    /// One request; `None` when the connection is over.
    async fn exchange(&mut self, head: &Head) -> Option<()> {
        let tag = head.field("x-request-id").unwrap_or("none").to_owned();
        let (arrival, before) = self.server.history.arrived(self.server.number, &tag);
        let mut draw = self.server.draw.of(&format!("{tag} {before}"));
        let act = self.server.act(&mut draw);
        self.server.tell(&tag, &format!("{act:?}"));
        self.server.check_head(&tag, head);
        if act == Act::Drop {
            return None;
        }
        if let Act::Early { reads_on } = act {
            self.status(&tag, arrival, 413).await?;
            sleep(draw.ms(0, 30)).await;
            return if reads_on { self.read_body(&tag).await } else { None };
        }
        self.read_body(&tag).await?;
        match act {
            Act::Answer => self.answer(&tag, arrival, &mut draw, None).await,
            Act::Status(status) => {
                self.status(&tag, arrival, status).await?;
                self.server.history.lock().arrivals[arrival].sound = true;
                Some(())
            }
            Act::HeadAlone => {
                let shape = draw_shape(&tag, &mut draw, true);
                self.say(&answer_head(&shape, arrival, &tag)).await?;
                sleep(draw.ms(0, 100)).await;
                None
            }
            Act::BreakOff | Act::Hang { midway: true } => {
                let share = draw.between(1, 99);
                self.answer(&tag, arrival, &mut draw, Some(share)).await?;
                self.hang_if(act != Act::BreakOff).await
            }
            Act::Hang { midway: false } => self.hang_if(true).await,
            Act::Babble => self.say(b"SSH-2.0-OpenSSH_9.9\r\n\r\n").await.and(None),
            Act::CloseSilently | Act::Drop | Act::Early { .. } => None,
        }
    }

    /// Sends the answer, or a share (in hundredths) of its parts.
    async fn answer(
        &mut self,
        tag: &str,
        arrival: usize,
        draw: &mut Draw,
        share: Option<usize>,
    ) -> Option<()> {
        let shape = draw_shape(tag, draw, share.is_some());
        {
            let mut record = self.server.history.lock();
            record.arrivals[arrival].answer = shape.parts.concat();
            record.arrivals[arrival].events = shape.events;
            record.arrivals[arrival].until_close = shape.framing == Framing::UntilClose;
        }
        sleep(shape.before).await;
        if shape.interim {
            self.say(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut unsent = answer_head(&shape, arrival, tag);
        let sent = share.map_or(shape.parts.len(), |share| (shape.parts.len() * share).div_ceil(100));
        for part in &shape.parts[..sent] {
            match shape.framing {
                Framing::Chunked => {
                    unsent.extend(format!("{:x}\r\n", part.len()).into_bytes());
                    unsent.extend(part);
                    unsent.extend(b"\r\n");
                }
                Framing::Length | Framing::UntilClose => unsent.extend(part),
            }
            self.say(&std::mem::take(&mut unsent)).await?;
            sleep(shape.pause).await;
        }
        if share.is_some() {
            return Some(());
        }
        if shape.framing == Framing::Chunked {
            unsent.extend(b"0\r\n\r\n");
        }
        self.say(&unsent).await?;
        self.server.history.lock().arrivals[arrival].sound = true;
        self.server.tell(tag, &format!("answered, {:?}, {:?}", shape.framing, shape.after));
        match shape.after {
            _ if shape.framing == Framing::UntilClose => None,
            After::Keep => Some(()),
            After::SayClose => None,
            After::Close(after) => {
                sleep(after).await;
                self.server.history.lock().silent_closes += 1;
                None
            }
            After::HalfClose => {
                let _ = self.out.shutdown().await;
                self.server.history.lock().silent_closes += 1;
                self.hang_if(true).await
            }
        }
    }

    /// A small answer of that status.
    async fn status(&mut self, tag: &str, arrival: usize, status: u16) -> Option<()> {
        let text = format!(r#"{{"error":"{status} of {tag}"}}"#);
        let head = format!(
            "HTTP/1.1 {status} As Planned\r\nx-tag: {tag}\r\nx-arrival: {arrival}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        self.server.history.lock().arrivals[arrival].answer = text.into_bytes();
        self.say(head.as_bytes()).await
    }

    async fn say(&mut self, bytes: &[u8]) -> Option<()> {
        timeout(PATIENCE, self.out.write_all(bytes)).await.ok()?.ok()
    }

    /// Reads until the other side closes, if that is wanted.
    async fn hang_if(&mut self, wanted: bool) -> Option<()> {
        if wanted {
            let _ = timeout(PATIENCE, async { while self.wire.next().await.is_ok() {} }).await;
        }
        None
    }

    /// Reads the body; it must be what the tag's client means to send, up to where it ends.
    async fn read_body(&mut self, tag: &str) -> Option<()> {
        let mut body = Vec::new();
        let mut whole = false;
        while let Ok(Ok(event)) = timeout(PATIENCE, self.wire.next()).await {
            match event {
                Event::Body(bytes) => body.extend(bytes),
                Event::End => {
                    whole = true;
                    break;
                }
                Event::Head(_) => break,
            }
        }
        self.server.check_body(tag, &body, whole);
        whole.then_some(())
    }
}

/// Draws how a request is answered; what will `break` says by its framing where it ends.
pub(crate) fn draw_shape(tag: &str, draw: &mut Draw, breaks: bool) -> Shape {
    let events = draw.in_hundred(60);
    let mut framings = vec![(3, Framing::Chunked), (2, Framing::Length), (1, Framing::UntilClose)];
    framings.truncate(if breaks { 2 } else { 3 });
    let parts: Vec<Vec<u8>> = if events {
        let count = draw.weighted(&[(3, 5), (2, 40), (1, 200)]);
        let event = |number| format!("data: {{\"id\":\"{tag}\",\"number\":{number}}}\n\n").into_bytes();
        (0..count).map(event).chain([b"data: [DONE]\n\n".to_vec()]).collect()
    } else {
        let bytes = draw.weighted(&[(4, 50), (2, 5_000), (1, 300_000)]);
        let text = format!(r#"{{"id":"{tag}","text":"{}"}}"#, filler(tag, bytes)).into_bytes();
        let part_bytes = draw.weighted(&[(2, text.len()), (2, text.len() / 7 + 1), (1, text.len() / 90 + 1)]);
        text.chunks(part_bytes).map(<[u8]>::to_vec).collect()
    };
    let parts = if events { recut(&parts, draw) } else { parts };
    let closes_after = draw.ms(0, 200);
    Shape {
        events,
        framing: draw.weighted(&framings),
        pause: Duration::from_millis(draw.below(1 + REST_MS_MAX.min(2 * REST_MS_MAX / parts.len())) as u64),
        parts,
        before: draw.ms(0, 400),
        interim: draw.in_hundred(5),
        after: draw.weighted(&[
            (6, After::Keep),
            (1, After::SayClose),
            (2, After::Close(closes_after)),
            (1, After::HalfClose),
        ]),
    }
}

/// Events seldom come one to a segment: the same bytes, cut anywhere.
fn recut(parts: &[Vec<u8>], draw: &mut Draw) -> Vec<Vec<u8>> {
    if draw.in_hundred(50) {
        return parts.to_vec();
    }
    let bytes = draw.between(3, 120);
    parts.concat().chunks(bytes).map(<[u8]>::to_vec).collect()
}

fn answer_head(shape: &Shape, arrival: usize, tag: &str) -> Vec<u8> {
    let kind = if shape.events { "text/event-stream" } else { "application/json" };
    let framing = match shape.framing {
        Framing::Length => format!("content-length: {}\r\n", shape.parts.concat().len()),
        Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
        Framing::UntilClose => String::new(),
    };
    let close = if shape.after == After::SayClose { "connection: close\r\n" } else { "" };
    format!(
        "HTTP/1.1 200 OK\r\nx-tag: {tag}\r\nx-arrival: {arrival}\r\ncontent-type: {kind}\r\n{framing}{close}\r\n"
    )
    .into_bytes()
}
