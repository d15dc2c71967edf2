//! CPU time for a request, and the latency that a proxy adds.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::client::{self, Counts, Shape};
use super::stand::{self, EnvoyConfig, Proxy};
use super::{ENDPOINTS, ROUND, spread};
use crate::report::Table;

/// Rounds of each proxy, in turn.
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 16;
const STREAMS: usize = 32;
const HTTP2_CONNECTIONS: usize = 4;
const CHUNKS: usize = 200;
/// The fixed rate at which latency is measured: about a fifth of what the machine can do.
const RATE_PER_S: u32 = 500;

/// What is asked, and how.
struct Step {
    name: String,
    shape: Shape,
    connections: usize,
    http2: bool,
}

pub(crate) async fn run() -> anyhow::Result<()> {
    let (_backends, endpoints) = stand::backends(&[0; ENDPOINTS])?;
    let proxies = [stand::envoy(&endpoints, EnvoyConfig::Plain)?, stand::pointsman(&endpoints)?];
    let step =
        |name: &str, shape: Shape, connections, http2| Step { name: name.into(), shape, connections, http2 };
    let steps = [
        step("1 KB, HTTP/1.1", Shape::new(1 << 10, ""), CONNECTIONS, false),
        step("1 KB, HTTP/2", Shape::new(1 << 10, ""), CONNECTIONS, true),
        step("220 KB, HTTP/1.1", Shape::new(220 << 10, ""), CONNECTIONS, false),
        step("stream of 200 chunks", Shape::new(1 << 10, &format!("chunks={CHUNKS}")), STREAMS, false),
    ];
    let table = Table::new(
        &format!(
            "CPU time of the proxy for a request: {ENDPOINTS} endpoints, closed loop, {ROUNDS} rounds of {ROUND:?}"
        ),
        &["step", "clients", "Envoy: us", "requests/s", "Pointsman: us", "requests/s", "ratio of medians"],
    )?;
    for step in &steps {
        let (mut micros, mut rates) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
        for round in 0..=ROUNDS {
            for (at, proxy) in proxies.iter().enumerate() {
                let (cost, rate) = step.measure(proxy).await?;
                // The first round fills connection pools and the prefix index.
                if round > 0 {
                    micros[at].push(cost);
                    rates[at].push(rate);
                }
            }
        }
        let ((envoy, envoy_text), (ours, ours_text)) = (spread(&micros[0]), spread(&micros[1]));
        table.row(&[
            step.name.clone(),
            step.connections.to_string(),
            envoy_text,
            format!("{:.0}", spread(&rates[0]).0),
            ours_text,
            format!("{:.0}", spread(&rates[1]).0),
            format!("{:.2}", ours / envoy),
        ])?;
    }
    Ok(())
}

impl Step {
    /// CPU microseconds a request, and requests a second.
    async fn measure(&self, proxy: &Proxy) -> anyhow::Result<(f64, f64)> {
        let (begin, cpu) = (Instant::now(), proxy.process.cpu()?);
        let counts = if self.http2 {
            let streams = self.connections / HTTP2_CONNECTIONS;
            client::closed_loop_http2(proxy.address, &self.shape, HTTP2_CONNECTIONS, streams, ROUND).await?
        } else {
            client::closed_loop(proxy.address, &self.shape, self.connections, ROUND).await
        };
        let used = proxy.process.cpu()?.saturating_sub(cpu);
        anyhow::ensure!(
            counts.failed == 0,
            "{}: {} requests failed through {}",
            self.name,
            counts.failed,
            proxy.name
        );
        let served = counts.served as f64;
        Ok((used.as_secs_f64() * 1e6 / served, served / begin.elapsed().as_secs_f64()))
    }
}

/// Latency at a fixed rate, direct and through each proxy.
pub(crate) async fn latency() -> anyhow::Result<()> {
    let (_backends, endpoints) = stand::backends(&[0; ENDPOINTS])?;
    let (envoy, ours) = (stand::envoy(&endpoints, EnvoyConfig::Plain)?, stand::pointsman(&endpoints)?);
    let ways = [("direct", endpoints[0]), ("Envoy", envoy.address), ("Pointsman", ours.address)];
    for body_bytes in [1 << 10, 220 << 10] {
        let shape = Shape::new(body_bytes, "");
        let mut percentiles = [const { (Vec::new(), Vec::new()) }; 3];
        for round in 0..=ROUNDS {
            for (at, (_, address)) in ways.iter().enumerate() {
                let mut counts = open_loop(*address, &shape).await;
                anyhow::ensure!(counts.failed == 0, "{} requests failed", counts.failed);
                if round > 0 {
                    percentiles[at].0.push(counts.percentile_ms(0.5) * 1e3);
                    percentiles[at].1.push(counts.percentile_ms(0.99) * 1e3);
                }
            }
        }
        let table = Table::new(
            &format!("Latency at {RATE_PER_S} requests a second of {} KB, us", body_bytes >> 10),
            &["way", "p50", "p99", "added at p50", "added at p99"],
        )?;
        let direct = (spread(&percentiles[0].0).0, spread(&percentiles[0].1).0);
        for ((name, _), (p50, p99)) in ways.iter().zip(&percentiles) {
            let ((p50, p50_text), (p99, p99_text)) = (spread(p50), spread(p99));
            let added = |us: f64, direct: f64| format!("{:.0}", us - direct);
            table.row(&[(*name).into(), p50_text, p99_text, added(p50, direct.0), added(p99, direct.1)])?;
        }
    }
    Ok(())
}

/// Asks at the fixed rate, each request over a kept connection of its own client. What is late because of the client's
/// own clock (it has a grain of 1 ms) does not count; what is late because the answer before was late does.
async fn open_loop(to: SocketAddr, shape: &Shape) -> Counts {
    const CLIENTS: u32 = 50;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let shape = shape.clone();
        let offset = Duration::from_secs(1) / RATE_PER_S * number;
        clients.spawn(async move {
            ask_in_turn(to, &shape, offset, Duration::from_secs(1) * CLIENTS / RATE_PER_S).await
        });
    }
    let mut counts = Counts::default();
    while let Some(client) = clients.join_next().await {
        counts.add(client.unwrap_or_default());
    }
    counts
}

async fn ask_in_turn(to: SocketAddr, shape: &Shape, offset: Duration, every: Duration) -> Counts {
    let mut counts = Counts::default();
    let (mut request, mut buffer) = (shape.bytes(), Vec::with_capacity(64 << 10));
    let Ok(mut stream) = client::connect(to).await else {
        return Counts { failed: 1, ..counts };
    };
    let begin = Instant::now();
    let mut due = offset;
    while due < ROUND {
        let late = begin.elapsed() > due;
        sleep(due.saturating_sub(begin.elapsed())).await;
        let since = if late { begin + due } else { Instant::now() };
        shape.renumber(&mut request);
        if client::ask(&mut stream, &request, &mut buffer).await.is_err() {
            counts.failed += 1;
            break;
        }
        counts.served += 1;
        counts.micros.push(since.elapsed().as_micros() as u32);
        due += every;
    }
    counts
}
