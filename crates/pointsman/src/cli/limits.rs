//! The flags that bound what clients and model servers may take. Their names are those of the metric
//! `pointsman_limit_reached_total`.

use std::time::Duration;

use clap::Args;

/// Bounds of `pointsman up`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitFlags {
    /// Largest request body, in bytes; 413 beyond.
    #[arg(long, value_name = "BYTES", default_value_t = director::Limits::default().body_bytes_max)]
    body_bytes_max: u64,
    /// Memory for the bodies of all requests, in bytes; 429 beyond.
    #[arg(long, value_name = "BYTES", default_value_t = director::Limits::default().bodies_bytes_max)]
    bodies_bytes_max: u64,
    /// Requests sent on to model servers and not ended; 429 beyond. Lowered to fit the limit of open files.
    #[arg(long, value_name = "N", default_value_t = director::Limits::default().requests_max, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests_max: u64,
    /// Connections of clients; at the bound those idle longest are closed. Lowered to fit the limit of open files.
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    connections_max: u64,
    /// Streams open at once on one HTTP/2 connection.
    #[arg(long, value_name = "N", default_value_t = gateway::Limits::default().streams_max, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    streams_max: u32,
    /// Bytes of a request's head; 431 beyond.
    #[arg(long, value_name = "BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    header_bytes_max: u32,
    /// Fields in a request's head; 431 beyond.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(8..=16_384))]
    headers_max: u32,
    /// How long a client may take for a request's head, from its first byte, and for a TLS handshake.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = above_zero)]
    header_read_timeout: Duration,
    /// How long a client may rest in the middle of its body; 408 beyond.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = above_zero)]
    body_stall_timeout: Duration,
    /// How long a client may take nothing of an answer that is there; its connection is closed beyond.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = above_zero)]
    answer_stall_timeout: Duration,
    /// How long a client's connection may rest without a request.
    #[arg(long, value_name = "DURATION", default_value = "610s", value_parser = above_zero)]
    idle_timeout: Duration,
    /// How long a connection to a model server may take to stand; the next endpoint is tried beyond.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = above_zero)]
    connect_timeout: Duration,
    /// How long a model server may take to the first byte of a streamed answer, queueing in the engine included.
    /// One that is not streamed may take an hour.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = above_zero)]
    first_byte_timeout: Duration,
    /// How long a model server may rest in the middle of its answer.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = above_zero)]
    stream_idle_timeout: Duration,
}

/// Files that are open besides connections: logs, manifests, scrapes, the admin address.
const FILES_BESIDES: u64 = 256;

impl LimitFlags {
    /// The flags with connections and requests lowered to what `open_files_max` carries: a request in flight holds a
    /// connection to a model server besides its client's.
    pub(crate) fn fit(&self, open_files_max: u64) -> LimitFlags {
        let room = open_files_max.saturating_sub(FILES_BESIDES).max(16);
        let requests_max = self.requests_max.min(room * 2 / 5);
        let connections_max = self.connections_max.min(room - requests_max);
        if (requests_max, connections_max) != (self.requests_max, self.connections_max) {
            tracing::info!(
                open_files_max,
                "--requests-max is {requests_max} and --connections-max {connections_max}: more would not fit the \
                 limit of open files (ulimit -n)"
            );
        }
        LimitFlags { connections_max, requests_max, ..self.clone() }
    }

    pub(crate) fn of_director(&self) -> director::Limits {
        director::Limits {
            body_bytes_max: self.body_bytes_max,
            bodies_bytes_max: self.bodies_bytes_max,
            requests_max: self.requests_max,
        }
    }

    pub(crate) fn of_gateway(&self) -> gateway::Limits {
        gateway::Limits {
            connections_max: usize::try_from(self.connections_max).unwrap_or(usize::MAX),
            streams_max: self.streams_max,
            header_bytes_max: self.header_bytes_max as usize,
            headers_max: self.headers_max as usize,
            header_read: self.header_read_timeout,
            body_stall: self.body_stall_timeout,
            answer_stall: self.answer_stall_timeout,
            idle: self.idle_timeout,
            connect: self.connect_timeout,
            first_byte: self.first_byte_timeout,
            stream_idle: self.stream_idle_timeout,
            ..gateway::Limits::default()
        }
    }

    /// The limits in force, by flag, for the admin door.
    pub(crate) fn view(&self) -> serde_json::Value {
        let seconds = |duration: Duration| duration.as_secs_f64();
        serde_json::json!({
            "body_bytes_max": self.body_bytes_max,
            "bodies_bytes_max": self.bodies_bytes_max,
            "requests_max": self.requests_max,
            "connections_max": self.connections_max,
            "streams_max": self.streams_max,
            "header_bytes_max": self.header_bytes_max,
            "headers_max": self.headers_max,
            "header_read_timeout_seconds": seconds(self.header_read_timeout),
            "body_stall_timeout_seconds": seconds(self.body_stall_timeout),
            "answer_stall_timeout_seconds": seconds(self.answer_stall_timeout),
            "idle_timeout_seconds": seconds(self.idle_timeout),
            "connect_timeout_seconds": seconds(self.connect_timeout),
            "first_byte_timeout_seconds": seconds(self.first_byte_timeout),
            "stream_idle_timeout_seconds": seconds(self.stream_idle_timeout),
        })
    }
}

/// A duration that a timeout can have.
fn above_zero(text: &str) -> Result<Duration, String> {
    match pool::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("expected a duration above zero, as in 30s".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        limits: LimitFlags,
    }

    #[test]
    fn the_flags_defaults_are_the_libraries_own() {
        let flags = Flags::parse_from(["up"]).limits;
        assert_eq!(format!("{:?}", flags.of_director()), format!("{:?}", director::Limits::default()));
        assert_eq!(format!("{:?}", flags.of_gateway()), format!("{:?}", gateway::Limits::default()));
    }

    #[test]
    fn connections_and_requests_fit_the_limit_of_open_files() {
        let flags = Flags::parse_from(["up"]).limits;
        for open_files_max in [64, 1024, 20_000, 65_536, 1 << 20] {
            let fit = flags.fit(open_files_max);
            assert!(fit.requests_max >= 1 && fit.connections_max >= 1);
            let needed = fit.requests_max + fit.connections_max + FILES_BESIDES;
            assert!(needed <= open_files_max.max(FILES_BESIDES + 16), "{open_files_max}: {needed}");
        }
        assert_eq!(flags.fit(1 << 20).connections_max, 16_384);
    }
}
