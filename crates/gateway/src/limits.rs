//! What protects the door from its clients, and clients from each other: every bound with its name and default.
//! Two more, memory for bodies and requests in flight, are the director's: other doors share them.

use std::time::Duration;

/// Bounds of the listener, of its connections, and of what is sent on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of clients open at once. At the bound those that rest longest are closed to make room; where none
    /// rests, newcomers wait in the kernel's backlog.
    pub connections_max: usize,
    /// Streams open at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// Bytes of a request's head: its target, and names and values of its fields.
    pub header_bytes_max: usize,
    /// Fields in a request's head.
    pub headers_max: usize,
    /// From the first byte of a request's head to its last, and for a TLS handshake. A new connection that brings no
    /// byte has three times as long.
    pub header_read: Duration,
    /// How long a client may rest in the middle of its body.
    pub body_stall: Duration,
    /// How long a client may take nothing of an answer that is there.
    pub answer_stall: Duration,
    /// How long a connection may rest without a request. Longer than load balancers in front keep theirs (600 s),
    /// else they send requests onto connections that are being closed.
    pub idle: Duration,
    /// Until a connection to a model server stands.
    pub connect: Duration,
    /// Until the first byte of a streamed answer's body, from when the endpoint has the whole request: queueing and
    /// prefill in the engine are part of it.
    pub first_byte: Duration,
    /// Until the first byte of an answer that is not streamed, which comes when all of it is generated.
    pub unstreamed: Duration,
    /// Between two parts of an answer that has begun.
    pub stream_idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 16_384,
            streams_max: 256,
            header_bytes_max: 64 << 10,
            headers_max: 128,
            header_read: Duration::from_secs(10),
            body_stall: Duration::from_secs(30),
            answer_stall: Duration::from_secs(60),
            idle: Duration::from_secs(610),
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(300),
            unstreamed: Duration::from_secs(3600),
            stream_idle: Duration::from_secs(300),
        }
    }
}
