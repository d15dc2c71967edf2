//! Clients: what they send, when they hang up, how they read, and what they check of the answers.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use turmoil::net::TcpStream;
use turmoil::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::history::{Got, History, Outcome, Stayed};
use crate::http1::{Role, chunked};
use crate::plan::{Asking, Client, Quit, Reading};
use crate::tap::PORT;
use crate::wire::Wire;

/// How long a client waits for an answer that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// Longer than any client may rest in its body.
pub(crate) const STALL: Duration = Duration::from_secs(3);
/// Sooner than any timeout closes a connection that rests.
const SOON: Duration = Duration::from_millis(1500);
/// No history is so long.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(3600);

/// A client at work.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) number: usize,
    pub(crate) plan: Client,
    pub(crate) history: History,
}

struct Connection {
    wire: Wire<OwnedReadHalf>,
    out: OwnedWriteHalf,
    last_used: Option<Instant>,
}

/// What became of one request.
enum End {
    /// Another request may follow on the connection.
    Answered,
    /// The connection is over, with an answer or without.
    Last,
    /// The client hung up.
    Quit,
}

impl Asker {
    /// Asks all there is to ask.
    pub(crate) async fn run(self, tasks: TaskTracker) {
        sleep(self.plan.begins).await;
        if self.plan.http2 {
            self.ask_on_streams(&tasks).await;
        } else if self.plan.reading == Reading::Never {
            self.ask_and_never_read().await;
        } else if self.plan.pipelined {
            self.ask_all_at_once().await;
        } else {
            self.ask_one_by_one().await;
        }
        self.history.lock().busy -= 1;
        self.tell("done");
    }

    async fn ask_one_by_one(&self) {
        let mut kept: Option<Connection> = None;
        for (asked, asking) in self.plan.requests.iter().enumerate() {
            sleep(asking.pause_before).await;
            if let Some(connection) = &mut kept
                && timeout(Duration::ZERO, connection.wire.next()).await.is_ok()
            {
                let rested = connection.last_used.map(|at| at.elapsed());
                self.tell(&format!("{}: closed before it, rested {rested:?}", asking.tag));
                let soon = self.plan.reading == Reading::Fast && rested.is_some_and(|rested| rested < SOON);
                let mut record = self.history.lock();
                let mine = record.outcomes.iter_mut().rfind(|outcome| outcome.client == self.number);
                mine.into_iter().for_each(|outcome| outcome.closed_soon = soon);
                drop(record);
                kept = None;
            }
            let connection = match kept.take() {
                Some(connection) => Some(connection),
                None => self.connect().await,
            };
            let Some(mut connection) = connection else { return };
            // Who reads slowly cannot know how long the gateway has been done.
            let slowly = self.plan.reading != Reading::Fast;
            let rested = connection.last_used.map(|at| if slowly { FOR_EVER } else { at.elapsed() });
            let mut got = None;
            let end = timeout(PATIENCE, ask(asking, &mut connection, &mut got)).await;
            let stayed = match &end {
                Ok(End::Quit) => Stayed::No,
                Ok(End::Answered | End::Last) => Stayed::ToTheEnd,
                Err(_) => Stayed::InVain,
            };
            self.remember(asked, stayed, rested, got);
            if matches!(end, Ok(End::Answered)) && !asking.closes {
                connection.last_used = Some(Instant::now());
                kept = Some(connection);
            }
        }
    }

    async fn ask_all_at_once(&self) {
        let Some(mut connection) = self.connect().await else { return };
        let all: Vec<u8> =
            self.plan.requests.iter().flat_map(|asking| [head(asking), body(asking)].concat()).collect();
        let mut sending = std::pin::pin!(connection.out.write_all(&all));
        let mut sent = false;
        for (asked, asking) in self.plan.requests.iter().enumerate() {
            let mut got = None;
            let receiving = async {
                let mut receiving = std::pin::pin!(connection.wire.message(&mut got, usize::MAX));
                loop {
                    tokio::select! {
                        biased;
                        over = &mut receiving => return over,
                        _ = &mut sending, if !sent => sent = true,
                    }
                }
            };
            let end = timeout(PATIENCE, receiving).await;
            let stayed = if end.is_err() { Stayed::InVain } else { Stayed::ToTheEnd };
            let closes = asking.closes || got.as_ref().is_none_or(says_close);
            // All that follow are as good as not asked.
            let rested = (asked > 0).then_some(FOR_EVER);
            self.remember(asked, stayed, rested, got);
            if closes || !matches!(end, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Keeps the connection for ever: this client is not waited for.
    async fn ask_and_never_read(&self) {
        let Some(mut connection) = self.connect().await else { return };
        self.history.lock().busy -= 1;
        for asking in &self.plan.requests {
            let _ = timeout(PATIENCE, connection.out.write_all(&[head(asking), body(asking)].concat())).await;
        }
        sleep(FOR_EVER).await;
        self.history.lock().busy += 1;
    }

    async fn connect(&self) -> Option<Connection> {
        let stream = self.dial().await?;
        let pace = match self.plan.reading {
            Reading::Slow(bytes, pause) => Some((bytes, pause)),
            Reading::Fast | Reading::Never => None,
        };
        let (read, out) = stream.into_split();
        Some(Connection { wire: Wire::new(read, Role::Answers, pace), out, last_used: None })
    }

    pub(crate) async fn dial(&self) -> Option<TcpStream> {
        let stream = timeout(PATIENCE, TcpStream::connect(("door", PORT))).await;
        if !matches!(stream, Ok(Ok(_))) {
            self.tell("no connection");
        }
        stream.ok()?.ok()
    }

    pub(crate) fn remember(&self, asked: usize, stayed: Stayed, rested: Option<Duration>, got: Option<Got>) {
        let what = match &got {
            Some(got) => format!("{} {} bytes, whole {}", got.head.line, got.body.len(), got.whole),
            None => "nothing".to_owned(),
        };
        self.tell(&format!("{}: {what}, stayed {stayed:?}", self.plan.requests[asked].tag));
        let outcome = Outcome { client: self.number, asked, stayed, rested, got, closed_soon: false };
        self.history.lock().outcomes.push(outcome);
    }

    pub(crate) fn tell(&self, what: &str) {
        self.history.tell(&format!("client {}", self.number), what);
    }
}

/// Sends one request and reads its answer, both at once: an answer may come before the request is sent.
async fn ask(asking: &Asking, connection: &mut Connection, got: &mut Option<Got>) -> End {
    let bytes_max = if let Quit::MidAnswer(bytes) = asking.quits { bytes } else { usize::MAX };
    let (received, sent) = {
        let mut receiving = std::pin::pin!(connection.wire.message(got, bytes_max));
        tokio::select! {
            biased;
            received = &mut receiving => (received, false),
            sent = send(asking, &mut connection.out) => match (sent, asking.quits) {
                (None, _) => return End::Quit,
                (Some(()), Quit::Waiting(patience)) => match timeout(patience, receiving).await {
                    Ok(received) => (received, true),
                    Err(_) => return End::Quit,
                },
                (Some(()), _) => (receiving.await, true),
            },
        }
    };
    let whole = got.as_ref().is_some_and(|got| got.whole);
    match (received, asking.quits) {
        (Ok(()), Quit::MidAnswer(_)) if !whole => End::Quit,
        (Ok(()), _) if sent && !got.as_ref().is_some_and(says_close) => End::Answered,
        // Its own direction closed, it has no claim.
        (Err(_), Quit::HalfClose) => End::Quit,
        _ => End::Last,
    }
}

/// Sends the request as it is meant to go. `None` when the client hangs up; a connection that takes no more is the
/// other side's word.
async fn send(asking: &Asking, out: &mut OwnedWriteHalf) -> Option<()> {
    let (head, body) = (head(asking), body(asking));
    let cut = if asking.splits_head { head.len() / 2 } else { 0 };
    let mut broken = false;
    if cut > 0 {
        broken |= out.write_all(&head[..cut]).await.is_err();
        sleep(Duration::from_millis(150)).await;
    }
    if asking.quits == Quit::BeforeBody {
        let _ = out.write_all(&head[cut..]).await;
        sleep(asking.pause).await;
        return None;
    }
    if asking.pieces == 1 && asking.quits == Quit::Never && !asking.stalls {
        let _ = out.write_all(&[&head[cut..], &body].concat()).await;
        return Some(());
    }
    broken |= out.write_all(&head[cut..]).await.is_err();
    let pieces = body.chunks(body.len().div_ceil(asking.pieces.max(2)).max(1));
    for (number, piece) in pieces.enumerate() {
        if number == 1 && asking.quits == Quit::MidBody {
            return None;
        }
        sleep(if number == 1 && asking.stalls { STALL } else { asking.pause }).await;
        if !broken {
            broken |= out.write_all(piece).await.is_err();
        }
    }
    if asking.quits == Quit::HalfClose {
        let _ = out.shutdown().await;
    }
    Some(())
}

fn says_close(got: &Got) -> bool {
    got.head.field("connection") == Some("close")
}

fn head(asking: &Asking) -> Vec<u8> {
    asking.head().into_bytes()
}

fn body(asking: &Asking) -> Vec<u8> {
    match asking.chunked {
        Some(bytes) => chunked(&asking.body, bytes),
        None => asking.body.clone(),
    }
}
