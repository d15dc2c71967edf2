//! Goodput and tail latency while model servers fail, beside Envoy with retries and outlier detection.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use super::client::{self, Shape};
use super::spread;
use super::stand::{self, EnvoyConfig, Process};
use crate::report::Table;

const LATENCY_MS: u64 = 20;
const SLOW_MS: u64 = 200;
const CLIENTS: usize = 64;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
/// A connection is reset in the middle of a request, evenly anywhere up to here: one request of twenty on average,
/// as a request has about 1,200 bytes.
const RESET_WITHIN_BYTES: u64 = 2 * 20 * 1_200;

struct Trouble {
    name: &'static str,
    slow: bool,
    dead: bool,
    resets: bool,
}

pub(crate) async fn run() -> anyhow::Result<()> {
    let trouble = |name, slow, dead, resets| Trouble { name, slow, dead, resets };
    let troubles = [
        trouble("none", false, false, false),
        trouble("5 % of requests reset", false, false, true),
        trouble("one endpoint of four dead", false, true, false),
        trouble("one at 10 x latency", true, false, false),
        trouble("all three", true, true, true),
    ];
    let table = Table::new(
        &format!(
            "With faults: {CLIENTS} clients, closed loop, answers after {LATENCY_MS} ms, {ROUNDS} rounds of {ROUND:?}"
        ),
        &["fault", "proxy", "served/s", "failed %", "p50 ms", "p99 ms"],
    )?;
    for trouble in &troubles {
        trouble.measure(&table).await?;
    }
    Ok(())
}

impl Trouble {
    async fn measure(&self, table: &Table) -> anyhow::Result<()> {
        let slow_ms = if self.slow { SLOW_MS } else { LATENCY_MS };
        let (_backends, mut endpoints) = stand::backends(&[LATENCY_MS, LATENCY_MS, LATENCY_MS, slow_ms])?;
        let mut breaking: Option<Process> = None;
        if self.resets {
            let rule = format!(
                r#"[{{"probability":1,"way":"up","first":"POST","at":[0,{RESET_WITHIN_BYTES}],"does":"reset"}}]"#
            );
            let (process, through) = stand::fault_proxy(&endpoints, &rule)?;
            breaking = Some(process);
            endpoints = through;
        }
        if self.dead {
            endpoints[0] = nobody()?;
        }
        let proxies = [stand::envoy(&endpoints, EnvoyConfig::Resilient)?, stand::pointsman(&endpoints)?];
        let shape = Shape::new(1 << 10, "");
        let mut found = [const { (Vec::new(), Vec::new(), Vec::new(), Vec::new()) }; 2];
        for _ in 0..ROUNDS {
            for (proxy, (served, failed, p50, p99)) in proxies.iter().zip(&mut found) {
                let mut counts = client::closed_loop(proxy.address, &shape, CLIENTS, ROUND).await;
                served.push(counts.served as f64 / ROUND.as_secs_f64());
                failed.push(counts.failed as f64 * 100.0 / (counts.served + counts.failed).max(1) as f64);
                p50.push(counts.percentile_ms(0.5));
                p99.push(counts.percentile_ms(0.99));
            }
        }
        for (proxy, (served, failed, p50, p99)) in proxies.iter().zip(&found) {
            let cells = [served, failed, p50, p99].map(|numbers| spread(numbers).1);
            table.row(&[&[self.name.to_owned(), proxy.name.to_owned()], &cells[..]].concat())?;
        }
        drop(breaking);
        Ok(())
    }
}

/// An address that refuses connections.
fn nobody() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
