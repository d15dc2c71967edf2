//! One call: messages come in, messages go out, one status ends it.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, header};

use crate::rope::{Frames, Rope};

/// What comes before every message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// One call of one client.
pub struct Call {
    path: Box<str>,
    metadata: HeaderMap,
    frames: Frames,
    receive: RecvStream,
    respond: SendResponse<Rope>,
    /// Once the first answer, or the end, is sent.
    send: Option<SendStream<Rope>>,
    message_bytes_max: usize,
    at_end: bool,
}

/// The peer broke the call off, or broke the protocol.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The stream or its connection ended.
    #[error("the peer broke the call off: {0}")]
    Http2(#[from] h2::Error),
    /// A message is larger than its bound.
    #[error("a message has {bytes} bytes; at most {bytes_max} are taken")]
    TooLarge {
        /// Its announced length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// Compression was never agreed on.
    #[error("a message is compressed")]
    Compressed,
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
}

/// gRPC's status codes, those that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// All went well.
    Ok = 0,
    /// The peer said something that makes no sense.
    InvalidArgument = 3,
    /// There is no such thing.
    NotFound = 5,
    /// A bound was reached.
    ResourceExhausted = 8,
    /// There is no such method.
    Unimplemented = 12,
    /// A fault of ours.
    Internal = 13,
    /// Not now.
    Unavailable = 14,
}

/// How a call ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// For people; printable ASCII.
    pub message: String,
}

impl Status {
    /// All went well.
    #[must_use]
    pub fn ok() -> Status {
        Status { code: Code::Ok, message: String::new() }
    }

    /// A status with a message for people.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }

    fn fields(&self, fields: &mut HeaderMap) {
        fields.insert("grpc-status", HeaderValue::from(self.code as u16));
        if let Ok(message) = HeaderValue::from_str(&self.message)
            && !self.message.is_empty()
        {
            fields.insert("grpc-message", message);
        }
    }
}

impl Call {
    pub(crate) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Rope>,
        message_bytes_max: usize,
    ) -> Call {
        let (head, receive) = request.into_parts();
        Call {
            path: head.uri.path().into(),
            metadata: head.headers,
            at_end: false,
            frames: Frames::default(),
            receive,
            respond,
            send: None,
            message_bytes_max,
        }
    }

    /// `/package.Service/Method`
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The peer's metadata of that name, where it is text.
    #[must_use]
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name)?.to_str().ok()
    }

    /// Takes no message of more than so many bytes from now on.
    pub fn take_at_most(&mut self, bytes: usize) {
        self.message_bytes_max = self.message_bytes_max.min(bytes);
    }

    /// The next message; `None` when the peer has sent its last.
    ///
    /// # Errors
    /// When the peer broke the call off, or the protocol.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        loop {
            if let Some(message) = self.take_message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if self.at_end {
                let ended = if self.frames.len() == 0 { Ok(None) } else { Err(Broken::Truncated) };
                return Poll::Ready(ended);
            }
            match std::task::ready!(self.receive.poll_data(context)) {
                Some(frame) => {
                    let frame = frame?;
                    self.receive.flow_control().release_capacity(frame.len())?;
                    self.frames.push(frame);
                }
                None => self.at_end = true,
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some([compressed, length @ ..]) = self.frames.peek::<PREFIX_BYTES>() else { return Ok(None) };
        if compressed != 0 {
            return Err(Broken::Compressed);
        }
        let bytes = u32::from_be_bytes(length) as usize;
        if bytes > self.message_bytes_max {
            return Err(Broken::TooLarge { bytes, bytes_max: self.message_bytes_max });
        }
        if self.frames.len() < PREFIX_BYTES + bytes {
            return Ok(None);
        }
        self.frames.skip(PREFIX_BYTES);
        Ok(Some(self.frames.take(bytes)))
    }

    /// Sends a message; resolves when the peer has room for it.
    ///
    /// # Errors
    /// When the peer broke the call off.
    pub async fn send(&mut self, message: impl IntoIterator<Item = Bytes>) -> Result<(), Broken> {
        let framed = framed(message);
        let bytes = bytes::Buf::remaining(&framed);
        let send = self.begin()?;
        send.reserve_capacity(bytes);
        // What is larger than the peer's window waits in the connection: one message at most.
        while send.capacity() == 0 {
            match poll_fn(|context| send.poll_capacity(context)).await {
                Some(granted) => drop(granted?),
                None => return Err(h2::Error::from(Reason::CANCEL).into()),
            }
        }
        Ok(send.send_data(framed, false)?)
    }

    /// Resolves when the peer has given the call up.
    pub async fn closed(&mut self) {
        match &mut self.send {
            // Whatever the reason is: nobody listens any more.
            Some(send) => drop(poll_fn(|context| send.poll_reset(context)).await),
            None => drop(poll_fn(|context| self.respond.poll_reset(context)).await),
        }
    }

    fn begin(&mut self) -> Result<&mut SendStream<Rope>, Broken> {
        match &mut self.send {
            Some(send) => Ok(send),
            none => {
                let mut response = Response::new(());
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                Ok(none.insert(self.respond.send_response(response, false)?))
            }
        }
    }

    /// Ends the call. What the peer still sends is not read.
    pub fn finish(mut self, status: &Status) {
        // A peer that is gone needs no status.
        let _ = match &mut self.send {
            Some(send) => {
                let mut trailers = HeaderMap::with_capacity(2);
                status.fields(&mut trailers);
                send.send_trailers(trailers)
            }
            None => {
                let mut response = Response::new(());
                let fields = response.headers_mut();
                fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                status.fields(fields);
                self.respond.send_response(response, true).map(drop)
            }
        };
        // Where the peer has not ended its side, the drop of it resets the stream, without an error.
    }
}

/// A message with what comes before it.
fn framed(message: impl IntoIterator<Item = Bytes>) -> Rope {
    let message: Rope = message.into_iter().collect();
    let bytes = bytes::Buf::remaining(&message);
    let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    let mut framed = Rope::from(prefix.freeze());
    framed.append(message);
    framed
}
