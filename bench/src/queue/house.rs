//! Pointsman in front of simulated engines, started as a user would, and clients that see their first token.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::door::{Door, Open, free, word};
use crate::gateway::stand::{Process, beside, leashed, scratch};

/// Priorities by InferenceObjective.
pub(crate) const CLASSES: [(&str, i64); 3] = [("critical", 100), ("standard", 0), ("sheddable", -50)];

pub(crate) struct House {
    pub(crate) door: Open,
    _engines: Vec<Process>,
    engines: Vec<SocketAddr>,
}

impl House {
    /// `count` engines with these flags of `pointsman sim`, and a gateway with these annotations of its pool and flags.
    pub(crate) async fn start(
        count: usize,
        engine: &[&str],
        annotations: &[(&str, &str)],
        flags: &[&str],
    ) -> anyhow::Result<House> {
        House::behind(Door::Gateway, count, engine, annotations, flags).await
    }

    /// The same behind another door. Engines have an address each and share the port, as pods do.
    pub(crate) async fn behind(
        door: Door,
        count: usize,
        engine: &[&str],
        annotations: &[(&str, &str)],
        flags: &[&str],
    ) -> anyhow::Result<House> {
        let port = free()?.port();
        let (mut processes, mut engines) = (Vec::new(), Vec::new());
        for number in 0..count {
            let address = SocketAddr::new(Ipv4Addr::new(127, 0, 1, number as u8 + 1).into(), port);
            let mut command = leashed(beside("pointsman")?);
            command.args(["sim", "--log", "error", "--count", "1", "--listen", &address.to_string()]);
            let mut process = Process::start(command.args(engine))?;
            word(&process.first_line()?, "servers=")?;
            processes.push(process);
            engines.push(address);
        }
        let manifest = scratch("queue.yaml")?;
        fs::write(&manifest, documents(port, annotations))?;
        let door = door.open(&manifest, &engines, flags).await?;
        Ok(House { door, _engines: processes, engines })
    }

    /// A series of Pointsman's own page; 0 where it is absent.
    pub(crate) async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        Ok(value(&page(self.door.admin).await?, series))
    }

    /// A series of the engines' pages: of each.
    pub(crate) async fn of_engines(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        let mut values = Vec::new();
        for engine in &self.engines {
            values.push(value(&page(*engine).await?, name));
        }
        Ok(values)
    }
}

fn documents(port: u16, annotations: &[(&str, &str)]) -> String {
    let annotations: Vec<String> =
        annotations.iter().map(|(key, value)| format!("{key}: \"{value}\"")).collect();
    let mut text = format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: bench, annotations: {{{}}}}}\n\
         spec: {{selector: {{matchLabels: {{app: bench}}}}, targetPorts: [{{number: {port}}}]}}\n",
        annotations.join(", ")
    );
    for (name, priority) in CLASSES {
        text += &format!(
            "---\napiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceObjective\nmetadata: {{name: {name}}}\n\
             spec: {{priority: {priority}, poolRef: {{name: bench}}}}\n"
        );
    }
    text
}

/// The sum of a family's samples whose names and labels begin so.
fn value(page: &str, series: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(series) && !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn page(of: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(of).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

/// Sends a chat request of that class over a connection of its own.
pub(crate) async fn send(gateway: SocketAddr, class: &str, body: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n\
         x-gateway-inference-objective: {class}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream)
}

/// Asks and reads the answer's stream to its end; the time to its first token.
///
/// # Errors
/// A refusal, or an answer that is not whole.
pub(crate) async fn ask(gateway: SocketAddr, class: &str, body: &str) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut stream = send(gateway, class, body).await?;
    let mut answer = Vec::with_capacity(32 << 10);
    let mut first = None;
    while stream.read_buf(&mut answer).await? > 0 {
        if first.is_none() && memmem::find(&answer, b"data: ").is_some() {
            first = Some(begin.elapsed());
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "refused");
    ensure!(memmem::find(&answer, b"data: [DONE]").is_some(), "not whole");
    first.context("no token")
}

/// A chat request whose prompt has about so many bytes and is nobody else's.
pub(crate) fn body(number: u64, bytes: usize) -> String {
    let unique = format!("{:016x} ", crate::trace::mix(number));
    format!(
        r#"{{"model":"sim","stream":true,"messages":[{{"role":"user","content":"{}"}}]}}"#,
        unique.repeat(bytes.div_ceil(unique.len()))
    )
}
