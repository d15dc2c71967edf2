//! One direction of a connection of a client or a server, read event by event.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::sleep;

use crate::history::Got;
use crate::http1::{Event, Reader, Role};

/// Reads messages from a connection.
pub(crate) struct Wire<R> {
    stream: R,
    reader: Reader,
    events: VecDeque<Event>,
    /// At most so many bytes at once, then a pause.
    pace: Option<(usize, Duration)>,
}

/// Why there is no next event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The other side closed, and what it had begun is whole by that.
    Closed,
    /// It closed or broke in the middle.
    Broken,
    /// What came is no HTTP.
    Garbled(String),
}

impl<R: AsyncRead + Unpin> Wire<R> {
    pub(crate) fn new(stream: R, role: Role, pace: Option<(usize, Duration)>) -> Wire<R> {
        Wire { stream, reader: Reader::new(role), events: VecDeque::new(), pace }
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Result<Event, Over> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let (bytes, pause) = self.pace.unwrap_or((16_384, Duration::ZERO));
            let mut part = vec![0; bytes];
            match self.stream.read(&mut part).await {
                Ok(0) if self.reader.close() => return Err(Over::Closed),
                Ok(0) | Err(_) => return Err(Over::Broken),
                Ok(count) => {
                    self.events.extend(self.reader.push(&part[..count]).map_err(Over::Garbled)?);
                }
            }
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }

    /// Reads into `got` until the message is whole, or `bytes_max` of its body are there.
    pub(crate) async fn message(&mut self, got: &mut Option<Got>, bytes_max: usize) -> Result<(), Over> {
        loop {
            match self.next().await {
                Ok(Event::Head(head)) if head.status() < 200 && head.line.starts_with("HTTP") => {}
                Ok(Event::Head(head)) => *got = Some(Got { head, ..Got::default() }),
                Ok(Event::Body(bytes)) => {
                    if let Some(got) = got {
                        got.body.extend(bytes);
                        if got.body.len() >= bytes_max {
                            return Ok(());
                        }
                    }
                }
                Ok(Event::End) => {
                    got.iter_mut().for_each(|got| got.whole = true);
                    return Ok(());
                }
                Err(Over::Closed) if got.as_ref().is_some_and(|got| !got.whole) => {
                    got.iter_mut().for_each(|got| got.whole = true);
                    return Ok(());
                }
                Err(over) => return Err(over),
            }
        }
    }
}
