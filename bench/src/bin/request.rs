//! What one request costs inside the director, without the door's HTTP: allocations by step, and instructions.
//!
//! Instructions are counted by callgrind on this same program, as the difference between two runs of different
//! length, so that what is spent once does not count.
//!
//! `cargo run --release -p bench --bin request` prints Markdown tables for `docs/benchmarks.md`.

use std::alloc::System;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use director::{Clock, Control, Declaration, Director, Head, Limits, Progress, Reason};
use http::StatusCode;
use inference::AnswerKind;
use pool::{Catalog, EndpointSpec};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const ENDPOINTS: u16 = 8;
/// What the gateway's HTTP library hands on at a time from a large upload.
const CHUNK_BYTES: usize = 16 * 1024;
const SIZES: [(&str, usize); 2] = [("1 KB", 1024), ("220 KB", 220 * 1024)];
const STEPS: [&str; 5] = ["begin", "scan", "route", "answer (10 events)", "end"];
const POOL: &str = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata:\n  name: p\n  annotations: \
    {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}\nspec: {selector: {matchLabels: {app: x}}, \
    targetPorts: [{number: 8000}]}\n";

/// Counts calls and bytes without unsafe code of ours; the product's allocator would be called as often.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => tables(),
        ["loop", what, bytes, count] => repeat(what == "requests", bytes, count),
        _ => anyhow::bail!("usage: request"),
    }
}

/// Allocations by step, then instructions.
fn tables() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counted: Vec<_> = SIZES
        .iter()
        .map(|(_, bytes)| runtime.block_on(async { Requests::new(*bytes)?.counted().await }))
        .collect::<anyhow::Result<_>>()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n### One request in the director: allocations by step\n")?;
    writeln!(
        out,
        "| step | 1 KB: allocations | bytes | 220 KB: allocations | bytes |\n|---|---|---|---|---|"
    )?;
    for (step, name) in STEPS.iter().enumerate() {
        let [small, large] = [&counted[0][step], &counted[1][step]];
        writeln!(out, "| {name} | {} | {} | {} | {} |", small.0, small.1, large.0, large.1)?;
    }
    writeln!(out, "\n### One request in the director: instructions (callgrind)\n")?;
    writeln!(out, "| body | instructions |\n|---|---|")?;
    for (name, bytes) in SIZES {
        let each =
            |what| anyhow::Ok((instructions(what, bytes, 1200)? - instructions(what, bytes, 200)?) / 1000);
        writeln!(out, "| {name} | {} |", each("requests")? - each("bodies")?)?;
    }
    Ok(())
}

/// The loop that callgrind watches: `count` requests of `bytes`, or the making of their bodies alone.
fn repeat(requested: bool, bytes: &str, count: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let requests = Requests::new(bytes.parse()?)?;
        for number in 0..count.parse()? {
            let body = requests.body(number);
            if requested {
                requests.one(&body, &mut || {}).await?;
            }
        }
        Ok(())
    })
}

fn instructions(what: &str, bytes: usize, count: u32) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["loop", what, &bytes.to_string(), &count.to_string()])
        .output()
        .context("valgrind cannot be run: install it (apt-get install valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected =
        text.lines().find_map(|line| line.split_once("Collected :")).context("no count from callgrind")?;
    Ok(collected.1.trim().parse()?)
}

struct Requests {
    director: Arc<Director>,
    content_bytes: usize,
}

impl Requests {
    fn new(bytes: usize) -> anyhow::Result<Requests> {
        let metrics = Arc::new(Metrics::new("bench"));
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let director = Director::new(metrics, Clock::start(), Limits::default(), 0, tracker, cancel);
        let pool = pool::parse("p.yaml", POOL)?.pools.remove(0);
        let endpoints = (1..=ENDPOINTS).map(spec).collect();
        director.declare(&Declaration { pool, catalog: Catalog::default(), endpoints, pods: None });
        Ok(Requests { director, content_bytes: bytes - 100 })
    }

    /// Allocations and bytes of each step, of a request after many alike.
    async fn counted(&self) -> anyhow::Result<Vec<(usize, usize)>> {
        for number in 0..200 {
            self.one(&self.body(number), &mut || {}).await?;
        }
        let body = self.body(200);
        let mut steps = Vec::with_capacity(STEPS.len());
        let mut region = Region::new(ALLOCATOR);
        self.one(&body, &mut || {
            let change = region.change();
            steps.push((change.allocations + change.reallocations, change.bytes_allocated));
            region.reset();
        })
        .await?;
        Ok(steps)
    }

    /// A body whose prompt is to one half that of all others.
    fn body(&self, number: usize) -> String {
        let half = self.content_bytes / 2;
        let unique = format!("{number:08} ").repeat(half / 9);
        format!(
            r#"{{"model":"m","stream":true,"messages":[{{"role":"user","content":"{}{unique}"}}]}}"#,
            "a shared head of the prompt ".repeat(half / 28)
        )
    }

    /// One request from head to end; `after` is called behind each of [`STEPS`].
    async fn one(&self, body: &str, after: &mut impl FnMut()) -> anyhow::Result<()> {
        let head = Head {
            safe: false,
            path: "/v1/chat/completions",
            content_length: Some(body.len() as u64),
            readable: true,
            control: Control::default(),
            pool: None,
        };
        let mut intake = self.director.begin(head)?;
        after();
        for chunk in body.as_bytes().chunks(CHUNK_BYTES) {
            if intake.push(chunk)? == Progress::Enough {
                break;
            }
        }
        after();
        let mut exchange = intake.route().await?;
        after();
        exchange.answer(StatusCode::OK, Some(AnswerKind::EventStream));
        for _ in 0..10 {
            exchange
                .answer_bytes(b"data: {\"choices\":[{\"delta\":{\"content\":\"on\"}}],\"usage\":null}\n\n");
        }
        after();
        exchange.end(Reason::Served);
        drop(exchange);
        after();
        Ok(())
    }
}

fn spec(number: u16) -> EndpointSpec {
    EndpointSpec { name: format!("e{number}").into(), host: "127.0.0.1".into(), port: number, tls: false }
}
